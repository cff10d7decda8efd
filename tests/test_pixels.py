import numpy as np
import pytest
import torch
from conftest import make_segmenter
from hypothesis import given
from hypothesis import strategies as st

from skunet.containers import open_container
from skunet.images import open_images
from skunet.pixels import ArrayPixels, TensorPixels, open_pixels, pixel_statistics, read_mirrored
from skunet.scaling import image_statistics


class Lazy:
    """A stack that is read in slices, as zarr and HDF5 data sets are, and counts what was read at a time."""

    def __init__(self, array):
        self.array, self.shape, self.dtype, self.largest = array, array.shape, array.dtype, 0

    def __len__(self):
        return len(self.array)

    def __getitem__(self, index):
        block = self.array[index].copy()
        self.largest = max(self.largest, block.size)
        return block


class LazyOut(Lazy):
    """A stack that is written in slices."""

    def __setitem__(self, index, values):
        self.array[index] = values
        self.largest = max(self.largest, np.size(values))


@given(st.integers(1, 9), st.integers(-30, 20), st.integers(1, 40))
def test_windows_beyond_the_image_are_those_of_numpy(n, start, length):
    image = np.arange(n)
    found = read_mirrored(TensorPixels(torch.from_numpy(image)[None, None]), (slice(start, start + length),))
    expected = np.pad(image, 100, mode="reflect")[100 + start : 100 + start + length]
    np.testing.assert_array_equal(found[0, 0], expected)


@pytest.mark.parametrize("shape", [(2, 30, 41), (2, 30, 41, 3)])
def test_lazy_stacks_are_read_in_windows(shape, monkeypatch):
    monkeypatch.setattr("skunet.pixels.BLOCK", 10)
    array = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    window = (slice(3, 9), slice(20, 41))
    found = []
    for data in (array, Lazy(array), list(array), [Lazy(image) for image in array]):
        images = open_images(open_container(data, "X"), spatial_ndim=2)
        pixels = open_pixels(images, 1)
        assert pixels.n_channels == (3 if len(shape) == 4 else 1)
        assert pixels.size == (30, 41)
        found.append(pixels.read(window).numpy())
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    expected = array[1][window] if len(shape) == 3 else np.moveaxis(array[1][window], -1, 0)
    np.testing.assert_array_equal(found[0][0], expected if expected.ndim == 3 else expected[None])


def test_statistics_by_blocks_are_those_of_the_whole(monkeypatch):
    monkeypatch.setattr("skunet.pixels.BLOCK", 100)
    image = np.random.default_rng(0).normal(1000, 3, size=(2, 37, 21))
    found = pixel_statistics(ArrayPixels(image, (37, 21), channel_axis=0))
    np.testing.assert_allclose(found[0], image_statistics(image), rtol=1e-12)


@pytest.mark.parametrize("scaling", ["dataset", "image"])
def test_lazy_images_are_predicted_tile_by_tile_into_lazy_arrays(cells, monkeypatch, scaling):
    monkeypatch.setattr("skunet.pixels.BLOCK", 500)
    X, y = cells
    segmenter = make_segmenter(tile_size=8, scaling=scaling, depth=1).fit(X, 255 * y.astype(np.uint8))
    large = np.tile(X[:2], (1, 3, 4))
    expected = segmenter.predict(large)
    lazy, out = Lazy(large), LazyOut(np.zeros(large.shape, np.uint8))
    assert segmenter.predict(lazy, out=out) is out
    np.testing.assert_array_equal(out.array, expected)
    assert lazy.largest <= 40 * 40
    assert out.largest <= 8 * 8
    scores = LazyOut(np.zeros((2, 2, *large.shape[1:]), np.float64))
    segmenter.predict_proba(lazy, out=scores)
    np.testing.assert_array_equal(scores.array, segmenter.predict_proba(large))


def test_memory_maps_and_lists_are_written_into(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    expected = segmenter.predict(X)
    out = np.memmap(tmp_path / "labels", dtype=np.int16, mode="w+", shape=X.shape)
    assert segmenter.predict(X, out=out) is out
    np.testing.assert_array_equal(np.memmap(tmp_path / "labels", dtype=np.int16, mode="r", shape=X.shape), expected)
    several = [X[0], X[1][:20]]
    arrays = [np.zeros(image.shape, np.uint8) for image in several]
    segmenter.predict(several, out=arrays)
    np.testing.assert_array_equal(arrays[1], segmenter.predict(several)[1])


def test_what_cannot_take_the_result_is_refused_before_slow_work(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, np.where(y > 0, 255, 0))
    with pytest.raises(ValueError, match=r"shape of the result, \(8, 32, 32\); got shape \(1, "):
        segmenter.predict(X[:8], out=np.zeros((1, 2, 3), np.uint8))
    with pytest.raises(ValueError, match=r"out must hold values such as \[0, 255\]; got dtype int8"):
        segmenter.predict(X, out=np.zeros(X.shape, np.int8))
    with pytest.raises(ValueError, match=r"such as 0\.5; got dtype uint8"):
        segmenter.predict_proba(X, out=np.zeros((len(X), 2, *X.shape[1:]), np.uint8))
    with pytest.raises(ValueError, match="out must be a list of 2 arrays, one per image; got 1 in a list"):
        segmenter.predict(list(X[:2]), out=[np.zeros((32, 32))])
    with pytest.raises(ValueError, match="out must be an array of the shape of the result"):
        segmenter.predict(X, out=list(np.zeros(X.shape)))
    read_only = np.zeros(X.shape, np.uint8)
    read_only.flags.writeable = False
    for array in (read_only, "labels"):
        with pytest.raises(ValueError, match="out must be something that can be written; got a read-only"):
            segmenter.predict(X, out=array)
    named = make_segmenter().fit(X, np.where(y > 0, "cell", "other"))
    with pytest.raises(ValueError, match=r"out must hold values such as \['cell', 'other'\]; got dtype uint8"):
        named.predict(X, out=np.zeros(X.shape, np.uint8))


def test_arrays_in_an_object_array_are_checked_too(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    out = np.empty(2, dtype=object)
    out[:] = [np.zeros((2, 32, 32), np.int8) for _ in range(2)]
    with pytest.raises(ValueError, match=r"such as 0\.5; got dtype int8"):
        segmenter.predict_proba(list(X[:2]), out=out)
    with pytest.raises(ValueError, match="out must hold values"):
        segmenter.predict(X, out=torch.zeros(X.shape))


def test_parts_of_one_array_can_be_written_into(cells):
    X, y = cells
    segmenter, canvas = make_segmenter().fit(X, y), np.zeros((32, 64), y.dtype)
    segmenter.predict(list(X[:2]), out=[canvas[:, :32], canvas[:, 32:]])
    np.testing.assert_array_equal(canvas, np.hstack(segmenter.predict(X[:2])))


def test_images_are_not_overwritten_while_they_are_read(cells):
    X, y = cells
    segmenter, large = make_segmenter().fit(X, y), X.astype(np.int64)
    shared = np.zeros(X[0].shape, np.uint8)
    for images, out in [(large, large), (list(large), list(large)), (list(X[:2]), [shared, shared])]:
        with pytest.raises(ValueError, match="out must be memory of its own"):
            segmenter.predict(images, out=out)


class OneByOne(Lazy):
    """A stack that takes whole numbers alone."""

    def __getitem__(self, index):
        if isinstance(index, tuple):
            raise TypeError("only whole numbers")
        return self.array[index]


@pytest.mark.parametrize("block", [10, 1 << 24])
def test_lazy_stacks_that_take_no_slices_are_read_image_by_image(cells, monkeypatch, block):
    monkeypatch.setattr("skunet.pixels.BLOCK", block)
    X, y = cells
    segmenter = make_segmenter(tile_size=8).fit(OneByOne(X), OneByOne(y))
    np.testing.assert_array_equal(segmenter.predict(OneByOne(X)), segmenter.predict(X))


def test_ctrl_c_leaves_the_finished_tiles(cells, monkeypatch):
    X, y = cells
    segmenter = make_segmenter(tile_size=8, depth=1).fit(X, y)
    expected = segmenter.predict(X[:1])
    out, n_tiles = np.full(X[:1].shape, 9, np.uint8), 0
    finish = segmenter._to_labels

    def interrupted(logits):
        nonlocal n_tiles
        n_tiles += 1
        if n_tiles == 4:
            raise KeyboardInterrupt
        return finish(logits)

    monkeypatch.setattr(segmenter, "_to_labels", interrupted)
    with pytest.raises(KeyboardInterrupt):
        segmenter.predict(X[:1], out=out)
    is_done = out != 9
    assert is_done.sum() == 3 * 8 * 8
    np.testing.assert_array_equal(out[is_done], expected[is_done])


def test_nan_in_lazy_images_is_refused_by_name(cells, monkeypatch):
    monkeypatch.setattr("skunet.pixels.BLOCK", 10)
    X, y = cells
    segmenter = make_segmenter(tile_size=8, depth=1).fit(X.astype(np.float32), y)
    broken = X.astype(np.float32)
    broken[1, -1, -1] = np.nan
    for data in (broken, Lazy(broken)):
        with pytest.raises(ValueError, match="NaN or infinity: image 1"):
            segmenter.predict(data)
