"""scikit-learn's searches on images, compared with plain loops."""

import numpy as np
import pytest
import torch
from by_hand import assert_same_weights, score_folds
from conftest import make_segmenter
from joblib import parallel_config
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  # makes HalvingGridSearchCV importable
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    ParameterSampler,
    RandomizedSearchCV,
    cross_val_score,
)
from skorch.callbacks import GradientNormClipping

from skunet import UNet
from skunet.metrics import dice_scorer, iou_scorer

GRID = {"depth": [0, 1], "filters": [2, 3]}


@pytest.fixture(scope="module")
def small(cells):
    X, y = cells
    return X[:, :16, :16], y[:, :16, :16]


@pytest.fixture
def one_thread():
    """Compute with one torch thread, as the workers do: sums over threads round otherwise."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def assert_scores_are_those_of_a_loop(search, segmenter, X, y, splits):
    splits = list(splits)
    for position, parameters in enumerate(search.cv_results_["params"]):
        expected = score_folds(clone(segmenter).set_params(**parameters), X, y, splits)
        found = [search.cv_results_[f"split{fold}_test_score"][position] for fold in range(len(splits))]
        np.testing.assert_array_equal(found, expected)


def test_grid_search_scores_are_those_of_a_loop(small):
    X, y = small
    segmenter = make_segmenter()
    search = GridSearchCV(segmenter, GRID, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 4
    assert_scores_are_those_of_a_loop(search, segmenter, X, y, KFold(2).split(X))
    means = search.cv_results_["mean_test_score"]
    assert search.best_params_ == search.cv_results_["params"][int(means.argmax())]
    assert search.best_score_ == means.max()
    assert len(set(means)) == 4  # else a parameter may have gone nowhere


def test_grid_search_refits_the_best_on_all_images(small):
    X, y = small
    search = GridSearchCV(make_segmenter(), GRID, cv=2, error_score="raise").fit(X, y)
    refitted = make_segmenter(**search.best_params_).fit(X, y)
    assert_same_weights(search.best_estimator_, refitted)
    shapes = [weights.shape for weights in UNet(1, 2, **search.best_params_).parameters()]
    assert [weights.shape for weights in search.best_estimator_.module_.parameters()] == shapes
    np.testing.assert_array_equal(search.predict(X), refitted.predict(X))
    np.testing.assert_array_equal(search.predict_proba(X), refitted.predict_proba(X))
    np.testing.assert_array_equal(search.classes_, [0, 1])
    assert search.score(X, y) == refitted.score(X, y)


def test_grid_search_refits_by_one_of_several_scorers(small):
    X, y = small
    scoring = {"iou": iou_scorer, "dice": dice_scorer}
    search = GridSearchCV(make_segmenter(), {"filters": [2, 3]}, scoring=scoring, refit="dice", cv=2)
    results = search.fit(X, y).cv_results_
    assert search.best_index_ == results["mean_test_dice"].argmax()
    assert (results["mean_test_dice"] > results["mean_test_iou"]).all()


def test_grid_search_over_parameters_of_components(small):
    X, y = small
    grid = {"module__normalization": ["batch", "instance"], "callbacks__early_stopping__patience": [1, 2]}
    search = GridSearchCV(make_segmenter(), grid, cv=2, error_score="raise").fit(X, y)
    assert_scores_are_those_of_a_loop(search, make_segmenter(), X, y, KFold(2).split(X))


def test_grid_search_over_all_kinds_of_parameters(small):
    X, y = small
    grid = {
        "scaling": ["image", (100.0, 50.0)],
        "class_weight": [None, {0: 1.0, 1: 3.0}],
        "optimizer": [torch.optim.SGD],
        "callbacks": [None, [("clipping", GradientNormClipping(0.1))]],
    }
    search = GridSearchCV(make_segmenter(), grid, cv=2, error_score="raise").fit(X, y)
    assert_scores_are_those_of_a_loop(search, make_segmenter(), X, y, KFold(2).split(X))


def test_grid_search_reports_impossible_parameters(small):
    X, y = small
    with pytest.raises(ValueError, match="depth must be a whole number from 0 to 6; got 99"):
        GridSearchCV(make_segmenter(), {"depth": [1, 99]}, cv=2, error_score="raise").fit(X, y)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning", "ignore:One or more of the test scores")
def test_grid_search_goes_on_past_impossible_parameters(small):
    X, y = small
    search = GridSearchCV(make_segmenter(), {"depth": [99, 1]}, cv=2).fit(X, y)
    assert np.isnan(search.cv_results_["mean_test_score"]).tolist() == [True, False]
    assert search.best_params_ == {"depth": 1}


def test_grid_search_parts_groups(small):
    X, y = small
    groups = np.repeat(["a", "b", "c", "d"], 3)
    search = GridSearchCV(make_segmenter(), {"filters": [2, 3]}, cv=GroupKFold(2), error_score="raise")
    search.fit(X, y, groups=groups)
    assert_scores_are_those_of_a_loop(search, make_segmenter(), X, y, GroupKFold(2).split(X, groups=groups))


def test_grid_search_in_two_loky_workers_equals_one(small, one_thread):
    X, y = small
    serial = GridSearchCV(make_segmenter(), GRID, cv=2, error_score="raise").fit(X, y)
    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = GridSearchCV(make_segmenter(), GRID, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    for fold in range(2):
        key = f"split{fold}_test_score"
        np.testing.assert_array_equal(parallel.cv_results_[key], serial.cv_results_[key])
    assert_same_weights(parallel.best_estimator_, serial.best_estimator_)


def test_cross_val_score_in_two_loky_workers_equals_one(small, one_thread):
    X, y = small
    serial = cross_val_score(make_segmenter(), X, y, cv=3, error_score="raise")
    with parallel_config(backend="loky", inner_max_num_threads=1):
        parallel = cross_val_score(make_segmenter(), X, y, cv=3, n_jobs=2, error_score="raise")
    np.testing.assert_array_equal(parallel, serial)


def test_cross_val_score_in_two_threads_equals_one(small, one_thread):
    X, y = small
    segmenter = make_segmenter(module__dropout=0.3, max_epochs=3)  # dropout draws from a generator that threads share
    serial = cross_val_score(segmenter, X, y, cv=4, error_score="raise")
    with parallel_config(backend="threading"):
        parallel = cross_val_score(segmenter, X, y, cv=4, n_jobs=2, error_score="raise")
    np.testing.assert_array_equal(parallel, serial)


def test_randomized_search_scores_are_those_of_a_loop(small):
    X, y = small
    space = {"filters": [2, 3, 4], "optimizer__weight_decay": np.linspace(0, 0.1, 5)}
    search = RandomizedSearchCV(make_segmenter(), space, n_iter=3, cv=2, random_state=0, error_score="raise").fit(X, y)
    assert search.cv_results_["params"] == list(ParameterSampler(space, 3, random_state=0))
    assert_scores_are_those_of_a_loop(search, make_segmenter(), X, y, KFold(2).split(X))


def test_halving_grid_search_gives_more_epochs_to_fewer_candidates(small):
    X, y = small
    search = HalvingGridSearchCV(
        make_segmenter(),
        {"filters": [1, 2, 3, 4]},
        resource="max_epochs",
        min_resources=1,
        max_resources=4,
        factor=2,
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.n_resources_ == [1, 2, 4]
    assert search.n_candidates_ == [4, 2, 1]
    assert [parameters["max_epochs"] for parameters in search.cv_results_["params"]] == [1] * 4 + [2] * 2 + [4]
    assert_scores_are_those_of_a_loop(search, make_segmenter(), X, y, KFold(2).split(X))
    assert search.best_estimator_.n_iter_ == search.best_params_["max_epochs"] == 4
