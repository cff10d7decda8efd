import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from skunet.geometry import PlainGeometry
from skunet.network import UNet
from skunet.pixels import PlacedPixels, TensorPixels
from skunet.reach import cut
from skunet.tiling import assemble, predict_tiles, predict_whole, read_window
from skunet.turning import choose_turns


def whole_and_tiled(network, images, tile_size, *, turns=()):
    def predict(**arguments):
        tiles = predict_tiles(TensorPixels(images), network, geometry=network, turns=turns, **arguments)
        return assemble(tiles, images.shape[2:])

    with torch.inference_mode():
        return [predict(tile_size=None), predict(tile_size=tile_size)]


@settings(max_examples=40)
@given(
    spatial_ndim=st.sampled_from([2, 2, 3]),
    depth=st.integers(0, 4),
    padding=st.sampled_from(["same", "valid"]),
    upsampling=st.sampled_from(["transposed", "nearest", "linear"]),
    convolutions=st.integers(1, 3),
    residual=st.booleans(),
    attention=st.booleans(),
    data=st.data(),
)
def test_tiled_equals_whole(spatial_ndim, depth, padding, upsampling, convolutions, residual, attention, data):
    torch.manual_seed(0)
    network = UNet(
        1,
        3,
        depth=min(depth, 2) if spatial_ndim == 3 else depth,
        filters=2,
        spatial_ndim=spatial_ndim,
        padding=padding,
        upsampling=upsampling,
        convolutions=convolutions,
        residual=residual,
        attention=attention,
    ).eval()
    network.double()  # so that rounding, which grows with the logits, is no matter
    largest = 60 if spatial_ndim == 2 else 18
    size = data.draw(st.tuples(*[st.integers(1, largest)] * spatial_ndim))
    multiple = network.size_multiple
    tile = tuple(-(-data.draw(st.integers(8, 24)) // multiple) * multiple for _ in size)
    images = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, *size)))
    turns = choose_turns(
        data.draw(st.sampled_from([False, False, ["turn_90"], ["transpose", "flip_vertical"]])),
        spatial_ndim=spatial_ndim,
    )
    whole, tiled = whole_and_tiled(network, images, tile, turns=turns)
    assert whole.shape == (1, 3, *size)
    torch.testing.assert_close(tiled, whole, atol=1e-9, rtol=1e-9)
    # A part of the image, which knows no pixel but those that it asked for.
    starts = [data.draw(st.sampled_from(range(0, n, multiple))) for n in size]
    region = tuple(slice(start, data.draw(st.integers(start + 1, n))) for start, n in zip(starts, size, strict=True))
    reads = read_window(region, size, geometry=network, turns=turns)
    part = PlacedPixels(TensorPixels(cut(images, reads)), tuple(span.start for span in reads), size)
    covered = torch.zeros(size)
    with torch.inference_mode():
        for window, scores in predict_tiles(
            part, network, tile_size=tile, geometry=network, turns=turns, region=region
        ):
            covered[window] += 1
            torch.testing.assert_close(scores, cut(whole, window), atol=1e-5, rtol=1e-5)
    assert torch.equal(covered.nonzero().min(0).values, torch.tensor([span.start for span in region]))
    assert (covered[region] == 1).all()
    assert covered.sum() == covered[region].sum()


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("size", [(3, 5000), (5000, 1), (1, 1), (2, 2)])
def test_strips_and_single_pixels(padding, size):
    torch.manual_seed(0)
    network = UNet(1, 2, depth=3, filters=2, padding=padding).eval()
    whole, tiled = whole_and_tiled(network, torch.randn(1, 1, *size), (64, 64))
    assert whole.shape == (1, 2, *size)
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


def test_the_deepest_network():
    torch.manual_seed(0)
    network = UNet(1, 2, depth=6, filters=1).eval()
    whole, tiled = whole_and_tiled(network, torch.randn(1, 1, 1500, 130), (256, 64))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


def test_bicubic_tiles_equal_the_whole():
    torch.manual_seed(0)
    network = UNet(1, 2, depth=2, filters=2, upsampling="bicubic").eval()
    whole, tiled = whole_and_tiled(network, torch.randn(1, 1, 101, 67), (16, 24))
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=1e-5)


class Identity:
    """A network that returns its input; counts how often it runs."""

    size_multiple, margin, is_exactly_tileable, receptive_field = 4, 0, True, (2, 3)

    def __init__(self):
        self.n_runs = 0

    def input_size(self, output_size):
        return -(-output_size // 4) * 4

    def output_size(self, input_size):
        return input_size

    def __call__(self, tile, window):
        self.n_runs += 1
        assert all(n % 4 == 0 for n in tile.shape[2:])
        return cut(tile, window)


@given(st.integers(1, 40), st.integers(1, 40))
def test_every_pixel_is_covered_exactly_once(height, width):
    images = torch.arange(height * width).reshape(1, 1, height, width).float()
    covered = torch.zeros(height, width)
    identity = Identity()
    for window, scores in predict_tiles(TensorPixels(images), identity, tile_size=(8, 12), geometry=identity):
        covered[window] += 1
        assert torch.equal(scores[0, 0], images[0, 0][window])
    assert (covered == 1).all()


def test_tiles_see_no_more_than_their_halo():
    identity = Identity()
    shapes = []

    def forward(tile, window):
        shapes.append(tuple(tile.shape[2:]))
        return cut(tile, window)

    list(predict_tiles(TensorPixels(torch.zeros(1, 1, 64, 64)), forward, tile_size=(16, 16), geometry=identity))
    assert max(shapes) == (24, 24)


@given(st.integers(1, 60), st.sampled_from([4, 8, 20]))
def test_blending_is_constant_in_constant_out(n, tile):
    images = torch.full((1, 1, n, 9), 3.0)
    geometry = PlainGeometry(size_multiple=4)
    blended = assemble(
        predict_tiles(
            TensorPixels(images), lambda x, window: cut(x, window), tile_size=(tile, tile), geometry=geometry
        ),
        images.shape[2:],
    )
    torch.testing.assert_close(blended, images)


def test_blending_gives_the_whole_for_a_pointwise_network():
    images = torch.randn(2, 1, 50, 33)
    geometry = PlainGeometry(size_multiple=4)
    blended = assemble(
        predict_tiles(
            TensorPixels(images), lambda x, window: cut(2 * x + 1, window), tile_size=(16, 16), geometry=geometry
        ),
        images.shape[2:],
    )
    torch.testing.assert_close(blended, 2 * images + 1)


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("tile_size", [None, (32, 48)])
def test_where_memory_is_not_enough_tiles_are_halved(error, tile_size):
    torch.manual_seed(0)
    network = UNet(1, 2, depth=2, filters=2).eval()
    images = torch.randn(1, 1, 70, 90)

    def forward(tile, window):
        if tile.shape[2] * tile.shape[3] > 3500:
            raise error
        return network(tile, window)

    tiles = predict_tiles(TensorPixels(images), forward, tile_size=tile_size, geometry=network)
    with torch.inference_mode():
        with pytest.warns(UserWarning, match="memory was not enough for tiles of"):
            tiled = assemble(tiles, (70, 90))
        torch.testing.assert_close(tiled, network(images), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_halved_and_other_errors_are_raised():
    network, images = UNet(1, 2, depth=2, filters=2).eval(), TensorPixels(torch.randn(1, 1, 16, 16))

    def fail(error):
        def forward(*_):
            raise error

        return forward

    with torch.no_grad(), pytest.warns(UserWarning, match="memory"), pytest.raises(MemoryError):
        list(predict_tiles(images, fail(MemoryError()), tile_size=None, geometry=network))
    with pytest.raises(RuntimeError, match="something else"):
        list(predict_tiles(images, fail(RuntimeError("something else")), tile_size=None, geometry=network))
    with pytest.raises(MemoryError):
        list(predict_tiles(images, fail(MemoryError()), tile_size=None, geometry=PlainGeometry(4)))


def test_training_batches_are_never_split():
    network = UNet(1, 2, depth=1, filters=2)

    def forward(*_):
        raise MemoryError

    with pytest.raises(MemoryError):
        list(predict_tiles(TensorPixels(torch.zeros(1, 1, 64, 64)), forward, tile_size=None, geometry=network))
    with torch.no_grad(), pytest.raises(MemoryError):  # as for the losses of batches that go through in parts
        predict_whole(TensorPixels(torch.zeros(1, 1, 64, 64)), forward, network)
