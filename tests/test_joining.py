import numpy as np
import pytest
import torch
from conftest import make_segmenter
from torch import nn

from skunet import joining
from skunet.folding import folded_norms
from skunet.joining import without_copies
from skunet.network import UNet


@pytest.fixture(autouse=True)
def has_kernel():
    if not all(joining._has_kernel(dtype) for dtype in (torch.float32, torch.bfloat16)):
        pytest.skip("this torch has no convolution that adds to its result")


def folded(**parameters):
    torch.manual_seed(0)
    network = UNet(in_channels=2, n_classes=3, **{"depth": 2, "filters": 4} | parameters)
    network(torch.randn(4, 2, *(network.input_size(10),) * network.spatial_ndim))
    return folded_norms(network.eval())


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"depth": 3, "filters": 5},
        {"convolutions": 3},
        {"upsampling": "nearest"},
        {"dropout": 0.5},
        {"attention": True},
        {"residual": "encoder"},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_of_convolutions_are_convolutions_of_both(parameters, dtype):
    network = folded(**parameters)
    joined = without_copies(network, dtype)
    assert not any(isinstance(block, type(network.decoder[0])) for block in joined.decoder)
    images = torch.randn(2, 2, 40, 53).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        found, expected = joined(images).float(), network(images).float()
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(
    "parameters",
    [
        {"residual": True},
        {"padding": "valid"},
        {"activation": "elu"},
        {"convolutions": 1},
        {"spatial_ndim": 3},
        {"normalization": "instance"},
        {"depth": 0},
    ],
)
def test_other_networks_are_left_alone(parameters):
    network = folded(**parameters)
    assert without_copies(network, torch.float32) is network


def test_modules_of_others_and_torch_without_the_kernel_are_left_alone(monkeypatch):
    other = nn.Conv2d(1, 2, 1)
    assert without_copies(other, torch.float32) is other
    monkeypatch.setattr(joining, "_has_kernel", lambda dtype: False)
    network = folded()
    assert without_copies(network, torch.float32) is network


@pytest.mark.parametrize("failure", [AttributeError, RuntimeError])
def test_the_kernel_is_tried_once_and_may_fail(monkeypatch, failure):
    def fail(*_):
        raise failure

    monkeypatch.setattr(joining, "_add_convolution", fail)
    assert joining._has_kernel.__wrapped__(torch.float32) is False
    monkeypatch.setattr(joining, "_add_convolution", lambda *_: None)  # does nothing, and so something else
    assert joining._has_kernel.__wrapped__(torch.float32) is False


def test_predictions_are_joined_and_those_of_the_network_itself(cells):
    X, y = cells
    segmenter = make_segmenter(precision="float32", max_epochs=2, scaling="dataset").fit(X, y)
    found = segmenter.predict_proba(X)
    scaled = (X[:, None] - segmenter.scaling_constants_[0]) / segmenter.scaling_constants_[1]
    with torch.no_grad():
        expected = segmenter.module_.eval()(torch.from_numpy(scaled).float()).softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_every_precision_predicts_on_every_processor(cells):
    X, y = cells
    for precision in ("float32", "bfloat16", "float16"):
        segmenter = make_segmenter(precision=precision).fit(X, y)
        assert segmenter.predict(X).shape == X.shape


class OtherUNet(UNet):
    """A network that looks into its blocks."""

    def forward(self, images):
        assert self.encoder[0].convolutions is not None
        return super().forward(images)

    def levels(self, features):
        return super().levels(features)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_subclasses_are_used_as_they_are(cells, precision):
    X, y = cells
    y = np.where(np.percentile(X, 90) < X, 2, y)
    segmenter = make_segmenter(module=OtherUNet, precision=precision, tile_size=8).fit(X, y)
    plain = make_segmenter(precision=precision, tile_size=8).fit(X, y)
    np.testing.assert_allclose(segmenter.predict_proba(X), plain.predict_proba(X), atol=0.05)


@pytest.mark.parametrize(("name", "value"), [("padding_mode", "circular"), ("dilation", (2, 2)), ("stride", (2, 2))])
def test_convolutions_with_settings_of_their_own_are_left_alone(name, value):
    network = folded()
    for block in network.decoder:
        setattr(block.convolutions[0], name, value)
    assert without_copies(network, torch.float32) is network
