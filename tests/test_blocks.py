"""Segmenters whose networks have other blocks than the plain ones."""

import numpy as np
import pytest
import torch
from conftest import make_segmenter

from skunet import UNetSegmenter
from skunet.memory import measure_step
from skunet.network import UNet


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


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"module__dropout": 0.5},
        {"precision": "bfloat16"},
        {"module__attention": True, "module__padding": "valid"},
        {"module__deep_supervision": True, "depth": 3},
        {"micro_batch_size": 2},
    ],
)
def test_features_that_are_computed_twice_train_the_same(cells, parameters):
    """To the bit, running means included."""
    X, y = cells
    kept, again = (
        make_segmenter(**{"depth": 2} | parameters, module__gradient_checkpointing=value).fit(X, y)
        for value in (False, True)
    )
    assert kept.history[:, "train_loss"] == again.history[:, "train_loss"]
    states = zip(kept.module_.state_dict().items(), again.module_.state_dict().values(), strict=True)
    assert all(torch.equal(weight, other) for (_, weight), other in states)


def test_volumes_of_few_slices_are_computed_twice(volumes):
    X, y = (array[:, :8] for array in volumes)
    segmenter = make_segmenter(depth=2, precision="bfloat16", module__gradient_checkpointing=True).fit(X, y)
    assert segmenter.predict(X).shape == y.shape


def test_features_that_are_not_kept_take_no_memory():
    """Largest for blocks of many convolutions, as what they get is kept all the same."""
    seen = []
    for value in (False, True):
        network = UNet(1, 2, depth=2, filters=8, convolutions=4, gradient_checkpointing=value)
        step = measure_step(
            lambda size, network=network: network(torch.ones(2, 1, *size)).sum(), size=(32, 32), weights=0
        )
        seen.append(step.per_pixel)
    assert seen[1] < seen[0] / 3


def test_memory_limits_count_all_features(cells):
    X, y = cells
    sizes = [
        make_segmenter(memory_limit=1.5e6, batch_size=6, module__gradient_checkpointing=value).fit(X, y).batch_size_
        for value in (False, True)
    ]
    assert sizes[0] == sizes[1] < 6
