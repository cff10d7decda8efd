"""Segmenters whose networks have other blocks than the plain ones."""

import numpy as np
import pytest
from conftest import make_segmenter

from skunet import UNetSegmenter


@pytest.mark.parametrize("module", [{"attention": True}, {"attention": True, "padding": "valid"}])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_kept_and_tiled_they_predict_the_same(cells, tmp_path, module, precision):
    X, y = cells
    y = y + 2 * (np.percentile(X, 95) < X)
    parameters = {f"module__{name}": value for name, value in module.items()}
    segmenter = make_segmenter(depth=2, precision=precision, **parameters).fit(X, y)
    found = segmenter.predict_proba(X[:2])
    segmenter.save(tmp_path / "file")
    np.testing.assert_array_equal(UNetSegmenter.load(tmp_path / "file").predict_proba(X[:2]), found)
    tolerance = 1e-5 if precision == "float32" else 0.05
    np.testing.assert_allclose(segmenter.set_params(tile_size=8).predict_proba(X[:2]), found, atol=tolerance)


def test_volumes_have_gates_too(volumes):
    X, y = volumes
    segmenter = make_segmenter(module__attention=True).fit(X, y)
    assert segmenter.predict(X).shape == y.shape
