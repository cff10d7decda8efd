"""The U-Net: its layers, the sizes that it takes, what it sees, and that tiles see the same."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import nn

from skunet.network import UNet

UPSAMPLINGS = ["transposed", "nearest", "linear", "bicubic"]


@pytest.fixture(autouse=True, scope="module")
def single_thread():
    """Networks this small run many times slower in several threads that wait for each other on a busy machine."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)


def make_network(**options):
    """A small network with seeded weights; the caller's random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.pop("seed", 0))
        return UNet(**{"in_channels": 1, "n_classes": 2, "depth": 2, "filters": 2, **options})


def make_images(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def settle_statistics(network):
    """Give batch norms running statistics and scales other than 0 and 1, so that they do something."""
    generator = torch.Generator().manual_seed(1)
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            layer.running_mean.normal_(generator=generator)
            layer.running_var.uniform_(0.5, 2, generator=generator)
            nn.init.normal_(layer.bias, generator=generator)
    return network.eval()


# --- mirroring -----------------------------------------------------------------------------------------------------


# --- sizes ---------------------------------------------------------------------------------------------------------


def test_valid_network_has_the_papers_sizes():
    network = UNet(1, 2, depth=4, convolutions=2, filters=1, padding="valid").eval()
    assert network.margin == 92
    assert network.size_multiple == 16
    assert network.output_size(572) == 388
    assert network.input_size(388) == 572
    assert network.input_size(373) == 572
    assert network.input_size(372) == 556
    assert network.input_size(1) == 188
    with torch.no_grad():
        assert network(torch.zeros(1, 1, 572, 188)).shape == (1, 2, 388, 4)


def test_paper_network_has_the_papers_number_of_parameters():
    # Counted by hand for 64 filters without normalization: the sum over the paper's figure 1.
    network = UNet(1, 2, filters=64, padding="valid", normalization=None)
    channels = [1, 64, 128, 256, 512, 1024]
    pairs = list(itertools.pairwise(channels))
    encoder = sum(9 * a * b + b + 9 * b * b + b for a, b in pairs)
    decoder = sum(4 * 2 * a * a + a + 9 * 2 * a * a + a + 9 * a * a + a for a in channels[1:5])
    assert sum(p.numel() for p in network.parameters()) == encoder + decoder + 64 * 2 + 2 == 31_030_658


@pytest.mark.parametrize("depth", [0, 3])
@pytest.mark.parametrize("training", [True, False])
def test_same_network_returns_every_size_it_gets_in_2d(depth, training):
    network = make_network(depth=depth, filters=1).train(training)
    for size in range(1, 41):
        other = 1 + 7 * size % 40
        logits = network(make_images(1, 1, size, other))
        assert logits.shape[2:] == (size, other)
        assert torch.isfinite(logits).all()


def test_same_network_returns_every_size_it_gets_in_3d():
    network = make_network(spatial_ndim=3, filters=1).eval()
    with torch.no_grad():
        for size in range(1, 41):
            sides = (size, 1 + size % 3, 1 + size % 7)
            assert network(make_images(1, 1, *sides)).shape == (1, 2, *sides)


def test_same_network_mirrors_at_the_end_what_is_no_multiple():
    network = settle_statistics(make_network(depth=3))
    image = make_images(1, 1, 13, 3)
    completed = torch.from_numpy(np.pad(image.numpy(), [(0, 0), (0, 0), (0, 3), (0, 5)], mode="reflect"))
    assert torch.equal(network(image), network(completed)[:, :, :13, :3])


@pytest.mark.parametrize("normalization", ["batch", "instance", "group", None])
@pytest.mark.parametrize("n_images", [1, 2])
@pytest.mark.parametrize("training", [True, False])
def test_one_pixel_has_finite_logits_and_statistics(normalization, n_images, training):
    network = make_network(normalization=normalization, filters=1, groups=4).train(training)
    assert torch.isfinite(network(make_images(n_images, 1, 1, 1))).all()
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


@pytest.mark.parametrize(("training", "n_images", "width"), [(True, 1, 2), (True, 2, 1), (False, 1, 1)])
def test_batch_statistics_get_a_second_value_only_where_they_need_it(training, n_images, width):
    network = make_network(depth=3).train(training)
    shapes = []
    network.encoder[-1].register_forward_hook(lambda _block, _inputs, output: shapes.append(output.shape))
    network(make_images(n_images, 1, 8, 8))
    assert shapes == [(n_images, 16, 1, width)]


@pytest.mark.parametrize(
    ("depth", "convolutions", "upsampling"),
    [(0, 1, "transposed"), (0, 3, "nearest"), *itertools.product([1, 2, 3], [1, 2, 3], UPSAMPLINGS)],
)
def test_valid_sizes_agree_with_the_layers(depth, convolutions, upsampling):
    network = make_network(
        depth=depth, convolutions=convolutions, upsampling=upsampling, padding="valid", filters=1
    ).eval()
    smallest = network.input_size(1)
    legal = range(smallest, smallest + 2 * network.size_multiple + 1, network.size_multiple)
    with torch.no_grad():
        for size in legal:
            logits = network(torch.zeros(1, 1, size, smallest))
            assert logits.shape[2:] == (network.output_size(size), network.output_size(smallest))
            assert logits.shape[2] == size - 2 * network.margin
    for size in set(range(legal[-1])) - set(legal):
        with pytest.raises(ValueError, match="must fit the network"):
            network.output_size(size)
    for output_size in range(1, network.output_size(legal[-1]) + 1):
        size = network.input_size(output_size)
        assert network.output_size(size) >= output_size
        assert size == smallest or network.output_size(size - network.size_multiple) < output_size


def run_layers_unchecked(network, size):
    network.output_size = lambda side: side
    return network(torch.zeros(1, 1, size, size))


@pytest.mark.parametrize("upsampling", ["transposed", "linear", "bicubic"])
def test_no_smaller_size_than_the_smallest_legal_one_has_an_output(upsampling):
    network = make_network(upsampling=upsampling, padding="valid", normalization=None).eval()
    size = network.input_size(1) - network.size_multiple
    with pytest.raises(RuntimeError):
        run_layers_unchecked(network, size)


def test_valid_network_names_the_sizes_it_can_take():
    network = make_network(padding="valid", depth=4)
    with pytest.raises(ValueError, match=r"got 573\. Crop or pad it to 572 or 588 pixels\."):
        network(torch.zeros(1, 1, 572, 573))
    with pytest.raises(ValueError, match=r"got 100\. Crop or pad it to 188 or more pixels\."):
        network(torch.zeros(1, 1, 100, 572))


def test_same_network_knows_its_sizes():
    network = make_network(depth=3)
    assert (network.margin, network.size_multiple) == (0, 8)
    assert [network.input_size(size) for size in (1, 8, 9, 16)] == [8, 8, 16, 16]
    assert [network.output_size(size) for size in (1, 8, 9)] == [1, 8, 9]
    with pytest.raises(ValueError, match="must fit the network; got 0"):
        network.output_size(0)
    with pytest.raises(ValueError, match="output_size must be at least 1 pixel; got 0"):
        network.input_size(0)


# --- what an output pixel sees -------------------------------------------------------------------------------------


def make_transparent(**options):
    """A network through which each path shows: positive weights, no activation, no normalization, float64."""
    network = make_network(normalization=None, activation=nn.Identity, filters=1, n_classes=1, **options)
    for parameter in network.parameters():
        nn.init.uniform_(parameter, 0.5, 1, generator=torch.Generator().manual_seed(0))
    return network.double().eval()


def measure_receptive_field(network, n_probes):
    """The same as `receptive_field`, from gradients along the last axis; pooling shows one path per probe."""
    before, after = network.receptive_field
    multiple, margin = network.size_multiple, network.margin
    centre = multiple * math.ceil((before + multiple) / multiple)
    size = network.input_size(centre + multiple + after)
    images = make_images(n_probes, 1, network.input_size(1), size, dtype=torch.float64).requires_grad_()
    logits = network(images)
    measured = []
    for pixel in range(centre, centre + multiple):
        (gradient,) = torch.autograd.grad(logits[..., pixel].sum(), images, retain_graph=True)
        seen = gradient.abs().amax(dim=(0, 1, 2)).nonzero()
        measured.append((pixel + margin - int(seen.min()), int(seen.max()) - pixel - margin))
    return tuple(map(max, zip(*measured, strict=True)))


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_receptive_field_is_what_gradients_show(depth, convolutions, padding, upsampling):
    network = make_transparent(depth=depth, convolutions=convolutions, padding=padding, upsampling=upsampling)
    assert measure_receptive_field(network, n_probes=40) == network.receptive_field


@pytest.mark.parametrize("options", [{"residual": True}, {"convolutions": 3}, {"depth": 3}, {"attention": True}])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_receptive_field_holds_what_gradients_show(padding, options):
    network = make_transparent(padding=padding, **options)
    seen, promised = measure_receptive_field(network, n_probes=4), network.receptive_field
    assert seen[0] <= promised[0]
    assert seen[1] <= promised[1]


def test_receptive_field_of_one_block_is_its_convolutions():
    assert make_network(depth=0, convolutions=3).receptive_field == (3, 3)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("convolutions", [1, 2])
def test_network_of_symmetric_weights_mirrors_with_its_image(convolutions, padding, upsampling):
    # So a skip connection cropped off its centre, or pixels lost at one side more than at the other, would show.
    network = make_transparent(padding=padding, upsampling=upsampling, convolutions=convolutions)
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)
    image = make_images(1, 1, *[network.input_size(24)] * 2, dtype=torch.float64)
    torch.testing.assert_close(network(image.flip(2, 3)), network(image).flip(2, 3))


# --- tiles ---------------------------------------------------------------------------------------------------------


def crop_slices(network, start, stop, size):
    """The input pixels of a tile of output pixels `start` to `stop`, and where the tile lies in what comes out."""
    multiple = network.size_multiple
    before, after = (multiple * math.ceil(reach / multiple) for reach in network.receptive_field)
    if network.padding == "valid":
        first, last = start, network.input_size(stop - start) + start
    else:
        first, last = max(0, start - before), min(size, stop + after)
    return slice(first, last), slice(start - first, stop - first)


@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("convolutions", [1, 2])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-4)])
def test_tiles_have_the_logits_of_the_whole_image(upsampling, padding, convolutions, dtype, tolerance):
    network = make_network(padding=padding, upsampling=upsampling, convolutions=convolutions, filters=4)
    network = settle_statistics(network).to(dtype)
    size = network.input_size(80)
    image = make_images(1, 1, size, size, dtype=dtype)
    edges = [0, 8, 28, 44, network.output_size(size) // 4 * 4]
    assert network.is_exactly_tileable
    with torch.no_grad():
        whole = network(image)
        for (top, bottom), (left, right) in itertools.product(itertools.pairwise(edges), repeat=2):
            rows, kept_rows = crop_slices(network, top, bottom, size)
            columns, kept_columns = crop_slices(network, left, right, size)
            tile = network(image[..., rows, columns])[..., kept_rows, kept_columns]
            torch.testing.assert_close(
                tile, whole[..., top:bottom, left:right], rtol=0, atol=tolerance * float(whole.abs().max())
            )


def test_tiles_one_halo_too_small_differ():
    # The tolerance of the test above is fine enough to see the outermost ring of the receptive field.
    network = make_transparent(depth=1, convolutions=1, upsampling="linear")
    image = make_images(1, 1, 64, 64, dtype=torch.float64)
    before, _ = network.receptive_field
    first = 32 - 2 * ((before - 1) // 2)
    with torch.no_grad():
        whole, tile = network(image), network(image[..., first:])
    assert not torch.allclose(whole[..., 32], tile[..., 32 - first], rtol=1e-9)


@pytest.mark.parametrize("normalization", ["instance", "group"])
def test_statistics_of_the_whole_image_are_not_tileable(normalization):
    network = make_network(normalization=normalization).eval()
    image = make_images(1, 1, 64, 64)
    assert not network.is_exactly_tileable
    assert not torch.allclose(network(image)[..., 30], network(image[..., :60])[..., 30], atol=1e-4)


# --- layers --------------------------------------------------------------------------------------------------------


class Swish(nn.Module):
    """An activation of the user's own."""

    def forward(self, features):
        return features * torch.sigmoid(features)


CHOICES = {
    "activation": ["relu", "leaky_relu", "elu", Swish, nn.PReLU],
    "normalization": ["batch", "instance", "group", None],
    "upsampling": UPSAMPLINGS,
    "padding": ["same", "valid"],
    "residual": [False, True, "encoder"],
    "dropout": [0.0, 0.4],
    "initialization": ["kaiming", "xavier"],
    "attention": [False, True],
}
EXAMPLES = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()})


def assert_trains(network):
    size = network.input_size(9)
    images = make_images(3, network.in_channels, *[size] * network.spatial_ndim)
    logits = network.train()(images)
    assert logits.shape == (3, network.n_classes, *[network.output_size(size)] * network.spatial_ndim)
    (logits * make_images(*logits.shape, seed=1)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    return {name: float(parameter.grad.abs().max()) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize(
    ("spatial_ndim", "name", "value"),
    [
        (spatial_ndim, name, value)
        for spatial_ndim in (2, 3)
        for name, values in CHOICES.items()
        for value in values
        if (spatial_ndim, value) != (3, "bicubic")
    ],
)
def test_every_choice_trains(spatial_ndim, name, value):
    assert_trains(make_network(depth=1, spatial_ndim=spatial_ndim, **{name: value}))


@given(EXAMPLES)
@settings(max_examples=40)
def test_choices_go_together(options):
    assert_trains(make_network(depth=1, **options))


@pytest.mark.parametrize("normalization", CHOICES["normalization"])
@pytest.mark.parametrize("upsampling", UPSAMPLINGS)
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("attention", [False, True])
def test_no_parameter_is_dead(normalization, upsampling, padding, residual, attention):
    network = make_network(
        normalization=normalization, upsampling=upsampling, padding=padding, residual=residual, attention=attention,
        filters=4, groups=2, activation="leaky_relu", n_classes=3, in_channels=3,
    )  # fmt: skip
    gradients = assert_trains(network)
    # A bias in front of a norm has a gradient of rounding errors alone.
    assert min(gradients.values()) > 1e-4 * max(gradients.values())


@pytest.mark.parametrize("normalization", CHOICES["normalization"])
@pytest.mark.parametrize("upsampling", ["transposed", "linear"])
def test_only_the_head_has_a_bias_where_norms_follow(normalization, upsampling):
    network = make_network(normalization=normalization, upsampling=upsampling)
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    assert len(layers) == 10 + 2 + 1
    for layer in layers:
        assert (layer.bias is not None) == (layer is network.head or normalization is None)


@pytest.mark.parametrize("spatial_ndim", [2, 3])
def test_channels_double_with_each_halving_and_start_from_the_data(spatial_ndim):
    network = make_network(in_channels=5, n_classes=21, filters=3, depth=3, spatial_ndim=spatial_ndim)
    convolutions = [m for m in network.encoder.modules() if isinstance(m, nn.Conv2d | nn.Conv3d)]
    assert [c.out_channels for c in convolutions] == [3, 3, 6, 6, 12, 12, 24, 24]
    assert convolutions[0].in_channels == 5
    assert network(make_images(1, 5, *[8] * spatial_ndim)).shape[1] == 21


def test_group_normalization_falls_back_to_a_divisor_of_the_channels():
    network = make_network(normalization="group", groups=8, filters=6, depth=2)
    groups = {m.num_channels: m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)}
    assert groups == {6: 2, 12: 4, 24: 8}


def test_instance_normalization_learns_a_scale():
    norms = [m for m in make_network(normalization="instance").modules() if isinstance(m, nn.InstanceNorm2d)]
    assert len(norms) == 10
    assert all(norm.affine for norm in norms)


@pytest.mark.parametrize("spatial_ndim", [2, 3])
def test_gates_weigh_skip_connections_as_the_formula_says(spatial_ndim):
    network = settle_statistics(make_network(attention=True, filters=4, spatial_ndim=spatial_ndim))
    gate = network.decoder[1].gate
    skip, features = (make_images(2, 4, *[6] * spatial_ndim, seed=seed) for seed in (0, 1))

    def mix(layer, values):
        weight = layer.weight.flatten(1)
        return torch.einsum("oc,nc...->no...", weight, values)

    sums = gate.of_skip[1](mix(gate.of_skip[0], skip)) + gate.of_coarser[1](mix(gate.of_coarser[0], features))
    weight = torch.sigmoid(mix(gate.to_weight, sums.clamp_min(0)) + gate.to_weight.bias.view(-1, *[1] * spatial_ndim))
    torch.testing.assert_close(gate(skip, features), skip * weight)
    joined = network.decoder[1].join(skip, features)
    torch.testing.assert_close(joined, network.decoder[1](torch.cat([skip * weight, features], dim=1)))


def test_an_open_gate_changes_nothing_and_a_closed_one_leaves_no_skip_connection():
    network, image = make_network(attention=True, depth=1).eval(), make_images(1, 1, 8, 8)
    plain = make_network(depth=1).eval()
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if ".gate." not in name})
    nn.init.constant_(network.decoder[0].gate.to_weight.bias, 100.0)
    torch.testing.assert_close(network(image), plain(image))
    nn.init.constant_(network.decoder[0].gate.to_weight.bias, -200.0)
    nn.init.zeros_(plain.decoder[0].convolutions[0].weight[:, :2])
    torch.testing.assert_close(network(image), plain(image))


def test_leaky_relu_has_the_slope_of_a_tenth():
    network = make_network(activation="leaky_relu")
    slopes = {layer.negative_slope for layer in network.modules() if isinstance(layer, nn.LeakyReLU)}
    assert slopes == {0.1}


def test_shortcuts_may_be_in_the_encoder_alone():
    partly, fully = make_network(residual="encoder"), make_network(residual=True)
    assert list(partly.encoder.state_dict()) == list(fully.encoder.state_dict())
    assert any("shortcut" in name for name in partly.encoder.state_dict())
    assert list(partly.decoder.state_dict()) == list(make_network().decoder.state_dict())


def test_linear_upsampling_after_the_projection_equals_it_before():
    projection, interpolation = make_network(upsampling="linear", normalization=None).upsamplings[0]
    features = make_images(1, 8, 5, 6)
    before = interpolation(projection(features))
    torch.testing.assert_close(before, projection(interpolation(features)))
    assert before.shape == (1, 4, 10, 12)


def test_network_is_what_its_formula_says():
    # One level, one convolution, written out with torch's functions.
    network = make_network(depth=1, convolutions=1, normalization=None, filters=2)
    image = make_images(1, 1, 6, 8)
    first, second = (block.convolutions[0] for block in network.encoder)
    skip = torch.relu(nn.functional.conv2d(image, first.weight, first.bias, padding=1))
    coarse = nn.functional.conv2d(nn.functional.max_pool2d(skip, 2), second.weight, second.bias, padding=1)
    up = network.upsamplings[0]
    fine = nn.functional.conv_transpose2d(torch.relu(coarse), up.weight, up.bias, stride=2)
    last = network.decoder[0].convolutions[0]
    joined = torch.relu(nn.functional.conv2d(torch.cat([skip, fine], 1), last.weight, last.bias, padding=1))
    expected = nn.functional.conv2d(joined, network.head.weight, network.head.bias)
    torch.testing.assert_close(network(image), expected)


@pytest.mark.parametrize("in_channels", [2, 3])
def test_residual_block_without_convolutions_is_its_input(in_channels):
    network = make_network(residual=True, in_channels=in_channels, filters=2, padding="valid", convolutions=1)
    block = network.encoder[0]
    nn.init.zeros_(block.convolutions[0].weight)
    image = make_images(1, in_channels, 7, 8)
    inside = image[..., 1:-1, 1:-1]
    expected = inside if in_channels == 2 else block.shortcut(inside)
    torch.testing.assert_close(block(image), torch.relu(expected))


@pytest.mark.parametrize("spatial_ndim", [2, 3])
def test_dropout_drops_whole_channels_at_the_two_deepest_levels_in_training_alone(spatial_ndim):
    network = make_network(dropout=0.5, depth=3, spatial_ndim=spatial_ndim, activation=nn.Softplus, filters=8)
    dropped = []
    image = make_images(1, 1, *[16] * spatial_ndim)
    for block in network.encoder:
        block.register_forward_hook(lambda _block, _inputs, output: dropped.append((output == 0).flatten(2)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network.train()(image)
    assert [bool(mask.any()) for mask in dropped] == [False, False, True, True]
    assert all(torch.equal(mask.all(2), mask.any(2)) for mask in dropped)
    network.eval()
    assert torch.equal(network(image), network(image))


@pytest.mark.parametrize(
    ("initialization", "activation", "variances"),
    [
        ("kaiming", "relu", (2 / (9 * 48), 1 / 96, 1 / 48)),
        ("kaiming", "leaky_relu", (2 / 1.01 / (9 * 48), 1 / 96, 1 / 48)),
        ("xavier", "relu", (2 / (9 * 48 + 9 * 48), 2 / (96 + 4 * 48), 2 / (48 + 40))),
    ],
)
def test_initial_weights_have_the_variance_of_their_source(initialization, activation, variances):
    network = make_network(
        initialization=initialization, activation=activation, filters=48, depth=1, n_classes=40, normalization=None
    )
    layers = [network.encoder[0].convolutions[2], network.upsamplings[0], network.head]
    for layer, variance in zip(layers, variances, strict=True):
        assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.1)
        assert not layer.bias.detach().any()


def test_leaky_weights_are_smaller_by_what_the_slope_lets_through():
    relu, leaky = (make_network(activation=name).encoder[0].convolutions[0] for name in ("relu", "leaky_relu"))
    torch.testing.assert_close(leaky.weight, relu.weight / math.sqrt(1 + 0.1**2))


def test_kaiming_logits_are_of_order_one_at_any_depth():
    for depth in (0, 2, 4):
        network = make_network(depth=depth, filters=8, normalization=None)
        assert 0.1 < float(network(make_images(2, 1, 32, 32)).detach().std()) < 10


# --- keeping -------------------------------------------------------------------------------------------------------


def test_same_seed_makes_the_same_network_and_another_seed_another():
    image = make_images(1, 1, 8, 8)
    first, again, other = (make_network(seed=seed).eval()(image) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("options", [{"activation": "relu"}, {"activation": Swish}, {"attention": True}])
def test_state_pickle_and_copy_give_the_same_logits(options):
    network = settle_statistics(make_network(residual=True, dropout=0.1, **options))
    other = make_network(residual=True, dropout=0.1, seed=5, **options).eval()
    image = make_images(1, 1, 9, 8)
    assert not torch.equal(other(image), network(image))
    other.load_state_dict(network.state_dict())
    for kept in (other, pickle.loads(pickle.dumps(network)), copy.deepcopy(network)):
        assert torch.equal(kept(image), network(image))


def test_building_and_running_leaves_the_images_alone():
    image = make_images(1, 1, 7, 8)
    original = image.clone()
    make_network(depth=0, residual=True)(image)
    make_network()(image)
    assert torch.equal(image, original)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_summary_tells_the_sizes_that_the_layers_have(padding):
    network = make_network(padding=padding, depth=2, filters=4, upsampling="linear").eval()
    height, width = network.input_size(20), network.input_size(33)
    seen = {"encoder": [], "decoder": []}
    for part, shapes in seen.items():
        for block in getattr(network, part):
            block.register_forward_hook(lambda _block, _inputs, output, shapes=shapes: shapes.append(output.shape))
    network(make_images(1, 1, height, width))
    header, *rows, image, logits, parameters, field = network.summary((height, width)).splitlines()
    assert header.split() == ["level", "channels", "encoder", "decoder"]
    for level, row in enumerate(rows):
        decoded = seen["decoder"][1 - level] if level < 2 else None
        cells = [str(level), str(4 * 2**level)]
        cells += "{} x {}".format(*seen["encoder"][level][2:]).split()
        cells += "{} x {}".format(*decoded[2:]).split() if decoded else ["-"]
        assert row.split() == cells
    assert image.split(maxsplit=1)[1] == f"{height} x {width}, 1 channels"
    assert logits.split(maxsplit=1)[1] == f"{network.output_size(height)} x {network.output_size(width)}, 2 classes"
    assert parameters.split()[1].replace(",", "") == str(sum(p.numel() for p in network.parameters()))
    assert field.endswith("{} pixels before, {} after".format(*network.receptive_field))


def test_summary_takes_one_side_for_all_axes():
    network = make_network(spatial_ndim=3)
    assert network.summary(9) == network.summary([9, 9, 9])
    assert "9 x 9 x 9, 2 classes" in network.summary(9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be an integer from 1 to inf; got 0"),
        ({"n_classes": 0}, "n_classes must be an integer from 1 to inf; got 0"),
        ({"depth": -1}, "depth must be an integer from 0 to 6; got -1"),
        ({"depth": 7}, "depth must be an integer from 0 to 6; got 7"),
        ({"depth": 2.5}, r"depth must be an integer from 0 to 6; got 2\.5"),
        ({"filters": 0}, "filters must be an integer from 1 to inf; got 0"),
        ({"filters": "8"}, "filters must be an integer from 1 to inf; got '8'"),
        ({"spatial_ndim": 1}, "spatial_ndim must be an integer from 2 to 3; got 1"),
        ({"convolutions": 0}, "convolutions must be an integer from 1 to inf; got 0"),
        ({"groups": 0}, "groups must be an integer from 1 to inf; got 0"),
        ({"dropout": 1.0}, r"dropout must be at least 0 and below 1; got 1\.0"),
        ({"dropout": -0.1}, r"dropout must be at least 0 and below 1; got -0\.1"),
        ({"activation": "gelu"}, "activation must be one of .*'elu'.*Module.*; got 'gelu'"),
        ({"activation": int}, "activation must be one of .*; got <class 'int'>"),
        ({"activation": nn.ReLU()}, r"activation must be one of .*; got ReLU\(\)"),
        ({"normalization": "layer"}, "normalization must be one of .*; got 'layer'"),
        ({"padding": "reflect"}, "padding must be one of .*; got 'reflect'"),
        ({"upsampling": "cubic"}, "upsampling must be one of .*'bicubic'.*; got 'cubic'"),
        ({"upsampling": "bicubic", "spatial_ndim": 3}, "upsampling must be .*'linear'\\); got 'bicubic'.*=3"),
        ({"initialization": "zeros"}, "initialization must be one of .*; got 'zeros'"),
        ({"residual": "decoder"}, r"residual must be one of \(False, True, 'encoder'\); got 'decoder'"),
        ({"attention": "gates"}, r"attention must be one of \(False, True\); got 'gates'"),
        ({"deep_supervision": 2}, r"deep_supervision must be one of \(False, True\); got 2"),
    ],
)
def test_bad_parameters_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_network(**options)


def test_numpy_integers_are_integers():
    network = make_network(depth=np.int64(1), filters=np.int32(2))
    assert network(make_images(1, 1, 5, 5)).shape == (1, 2, 5, 5)
    assert network.receptive_field == make_network(depth=1).receptive_field


@given(
    spatial_ndim=st.sampled_from([2, 2, 3]),
    depth=st.integers(0, 3),
    upsampling=st.sampled_from(["transposed", "nearest", "linear", "bicubic"]),
    convolutions=st.integers(1, 3),
    extras=st.fixed_dictionaries({"residual": st.booleans(), "attention": st.booleans()}),
    data=st.data(),
)
@settings(max_examples=30)
def test_a_window_of_the_logits_is_that_of_all_of_them(spatial_ndim, depth, upsampling, convolutions, extras, data):
    torch.manual_seed(0)
    assume(spatial_ndim == 2 or upsampling != "bicubic")
    options = {"upsampling": upsampling, "convolutions": convolutions, **extras}
    network = UNet(1, 3, depth=min(depth, 5 - spatial_ndim), filters=2, spatial_ndim=spatial_ndim, **options).eval()
    size = data.draw(st.tuples(*[st.integers(1, 60 if spatial_ndim == 2 else 20)] * spatial_ndim))
    starts = [data.draw(st.integers(0, n - 1)) for n in size]
    window = [slice(start, data.draw(st.integers(start + 1, n))) for start, n in zip(starts, size, strict=True)]
    images = torch.randn(2, 1, *size)
    with torch.inference_mode():
        expected = network(images)[(..., *window)]
        torch.testing.assert_close(network(images, window), expected, atol=1e-5, rtol=1e-5)


def test_a_window_of_unpadded_logits():
    network = UNet(1, 2, depth=1, filters=2, padding="valid").eval()
    images, window = torch.randn(1, 1, 32, 40), [slice(2, 5), slice(0, 7)]
    with torch.no_grad():
        assert torch.equal(network(images, window), network(images)[(..., *window)])


@pytest.mark.parametrize("normalization", ["instance", "group", "batch"])
@pytest.mark.parametrize("is_training", [False, True])
def test_statistics_are_those_of_all_that_is_computed(normalization, is_training):
    torch.manual_seed(0)
    network = UNet(1, 3, depth=2, filters=8, normalization=normalization).train(is_training)
    images, window = torch.randn(2, 1, 21, 30), [slice(3, 9), slice(20, 30)]
    with torch.no_grad():
        expected = network.levels(network.complete(images))[..., :21, :30]
        torch.testing.assert_close(network(images), expected)
        torch.testing.assert_close(network(images, window), expected[(..., *window)], atol=1e-5, rtol=1e-5)
