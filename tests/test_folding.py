import copy
import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skunet.folding import folded_norms
from skunet.network import UNet

NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def trained(**parameters):
    """Return a network whose norms have statistics and weights of their own."""
    torch.manual_seed(0)
    network = UNet(in_channels=2, n_classes=3, **{"depth": 2, "filters": 4} | parameters)
    for layer in network.modules():
        if isinstance(layer, NORMS):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    network(torch.randn(4, 2, *(network.input_size(10),) * network.spatial_ndim))
    return network.eval()


def assert_same_function(folded, network, images):
    with torch.no_grad():
        expected, found = network(images), folded(images)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@given(
    residual=st.booleans(),
    attention=st.booleans(),
    padding=st.sampled_from(["same", "valid"]),
    upsampling=st.sampled_from(["transposed", "nearest", "linear"]),
    convolutions=st.integers(1, 3),
    spatial_ndim=st.sampled_from([2, 3]),
    activation=st.sampled_from(["relu", "leaky_relu", "elu"]),
)
@settings(max_examples=15)
def test_the_folded_network_gives_the_same_logits_without_any_norm(**parameters):
    network = trained(depth=1, **parameters)
    folded = folded_norms(network)
    assert not any(isinstance(layer, NORMS) for layer in folded.modules())
    side = network.input_size(10)
    images = torch.randn(2, 2, *(side,) * network.spatial_ndim)
    assert_same_function(folded, network, images)


def test_the_network_stays_as_it_is():
    network = trained()
    before = copy.deepcopy(network.state_dict())
    folded_norms(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(weight.requires_grad for weight in network.parameters())


def test_the_copy_is_kept_until_the_weights_change_and_dies_with_the_network():
    network, images = trained(), torch.randn(1, 2, 16, 16)
    folded = folded_norms(network)
    assert folded_norms(network) is folded
    network.load_state_dict({name: 2 * value for name, value in network.state_dict().items()})
    assert_same_function(folded_norms(network), network, images)
    nn.init.normal_(network.head.bias)
    assert_same_function(folded_norms(network), network, images)
    network.train()(torch.randn(4, 2, 16, 16))  # which moves the statistics
    assert_same_function(folded_norms(network), network.eval(), images)
    network.to(torch.float64)
    assert_same_function(folded_norms(network), network, images.double())
    alive = weakref.ref(folded_norms(network))
    del network, folded
    gc.collect()
    assert alive() is None


def test_what_others_listen_to_is_left_alone():
    network, heard = trained(), []
    assert folded_norms(network) is not network
    hook = network.encoder[0].convolutions[0].register_forward_hook(lambda *_: heard.append("convolution"))
    assert folded_norms(network) is network
    hook.remove()
    assert folded_norms(network) is not network


def test_a_hook_hears_of_predictions_whenever_it_was_registered(cells):
    X, y = cells
    segmenter, heard = make_segmenter().fit(X, y), []
    segmenter.predict(X[:1])
    segmenter.module_.encoder[0].register_forward_hook(lambda *_: heard.append("block"))
    segmenter.predict(X[:1])
    assert heard == ["block"]


@pytest.mark.parametrize(
    "network",
    [UNet(1, 2, depth=1, filters=2, normalization="instance"), nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))],
)
def test_networks_without_batch_norms_and_those_of_others_come_back(network):
    assert folded_norms(network) is network


def test_prediction_follows_the_weights_of_each_fit(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=2, scaling="dataset").fit(X, y)
    first = segmenter.predict_proba(X)
    segmenter.partial_fit(X, y)
    again = copy.deepcopy(segmenter)
    assert not np.array_equal(segmenter.predict_proba(X), first)
    np.testing.assert_array_equal(again.predict_proba(X), segmenter.predict_proba(X))
    with torch.no_grad():
        logits = segmenter.module_.eval()(
            torch.from_numpy((X[:1, None] - segmenter.scaling_constants_[0]) / segmenter.scaling_constants_[1]).float()
        )
    np.testing.assert_allclose(logits.softmax(1).numpy(), segmenter.predict_proba(X[:1]), atol=1e-5)


@pytest.mark.parametrize("fused", [False, True])
def test_predictions_follow_optimizers_that_change_weights_unnoticed(cells, fused):
    X, y = cells
    segmenter = make_segmenter(module__normalization=None, optimizer__fused=fused, lr=0.05).fit(X, y)
    first = segmenter.predict_proba(X[:2])
    versions = [weight._version for weight in segmenter.module_.parameters()]
    segmenter.partial_fit(X, y)
    later = [weight._version for weight in segmenter.module_.parameters()]
    assert all(new > old for new, old in zip(later, versions, strict=True))
    assert np.abs(segmenter.predict_proba(X[:2]) - first).max() > 1e-3
