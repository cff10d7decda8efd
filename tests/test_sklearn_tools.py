"""scikit-learn's tools, used on images."""

import joblib
import numpy as np
import pytest
from conftest import make_segmenter
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    RandomizedSearchCV,
    cross_val_predict,
    cross_val_score,
    cross_validate,
)
from sklearn.pipeline import make_pipeline

from skunet import UNetSegmenter
from skunet.metrics import dice_scorer, iou_scorer


class ImageScaler(TransformerMixin, BaseEstimator):
    """Divides images by their largest pixel, as a user's own transformer might."""

    def fit(self, X, y=None):
        self.largest_ = float(np.max(X))
        return self

    def transform(self, X):
        return np.asarray(X, dtype=np.float32) / self.largest_


def test_grid_search_over_depth_and_filters_in_two_processes(cells):
    X, y = cells
    grid = {"depth": [1, 2], "filters": [4, 8]}
    segmenter = UNetSegmenter(max_epochs=1, verbose=0, random_state=0, precision="float32")
    search = GridSearchCV(segmenter, grid, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert search.best_estimator_.predict(X).shape == X.shape
    assert (search.best_estimator_.depth, search.best_estimator_.filters) == tuple(search.best_params_.values())
    serial = GridSearchCV(segmenter, grid, cv=2, error_score="raise").fit(X, y)
    np.testing.assert_allclose(search.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"], atol=5e-3)


def test_nested_parameters_can_be_searched(cells):
    X, y = cells
    grid = {
        "callbacks__early_stopping__patience": [1, 2],
        "module__normalization": ["batch", "instance"],
        "optimizer__weight_decay": [0.0, 0.1],
    }
    search = RandomizedSearchCV(make_segmenter(), grid, n_iter=3, cv=2, random_state=0, error_score="raise")
    assert search.fit(X, y).best_estimator_.predict(X).shape == X.shape


def test_a_pipeline_with_a_scaler_in_front(cells):
    X, y = cells
    pipeline = make_pipeline(ImageScaler(), make_segmenter(max_epochs=2)).fit(X, y)
    assert pipeline.predict(X).shape == X.shape
    assert 0 <= pipeline.score(X, y) <= 1
    search = GridSearchCV(pipeline, {"unetsegmenter__filters": [2, 4]}, cv=2, error_score="raise").fit(X, y)
    assert search.best_score_ > 0


def test_cross_validation_by_groups_and_with_several_scores(cells):
    X, y = cells
    groups = np.repeat(np.arange(4), 3)
    scores = cross_val_score(make_segmenter(), X, y, groups=groups, cv=GroupKFold(2), error_score="raise")
    assert scores.shape == (2,)
    results = cross_validate(
        make_segmenter(), X, y, cv=2, scoring={"iou": iou_scorer, "dice": dice_scorer}, error_score="raise"
    )
    assert (results["test_dice"] > results["test_iou"]).all()
    labels = cross_val_predict(make_segmenter(), X, y, cv=KFold(3))
    assert labels.shape == y.shape


def test_clones_are_unfitted_equals(cells, fitted):
    copy = clone(fitted)
    assert copy.get_params() != {}
    assert not hasattr(copy, "classes_")
    assert repr(copy) == repr(fitted)
    np.testing.assert_array_equal(clone(fitted).fit(*cells).predict(cells[0]), fitted.predict(cells[0]))


def test_repr_shows_what_the_user_set():
    assert repr(UNetSegmenter(depth=3, module__dropout=0.1)) == "UNetSegmenter(depth=3, module__dropout=0.1)"
    assert "UNetSegmenter" in UNetSegmenter(depth=3)._repr_html_()


def test_the_constructor_only_stores():
    values = {"depth": "x", "classes": [5], "device": "nowhere", "patch_size": -1}
    segmenter = UNetSegmenter(**values)
    assert all(segmenter.get_params()[name] is value for name, value in values.items())
    assert segmenter.device is values["device"]


def test_device_auto_stays_auto(cells):
    segmenter = make_segmenter(device="auto").fit(*cells)
    assert segmenter.device == segmenter.get_params()["device"] == "auto"
    assert segmenter.device_ in ("cpu", "cuda", "mps")
    assert clone(segmenter).device == "auto"


def test_it_is_a_classifier(fitted):
    assert is_classifier(fitted)


def test_joblib_files_are_compressible_and_memory_mappable(cells, fitted, tmp_path):
    X, _ = cells
    joblib.dump(fitted, tmp_path / "small.joblib", compress=3)
    np.testing.assert_array_equal(joblib.load(tmp_path / "small.joblib").predict(X), fitted.predict(X))


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_fits_in_parallel_workers(cells, backend):
    X, y = cells
    with joblib.parallel_backend(backend, n_jobs=2):
        scores = cross_val_score(make_segmenter(), X, y, cv=2, error_score="raise")
    assert np.isfinite(scores).all()
