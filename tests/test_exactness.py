import numpy as np
import pytest
import torch
from conftest import make_segmenter
from torch import nn

from skunet.exactness import with_exact_start
from skunet.network import UNet


def types_within(network, images):
    """Return in what each level of the encoder computes under autocast."""
    seen = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: seen.append(output.dtype))
        for layer in network.modules()
        if isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.kernel_size[0] == 3
    ]
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        network(images)
    for hook in hooks:
        hook.remove()
    return seen[::2]


@pytest.mark.parametrize(("depth", "n_exact"), [(0, 0), (1, 1), (2, 2), (3, 2)])
def test_the_first_levels_are_float32_and_the_others_are_not(depth, n_exact):
    network = UNet(1, 3, depth=depth, filters=2).eval()
    images = torch.randn(1, 1, 16, 16)
    assert set(types_within(network, images)) == {torch.bfloat16}
    types = types_within(with_exact_start(network), images)
    assert types == [torch.float32] * n_exact + [torch.bfloat16] * (2 * depth + 1 - n_exact)


def test_in_float32_it_is_the_network_itself_and_shares_its_weights():
    network, images = UNet(1, 3, depth=2, filters=2).eval(), torch.randn(1, 1, 16, 16)
    exact = with_exact_start(network)
    with torch.no_grad():
        assert torch.equal(exact(images), network(images))
    assert {weight.data_ptr() for weight in exact.parameters()} == {
        weight.data_ptr() for weight in network.parameters()
    }
    assert with_exact_start(network) is exact
    other = nn.Conv2d(1, 2, 1)
    assert with_exact_start(other) is other


@pytest.mark.parametrize(("n_classes", "is_exact"), [(2, False), (3, True)])
def test_networks_of_several_classes_predict_with_an_exact_start(cells, monkeypatch, n_classes, is_exact):
    used = []
    monkeypatch.setattr("skunet.inference.with_exact_start", lambda module: used.append(module) or module)
    X, y = cells
    segmenter = make_segmenter(precision="bfloat16", train_split=None).fit(X, np.where(X.mean() < X, n_classes - 1, y))
    assert not used
    segmenter.predict(X[:1])
    assert bool(used) == is_exact
    segmenter.set_params(precision="float32").predict(X[:1])
    assert len(used) == is_exact
