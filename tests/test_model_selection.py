"""The drop-ins for scikit-learn's tools, with images in every container."""

import inspect
import pickle

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import torch
from conftest import make_segmenter, real_data
from sklearn import config_context
from sklearn import model_selection as of_sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skunet import model_selection as drop_ins
from skunet.containers import object_array, open_container
from skunet.image_array import StackView
from skunet.metrics import accuracy_scorer, dice_scorer, iou_score, iou_scorer, precision_scorer, recall_scorer
from skunet.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    HalvingRandomSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedGroupKFold,
    StratifiedKFold,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    image_array,
    learning_curve,
    permutation_test_score,
    train_test_split,
    validation_curve,
)
from skunet.splits import check_splitter
from skunet.thresholds import FixedThresholdClassifier

N_IMAGES = 8


class NearestMean(ClassifierMixin, BaseEstimator):
    """Gives each pixel the label whose mean brightness, plus `shift`, is nearest; reads any container."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def fit(self, X, y, groups=None, sample_weight=None):
        images, masks = open_container(X, "X"), open_container(y, "y")
        weights = np.ones(len(images)) if sample_weight is None else sample_weight
        pixels = np.concatenate([images[i].ravel() for i in range(len(images)) if np.any(weights[i])])
        labels = np.concatenate([masks[i].ravel() for i in range(len(masks)) if np.any(weights[i])])
        self.classes_ = np.unique(labels)
        self.means_ = np.array([pixels[labels == label].mean() for label in self.classes_])
        self.groups_ = groups
        return self

    def partial_fit(self, X, y, classes, sample_weight=None):
        assert list(classes) == [0, 255]
        return self.fit(X, y, sample_weight=sample_weight)

    def predict(self, X):
        return self._each(X, lambda distances: self.classes_[distances.argmin(0)])

    def predict_proba(self, X):
        return self._each(X, lambda distances: np.exp(-distances) / np.exp(-distances).sum(0))

    def _each(self, X, finish):
        images = open_container(X, "X")
        means = (self.means_ + self.shift)[:, None, None]
        results = [finish(np.abs(images[i].squeeze() - means)) for i in range(len(images))]
        if images.kind == "stack":
            return np.stack(results)
        return results if images.kind == "list" else object_array(results)

    def score(self, X, y, sample_weight=None):
        return iou_scorer(self, X, [open_container(y, "y")[i] for i in range(len(y))])


class Lazy:
    """Has what the house asks of a lazy array, and cannot be read whole."""

    def __init__(self, stack):
        self.stack, self.shape, self.dtype, self.n_read = stack, stack.shape, stack.dtype, 0

    def __len__(self):
        return len(self.stack)

    def __getitem__(self, index):
        assert isinstance(index, int | np.integer)
        self.n_read += 1
        return self.stack[index]


def draw_images(n_images=N_IMAGES, widths=(16, 20)):
    """Return images of equal height, and masks of 0 and 255 with more foreground from image to image."""
    generator = np.random.default_rng(0)
    images, masks = [], []
    for index in range(n_images):
        mask = np.zeros((16, widths[index % len(widths)]), dtype=np.uint8)
        mask[:, : 2 + index] = 255
        images.append(np.clip(mask / 2 + generator.normal(60, 40, mask.shape), 0, 255).astype(np.uint8))
        masks.append(mask)
    return images, masks


def write(arrays, folder):
    folder.mkdir()
    for index, array in enumerate(arrays):
        iio.imwrite(folder / f"{index}.png", array)
    return [folder / f"{index}.png" for index in range(len(arrays))]


def as_memmap(arrays, path):
    array = np.memmap(path, dtype=np.uint8, mode="w+", shape=(len(arrays), *arrays[0].shape))
    array[:] = np.stack(arrays)
    return array


KINDS = ["stack", "equal_list", "ragged_list", "ragged_objects", "strings", "paths", "lazy", "memmap", "tensor"]
STACKS = ("stack", "lazy", "memmap", "tensor")


def contain(images, masks, kind, folder):
    """Return images and masks in a container of this kind."""
    if kind in ("ragged_list", "equal_list"):
        return list(images), list(masks)
    if kind == "ragged_objects":
        return object_array(images), object_array(masks)
    if kind in ("strings", "paths"):
        paths = write(images, folder / "images"), write(masks, folder / "masks")
        return paths if kind == "paths" else tuple([str(path) for path in some] for some in paths)
    X, y = np.stack(images), np.stack(masks)
    if kind == "lazy":
        return Lazy(X), Lazy(y)
    if kind == "memmap":
        return as_memmap(images, folder / "images.dat"), as_memmap(masks, folder / "masks.dat")
    return (torch.as_tensor(X), torch.as_tensor(y)) if kind == "tensor" else (X, y)


@pytest.fixture(params=KINDS)
def contained(request, tmp_path):
    """Images and masks as plain lists, and again in each kind of container."""
    widths = (16,) if request.param in (*STACKS, "equal_list") else (16, 20)
    images, masks = draw_images(widths=widths)
    return request.param, images, masks, *contain(images, masks, request.param, tmp_path)


def pick(items, positions):
    return [items[position] for position in positions]


def score_by_hand(estimator, images, masks, splits):
    """Return the scores of a loop over splits, with lists of arrays."""
    fitted = [clone(estimator).fit(pick(images, train), pick(masks, train)) for train, _ in splits]
    return [fit.score(pick(images, test), pick(masks, test)) for fit, (_, test) in zip(fitted, splits, strict=True)]


def splits_of(n_splits, n_images=N_IMAGES):
    return list(KFold(n_splits).split(np.zeros(n_images)))


# ---- what scikit-learn itself does


@pytest.mark.parametrize("kind", ["ragged_list", "strings"])
def test_sklearns_own_tools_refuse_these_containers(kind, tmp_path):
    X, y = contain(*draw_images(), kind, tmp_path)
    reason = "broadcast" if kind == "ragged_list" else "n_splits=2 cannot be greater"
    with pytest.raises(ValueError, match=reason):
        of_sklearn.cross_val_score(NearestMean(), X, y, cv=2)
    with pytest.raises(ValueError, match=reason):
        of_sklearn.GridSearchCV(NearestMean(), {"shift": [0]}, cv=2).fit(X, y)


def test_sklearns_own_tools_refuse_masks_where_they_look_at_labels():
    X, y = map(np.stack, draw_images(widths=(16,)))
    with pytest.raises(ValueError, match="dim 3"):
        of_sklearn.train_test_split(X, y, stratify=y)
    with pytest.raises(ValueError, match="dim 3"):
        next(of_sklearn.StratifiedKFold(2).split(X, y))
    with pytest.raises(RuntimeWarning, match=r"total number of classes \(16\)"):  # the height
        of_sklearn.cross_val_predict(NearestMean(), X, y, cv=2, method="predict_proba")
    with pytest.raises(ValueError, match="dim 3"):
        of_sklearn.HalvingGridSearchCV(NearestMean(), {"shift": [0, 1]}, cv=2).fit(X, y)


@pytest.mark.parametrize("kind", ["ragged_list", "ragged_objects", "strings", "lazy", "stack", "tensor"])
def test_image_array_is_what_sklearns_own_tools_take(kind, tmp_path):
    images, masks = draw_images(widths=(16,) if kind in STACKS else (16, 20))
    X, y = map(image_array, contain(images, masks, kind, tmp_path))
    assert X.shape == y.shape == (N_IMAGES,)
    assert X.dtype == y.dtype == object
    scores = of_sklearn.cross_val_score(NearestMean(), X, y, cv=2, error_score="raise")
    assert scores.tolist() == score_by_hand(NearestMean(), images, masks, splits_of(2))


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [(None, ValueError, "got None"), ("folder", TypeError, "got str"), ([], ValueError, "at least one image")],
)
def test_image_array_refuses_what_is_no_container(images, error, message):
    with pytest.raises(error, match=message):
        image_array(images)


def test_pairs_of_a_dataset_cannot_be_split():
    with pytest.raises(TypeError, match="TensorDataset"):
        cross_val_score(NearestMean(), torch.utils.data.TensorDataset(torch.zeros(4, 1, 8, 8), torch.zeros(4, 8, 8)))


# ---- the same names and signatures


@pytest.mark.parametrize("name", sorted(set(drop_ins.__all__) & set(dir(of_sklearn))))
def test_signature_is_that_of_sklearn(name):
    ours, theirs = inspect.signature(getattr(drop_ins, name)), inspect.signature(getattr(of_sklearn, name))
    added = ["groups"] if name == "train_test_split" else []
    assert [*theirs.parameters, *added] == [*ours.parameters]
    for parameter in theirs.parameters.values():
        same = ours.parameters[parameter.name]
        assert same.kind == parameter.kind
        if (name, parameter.name) != ("TunedThresholdClassifierCV", "scoring"):  # "balanced_accuracy" takes no masks
            assert repr(same.default) == repr(parameter.default)


def test_every_name_of_sklearn_that_concerns_images_is_there():
    of_other_rooms = {"FixedThresholdClassifier", "TunedThresholdClassifierCV"}
    of_labels_or_plots = {
        *("RepeatedStratifiedKFold", "check_cv", "LearningCurveDisplay", "ValidationCurveDisplay"),
        *("BaseCrossValidator", "BaseShuffleSplit"),
    }
    assert set(of_sklearn.__all__) - of_other_rooms - of_labels_or_plots <= set(drop_ins.__all__)


# ---- each tool in each container


def test_scores_are_those_of_a_loop_by_hand(contained):
    _, images, masks, X, y = contained
    expected = score_by_hand(NearestMean(), images, masks, splits_of(4))
    assert len(set(expected)) > 1
    assert cross_val_score(NearestMean(), X, y, cv=4, error_score="raise").tolist() == expected
    results = cross_validate(NearestMean(), X, y, cv=4, scoring={"own": iou_scorer}, return_estimator=True)
    assert results["test_own"].tolist() == expected
    assert len(results["estimator"]) == 4


@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_predictions_are_those_of_a_loop_by_hand_in_the_container_of_X(contained, method):
    kind, images, masks, X, y = contained
    expected = [None] * N_IMAGES
    for train, test in splits_of(3):
        fitted = NearestMean().fit(pick(images, train), pick(masks, train))
        for position, result in zip(test, getattr(fitted, method)(pick(images, test)), strict=True):
            expected[position] = result
    got = cross_val_predict(NearestMean(), X, y, cv=3, method=method)
    if kind in STACKS:
        np.testing.assert_array_equal(got, np.stack(expected))
    else:
        assert type(got) is (np.ndarray if kind == "ragged_objects" else list)
        assert all(np.array_equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("search", "options"), [(GridSearchCV, {}), (RandomizedSearchCV, {"n_iter": 3, "random_state": 0})]
)
def test_searches_find_what_a_loop_by_hand_finds(contained, search, options):
    _, images, masks, X, y = contained
    shifts = [-60.0, 0.0, 60.0]
    found = search(NearestMean(), {"shift": shifts}, cv=2, scoring=iou_scorer, error_score="raise", **options).fit(X, y)
    means = [np.mean(score_by_hand(NearestMean(shift), images, masks, splits_of(2))) for shift in shifts]
    assert sorted(found.cv_results_["mean_test_score"]) == sorted(means)
    assert found.best_params_ == {"shift": shifts[int(np.argmax(means))]}
    assert found.score(X, y) == found.best_estimator_.score(images, masks)
    assert len(found.predict(X)) == N_IMAGES


@pytest.mark.parametrize("search", [HalvingGridSearchCV, HalvingRandomSearchCV])
@pytest.mark.parametrize("min_resources", ["exhaust", "smallest"])
def test_halving_starts_with_two_images_per_split(contained, search, min_resources):
    _, images, masks, X, y = contained
    options = {} if search is HalvingGridSearchCV else {"n_candidates": 2}
    found = search(
        NearestMean(), {"shift": [0.0, 90.0]}, cv=2, factor=2, random_state=0, min_resources=min_resources,
        error_score="raise", **options,
    ).fit(X, y)  # fmt: skip
    assert found.n_resources_ == [4, 8]
    splits = splits_of(2)
    last = found.cv_results_["mean_test_score"][found.best_index_]
    assert last == np.mean(score_by_hand(found.best_estimator_, images, masks, splits))


def test_curves_are_those_of_a_loop_by_hand(contained):
    _, images, masks, X, y = contained
    splits = splits_of(2)
    train_scores, test_scores = validation_curve(
        NearestMean(), X, y, param_name="shift", param_range=[0.0, 30.0], cv=2, error_score="raise"
    )
    for row, shift in enumerate([0.0, 30.0]):
        assert test_scores[row].tolist() == score_by_hand(NearestMean(shift), images, masks, splits)
    assert (train_scores != test_scores).any()
    sizes, _, test_scores = learning_curve(NearestMean(), X, y, cv=2, train_sizes=[2, 4], error_score="raise")
    for row, size in enumerate(sizes):
        parts = [(train[:size], test) for train, test in splits]
        assert test_scores[row].tolist() == score_by_hand(NearestMean(), images, masks, parts)


def test_learning_curve_with_partial_fit_knows_all_labels(contained):
    _, images, masks, X, y = contained
    curve = learning_curve(
        NearestMean(), X, y, cv=2, train_sizes=[2, 4], exploit_incremental_learning=True, error_score="raise"
    )
    # `partial_fit` of NearestMean forgets what came before: the second size scores images 2 and 3 of the fold alone.
    parts = [(train[2:4], test) for train, test in splits_of(2)]
    assert curve[2][1].tolist() == score_by_hand(NearestMean(), images, masks, parts)


def test_permutation_test_exchanges_masks_among_images_of_one_size(contained):
    _, images, masks, X, y = contained
    score, permuted, pvalue = permutation_test_score(NearestMean(), X, y, cv=2, n_permutations=5)
    assert score == np.mean(score_by_hand(NearestMean(), images, masks, splits_of(2)))
    assert (permuted < score).all()
    assert pvalue == 1 / 6


# ---- with the network


@pytest.mark.parametrize("kind", ["stack", "ragged_list", "ragged_objects", "strings"])
def test_every_tool_runs_with_the_segmenter(kind, tmp_path):
    images, masks = draw_images(6, widths=(16,) if kind == "stack" else (16, 20))
    X, y = contain(images, masks, kind, tmp_path)
    segmenter = make_segmenter(filters=2, train_split=None, patch_size=16)
    splits = splits_of(2, 6)
    expected = score_by_hand(segmenter, images, masks, splits)
    options = {"cv": 2, "error_score": "raise"}
    np.testing.assert_allclose(cross_val_score(segmenter, X, y, **options), expected, rtol=1e-6)
    np.testing.assert_allclose(cross_validate(segmenter, X, y, **options)["test_score"], expected, rtol=1e-6)
    grid = {"filters": [2, 4]}
    for search in (GridSearchCV(segmenter, grid, **options), RandomizedSearchCV(segmenter, grid, n_iter=2, **options)):
        found = search.fit(X, y)
        place = found.cv_results_["params"].index({"filters": 2})
        np.testing.assert_allclose(found.cv_results_["mean_test_score"][place], np.mean(expected), rtol=1e-6)
        assert [len(row) for row in found.predict(X)] == [16] * 6
    for search in (
        HalvingGridSearchCV(segmenter, grid, factor=2, resource="max_epochs", max_resources=2, **options),
        HalvingRandomSearchCV(segmenter, grid, factor=2, n_candidates=2, random_state=0, **options),
    ):
        assert search.fit(X, y).best_estimator_.filters in (2, 4)
    _, scores = validation_curve(segmenter, X, y, param_name="filters", param_range=[2], **options)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    _, _, scores = learning_curve(segmenter, X, y, train_sizes=[3], **options)
    np.testing.assert_allclose(scores[0], expected, rtol=1e-6)
    _, _, scores = learning_curve(segmenter, X, y, train_sizes=[2, 3], exploit_incremental_learning=True, **options)
    assert np.isfinite(scores).all()
    score, _, _ = permutation_test_score(segmenter, X, y, cv=2, n_permutations=1)
    assert score == pytest.approx(np.mean(expected), rel=1e-6)


@pytest.mark.parametrize("kind", ["stack", "ragged_list", "ragged_objects", "strings"])
def test_maps_of_the_segmenter_agree_with_its_labels(kind, tmp_path):
    images, masks = draw_images(4, widths=(16,) if kind == "stack" else (16, 20))
    X, y = contain(images, masks, kind, tmp_path)
    segmenter = make_segmenter(filters=2, train_split=None, patch_size=16)
    labels = cross_val_predict(segmenter, X, y, cv=2)
    maps = cross_val_predict(segmenter, X, y, cv=2, method="predict_proba")
    fitted = clone(segmenter).fit(images[2:], masks[2:])
    for index in range(2):
        np.testing.assert_array_equal(labels[index], fitted.predict(images[:2])[index])
        np.testing.assert_allclose(maps[index], fitted.predict_proba(images[:2])[index], atol=1e-6)
    for index in range(4):
        assert maps[index].shape == (2, *masks[index].shape)
        np.testing.assert_array_equal(np.array([0, 255])[np.argmax(maps[index], axis=0)], labels[index])


# ---- classes that a fold lacks


def images_with_a_rare_class():
    """Return four images whose brightness is their label; label 1 only in the first two, label 9 nowhere learned."""
    y = np.zeros((4, 8, 8), dtype=np.int16)
    y[:, 4:] = 7
    y[:2, :2] = 1
    return y.astype(np.float64) * 10, y


@pytest.mark.parametrize("as_list", [False, True])
def test_a_class_that_a_fold_lacks_gets_zeros_and_shifts_no_other(as_list):
    X, y = images_with_a_rare_class()
    arguments = (list(X), list(y)) if as_list else (X, y)
    with pytest.warns(RuntimeWarning, match="fitted on 2 of 3 classes"):
        maps = cross_val_predict(NearestMean(), *arguments, cv=2, method="predict_proba")
    maps = np.stack(maps)
    assert maps.shape == (4, 3, 8, 8)
    np.testing.assert_array_equal(maps[:2, 1], 0)
    np.testing.assert_array_equal(maps.argmax(1)[:, 4:], 2)
    np.testing.assert_array_equal(maps.argmax(1)[2:], (y[2:] == 7) * 2)


def test_a_label_that_no_fold_learned_has_a_map_of_zeros():
    X, y = images_with_a_rare_class()
    splits = [([2], [0, 1]), ([2], [2, 3])]
    with pytest.warns(RuntimeWarning, match="fitted on 2 of 3 classes"):
        maps = cross_val_predict(NearestMean(), X, y, cv=splits, method="predict_proba")
    assert maps.shape == (4, 3, 8, 8)
    assert not maps[:, 1].any()


def test_a_label_to_ignore_has_no_map():
    images, masks = draw_images(4, widths=(16,))
    X, y = np.stack(images), np.stack(masks)
    y[:, 0] = 7
    segmenter = make_segmenter(filters=2, ignore_label=7)
    assert cross_val_predict(segmenter, X, y, cv=2, method="predict_proba").shape == (4, 2, 16, 16)


# ---- as in scikit-learn


def test_a_stack_gives_what_sklearns_own_tools_give():
    X, y = map(np.stack, draw_images(widths=(16,)))
    assert cross_val_score(NearestMean(), X, y).tolist() == of_sklearn.cross_val_score(NearestMean(), X, y).tolist()
    groups = np.repeat(np.arange(4), 2)
    for options in ({}, {"groups": groups, "cv": GroupKFold(2)}):
        ours = permutation_test_score(NearestMean(), X, y, n_permutations=4, random_state=3, **options)
        theirs = of_sklearn.permutation_test_score(NearestMean(), X, y, n_permutations=4, random_state=3, **options)
        for our, their in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(our, their)


def test_permutation_test_needs_two_images_of_one_size():
    images, masks = draw_images(4, widths=(16, 17, 18, 19))
    with pytest.raises(ValueError, match="Some images must share their size"):
        permutation_test_score(NearestMean(), images, masks, cv=2)
    with pytest.raises(ValueError, match="n_permutations must be at least 1"):
        permutation_test_score(NearestMean(), images, masks, cv=2, n_permutations=0)


def test_one_time_splits_serve_every_permutation():
    images, masks = draw_images()
    _, scores, _ = permutation_test_score(NearestMean(), images, masks, cv=iter(splits_of(2)), n_permutations=3)
    assert scores.shape == (3,)


@pytest.mark.slow  # the processes start first
@pytest.mark.parametrize("kind", ["ragged_list", "strings", "memmap"])
def test_two_processes_give_what_one_gives(kind, tmp_path):
    images, masks = draw_images(widths=(16,) if kind == "memmap" else (16, 20))
    X, y = contain(images, masks, kind, tmp_path)
    search = GridSearchCV(NearestMean(), {"shift": [0.0, 60.0]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    alone = clone(search).set_params(n_jobs=None).fit(X, y)
    np.testing.assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
    two = cross_val_predict(NearestMean(), X, y, cv=2, n_jobs=2)
    for one, other in zip(cross_val_predict(NearestMean(), X, y, cv=2), two, strict=True):
        np.testing.assert_array_equal(one, other)


def test_searches_are_cloned_shown_and_pickled_as_sklearns():
    images, masks = draw_images()
    search = GridSearchCV(NearestMean(), {"shift": [0.0]}, cv=2, refit=False)
    assert repr(search) == repr(of_sklearn.GridSearchCV(NearestMean(), {"shift": [0.0]}, cv=2, refit=False))
    assert "NearestMean" in search._repr_html_()
    assert type(clone(search)) is GridSearchCV
    assert not hasattr(search.fit(images, masks), "best_estimator_")
    again = pickle.loads(pickle.dumps(clone(search).set_params(refit=True).fit(images, masks)))
    assert len(again.predict(images)) == N_IMAGES


def test_a_pipeline_and_a_search_can_be_nested():
    images, masks = draw_images()
    inner = GridSearchCV(make_pipeline(FunctionTransformer(), NearestMean()), {"nearestmean__shift": [0.0, 60.0]}, cv=2)
    scores = cross_val_score(inner, images, masks, cv=2, error_score="raise")
    expected = []
    for train, test in splits_of(2):
        fitted = clone(inner).fit(pick(images, train), pick(masks, train))
        expected.append(fitted.score(pick(images, test), pick(masks, test)))
    assert scores.tolist() == expected


def test_groups_are_honoured_by_every_tool():
    images, masks = draw_images()
    groups = np.array(list("abababab"))
    splits = [(np.flatnonzero(groups == train), np.flatnonzero(groups == test)) for train, test in ("ba", "ab")]
    expected = sorted(score_by_hand(NearestMean(), images, masks, splits))
    for cv in (GroupKFold(2), StratifiedGroupKFold(2)):
        assert sorted(cross_val_score(NearestMean(), images, masks, groups=groups, cv=cv)) == expected
        search = GridSearchCV(NearestMean(), {"shift": [0.0]}, cv=cv).fit(images, masks, groups=groups)
        assert search.best_score_ == np.mean(expected)
    results = cross_validate(NearestMean(), images, masks, groups=groups, cv=GroupKFold(2), return_indices=True)
    assert {tuple(test) for test in results["indices"]["test"]} == {tuple(test) for _, test in splits}
    assert len(cross_val_predict(NearestMean(), images, masks, groups=groups, cv=GroupKFold(2))) == N_IMAGES


def test_fit_parameters_are_split_with_the_images():
    images, masks = draw_images()
    masks[0] = np.full_like(masks[0], 255)  # without its weight the first fold would learn from it
    weights = np.array([0.0, *[1.0] * 7])
    splits = splits_of(2)
    parts = [(train[train > 0], test) for train, test in splits]
    expected = score_by_hand(NearestMean(), images, masks, parts)
    assert expected != score_by_hand(NearestMean(), images, masks, splits)
    params = {"sample_weight": weights}
    assert cross_val_score(NearestMean(), images, masks, cv=2, params=params).tolist() == expected
    pixel_weights = [np.full(mask.shape, weight) for mask, weight in zip(masks, weights, strict=True)]
    search = GridSearchCV(NearestMean(), {"shift": [0.0]}, cv=2).fit(images, masks, sample_weight=pixel_weights)
    assert search.best_score_ == np.mean(expected)


def test_metadata_routing_reaches_estimator_scorer_and_splitter():
    images, masks = draw_images()
    groups, weights = np.array(list("abababab")), np.array([0.0, *[1.0] * 7])
    params = {"groups": groups, "sample_weight": weights}
    with config_context(enable_metadata_routing=True):
        estimator = (
            NearestMean().set_fit_request(sample_weight=True, groups=True).set_score_request(sample_weight=False)
        )
        scores = cross_val_score(estimator, images, masks, cv=GroupKFold(2), params=params, error_score="raise")
        search = GridSearchCV(estimator, {"shift": [0.0]}, cv=GroupKFold(2)).fit(images, masks, **params)
        labels = cross_val_predict(estimator, images, masks, cv=GroupKFold(2), params=params)
        options = {"train_sizes": [2, 4], "exploit_incremental_learning": True}
        estimator.set_partial_fit_request(sample_weight=True)
        curve = learning_curve(estimator, images, masks, cv=GroupKFold(2), params=params, **options)
    assert search.best_score_ == np.mean(scores)
    assert search.best_estimator_.groups_ is groups
    fitted = NearestMean().fit(images[2::2], masks[2::2])
    np.testing.assert_array_equal(labels[1], fitted.predict(images[1:2])[0])
    assert np.isfinite(curve[2]).all()


def test_stratified_splitters_work_in_every_tool(contained):
    _, images, masks, X, y = contained
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    expected = score_by_hand(NearestMean(), images, masks, list(cv.split(images, masks)))
    assert cross_val_score(NearestMean(), X, y, cv=cv, error_score="raise").tolist() == expected
    assert GridSearchCV(NearestMean(), {"shift": [0.0]}, cv=cv).fit(X, y).best_score_ == np.mean(expected)


def test_lazy_arrays_are_read_image_by_image_and_none_for_nothing():
    images, masks = draw_images(widths=(16,))
    X, y = Lazy(np.stack(images)), Lazy(np.stack(masks))
    cross_val_score(NearestMean(), X, y, cv=2, error_score="raise")
    assert X.n_read <= 4 * N_IMAGES
    X.n_read = y.n_read = 0
    parts = train_test_split(X, y, random_state=0)
    image_array(X)
    assert X.n_read == y.n_read == 0
    assert parts[0].shape == (6, 16, 16)


def test_errors_name_the_file(tmp_path):
    X, y = contain(*draw_images(4), "strings", tmp_path)
    (tmp_path / "masks" / "3.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        cross_val_score(make_segmenter(), X, y, cv=2, error_score="raise")


# ---- names of scores, and splitters that cannot be


class NeverFitted(NearestMean):
    """Fails the test that trains it."""

    def fit(self, X, y, **fit_params):
        raise AssertionError("fitted")


def every_tool(estimator, X, y, **options):
    """Yield a call of each drop-in that takes `scoring` and `cv`."""
    searches = {
        GridSearchCV: {"shift": [0.0]},
        RandomizedSearchCV: {"shift": [0.0]},
        HalvingGridSearchCV: {"shift": [0.0, 60.0]},
        HalvingRandomSearchCV: {"shift": [0.0, 60.0]},
    }
    few = {RandomizedSearchCV: {"n_iter": 1}}
    for search, grid in searches.items():
        yield lambda s=search, g=grid: s(estimator, g, **few.get(s, {}), **options).fit(X, y)
    yield lambda: cross_val_score(estimator, X, y, **options)
    yield lambda: cross_validate(estimator, X, y, **options)
    yield lambda: learning_curve(estimator, X, y, train_sizes=[2, 4], **options)
    yield lambda: validation_curve(estimator, X, y, param_name="shift", param_range=[0.0], **options)
    yield lambda: permutation_test_score(estimator, X, y, n_permutations=1, **options)


N_TOOLS = 9
SCORERS = {
    "iou": iou_scorer,
    "dice": dice_scorer,
    "accuracy": accuracy_scorer,
    "precision": precision_scorer,
    "recall": recall_scorer,
}


@pytest.mark.parametrize("name", SCORERS)
@pytest.mark.parametrize("kind", ["stack", "ragged_list", "strings"])
def test_a_name_stands_for_the_scorer_in_every_search_and_function(name, kind, tmp_path):
    X, y = contain(*draw_images(widths=(16,) if kind == "stack" else (16, 20)), kind, tmp_path)
    masks = open_container(y, "y")
    named, plain = ({"scoring": scoring, "cv": 2} for scoring in (name, SCORERS[name]))
    expected = cross_val_score(NearestMean(), X, y, **plain)
    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(cross_val_score(NearestMean(), X, y, **named), expected)
    np.testing.assert_array_equal(cross_validate(NearestMean(), X, y, **named)["test_score"], expected)
    for search in (GridSearchCV, HalvingGridSearchCV):
        ours, theirs = (search(NearestMean(), {"shift": [0.0, 60.0]}, **o).fit(X, y) for o in (named, plain))
        np.testing.assert_array_equal(ours.cv_results_["mean_test_score"], theirs.cv_results_["mean_test_score"])
        assert ours.score(X, y) == SCORERS[name](ours.best_estimator_, X, [masks[i] for i in range(N_IMAGES)])
        assert ours.get_params()["scoring"] == clone(ours).scoring == name
    for curve, options in (
        (learning_curve, {"train_sizes": [2, 4]}),
        (validation_curve, {"param_name": "shift", "param_range": [0.0]}),
    ):
        ours, theirs = (curve(NearestMean(), X, y, **options, **o)[-1] for o in (named, plain))
        np.testing.assert_array_equal(ours, theirs)
    ours, theirs = (permutation_test_score(NearestMean(), X, y, n_permutations=2, **o) for o in (named, plain))
    np.testing.assert_array_equal(ours[1], theirs[1])


@pytest.mark.parametrize("scoring", [["iou", "dice"], ("iou", "dice"), {"iou": "iou", "dice": dice_scorer}])
def test_several_scores_by_name(scoring):
    images, masks = draw_images()
    results = cross_validate(NearestMean(), images, masks, cv=2, scoring=scoring)
    search = GridSearchCV(NearestMean(), {"shift": [0.0]}, cv=2, scoring=scoring, refit="dice").fit(images, masks)
    assert search.scoring is scoring
    for name in ("iou", "dice"):
        expected = cross_val_score(NearestMean(), images, masks, cv=2, scoring=SCORERS[name])
        np.testing.assert_array_equal(results[f"test_{name}"], expected)
        assert search.cv_results_[f"mean_test_{name}"][0] == expected.mean()
    assert search.score(images, masks) == dice_scorer(search.best_estimator_, images, masks)


@pytest.mark.parametrize(
    ("scoring", "message"),
    [
        ("f1", r"scoring must be one of \['iou', .*'recall'\], a scorer or a callable; got 'f1'\."),
        (7, r"a scorer or a callable; got 7\."),
        (iou_score, r"got the metric iou_score\. Pass skunet\.metrics\.iou_scorer, .*make_scorer\(iou_score, \.\.\.\)"),
        (f1_score, r"got the metric f1_score\. Pass skunet\.metrics\.iou_scorer or another"),
    ],
)
def test_what_is_no_score_of_masks_is_refused_before_training(scoring, message):
    images, masks = draw_images()
    calls = list(every_tool(NeverFitted(), images, masks, scoring=scoring, cv=2))
    assert len(calls) == N_TOOLS
    for call in calls:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("scoring", [["iou", "f1"], {"mine": "f1"}])
def test_a_wrong_name_among_several_is_refused_before_training(scoring):
    images, masks = draw_images()
    for call in every_tool(NeverFitted(), images, masks, scoring=scoring, cv=2):
        with pytest.raises(ValueError, match=r"scoring must be one of .*; got"):
            call()


@pytest.mark.parametrize("scoring", [[], ["iou", "iou"], ["iou", iou_scorer]])
def test_lists_that_sklearn_refuses_are_refused(scoring):
    with pytest.raises(ValueError, match=r"[Ee]mpty|uplicate|callables"):
        cross_validate(NeverFitted(), *draw_images(), scoring=scoring, cv=2)


def test_a_callable_and_the_score_of_the_estimator_serve_as_they_are():
    images, masks = draw_images()

    def count(estimator, X, y):
        return len(X)

    assert cross_val_score(NearestMean(), images, masks, scoring=count, cv=2).tolist() == [4, 4]
    search = GridSearchCV(NearestMean(), {"shift": [0.0]}, scoring=count, cv=2).fit(images, masks)
    assert search.best_score_ == 4
    assert len([call() for call in every_tool(NearestMean(), images, masks, scoring=None, cv=2)]) == N_TOOLS


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("StratifiedKFold", "StratifiedKFold"),
        ("RepeatedStratifiedKFold", "StratifiedKFold"),
        ("StratifiedGroupKFold", "StratifiedGroupKFold"),
        ("StratifiedShuffleSplit", "StratifiedShuffleSplit"),
    ],
)
@pytest.mark.parametrize("kind", ["stack", "ragged_list", "strings"])
def test_splitters_of_sklearn_that_stratify_by_class_are_refused_for_masks(name, own, kind, tmp_path):
    X, y = contain(*draw_images(widths=(16,) if kind == "stack" else (16, 20)), kind, tmp_path)
    cv = getattr(of_sklearn, name)(n_splits=2)
    message = rf"got scikit-learn's {name}, .* Pass skunet\.model_selection\.{own}, "
    for call in every_tool(NeverFitted(), X, y, cv=cv):
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match=message):
        cross_val_predict(NeverFitted(), X, y, cv=cv)


def test_splitters_of_sklearn_stratify_by_one_class_per_image():
    classes = np.array([0, 0, 0, 0, 0, 0, 1, 1])
    check_splitter(of_sklearn.StratifiedKFold(2), classes)
    check_splitter(of_sklearn.StratifiedKFold(2), None)


# ---- views of lazy arrays


def test_a_view_of_a_lazy_array_is_indexed_as_numpy():
    stack = np.random.default_rng(0).integers(0, 255, (6, 5, 4, 3)).astype(np.uint8)
    positions = np.array([4, 1, 3])
    view, array = StackView(Lazy(stack), positions), stack[positions]
    rows, mask = np.array([0, 2]), array[1] > 99
    for key in [
        0,
        -1,
        np.s_[0, :4],
        np.s_[1, ..., 0],
        np.s_[2, 1:3, ::2],
        np.s_[0, 2, 3, 1],
        np.s_[-1, rows],
        np.s_[1, mask],
    ]:
        np.testing.assert_array_equal(view[key], array[key])
    for key in [np.s_[1:], np.s_[[2, 0]], np.s_[[2, 0], ...], np.s_[:2, :, :], np.s_[array[:, 0, 0, 0] > 0, ...]]:
        assert isinstance(view[key], StackView)
        np.testing.assert_array_equal(np.asarray(view[key]), array[key])


def test_a_view_reads_windows_where_the_stack_gives_them(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (4, 30, 40)).astype(np.uint8)

    class Watched:
        shape, dtype = array.shape, array.dtype

        def __init__(self):
            self.n_pixels = 0

        def __getitem__(self, key):
            found = array[key]
            self.n_pixels += found.size
            return found

    watched = Watched()
    np.testing.assert_array_equal(StackView(watched, np.array([2, 0]))[1, 3:9, 4:8], array[0, 3:9, 4:8])
    assert watched.n_pixels == 6 * 4


def test_the_path_of_a_stack_is_split_and_its_images_are_predicted_one_by_one(cells, fitted, tmp_path):
    X, y = cells
    tifffile.imwrite(tmp_path / "X.tif", X)
    tifffile.imwrite(tmp_path / "y.tif", y)
    paths = tmp_path / "X.tif", str(tmp_path / "y.tif")
    parts = train_test_split(*paths, random_state=0)
    for part, expected in zip(parts, train_test_split(X, y, random_state=0), strict=True):
        np.testing.assert_array_equal(np.asarray(part), expected)
    fixed = FixedThresholdClassifier(FrozenEstimator(fitted), threshold=0.3).fit(*paths)
    expected = fixed.predict(X)
    for path in (paths[0], str(paths[0])):
        np.testing.assert_array_equal(np.stack(list(fixed.predict(path))), expected)


@pytest.mark.parametrize("key", [np.s_[:, 0], np.s_[[0, 1], ..., 0], np.s_[:2, 1:], np.s_[:, np.array([0, 1])]])
def test_parts_of_several_images_of_a_lazy_array_are_refused(key):
    with pytest.raises(IndexError, match=r"must be indexed by images only; .* view\[i, \.\.\.\]"):
        StackView(Lazy(np.zeros((6, 5, 4))), np.arange(3))[key]


# ---- train_test_split


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"test_size": 3}, {"train_size": 0.5}])
def test_train_test_split_draws_as_sklearns(contained, options):
    kind, images, masks, X, y = contained
    options = {"random_state": None if "shuffle" in options else 0} | options
    names = np.array([f"image {index}" for index in range(N_IMAGES)])
    train, test = of_sklearn.train_test_split(np.arange(N_IMAGES), **options)
    parts = train_test_split(X, y, names, **options)
    for part, container in zip(parts[:4], (X, X, y, y), strict=True):
        assert type(part) is (StackView if kind in ("lazy", "memmap") else type(container))
    for part, positions, arrays in zip(parts[:4], (train, test) * 2, (images, images, masks, masks), strict=True):
        opened = open_container(part, "X")
        assert len(opened) == len(positions)
        for index, position in enumerate(positions):
            np.testing.assert_array_equal(opened[index].squeeze(), arrays[position])
    assert parts[4].tolist() == names[train].tolist()


def test_parts_of_a_split_can_be_fitted_scored_and_split_again(contained):
    _, _, _, X, y = contained
    X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)
    fitted = NearestMean().fit(X_train, y_train)
    assert 0 < fitted.score(X_test, y_test) <= 1
    assert len(train_test_split(X_train, test_size=2)[1]) == 2
    assert len(cross_val_score(NearestMean(), X_train, y_train, cv=2, error_score="raise")) == 2


def test_stratified_parts_have_the_same_foreground(contained):
    _, _, masks, _, y = contained
    shares = np.array([mask.mean() / 255 for mask in masks])
    for seed in range(5):
        train, test = train_test_split(np.arange(N_IMAGES), stratify=y, test_size=4, random_state=seed)
        # One of each pair of neighbours in share is in the test part.
        pairs = np.argsort(shares).reshape(4, 2)
        assert np.isin(pairs, test).sum(axis=1).tolist() == [1, 1, 1, 1]
        assert not set(train) & set(test)


def test_groups_are_kept_together_and_stratified():
    _, masks = draw_images(24, widths=(32,))
    groups = np.repeat(np.arange(8), 3)
    shares = np.array([mask.mean() / 255 for mask in masks])
    distances = {"plain": [], "stratified": []}
    for seed in range(10):
        for name, stratify in (("plain", None), ("stratified", masks)):
            train, test = train_test_split(
                np.arange(24), groups=groups, stratify=stratify, test_size=4, random_state=seed
            )
            assert len(set(groups[test])) == 4
            assert not set(groups[train]) & set(groups[test])
            assert sorted([*train, *test]) == list(range(24))
            distances[name].append(abs(shares[train].mean() - shares[test].mean()))
    assert np.mean(distances["stratified"]) < np.mean(distances["plain"]) / 2


def test_numbers_stratify_as_in_sklearn_also_by_group():
    classes = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    ours = train_test_split(np.arange(8), stratify=classes, random_state=1)
    theirs = of_sklearn.train_test_split(np.arange(8), stratify=classes, random_state=1)
    assert [part.tolist() for part in ours] == [part.tolist() for part in theirs]
    groups = np.array([0, 0, 1, 1, 2, 2, 3, 3])
    _, test = train_test_split(np.arange(8), stratify=classes, groups=groups, test_size=2, random_state=1)
    assert sorted(classes[test]) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="one number for all images of a group; image 1"):
        train_test_split(np.arange(8), stratify=np.array([0, 1] * 4), groups=groups)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffle": False, "stratify": np.zeros((4, 2, 2))}, "shuffle must be True"),
        ({"shuffle": False, "groups": [0, 0, 1, 1]}, "shuffle must be True"),
        ({"groups": [0, 1]}, "inconsistent numbers of samples"),
        ({"test_size": 9}, "test_size=9 should be either positive and smaller"),
        ({"test_size": 9, "stratify": np.zeros((4, 2, 2))}, "test_size=9 should be either positive and smaller"),
    ],
)
def test_train_test_split_refuses_what_cannot_be_done(options, message):
    with pytest.raises(ValueError, match=message):
        train_test_split(np.zeros((4, 2, 2)), **options)


def test_train_test_split_needs_an_array():
    with pytest.raises(ValueError, match="At least one array required"):
        train_test_split()


# ---- on real images


@pytest.mark.slow
def test_real_sections_from_files():
    folder = real_data("isbi2012")
    paths = [[str(folder / part / f"{index}.png") for index in range(6)] for part in ("image", "label")]
    maps = cross_val_predict(NearestMean(), *paths, cv=StratifiedKFold(3), method="predict_proba")
    assert {each.shape for each in maps} == {(2, 512, 512)}
    labels = cross_val_predict(NearestMean(), *paths, cv=StratifiedKFold(3))
    truth = [iio.imread(path) for path in paths[1]]
    assert iou_score(truth, labels) > 0.5
