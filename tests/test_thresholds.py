"""Thresholds of foreground probability, fixed and tuned."""

import pickle
from functools import partial

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import jaccard_score, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold, cross_val_score
from sklearn.model_selection import TunedThresholdClassifierCV as PixelThreshold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from skunet.checks import check_image_estimator
from skunet.containers import object_array
from skunet.datasets import make_cells
from skunet.metrics import (
    accuracy_scorer,
    dice_score,
    dice_scorer,
    iou_score,
    iou_scorer,
    pixel_accuracy,
    precision_score,
    precision_scorer,
    recall_score,
    recall_scorer,
)
from skunet.preprocessing import ImageResizer
from skunet.thresholds import FixedThresholdClassifier, TunedThresholdClassifierCV


class Pixels(ClassifierMixin, BaseEstimator):
    """Takes the pixels, 0 to 1, for probabilities of the higher label."""

    def __init__(self, ignore_label=None, offset=0.0):
        self.ignore_label = ignore_label
        self.offset = offset

    def fit(self, X, y, groups=None, sample_weight=None):
        labels = np.unique(np.concatenate([np.ravel(mask) for mask in y]))
        self.classes_ = labels[labels != self.ignore_label] if self.ignore_label is not None else labels
        self.given_ = (len(X), groups, sample_weight)
        return self

    def predict_proba(self, X):
        maps = [np.stack([1 - image, image]) for image in (np.clip(image + self.offset, 0, 1) for image in X)]
        return np.stack(maps) if isinstance(X, np.ndarray) and X.dtype != object else maps


class Flat(ClassifierMixin, BaseEstimator):
    """The same for scikit-learn: one probability per sample."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return np.hstack([1 - X, X])


def draw(sizes, labels=(0, 1), seed=0):
    """Return lists of probabilities and of masks that follow them loosely; no two thresholds are as good."""
    generator = np.random.default_rng(seed)
    masks = [generator.random(size) < 0.3 for size in sizes]
    images = [np.clip(0.35 * mask + 0.6 * generator.random(mask.shape), 0, 1) for mask in masks]
    return images, [np.asarray(labels).take(mask.astype(int)) for mask in masks]


def brute_force(images, masks, thresholds, score=iou_score, **kwargs):
    """Return the score at each threshold, from a loop over them."""
    low, high = np.unique(np.concatenate([mask.ravel() for mask in masks]))[:2]
    return [score(masks, [np.where(image >= t, high, low) for image in images], **kwargs) for t in thresholds]


SIZES = [(9, 11), (6, 6), (14, 3), (8, 8)]
PREFIT = {"cv": "prefit", "refit": False, "store_cv_results": True}


@pytest.mark.parametrize(
    ("scoring", "scorer", "score"),
    [
        (None, iou_scorer, iou_score),
        ("iou", make_scorer(iou_score), iou_score),
        ("dice", dice_scorer, dice_score),
        ("accuracy", accuracy_scorer, pixel_accuracy),
        ("precision", precision_scorer, precision_score),
        ("recall", recall_scorer, recall_score),
    ],
)
def test_named_scores_and_scorers_equal_a_loop_over_thresholds(scoring, scorer, score):
    images, masks = draw(SIZES)
    estimator = Pixels().fit(images, masks)
    tuned = TunedThresholdClassifierCV(estimator, scoring=scoring, **PREFIT).fit(images, masks)
    thresholds = tuned.cv_results_["thresholds"]
    np.testing.assert_allclose(thresholds, np.arange(100) / 100)
    expected = brute_force(images, masks, thresholds, score)
    np.testing.assert_allclose(tuned.cv_results_["scores"], expected, rtol=1e-12)
    assert tuned.best_score_ == pytest.approx(max(expected))
    assert expected[list(thresholds).index(tuned.best_threshold_)] == pytest.approx(max(expected))
    by_scorer = TunedThresholdClassifierCV(estimator, scoring=scorer, **PREFIT).fit(images, masks)
    np.testing.assert_array_equal(by_scorer.cv_results_["scores"], tuned.cv_results_["scores"])


def test_scorers_keep_their_arguments_and_sign():
    images, masks = draw(SIZES)
    scorer = make_scorer(iou_score, greater_is_better=False, average="micro")
    tuned = TunedThresholdClassifierCV(Pixels().fit(images, masks), scoring=clone(scorer, safe=False), **PREFIT)
    tuned.fit(images, masks)
    expected = brute_force(images, masks, tuned.cv_results_["thresholds"], average="micro")
    np.testing.assert_allclose(tuned.cv_results_["scores"], -np.array(expected), rtol=1e-12)


def foreground_jaccard(estimator, X, y):
    """A user's own scorer, of whose pixels nothing is known."""
    predicted = estimator.predict(X)
    return jaccard_score(np.concatenate([m.ravel() for m in y]), np.concatenate([m.ravel() for m in predicted]))


@pytest.mark.parametrize(
    ("ours", "theirs"), [("iou", "jaccard_macro"), (foreground_jaccard, "jaccard"), ("accuracy", "accuracy")]
)
def test_one_fold_equals_the_class_of_scikit_learn_on_single_pixels(ours, theirs):
    images, masks = draw([(10, 10)] * 6)
    thresholds = np.linspace(0.1, 0.9, 33)
    tuned = TunedThresholdClassifierCV(
        Pixels(), scoring=ours, thresholds=thresholds, cv=[(np.arange(3), np.arange(3, 6))], store_cv_results=True
    ).fit(np.stack(images), np.stack(masks))
    pixels = np.concatenate([image.ravel() for image in images])[:, None]
    labels = np.concatenate([mask.ravel() for mask in masks])
    reference = PixelThreshold(
        Flat(), scoring=theirs, thresholds=thresholds, cv=[(np.arange(300), np.arange(300, 600))], store_cv_results=True
    ).fit(pixels, labels)
    np.testing.assert_allclose(tuned.cv_results_["scores"], reference.cv_results_["scores"], rtol=1e-12)
    assert tuned.best_threshold_ == reference.best_threshold_
    assert tuned.best_score_ == pytest.approx(reference.best_score_)
    predicted = tuned.predict(np.stack(images))
    np.testing.assert_array_equal(predicted.ravel(), reference.predict(pixels))


def test_scores_of_folds_are_averaged():
    images, masks = draw(SIZES)
    tuned = TunedThresholdClassifierCV(Pixels(), cv=2, store_cv_results=True).fit(images, masks)
    thresholds = tuned.cv_results_["thresholds"]
    halves = [brute_force(images[part], masks[part], thresholds) for part in (slice(2), slice(2, 4))]
    np.testing.assert_allclose(tuned.cv_results_["scores"], np.mean(halves, axis=0), rtol=1e-12)


def test_equal_scores_leave_the_threshold_near_one_half():
    image, mask = np.array([[[0.1, 0.1], [0.9, 0.9]]] * 2), np.array([[[0, 0], [1, 1]]] * 2)
    tuned = TunedThresholdClassifierCV(Pixels().fit(image, mask), **PREFIT).fit(image, mask)
    assert (tuned.best_threshold_, tuned.best_score_) == (0.5, 1.0)


@pytest.mark.parametrize("labels", [(0, 255), (False, True), ("cell", "membrane"), (-3, 4)])
@pytest.mark.parametrize("container", ["list", "object_array", "stack"])
def test_predictions_have_the_values_and_the_container_of_the_data(labels, container):
    sizes = [(7, 5)] * 4 if container == "stack" else SIZES
    images, masks = draw(sizes, labels)
    build = {"list": list, "object_array": object_array, "stack": np.stack}[container]
    X, y = build(images), build(masks)
    tuned = TunedThresholdClassifierCV(Pixels(), cv=2).fit(X, y)
    predicted = tuned.predict(X)
    assert type(predicted) is type(X)
    assert predicted[0].dtype == tuned.classes_.dtype == masks[0].dtype
    for image, labels_of_image in zip(images, predicted, strict=True):
        np.testing.assert_array_equal(labels_of_image == max(labels), image >= tuned.best_threshold_)
    assert tuned.score(X, y) == pytest.approx(iou_score(masks, list(predicted)))


def test_volumes_and_channels(volumes):
    X, y = volumes
    tuned = TunedThresholdClassifierCV(make_segmenter(filters=2), cv=2).fit(np.stack([X, X], axis=-1), y)
    predicted = tuned.predict(np.stack([X, X], axis=-1))
    assert predicted.shape == y.shape
    assert set(np.unique(predicted)) <= {0, 1}


def test_pixels_to_ignore_are_not_counted():
    images, masks = draw(SIZES, (0, 255))
    marked = [np.where(np.arange(mask.size).reshape(mask.shape) % 3 == 0, 7, mask) for mask in masks]
    estimator = make_pipeline(FunctionTransformer(None), Pixels(ignore_label=7)).fit(images, marked)
    tuned = TunedThresholdClassifierCV(estimator, **PREFIT).fit(images, marked)
    thresholds = tuned.cv_results_["thresholds"]
    predictions = [[np.where(image >= t, 255, 0) for image in images] for t in thresholds]
    expected = [iou_score(marked, predicted, ignore_label=7) for predicted in predictions]
    np.testing.assert_allclose(tuned.cv_results_["scores"], expected, rtol=1e-12)
    assert tuned.score(images, marked) == pytest.approx(max(expected))


@pytest.mark.parametrize("by", ["image", "pixel"])
def test_weights_count_in_named_scores(by):
    images, masks = draw(SIZES)
    weights = [2.0, 0.0, 1.0, 0.5]
    if by == "pixel":
        weights = [np.arange(mask.size).reshape(mask.shape) % 4 / 2 for mask in masks]
    tuned = TunedThresholdClassifierCV(Pixels().fit(images, masks), **PREFIT)
    tuned.fit(images, masks, sample_weight=weights)
    expected = brute_force(images, masks, tuned.cv_results_["thresholds"], sample_weight=weights)
    np.testing.assert_allclose(tuned.cv_results_["scores"], expected, rtol=1e-12)
    assert tuned.score(images, masks, sample_weight=weights) == pytest.approx(max(expected))


def test_groups_and_weights_go_to_splits_and_estimator():
    images, masks = draw([(5, 5)] * 6)
    X, y, groups = np.stack(images), np.stack(masks), np.array(list("aabbcc"))
    tuned = TunedThresholdClassifierCV(Pixels(), cv=3).fit(X, y, groups=groups, sample_weight=np.ones(6))
    np.testing.assert_array_equal(tuned.estimator_.given_[1], groups)
    np.testing.assert_array_equal(tuned.estimator_.given_[2], np.ones(6))
    half = TunedThresholdClassifierCV(Pixels(), cv=0.5, refit=False, random_state=0).fit(X, y, groups=groups)
    n_images, groups_seen, _ = half.estimator_.given_
    assert (n_images, len(set(groups_seen))) in [(2, 1), (4, 2)]
    half_again = TunedThresholdClassifierCV(Pixels(), cv=0.5, refit=False, random_state=0).fit(X, y, groups=groups)
    assert half_again.best_score_ == half.best_score_
    in_pipeline = TunedThresholdClassifierCV(make_pipeline(FunctionTransformer(None), Pixels()), cv=GroupKFold(2))
    np.testing.assert_array_equal(in_pipeline.fit(X, y, groups=groups).estimator_[-1].given_[1], groups)


def test_a_segmenter_is_cut_where_a_loop_would_cut_it(cells, fitted):
    X, y = cells
    tuned = TunedThresholdClassifierCV(fitted, **PREFIT).fit(X, y)
    probabilities = fitted.predict_proba(X)[:, 1]
    scores = [iou_score(y, (probabilities >= t).astype(int)) for t in tuned.cv_results_["thresholds"]]
    np.testing.assert_allclose(tuned.cv_results_["scores"], scores, rtol=1e-12)
    assert tuned.score(X, y) == pytest.approx(max(scores))
    assert tuned.score(X, y) >= fitted.score(X, y)
    assert tuned.estimator_ is fitted
    np.testing.assert_array_equal(tuned.predict_proba(X)[:, 1], probabilities)


def test_thresholds_without_folds_read_each_image_once(cells, fitted):
    X, y = cells

    class Counting:
        """A lazy stack that counts what is read, and never gives more than one image."""

        shape, dtype, n_read = X.shape, X.dtype, 0

        def __len__(self):
            return len(X)

        def __getitem__(self, index):
            self.n_read += 1
            return X[int(index)]

    lazy = Counting()
    TunedThresholdClassifierCV(fitted, **PREFIT).fit(lazy, y)
    assert lazy.n_read <= len(X) + 1


def test_tensors_files_and_data_sets_are_predicted(cells, fitted, tmp_path):
    import imageio.v3 as iio

    X, _ = cells
    fixed = FixedThresholdClassifier(fitted, threshold=0.4)
    expected = fixed.predict(X)
    assert isinstance(expected, np.ndarray)
    np.testing.assert_array_equal(expected, fitted.predict_proba(X)[:, 1] >= 0.4)
    np.testing.assert_array_equal(fixed.predict(torch.as_tensor(X.copy())[:, None]), expected)
    paths = [tmp_path / f"{index}.png" for index in range(2)]
    for path, image in zip(paths, X, strict=False):
        iio.imwrite(path, image)
    np.testing.assert_array_equal(np.stack(fixed.predict(paths)), expected[:2])
    pairs = torch.utils.data.TensorDataset(torch.as_tensor(X.copy())[:, None], torch.as_tensor(expected).long())
    np.testing.assert_array_equal(fixed.predict(pairs), expected)
    assert fixed.score(pairs) == 1


def test_fits_a_data_set_of_pairs(cells):
    X, y = cells
    pairs = torch.utils.data.TensorDataset(torch.as_tensor(X.copy())[:, None], torch.as_tensor(y.copy()).long())
    tuned = TunedThresholdClassifierCV(make_segmenter(filters=2), cv=2, store_cv_results=True).fit(pairs)
    arrays = TunedThresholdClassifierCV(make_segmenter(filters=2), cv=2, store_cv_results=True).fit(X, y)
    np.testing.assert_allclose(tuned.cv_results_["scores"], arrays.cv_results_["scores"])


@pytest.mark.parametrize("pos_label", [None, 1, 0])
def test_a_fixed_threshold_is_that_of_the_foreground(pos_label):
    images, masks = draw([(6, 6)] * 2)
    X, y = np.stack(images), np.stack(masks)
    fixed = FixedThresholdClassifier(Pixels(), threshold=0.3, pos_label=pos_label).fit(X, y)
    expected = np.where(1 - X >= 0.3, 0, 1) if pos_label == 0 else np.where(X >= 0.3, 1, 0)
    np.testing.assert_array_equal(fixed.predict(X), expected)
    np.testing.assert_array_equal(FixedThresholdClassifier(Pixels()).fit(X, y).predict(X), X >= 0.5)


def test_parameters_are_searched_cloned_and_pickled(cells):
    X, y = cells
    fixed = FixedThresholdClassifier(make_segmenter(filters=2), threshold=0.4)
    grid = {"estimator__depth": [0, 1], "threshold": [0.3, 0.5]}
    search = GridSearchCV(fixed, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_estimator_.get_params()["estimator__depth"] == search.best_params_["estimator__depth"]
    assert clone(fixed).set_params(estimator__filters=3).get_params()["estimator__filters"] == 3
    tuned = TunedThresholdClassifierCV(make_segmenter(filters=2), cv=2, thresholds=[0.6, 0.4], scoring=iou_scorer)
    search = GridSearchCV(tuned, {"estimator__depth": [0, 1]}, cv=2, error_score="raise").fit(X, y)
    best = search.best_estimator_
    assert best.best_threshold_ in (0.4, 0.6)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(best)).predict(X), best.predict(X))
    assert not hasattr(clone(best), "best_threshold_")
    assert is_classifier(tuned)
    assert get_tags(tuned).input_tags == get_tags(make_segmenter()).input_tags
    assert (best.spatial_ndim_, best.n_channels_in_) == (2, 1)
    assert "TunedThresholdClassifierCV" in tuned._repr_html_()
    assert repr(fixed).startswith("FixedThresholdClassifier(estimator=UNetSegmenter(")


@pytest.mark.slow
def test_folds_in_processes_give_the_same(cells):
    X, y = cells
    tuned = TunedThresholdClassifierCV(make_segmenter(filters=2), cv=2, store_cv_results=True)
    serial, parallel = clone(tuned).fit(X, y), clone(tuned).set_params(n_jobs=2).fit(X, y)
    np.testing.assert_allclose(parallel.cv_results_["scores"], serial.cv_results_["scores"])


def test_frozen_segmenters_are_tuned_without_training(cells, fitted):
    X, y = cells
    tuned = TunedThresholdClassifierCV(FrozenEstimator(fitted), cv=2, thresholds=10).fit(X, y)
    assert tuned.estimator_.estimator is fitted
    assert 0 < cross_val_score(FixedThresholdClassifier(FrozenEstimator(fitted)), X, y, cv=KFold(2)).mean() < 1


def test_before_fit_nothing_is_predicted():
    X = np.zeros((1, 4, 4))
    for threshold in (FixedThresholdClassifier(Pixels()), TunedThresholdClassifierCV(Pixels())):
        for method in (threshold.predict, threshold.predict_proba):
            with pytest.raises(NotFittedError, match=f"{type(threshold).__name__} instance is not fitted"):
                method(X)
        assert not hasattr(threshold, "classes_")
    with pytest.raises(NotFittedError, match="must be fitted"):
        TunedThresholdClassifierCV(Pixels(), **PREFIT).fit(X, X)


def test_labels_that_a_frozen_estimator_does_not_know_raise():
    images, masks = draw(SIZES)
    frozen = FrozenEstimator(Pixels().fit(images, masks))
    with pytest.raises(ValueError, match=r"labels listed in classes=\[0, 1\]; mask 0 holds \[9\]"):
        TunedThresholdClassifierCV(frozen, cv=2).fit(images, [mask * 9 for mask in masks])


@pytest.mark.parametrize("kind", [FixedThresholdClassifier, TunedThresholdClassifierCV])
def test_more_than_two_classes_raise_before_training(kind):
    X = np.random.default_rng(0).random((6, 4, 4))
    y = np.arange(96).reshape(6, 4, 4) % 3

    class NeverFitted(Pixels):
        def fit(self, X, y):
            raise AssertionError("fit was called")

    with pytest.raises(ValueError, match=r"needs exactly 2 classes; got 3: \[0, 1, 2\]"):
        kind(NeverFitted()).fit(X, y)
    with pytest.raises(ValueError, match="got 3"):
        kind(make_segmenter(classes=[0, 1, 2])).fit(X, y % 2)


def test_three_classes_of_a_fitted_segmenter_raise_at_predict():
    X, y = np.random.default_rng(0).random((2, 4, 4)), np.arange(32).reshape(2, 4, 4) % 3
    with pytest.raises(ValueError, match="needs exactly 2 classes"):
        FixedThresholdClassifier(Pixels().fit(X, y)).predict(X)


def test_labels_that_the_fitted_estimator_does_not_know_raise():
    images, masks = draw(SIZES)
    estimator = Pixels().fit(images, masks)
    with pytest.raises(ValueError, match=r"labels listed in classes=\[0, 1\]; mask 2 holds \[9\]"):
        TunedThresholdClassifierCV(estimator, **PREFIT).fit(images, [*masks[:2], masks[2] * 9, masks[3]])


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"thresholds": 1}, "thresholds must be a whole number of at least 2"),
        ({"thresholds": [0.5, 1.2]}, "numbers from 0 to 1"),
        ({"thresholds": []}, "thresholds must be"),
        ({"thresholds": "many"}, "thresholds must be"),
        ({"scoring": "f1"}, "scoring must be one of"),
        ({"cv": "fit"}, "cv must be"),
        ({"random_state": "seed"}, "cannot be used to seed"),
        ({"cv": 1.5}, "test_size=1.5"),
        ({"cv": "prefit"}, "refit must be False"),
        ({"cv": 2, "refit": False}, "refit must be True where cv makes several splits; got 2"),
    ],
)
def test_parameters_out_of_range_raise(parameters, words):
    images, masks = draw(SIZES)
    with pytest.raises(ValueError, match=words):
        TunedThresholdClassifierCV(Pixels(), **parameters).fit(images, masks)


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"threshold": 1.1}, 'threshold must be "auto" or a number from 0 to 1; got 1.1'),
        ({"threshold": "high"}, "threshold must be"),
        ({"pos_label": 7}, r"pos_label must be one of the labels \[0, 1\]; got 7"),
        ({"response_method": "decision_function"}, "response_method must be"),
    ],
)
def test_fixed_parameters_out_of_range_raise(parameters, words):
    images, masks = draw(SIZES)
    with pytest.raises(ValueError, match=words):
        FixedThresholdClassifier(Pixels(), **parameters).fit(images, masks)


def test_lengths_that_differ_raise():
    images, masks = draw(SIZES)
    with pytest.raises(ValueError, match="same number of images"):
        FixedThresholdClassifier(Pixels()).fit(images, masks[:3])


def test_no_pixel_that_counts_raises():
    images, masks = draw(SIZES)
    with pytest.raises(ValueError, match="no held-out pixel counts"):
        TunedThresholdClassifierCV(Pixels().fit(images, masks), **PREFIT).fit(images, masks, sample_weight=[0] * 4)


def test_a_fit_that_fails_at_the_end_leaves_the_older_one():
    class Tired(Pixels):
        n_left = 3

        def fit(self, X, y):
            Tired.n_left -= 1
            if Tired.n_left < 0:
                raise MemoryError
            return super().fit(X, y)

    images, masks = draw(SIZES)
    tuned = TunedThresholdClassifierCV(Tired(), cv=2).fit(images, masks)
    before = dict(vars(tuned))
    Tired.n_left = 2
    with pytest.raises(MemoryError):
        tuned.fit(images, [1 - mask for mask in masks])
    assert vars(tuned) == before


def test_a_fold_that_counts_nowhere_is_left_out():
    images, masks = draw(SIZES)
    weights = np.array([1.0, 1.0, 0.0, 0.0])
    tuned = TunedThresholdClassifierCV(Pixels(), cv=[([2, 3], [0, 1]), ([0, 1], [2, 3])], store_cv_results=True)
    tuned.fit(images, masks, sample_weight=weights)
    expected = brute_force(images[:2], masks[:2], tuned.cv_results_["thresholds"])
    np.testing.assert_allclose(tuned.cv_results_["scores"], expected, rtol=1e-12)


@pytest.mark.parametrize("cv", [2, None, KFold(2)])
def test_images_without_weight_are_absent(cv):
    images, masks = draw([(5, 5)] * 7)
    weights = np.array([1.0, 0, 1, 1, 1, 1, 1])
    tuned = TunedThresholdClassifierCV(Pixels(), cv=cv, store_cv_results=True)
    with_it = clone(tuned).fit(images, masks, sample_weight=weights)
    without = clone(tuned).fit(images[:1] + images[2:], masks[:1] + masks[2:])
    np.testing.assert_array_equal(with_it.cv_results_["scores"], without.cv_results_["scores"])
    assert with_it.estimator_.given_[0] == 6


def test_a_probability_at_the_threshold_is_foreground():
    X = np.array([[[0.0, 0.25, 0.5], [0.75, 1.0, 0.25]]], np.float32)
    y = (X >= 0.25).astype(int)
    tuned = TunedThresholdClassifierCV(Pixels().fit(X, y), thresholds=[0, 0.25, 0.5, 0.75, 1], **PREFIT).fit(X, y)
    np.testing.assert_allclose(tuned.cv_results_["scores"], brute_force(X, y, tuned.cv_results_["thresholds"]))
    assert (tuned.best_threshold_, tuned.best_score_) == (0.25, 1)
    np.testing.assert_array_equal(tuned.predict(X), y)


def test_a_search_inside_gets_the_groups():
    images, masks = draw([(5, 5)] * 8)
    search = GridSearchCV(Pixels(), {"offset": [0, 0.1]}, cv=GroupKFold(2), scoring=lambda pixels, X, y: pixels.offset)
    tuned = TunedThresholdClassifierCV(search, cv=2).fit(
        object_array(images), object_array(masks), groups=np.arange(8) // 2
    )
    assert tuned.estimator_.best_params_["offset"] == 0.1


def test_resized_images_are_cut_at_their_original_size(cells):
    X, y = cells
    for estimator in (
        make_pipeline(ImageResizer(16), FixedThresholdClassifier(make_segmenter(filters=2), threshold=0.4)),
        FixedThresholdClassifier(make_pipeline(ImageResizer(16), make_segmenter(filters=2)), threshold=0.4),
    ):
        predicted = estimator.fit(X, y).predict(X)
        assert predicted.shape == y.shape
        np.testing.assert_array_equal(predicted, estimator.predict_proba(X)[:, 1] >= 0.4)
        assert estimator.score(X, y) == pytest.approx(iou_score(y, predicted))
    tuned = TunedThresholdClassifierCV(make_segmenter(filters=2), cv=2)
    assert make_pipeline(ImageResizer(16), tuned).fit(list(X), list(y)).predict(list(X))[0].shape == y[0].shape


# Of binary masks only: these checks fit three classes.
THREE_CLASSES = {"check_refit_forgets", "check_proba_form", "check_proba_agrees", "check_score", "check_classes"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "spatial_ndim"), [(FixedThresholdClassifier, 3), (partial(TunedThresholdClassifierCV, cv=2), 2)]
)
def test_the_contract_of_image_estimators_is_kept(kind, spatial_ndim):
    results = check_image_estimator(kind(make_segmenter(filters=2)), spatial_ndim=spatial_ndim, on_fail=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert set(failed) <= THREE_CLASSES, failed
    assert all("needs exactly 2 classes" in str(exception) for exception in failed.values())
    assert sum(result["status"] == "passed" for result in results) >= 65


def test_images_with_one_class_in_a_fold(cells):
    X, y = make_cells(4, size=16, random_state=0)
    y = y.copy()
    y[2:] = 0
    segmenter = make_segmenter(filters=2, classes=[0, 1])
    tuned = TunedThresholdClassifierCV(segmenter, cv=2).fit(X, y)
    assert np.isfinite(tuned.best_score_)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cv": StratifiedKFold(2)}, r"Pass skunet\.model_selection\.StratifiedKFold, "),
        ({"scoring": iou_score}, r"got the metric iou_score\. Pass skunet\.metrics\.iou_scorer"),
        ({"scoring": "f1"}, r"scoring must be one of \['iou', .*\], a scorer or a callable; got 'f1'\."),
    ],
)
def test_splitters_by_class_and_metrics_are_refused_before_training(cells, options, message):
    X, y = cells
    with pytest.raises(ValueError, match=message):
        TunedThresholdClassifierCV(make_segmenter(max_epochs=-1), **options).fit(X, y)
