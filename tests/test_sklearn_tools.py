"""scikit-learn's tools for single estimators, used on images."""

import copy
import pickle

import joblib
import numpy as np
import pytest
from by_hand import assert_same_weights
from conftest import make_segmenter
from sklearn import config_context, set_config
from sklearn.base import BaseEstimator, TransformerMixin, clone, is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import jaccard_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import estimator_html_repr

from skunet import UNetSegmenter


class ImageScaler(TransformerMixin, BaseEstimator):
    """Divides images by their largest pixel, as a user's own transformer might."""

    def fit(self, X, y=None):
        self.largest_ = float(np.max(X))
        return self

    def transform(self, X):
        return np.asarray(X, dtype=np.float32) / self.largest_


# ---- clone and parameters


def test_clone_is_an_unfitted_equal(cells, fitted):
    cloned = clone(fitted)
    assert cloned.get_params(deep=False) == make_segmenter(max_epochs=3).get_params(deep=False)
    assert not hasattr(cloned, "classes_")
    assert repr(cloned) == repr(fitted)
    assert_same_weights(cloned.fit(*cells), fitted)


def test_clone_keeps_parameters_of_components(cells):
    segmenter = make_segmenter(module__dropout=0.1, optimizer__weight_decay=0.5, callbacks__progress=None).fit(*cells)
    cloned = clone(segmenter)
    assert cloned.get_params(deep=False) == segmenter.get_params(deep=False)
    assert_same_weights(cloned.fit(*cells), segmenter)


def test_clone_keeps_device_auto(cells):
    segmenter = make_segmenter(device="auto").fit(*cells)
    assert segmenter.device == segmenter.get_params()["device"] == "auto"
    assert segmenter.device_ in ("cpu", "cuda", "mps")
    assert clone(segmenter).device == "auto"


def test_the_constructor_only_stores():
    values = {"depth": "x", "classes": [5], "device": "nowhere", "patch_size": -1, "callbacks": 3}
    segmenter = UNetSegmenter(**values)
    assert all(segmenter.get_params()[name] is value for name, value in values.items())
    assert segmenter.device is values["device"]


def test_set_params_only_stores_before_fit(cells):
    segmenter = make_segmenter().set_params(callbacks=3)
    assert segmenter.callbacks == 3
    with pytest.raises(ValueError, match="callbacks must be"):
        segmenter.fit(*cells)


def test_set_params_of_a_fitted_segmenter_takes_callbacks_at_once(cells):
    segmenter = make_segmenter().fit(*cells)
    segmenter.set_params(callbacks__early_stopping__patience=3)
    assert dict(segmenter.callbacks_)["early_stopping"].patience == 3


def test_it_is_a_classifier(fitted):
    assert is_classifier(fitted)


# ---- Pipeline and FrozenEstimator


def test_pipeline_with_a_transformer_in_front(cells):
    X, y = cells
    pipeline = make_pipeline(ImageScaler(), make_segmenter(max_epochs=2)).fit(X, y)
    scaled = ImageScaler().fit_transform(X)
    by_hand = make_segmenter(max_epochs=2).fit(scaled, y)
    assert_same_weights(pipeline[-1], by_hand)
    np.testing.assert_array_equal(pipeline.predict(X), by_hand.predict(scaled))
    np.testing.assert_array_equal(pipeline.predict_proba(X), by_hand.predict_proba(scaled))
    np.testing.assert_array_equal(pipeline.classes_, [0, 1])
    expected = jaccard_score(y.ravel(), by_hand.predict(scaled).ravel(), average="macro")
    assert pipeline.score(X, y) == pytest.approx(expected, abs=1e-12)


def test_pipeline_learns_its_transformer_anew_in_each_fold(cells):
    X, y = cells
    X = (X // np.arange(1, 13, dtype=np.uint8)[:, None, None]).astype(np.uint8)  # the largest pixel differs by fold
    pipeline = make_pipeline(ImageScaler(), make_segmenter(scaling=None))
    search = GridSearchCV(pipeline, {"unetsegmenter__filters": [2, 4]}, cv=2, error_score="raise").fit(X, y)
    for position, filters in enumerate([2, 4]):
        for fold, test in enumerate((np.arange(6), np.arange(6, 12))):
            train = np.setdiff1d(np.arange(12), test)
            scaler = ImageScaler().fit(X[train])
            by_hand = make_segmenter(scaling=None, filters=filters).fit(scaler.transform(X[train]), y[train])
            expected = by_hand.score(scaler.transform(X[test]), y[test])
            assert search.cv_results_[f"split{fold}_test_score"][position] == expected


def test_pipeline_caches_its_transformer(cells, tmp_path):
    X, y = cells
    steps = [("halve", FunctionTransformer(np.sqrt)), ("segment", make_segmenter())]
    cached = Pipeline(steps, memory=str(tmp_path)).fit(X, y)
    np.testing.assert_array_equal(cached.predict(X), Pipeline(steps).fit(X, y).predict(X))


def test_frozen_estimator_is_not_fitted_again(cells, fitted):
    X, y = cells
    before = fitted.predict_proba(X)
    frozen = FrozenEstimator(fitted)
    assert clone(frozen) is frozen
    np.testing.assert_array_equal(frozen.fit(X, 1 - y).predict_proba(X), before)
    pipeline = make_pipeline(FunctionTransformer(np.copy), frozen).fit(X, 1 - y)
    np.testing.assert_array_equal(pipeline.predict_proba(X), before)
    assert is_classifier(frozen)


# ---- display


@pytest.fixture(autouse=True)
def _display_as_it_was():
    with config_context():
        yield


def test_repr_shows_what_the_user_set():
    assert repr(UNetSegmenter(depth=3, module__dropout=0.1)) == "UNetSegmenter(depth=3, module__dropout=0.1)"


def test_repr_of_a_fitted_segmenter_shows_no_network(fitted):
    assert "Conv" not in repr(fitted)
    assert repr(make_pipeline(fitted)).count("UNetSegmenter") == 1


def test_html_repr_lists_parameters_and_whether_fitted(fitted):
    html = UNetSegmenter(depth=3, module__dropout=0.125)._repr_html_()
    assert "<table" in html
    assert all(f">{name}" in html for name in ("depth", "filters", "tile_size", "module__dropout"))
    assert "0.125" in html
    assert "Not fitted" in html
    assert "Not fitted" not in fitted._repr_html_()


def test_html_repr_of_a_pipeline_and_of_a_search_shows_the_segmenter():
    pipeline = make_pipeline(ImageScaler(), UNetSegmenter(depth=3))
    for estimator in (pipeline, GridSearchCV(pipeline, {"unetsegmenter__depth": [1]})):
        html = estimator_html_repr(estimator)
        assert "ImageScaler" in html
        assert "UNetSegmenter" in html


def test_set_config_display_text(fitted):
    set_config(display="text")
    assert set(fitted._repr_mimebundle_()) == {"text/plain"}
    assert not hasattr(fitted, "_repr_html_")


def test_set_config_display_diagram(fitted):
    set_config(display="diagram")
    bundle = fitted._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html"}
    assert bundle["text/plain"] == repr(fitted)
    assert "UNetSegmenter" in bundle["text/html"]
    assert "<table" in fitted._repr_html_()


def test_set_config_print_changed_only():
    set_config(print_changed_only=False)
    assert "filters=16" in repr(UNetSegmenter(depth=3))


# ---- copies


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda fitted: pickle.loads(pickle.dumps(fitted))])
def test_deepcopy_and_pickle_predict_the_same(cells, fitted, copied):
    np.testing.assert_array_equal(copied(fitted).predict_proba(cells[0]), fitted.predict_proba(cells[0]))


def test_joblib_files_are_compressible_and_memory_mappable(cells, fitted, tmp_path):
    X, _ = cells
    joblib.dump(fitted, tmp_path / "small.joblib", compress=3)
    np.testing.assert_array_equal(joblib.load(tmp_path / "small.joblib").predict(X), fitted.predict(X))
    joblib.dump(fitted, tmp_path / "mapped.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "mapped.joblib", mmap_mode="r").predict(X), fitted.predict(X))
