"""Segmenters that are averaged, or vote."""

import pickle

import numpy as np
import pytest
import sklearn
import torch
from conftest import make_segmenter
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier
from sklearn.ensemble import VotingClassifier as PixelVoting
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import get_tags

from skunet.checks import check_image_estimator
from skunet.containers import object_array
from skunet.ensemble import VotingClassifier
from skunet.metrics import iou_score
from skunet.preprocessing import ImageResizer
from skunet.thresholds import FixedThresholdClassifier, TunedThresholdClassifierCV


class Noise(ClassifierMixin, BaseEstimator):
    """Draws the probabilities of an image from its seed and the image's first pixel."""

    largest_call = 0

    def __init__(self, seed=0, ignore_label=None):
        self.seed = seed
        self.ignore_label = ignore_label

    def fit(self, X, y, groups=None, sample_weight=None):
        labels = np.unique(np.concatenate([np.ravel(mask) for mask in y]))
        self.classes_ = labels[labels != self.ignore_label] if self.ignore_label is not None else labels
        self.given_ = (groups, sample_weight)
        return self

    def predict_proba(self, X):
        Noise.largest_call = max(Noise.largest_call, len(X))
        maps = []
        for image in X:
            generator = np.random.default_rng([self.seed, int(image.flat[0])])
            scores = generator.random((len(self.classes_), *image.shape))
            maps.append((scores / scores.sum(axis=0)).astype(np.float32))
        return np.stack(maps) if isinstance(X, np.ndarray) and X.dtype != object else maps

    def predict(self, X):
        return [self.classes_[each.argmax(axis=0)] for each in self.predict_proba(X)]


class Unweighted(Noise):
    """Knows neither groups nor weights."""

    def fit(self, X, y):
        return super().fit(X, y)


class Table(ClassifierMixin, BaseEstimator):
    """A classifier of single pixels, for scikit-learn: the n-th row has the n-th probabilities."""

    def __init__(self, probabilities):
        self.probabilities = probabilities

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict_proba(self, X):
        return self.probabilities[X[:, 0]]

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def draw(labels=(0, 1, 2), sizes=((5, 4),) * 3):
    """Return lists of images, each with a number of its own in the first pixel, and of masks with all labels."""
    images = [np.full(size, index + 1, np.uint8) for index, size in enumerate(sizes)]
    masks = [np.resize(np.asarray(labels), size) for size in sizes]
    return images, masks


def members(*seeds):
    return [(f"member{seed}", Noise(seed)) for seed in seeds]


@pytest.mark.parametrize("weights", [None, [1, 2, 4], [0.2, 0, 0.7]])
@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_votes_equal_those_of_scikit_learn_on_single_pixels(voting, weights):
    images, masks = draw()
    X, y = np.stack(images), np.stack(masks)
    ensemble = VotingClassifier(members(1, 2, 3), voting=voting, weights=weights).fit(X, y)
    tables = [np.moveaxis(member.predict_proba(X), 1, -1).reshape(-1, 3) for member in ensemble.estimators_]
    pixels = np.arange(y.size)[:, None]
    reference = PixelVoting(
        [(str(number), Table(table)) for number, table in enumerate(tables)], voting=voting, weights=weights
    ).fit(pixels, y.ravel())
    np.testing.assert_array_equal(ensemble.predict(X).ravel(), reference.predict(pixels))
    if voting == "soft":
        probabilities = ensemble.predict_proba(X)
        assert probabilities.dtype == np.float32
        np.testing.assert_allclose(
            np.moveaxis(probabilities, 1, -1).reshape(-1, 3), reference.predict_proba(pixels), atol=1e-6
        )
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_hard_ties_go_to_the_lowest_label():
    class Constant(Noise):
        def predict(self, X):
            return np.full(X.shape, self.seed)

    X, y = np.ones((1, 2, 2), np.uint8), np.array([[[3, 5], [8, 8]]])
    estimators = [("a", Constant(8)), ("b", Constant(5)), ("c", Constant(3))]
    assert (VotingClassifier(estimators, voting="hard").fit(X, y).predict(X) == 3).all()
    # In binary floating point 0.1 + 0.2 is more than 0.3.
    tied = VotingClassifier([*estimators, ("d", Constant(8))], voting="hard", weights=[0.1, 0.3, 0, 0.2]).fit(X, y)
    assert (tied.predict(X) == 5).all()


def test_only_one_image_goes_through_the_members_at_a_time():
    images, masks = draw()
    Noise.largest_call = 0
    for voting in ("soft", "hard"):
        VotingClassifier(members(1, 2), voting=voting).fit(images, masks).predict(images)
    assert Noise.largest_call == 1


@pytest.mark.parametrize("labels", [(0, 255), (False, True), ("cell", "membrane"), (-3, 4, 7)])
@pytest.mark.parametrize("container", ["list", "object_array", "stack"])
@pytest.mark.parametrize("voting", ["soft", "hard"])
def test_predictions_have_the_values_and_the_container_of_the_data(labels, container, voting):
    sizes = [(4, 5)] * 3 if container == "stack" else [(4, 5), (7, 2), (4, 6)]
    images, masks = draw(labels, sizes)
    build = {"list": list, "object_array": object_array, "stack": np.stack}[container]
    X, y = build(images), build(masks)
    ensemble = VotingClassifier(members(1, 2, 3), voting=voting).fit(X, y)
    predicted = ensemble.predict(X)
    assert type(predicted) is type(X)
    assert [mask.shape for mask in predicted] == [mask.shape for mask in masks]
    assert predicted[0].dtype == ensemble.classes_.dtype == masks[0].dtype
    assert ensemble.score(X, y) == pytest.approx(iou_score(masks, list(predicted)))
    if voting == "soft":
        probabilities = ensemble.predict_proba(X)
        assert type(probabilities) is type(X)
        assert probabilities[1].shape == (len(labels), *masks[1].shape)


def test_a_member_that_lacks_a_class_gives_it_probability_zero():
    images, masks = draw()
    X = np.stack(images)
    full = Noise(1).fit(X, np.stack(masks))
    partial = Noise(2).fit(X, np.where(np.stack(masks) == 1, 2, masks))
    ensemble = VotingClassifier([("full", FrozenEstimator(full)), ("partial", FrozenEstimator(partial))]).fit(X, masks)
    assert ensemble.classes_.tolist() == [0, 1, 2]
    expected = full.predict_proba(X) / 2
    expected[:, [0, 2]] += partial.predict_proba(X) / 2
    np.testing.assert_allclose(ensemble.predict_proba(X), expected, atol=1e-6)
    votes = ensemble.set_params(voting="hard", weights=[1, 2]).predict(X)
    np.testing.assert_array_equal(votes, np.stack(partial.predict(X)))


def test_fitted_segmenters_are_averaged_without_training(cells, fitted):
    X, y = cells
    other = make_segmenter(filters=2, random_state=1).fit(X, y)
    weights = [parameter.clone() for parameter in other.module_.parameters()]
    ensemble = VotingClassifier([("a", FrozenEstimator(fitted)), ("b", FrozenEstimator(other))]).fit(X, y)
    mean = (fitted.predict_proba(X) + other.predict_proba(X)) / 2
    np.testing.assert_allclose(ensemble.predict_proba(X), mean, atol=1e-6)
    np.testing.assert_array_equal(ensemble.predict(X), ensemble.predict_proba(X).argmax(axis=1))
    assert ensemble.named_estimators_["b"].estimator is other
    assert all(torch.equal(old, new) for old, new in zip(weights, other.module_.parameters(), strict=True))
    assert len(other.history) == 1


def test_members_are_fitted_as_they_would_be_alone(cells):
    X, y = cells
    segmenters = [("a", make_segmenter(filters=2)), ("b", make_segmenter(filters=2, random_state=1))]
    ensemble = VotingClassifier(segmenters).fit(X, y)
    for (name, segmenter), member in zip(segmenters, ensemble.estimators_, strict=True):
        assert member is ensemble.named_estimators_[name]
        assert member is not segmenter
        assert not hasattr(segmenter, "classes_")
        np.testing.assert_array_equal(member.predict(X), clone(segmenter).fit(X, y).predict(X))


def test_volumes(volumes):
    X, y = volumes
    ensemble = VotingClassifier([("a", make_segmenter(filters=2)), ("b", make_segmenter(filters=2, random_state=1))])
    predicted = ensemble.fit(list(X), list(y)).predict(list(X))
    assert [mask.shape for mask in predicted] == [mask.shape for mask in y]
    assert ensemble.predict_proba(X).shape == (len(X), 2, *y.shape[1:])


def test_groups_and_weights_go_to_those_who_take_them():
    images, masks = draw()
    pipeline = make_pipeline(FunctionTransformer(None), Noise())
    ensemble = VotingClassifier([("plain", Unweighted()), ("noise", Noise()), ("pipeline", pipeline)])
    groups, weights = np.arange(3), np.ones(3)
    ensemble.fit(images, masks, groups=groups, sample_weight=weights)
    assert ensemble.named_estimators_["plain"].given_ == (None, None)
    for member in (ensemble.named_estimators_["noise"], ensemble.named_estimators_["pipeline"][-1]):
        assert member.given_[0] is groups
        assert member.given_[1] is weights


def test_metadata_routing_brings_groups_and_weights(cells):
    X, y = cells
    groups = np.repeat(np.arange(4), 3)
    with sklearn.config_context(enable_metadata_routing=True):
        for kind in (VotingClassifier([("a", Noise())]), FixedThresholdClassifier(Noise())):
            routed = kind.set_fit_request(groups=True, sample_weight=True).set_score_request(sample_weight=True)
            params = {"groups": groups, "sample_weight": np.ones(12)}
            scores = cross_val_score(routed, X, y, cv=GroupKFold(2), params=params, error_score="raise")
            assert np.isfinite(scores).all()


def test_pixels_to_ignore_count_nowhere():
    images, masks = draw((0, 1, 9))
    ensemble = VotingClassifier([("a", Noise(1, ignore_label=9)), ("b", Noise(2, ignore_label=9))]).fit(images, masks)
    expected = iou_score(masks, ensemble.predict(images), ignore_label=9)
    assert ensemble.score(images, masks) == pytest.approx(expected)


def test_dropped_members_do_not_vote():
    images, masks = draw()
    ensemble = VotingClassifier(members(1, 2, 3), weights=[1, 5, 3])
    ensemble.set_params(member2="drop").fit(images, masks)
    assert ensemble.named_estimators_["member2"] == "drop"
    expected = VotingClassifier(members(1, 3), weights=[1, 3]).fit(images, masks)
    for mean, other in zip(ensemble.predict_proba(images), expected.predict_proba(images), strict=True):
        np.testing.assert_allclose(mean, other, atol=1e-7)
    ensemble.set_params(member1="drop")  # acts at the next fit
    np.testing.assert_array_equal(ensemble.predict(images)[0], expected.predict(images)[0])


def test_parameters_are_set_searched_cloned_and_pickled(cells):
    X, y = cells
    segmenters = [("a", make_segmenter(filters=2)), ("b", make_segmenter(filters=2, random_state=1))]
    ensemble = VotingClassifier(segmenters)
    assert ensemble.get_params()["a__filters"] == 2
    assert set(ensemble.get_params(deep=False)) == {"estimators", "voting", "weights", "n_jobs", "verbose"}
    assert clone(ensemble).set_params(a__filters=3).get_params()["a__filters"] == 3
    assert ensemble.get_params()["a__filters"] == 2
    search = GridSearchCV(ensemble, {"weights": [[1, 1], [1, 3]], "a__depth": [0]}, cv=2, error_score="raise")
    best = search.fit(X, y).best_estimator_
    assert best.named_estimators_["a"].depth == 0
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(best)).predict(X), best.predict(X))
    assert not hasattr(clone(best), "estimators_")
    assert cross_val_score(ensemble, X, y, cv=2, error_score="raise").shape == (2,)
    assert is_classifier(ensemble)
    assert get_tags(ensemble).input_tags == get_tags(make_segmenter()).input_tags
    assert (best.spatial_ndim_, best.n_channels_in_) == (2, 1)
    assert "VotingClassifier" in ensemble._repr_html_()
    assert list(ensemble.named_estimators) == ["a", "b"]


def test_the_mean_of_segmenters_has_a_threshold_of_its_own(cells, fitted):
    X, y = cells
    ensemble = VotingClassifier([("a", FrozenEstimator(fitted)), ("b", FrozenEstimator(fitted))]).fit(X, y)
    tuned = TunedThresholdClassifierCV(ensemble, cv="prefit", refit=False).fit(X, y)
    alone = TunedThresholdClassifierCV(fitted, cv="prefit", refit=False).fit(X, y)
    assert tuned.best_threshold_ == alone.best_threshold_
    assert tuned.best_score_ == pytest.approx(alone.best_score_)


@pytest.mark.slow
def test_fits_in_two_processes(cells):
    X, y = cells
    ensemble = VotingClassifier(members(1, 2), n_jobs=2).fit(X, y)
    np.testing.assert_array_equal(ensemble.predict(X), VotingClassifier(members(1, 2)).fit(X, y).predict(X))


def test_fit_tells_the_time_of_each_member(cells, capsys):
    X, y = cells
    VotingClassifier(members(1, 2), verbose=True).fit(X, y)
    assert "[Voting] (2 of 2) member2: " in capsys.readouterr().out


def test_hard_voting_has_no_probabilities():
    images, masks = draw()
    ensemble = VotingClassifier(members(1), voting="hard").fit(images, masks)
    assert not hasattr(ensemble, "predict_proba")
    assert hasattr(ensemble.set_params(voting="soft"), "predict_proba")


def test_resized_images_come_back_at_their_original_size(cells):
    X, y = cells
    pair = [("a", make_segmenter(filters=2)), ("b", make_pipeline(ImageResizer(16), make_segmenter(filters=2)))]
    assert VotingClassifier(pair).fit(X, y).predict_proba(X).shape == (12, 2, 32, 32)
    assert make_pipeline(ImageResizer(16), VotingClassifier(pair[:1])).fit(X, y).predict(X).shape == y.shape


@pytest.mark.slow
@pytest.mark.parametrize(("voting", "spatial_ndim"), [("soft", 2), ("hard", 3)])
def test_the_contract_of_image_estimators_is_kept(voting, spatial_ndim):
    pair = [("a", make_segmenter(filters=2)), ("b", make_segmenter(filters=2, random_state=1))]
    results = check_image_estimator(VotingClassifier(pair, voting=voting), spatial_ndim=spatial_ndim)
    assert sum(result["status"] == "passed" for result in results) >= 68


def test_before_fit_nothing_is_predicted():
    for voting in ("soft", "hard"):
        with pytest.raises(NotFittedError):
            VotingClassifier(members(1), voting=voting).predict(np.zeros((1, 4, 4)))
    with pytest.raises(NotFittedError):
        VotingClassifier([("a", FrozenEstimator(Noise()))]).fit(np.zeros((1, 4, 4)), np.zeros((1, 4, 4)))


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"estimators": []}, "estimators must be a list of"),
        ({"estimators": [Noise()]}, "estimators must be a list of"),
        ({"estimators": [("a", "drop")]}, "at least one not dropped"),
        ({"estimators": [("a", Noise()), ("a", Noise())]}, "Names of estimators must be distinct"),
        ({"estimators": [("a__b", Noise())]}, 'hold no "__"'),
        ({"estimators": [("weights", Noise())]}, "be none of"),
        ({"voting": "loud"}, 'voting must be "soft" or "hard"; got \'loud\''),
        ({"weights": [1]}, r"one number per estimator, 2; got \[1\]"),
        ({"weights": [1, -1]}, "weights must be at least 0"),
        ({"weights": [0, 0]}, "one of them above"),
        ({"weights": [1, np.nan]}, "weights must be at least 0"),
    ],
)
def test_parameters_out_of_range_raise(parameters, words):
    images, masks = draw()
    with pytest.raises(ValueError, match=words):
        VotingClassifier(**({"estimators": members(1, 2)} | parameters)).fit(images, masks)


def test_members_must_be_image_estimators():
    images, masks = draw()
    for wrong in (3, FunctionTransformer(None), Noise):
        with pytest.raises(TypeError, match="Each estimator must be an estimator with fit and predict_proba; got 'a'"):
            VotingClassifier([("a", wrong)]).fit(images, masks)


def test_members_of_numbers_and_strings_raise():
    images, masks = draw()
    words = [np.where(mask == 0, "no", "yes") for mask in masks]
    frozen = [("a", FrozenEstimator(Noise().fit(images, masks))), ("b", FrozenEstimator(Noise().fit(images, words)))]
    voting = VotingClassifier(frozen)
    with pytest.raises(ValueError, match="labels of one kind"):
        voting.fit(images, masks)
    with pytest.raises(NotFittedError):
        voting.predict(images)
