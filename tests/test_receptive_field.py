import copy

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from torch import nn

from skunet.geometry import PlainGeometry
from skunet.inference import geometry_of
from skunet.network import UNet
from skunet.receptive_field import MeasuredGeometry, measure_receptive_field


class Silent(nn.Module):
    """A network that keeps the size and says nothing of itself."""

    def __init__(self, in_channels, n_classes, normalization="batch"):
        super().__init__()
        self.inside = UNet(in_channels, n_classes, depth=2, filters=4, normalization=normalization)

    def forward(self, images):
        return self.inside(images)


@pytest.mark.parametrize(
    "parameters",
    [
        {"depth": 1},
        {"depth": 3, "convolutions": 1},
        {"depth": 2, "upsampling": "linear"},
        {"depth": 2, "residual": True, "activation": "elu"},
        {"depth": 1, "spatial_ndim": 3},
        {"depth": 0, "convolutions": 3},
    ],
    ids=str,
)
def test_what_is_measured_is_what_the_network_says(parameters):
    network = UNet(2, 3, filters=4, **parameters)
    multiple = network.size_multiple
    weights = copy.deepcopy(network.state_dict())
    measured = measure_receptive_field(
        network, size_multiple=multiple, n_channels=2, spatial_ndim=parameters.get("spatial_ndim", 2)
    )
    for found, said in zip(measured, network.receptive_field, strict=True):
        assert said <= found < said + multiple
    for name, weight in network.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert network.training


def measured(*layers, size_multiple=4, n_channels=1):
    return measure_receptive_field(
        nn.Sequential(*layers), size_multiple=size_multiple, n_channels=n_channels, spatial_ndim=2
    )


def test_layers_of_all_kinds():
    assert measured(nn.Conv2d(1, 2, (3, 7), padding=(1, 3)), size_multiple=1) == (3, 3)
    assert measured(nn.Conv2d(1, 2, 3, padding=2, dilation=2), nn.GELU(), size_multiple=1) == (2, 2)
    assert measured(nn.MaxPool2d(5, stride=1, padding=2), size_multiple=1) == (2, 2)
    assert measured(nn.MaxPool2d(4), nn.Conv2d(1, 2, 3, padding=1), nn.Upsample(scale_factor=4)) == (7, 7)


@pytest.mark.parametrize(
    "layer",
    [
        nn.InstanceNorm2d(1),
        nn.GroupNorm(1, 1),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Upsample(size=(64, 256))),
        nn.Conv2d(1, 2, 3),  # loses pixels
        nn.LazyConv2d(2, 3),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_what_has_no_end_or_does_not_fit_is_not_tileable(layer):
    assert measured(layer) is None


def test_tiles_must_start_at_multiples_of_the_network():
    layers = nn.MaxPool2d(8), nn.Conv2d(1, 2, 3, padding=1), nn.Upsample(scale_factor=8)
    assert measured(*layers, size_multiple=8) is not None
    assert measured(*layers, size_multiple=4) is None


class Positions(nn.Module):
    """Adds to each pixel how far it is from the border: no tile is like the whole."""

    def forward(self, images):
        rows = torch.arange(images.shape[2], dtype=images.dtype)[:, None]
        columns = torch.arange(images.shape[3], dtype=images.dtype)
        return images + rows + columns


def test_gradients_alone_do_not_decide():
    assert measured(Positions(), nn.Conv2d(1, 2, 1)) is None


@pytest.mark.filterwarnings("error")
def test_networks_of_others_are_tiled_exactly(cells, monkeypatch):
    X, y = cells
    segmenter = make_segmenter(module=Silent, depth=2, tile_size=16).fit(X, y)
    image = np.tile(X[:1], (1, 5, 6))[:, :151]
    tiled = segmenter.predict_proba(image)
    np.testing.assert_allclose(tiled, segmenter.set_params(tile_size=None).predict_proba(image), atol=1e-5)
    # Once for each network, and not for images that are predicted whole.
    monkeypatch.setattr("skunet.receptive_field.measure_receptive_field", None)
    segmenter.set_params(tile_size=24).predict(image)
    make_segmenter(module=Silent, depth=2).fit(X, y).predict(image)


def test_networks_without_an_end_are_blended_with_a_warning(cells):
    X, y = cells
    segmenter = make_segmenter(module=Silent, module__normalization="instance", depth=2).fit(X, y)
    segmenter.set_params(tile_size=16)
    with pytest.warns(UserWarning, match=r"Tiles are blended.*instance or group normalization, self-attention"):
        segmenter.predict(X[:1])


class Global(UNet):
    """A network made of `UNet` that adds the mean over the image."""

    def forward(self, images):
        logits = super().forward(images)
        return logits + logits.mean((2, 3), keepdim=True)


class Smoothed(UNet):
    """A network made of `UNet` that looks farther at the end."""

    def forward(self, images):
        return nn.functional.avg_pool2d(super().forward(images), 9, 1, 4)


class Wide(UNet):
    """A network made of `UNet` with another layer, which `UNet` does not know of."""

    def __init__(self, in_channels, n_classes, depth):
        super().__init__(in_channels, n_classes, depth=depth, filters=4)
        self.head = nn.Conv2d(4, n_classes, 7, padding=3)


@pytest.mark.filterwarnings("error:Tiles are blended")
@pytest.mark.parametrize("module", [Smoothed, Wide])
def test_what_is_made_of_a_unet_is_measured(cells, module):
    X, y = cells
    image = np.tile(X[:1], (1, 5, 6))[:, :152, :140]
    segmenter = make_segmenter(module=module, depth=2, tile_size=None, scaling=None).fit(X, y)
    with torch.no_grad():
        expected = segmenter.module_.eval()(torch.from_numpy(image[:, None]).float()).softmax(1).numpy()
    np.testing.assert_allclose(segmenter.predict_proba(image), expected, atol=1e-5)
    np.testing.assert_allclose(segmenter.set_params(tile_size=16).predict_proba(image), expected, atol=1e-5)


def test_what_is_made_of_a_unet_and_has_no_end_is_blended(cells):
    X, y = cells
    image = np.tile(X[:1], (1, 5, 6))[:, :151]
    segmenter = make_segmenter(module=Global, depth=2, tile_size=16, train_split=None).fit(X, y)
    with pytest.warns(UserWarning, match="Tiles are blended"):
        segmenter.predict(image)


def test_what_a_network_says_is_tried():
    network = nn.Conv2d(1, 2, 5, padding=2)
    arguments = {"size_multiple": 4, "n_channels": 1, "spatial_ndim": 2}
    assert isinstance(geometry_of(network, **arguments), MeasuredGeometry)
    assert geometry_of(network, **arguments).receptive_field == (2 + 3, 2 + 3)  # at any place of a period
    network.receptive_field = 9
    network.size_multiple = 8
    assert geometry_of(network, **arguments).receptive_field == (9, 9)
    assert geometry_of(network, **arguments).size_multiple == 8
    network.receptive_field = (9, 11)
    assert geometry_of(network, **arguments).receptive_field == (9, 11)
    assert geometry_of(network, **arguments).is_exactly_tileable
    network.receptive_field = 0
    assert not geometry_of(network, **arguments).is_exactly_tileable
    network.receptive_field, network.is_exactly_tileable = 9, False
    assert geometry_of(network, **arguments) == PlainGeometry(8, (9, 9))
    network.receptive_field = "big"
    with pytest.raises(ValueError, match="receptive_field of a module must be a number of pixels, or two; got 'big'"):
        geometry_of(network, **arguments)
    normalized = nn.Sequential(nn.Conv2d(1, 2, 1), nn.InstanceNorm2d(2))
    normalized.receptive_field = 8
    assert not geometry_of(normalized, **arguments).is_exactly_tileable
    whole = UNet(1, 2, depth=1, filters=2)
    assert geometry_of(whole, **arguments) is whole
