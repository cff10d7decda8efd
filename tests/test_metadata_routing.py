"""groups and sample_weight through scikit-learn's tools, with metadata routing on and off."""

import numpy as np
import pytest
from by_hand import assert_same_weights, score_folds
from conftest import make_segmenter
from sklearn import config_context
from sklearn.exceptions import UnsetMetadataPassedError
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from skorch.dataset import ValidSplit

from skunet import model_selection as drop_in

GRID = {"filters": [3]}
PIPELINE_GRID = {"unetsegmenter__filters": [3]}
GROUPS = np.repeat(["a", "b", "c", "d"], 3)
WEIGHTS = np.linspace(0.1, 2.0, 12)


@pytest.fixture(scope="module")
def small(cells):
    X, y = cells
    return X[:, :16, :16], y[:, :16, :16]


@pytest.fixture
def routing():
    with config_context(enable_metadata_routing=True):
        yield


def make(**parameters):
    return make_segmenter(filters=3, **parameters)


def halve(X):
    return X / 2


def make_weighted(score=True):
    return make().set_fit_request(sample_weight=True).set_score_request(sample_weight=score)


def weighted_scores(X, y, *, score=True):
    splits = KFold(2).split(X)
    return score_folds(make(), X, y, splits, sample_weight=WEIGHTS, score_weight=WEIGHTS if score else None)


def grouped_scores(X, y, **fit_params):
    return score_folds(make(), X, y, GroupKFold(2).split(X, groups=GROUPS), **fit_params)


@pytest.fixture(scope="module")
def all_scores_differ(small):
    """Make sure that every way of passing metadata shows in the scores, so that none can stand in for another."""
    X, y = small
    scores = [
        weighted_scores(X, y),
        weighted_scores(X, y, score=False),
        score_folds(make(), X, y, KFold(2).split(X)),
        grouped_scores(X, y),
        grouped_scores(X, y, groups=GROUPS),
    ]
    assert len({tuple(row) for row in scores}) == len(scores)


pytestmark = pytest.mark.usefixtures("all_scores_differ")


def split_scores(search):
    return [search.cv_results_[f"split{fold}_test_score"][0] for fold in range(2)]


# ---- routing on


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("score", [True, False])
def test_routing_brings_sample_weight_through_grid_search(small, score):
    X, y = small
    search = GridSearchCV(make_weighted(score), GRID, cv=2, error_score="raise").fit(X, y, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(split_scores(search), weighted_scores(X, y, score=score))
    assert_same_weights(search.best_estimator_, make().fit(X, y, sample_weight=WEIGHTS))


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("score", [True, False])
def test_routing_brings_sample_weight_through_cross_validate(small, score):
    X, y = small
    results = cross_validate(make_weighted(score), X, y, cv=2, params={"sample_weight": WEIGHTS}, error_score="raise")
    np.testing.assert_array_equal(results["test_score"], weighted_scores(X, y, score=score))


@pytest.mark.usefixtures("routing")
def test_routing_brings_sample_weight_through_a_pipeline(small):
    X, y = small
    pipeline = make_pipeline(FunctionTransformer(halve), make_weighted()).fit(X, y, sample_weight=WEIGHTS)
    by_hand = make().fit(X / 2, y, sample_weight=WEIGHTS)
    assert_same_weights(pipeline[-1], by_hand)
    assert pipeline.score(X, y, sample_weight=WEIGHTS) == by_hand.score(X / 2, y, sample_weight=WEIGHTS)
    search = GridSearchCV(make_pipeline(make_weighted()), PIPELINE_GRID, cv=2, error_score="raise")
    np.testing.assert_array_equal(split_scores(search.fit(X, y, sample_weight=WEIGHTS)), weighted_scores(X, y))


@pytest.mark.usefixtures("routing")
def test_routing_asks_whether_sample_weight_is_meant(small):
    X, y = small
    with pytest.raises(UnsetMetadataPassedError, match="sample_weight"):
        GridSearchCV(make(), GRID, cv=2, error_score="raise").fit(X, y, sample_weight=WEIGHTS)


@pytest.mark.usefixtures("routing")
def test_routing_brings_groups_to_both_splits_without_a_request(small):
    X, y = small
    expected = grouped_scores(X, y, groups=GROUPS)
    search = GridSearchCV(make(), GRID, cv=GroupKFold(2), error_score="raise").fit(X, y, groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), expected)
    assert_same_weights(search.best_estimator_, make().fit(X, y, groups=GROUPS))
    results = cross_validate(make(), X, y, cv=GroupKFold(2), params={"groups": GROUPS}, error_score="raise")
    np.testing.assert_array_equal(results["test_score"], expected)
    scores = cross_val_score(make_pipeline(make()), X, y, cv=GroupKFold(2), params={"groups": GROUPS})
    np.testing.assert_array_equal(scores, expected)


@pytest.mark.usefixtures("routing")
def test_routing_brings_groups_to_a_splitter_within_fit(small):
    X, y = small
    segmenter = make(train_split=ValidSplit(GroupKFold(2)))
    search = GridSearchCV(segmenter, GRID, cv=GroupKFold(2), error_score="raise").fit(X, y, groups=GROUPS)
    splits = GroupKFold(2).split(X, groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), score_folds(segmenter, X, y, splits, groups=GROUPS))


@pytest.mark.usefixtures("routing")
def test_routing_keeps_groups_to_the_outer_split_on_request(small):
    X, y = small
    segmenter = make().set_fit_request(groups=False)
    search = GridSearchCV(segmenter, GRID, cv=GroupKFold(2), error_score="raise").fit(X, y, groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), grouped_scores(X, y))


# ---- routing off


def test_without_routing_groups_of_a_search_of_ours_part_what_fits_validate_on(small):
    X, y = small
    search = drop_in.GridSearchCV(make(), GRID, cv=GroupKFold(2), error_score="raise").fit(X, y, groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), grouped_scores(X, y, groups=GROUPS))
    assert_same_weights(search.best_estimator_, make().fit(X, y, groups=GROUPS))
    search = drop_in.GridSearchCV(make_pipeline(make()), PIPELINE_GRID, cv=GroupKFold(2), error_score="raise")
    search.fit(X, y, groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), grouped_scores(X, y, groups=GROUPS))


def test_without_routing_sample_weight_of_grid_search_reaches_fit_and_score(small):
    X, y = small
    search = GridSearchCV(make(), GRID, cv=2, error_score="raise").fit(X, y, sample_weight=WEIGHTS)
    np.testing.assert_array_equal(split_scores(search), weighted_scores(X, y))


def test_without_routing_sample_weight_of_cross_validate_reaches_fit_alone(small):
    X, y = small
    results = cross_validate(make(), X, y, cv=2, params={"sample_weight": WEIGHTS}, error_score="raise")
    np.testing.assert_array_equal(results["test_score"], weighted_scores(X, y, score=False))


def test_without_routing_a_pipeline_takes_sample_weight_by_the_name_of_the_step(small):
    X, y = small
    pipeline = make_pipeline(FunctionTransformer(halve), make())
    pipeline.fit(X, y, unetsegmenter__sample_weight=WEIGHTS)
    by_hand = make().fit(X / 2, y, sample_weight=WEIGHTS)
    assert_same_weights(pipeline[-1], by_hand)
    assert pipeline.score(X, y, sample_weight=WEIGHTS) == by_hand.score(X / 2, y, sample_weight=WEIGHTS)


def test_without_routing_groups_of_grid_search_part_the_folds_alone(small):
    X, y = small
    search = GridSearchCV(make(), GRID, cv=GroupKFold(2), error_score="raise").fit(X, y, groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), grouped_scores(X, y))


def test_without_routing_a_pipeline_takes_groups_by_the_name_of_the_step(small):
    X, y = small
    search = GridSearchCV(make_pipeline(make()), PIPELINE_GRID, cv=GroupKFold(2), error_score="raise")
    search.fit(X, y, groups=GROUPS, unetsegmenter__groups=GROUPS)
    np.testing.assert_array_equal(split_scores(search), grouped_scores(X, y, groups=GROUPS))
    assert_same_weights(search.best_estimator_[-1], make().fit(X, y, groups=GROUPS))
