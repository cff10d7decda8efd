"""Losses of coarser levels in training, and that prediction knows nothing of them."""

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from skorch.callbacks import Callback
from torch import nn
from torch.nn import functional

from skunet.components import mean_over_levels
from skunet.losses import CrossEntropyDiceLoss, LovaszLoss
from skunet.network import UNet


def make_network(**options):
    torch.manual_seed(0)
    return UNet(**{"in_channels": 1, "n_classes": 3, "depth": 3, "filters": 2, "deep_supervision": True} | options)


@pytest.mark.parametrize(("depth", "n_coarse"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 3)])
def test_coarser_levels_follow_in_training_alone(depth, n_coarse):
    network, images = make_network(depth=depth, filters=1), torch.randn(2, 1, 9, 13)
    assert network.train()(images).shape == (2, 3 * (1 + n_coarse), 9, 13)
    assert network.eval()(images).shape == (2, 3, 9, 13)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("spatial_ndim", [2, 3])
def test_the_first_logits_are_those_of_the_same_network_without(padding, spatial_ndim):
    network = make_network(depth=2, padding=padding, spatial_ndim=spatial_ndim, upsampling="linear")
    plain = UNet(1, 3, depth=2, filters=2, padding=padding, spatial_ndim=spatial_ndim, upsampling="linear")
    plain.load_state_dict({n: v for n, v in network.state_dict().items() if not n.startswith("coarse_heads")})
    images = torch.randn(2, 1, *(network.input_size(9),) * spatial_ndim)
    found, expected = network.train()(images), plain.train()(images)
    assert found.shape[2:] == expected.shape[2:]
    assert torch.equal(found[:, :3], expected)
    assert torch.equal(network.eval()(images), plain.eval()(images))
    window = [slice(1, 4)] * spatial_ndim
    assert torch.equal(network(images, window), plain(images, window))


def test_coarse_logits_are_heads_on_the_decoder_brought_to_full_size():
    network, seen = make_network(depth=4, n_classes=2).train(), []
    for block in network.decoder:
        block.register_forward_hook(lambda _block, _inputs, output: seen.insert(0, output))
    _, first, second = network(torch.randn(2, 1, 32, 48)).split(2, dim=1)
    for level, found in [(1, first), (2, second)]:
        logits = network.coarse_heads[level - 1](seen[level])
        expected = functional.interpolate(logits, size=(32, 48), mode="bilinear", align_corners=False)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("upsampling", ["transposed", "linear", "bicubic"])
def test_coarse_logits_lie_on_the_fine_ones(padding, upsampling):
    # A network of symmetric weights mirrors with its image, unless something is cropped off its centre.
    options = {"padding": padding, "upsampling": upsampling, "activation": nn.Identity, "normalization": None}
    network = make_network(depth=4, filters=1, n_classes=1, **options).double().train()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    image = torch.randn(1, 1, *[network.input_size(20)] * 2, dtype=torch.float64)
    torch.testing.assert_close(network(image.flip(2, 3)), network(image).flip(2, 3))


def test_all_coarse_heads_learn():
    network = make_network(depth=4, filters=4)
    logits = network.train()(torch.randn(2, 1, 32, 32))
    (logits * torch.randn_like(logits)).sum().backward()
    assert all(weight.grad.abs().max() > 0 for weight in network.coarse_heads.parameters())


def test_levels_weigh_half_of_the_finer_one_and_1_in_all():
    losses = torch.tensor([3.0, 5.0, 11.0])
    expected = (3 + 5 / 2 + 11 / 4) / (1 + 1 / 2 + 1 / 4)
    assert float(mean_over_levels(list(losses))) == pytest.approx(expected)


class Predictions(Callback):
    """Keeps what callbacks get of training batches."""

    def initialize(self):
        self.shapes_, self.losses_ = [], []
        return self

    def on_batch_end(self, net, y_pred=None, training=False, **kwargs):
        if training:
            self.shapes_.append(tuple(y_pred.shape))


def supervised(**parameters):
    return make_segmenter(depth=2, module__deep_supervision=True, callbacks=[("seen", Predictions())], **parameters)


@pytest.mark.parametrize("criterion", [CrossEntropyDiceLoss, nn.CrossEntropyLoss, nn.NLLLoss])
@pytest.mark.parametrize("has_weights", [False, True])
def test_the_loss_is_the_weighted_mean_of_the_levels(cells, criterion, has_weights):
    X, y = cells
    segmenter = supervised(criterion=criterion).fit(X, y)
    weights = torch.rand(4, 32, 32) if has_weights else None
    inputs = {"patches": torch.randn(4, 1, 32, 32)} | ({"weights": weights} if has_weights else {})
    labels = torch.tensor(y[:4])
    segmenter._set_training(True)
    logits = segmenter.infer(inputs)
    assert logits.shape == (4, 4, 32, 32)
    found = segmenter.get_loss(logits, labels, X=inputs, training=True)
    plain = make_segmenter(depth=2, criterion=criterion).fit(X, y)
    fine, coarse = (plain.get_loss(part, labels, X=inputs) for part in logits.split(2, dim=1))
    torch.testing.assert_close(found, (2 * fine + coarse) / 3)


@pytest.mark.parametrize(
    "parameters",
    [
        {"criterion": LovaszLoss},
        {"ignore_label": 0, "classes": [1, 2, 3]},
        {"class_weight": "balanced"},
        {"precision": "bfloat16"},
        {"precision": "float16"},
        {"memory_limit": 1e9},
        {"module__padding": "valid"},
        {"module__normalization": "instance"},
        {"compile": True, "compile__backend": "eager"},
    ],
)
def test_training_goes_on_with_all_else(cells, parameters):
    X, y = cells
    y = y + 2 * (np.percentile(X, 95) < X)  # labels 0 to 3
    segmenter = supervised(**parameters).fit(X, y)
    seen = dict(segmenter.callbacks_)["seen"].shapes_
    assert {shape[1] for shape in seen} == {len(segmenter.classes_)}
    assert np.isfinite(segmenter.history[-1, ("train_loss", "valid_loss")]).all()
    assert segmenter.predict_proba(X[:2]).shape == (2, len(segmenter.classes_), 32, 32)
    torch._dynamo.reset()


def test_volumes_and_weights_of_pixels(volumes):
    X, y = volumes
    segmenter = supervised().fit(X, y, sample_weight=np.random.default_rng(0).random(y.shape))
    assert {shape[1] for shape in dict(segmenter.callbacks_)["seen"].shapes_} == {2}
    assert segmenter.predict(X).shape == y.shape


def test_logits_for_users_are_those_of_the_finest_level_in_either_mode(cells):
    X, y = cells
    segmenter = supervised().fit(X, y)
    for training in (False, True):
        logits = segmenter.forward(X[:3], training=training)
        assert logits.shape == (3, 2, 32, 32)


def test_memory_is_measured_with_the_coarser_levels(cells):
    X, y = cells
    deep, plain = (make_segmenter(depth=2, module__deep_supervision=deep).fit(X, y) for deep in (True, False))
    for segmenter in (deep, plain):
        segmenter._set_training(True)
    losses = [segmenter._loss_of_blanks(segmenter.module_, (16, 16)) for segmenter in (deep, plain)]
    assert all(loss.ndim == 0 and torch.isfinite(loss) for loss in losses)
    losses[0].backward()
    assert all(weight.grad is not None for weight in deep.module_.coarse_heads.parameters())


class Deep(nn.Module):
    """A module of others that gives two levels, one behind the other or stacked as MONAI's."""

    def __init__(self, in_channels, n_classes, n_maps=None, is_stacked=False, deep_supervision=True):
        super().__init__()
        self.fine = nn.Conv2d(in_channels, n_classes, 3, padding=1)
        self.coarse = nn.Conv2d(in_channels, n_maps or n_classes, 3, padding=1)
        self.is_stacked, self.deep_supervision = is_stacked, deep_supervision

    def forward(self, images):
        if not self.training:
            return self.fine(images)
        join = torch.stack if self.is_stacked else torch.cat
        return join([self.fine(images), self.coarse(images)], dim=1)


@pytest.mark.parametrize("is_stacked", [False, True])
def test_modules_of_others_may_give_levels_too(cells, is_stacked):
    X, y = cells
    segmenter = make_segmenter(module=Deep, module__is_stacked=is_stacked, lr=0.0).fit(X, y)
    before = [weight.clone() for weight in segmenter.module_.coarse.parameters()]
    segmenter.set_params(lr=0.1).partial_fit(X, y)
    assert not any(map(torch.equal, before, segmenter.module_.coarse.parameters()))
    assert segmenter.predict(X).shape == y.shape


@pytest.mark.parametrize("parameters", [{"n_maps": 1}, {"deep_supervision": False}])
def test_other_numbers_of_maps_are_refused(cells, parameters):
    parameters = {f"module__{name}": value for name, value in parameters.items()}
    with pytest.raises(ValueError, match="module must give one map of logits per class"):
        make_segmenter(module=Deep, **parameters).fit(*cells)
