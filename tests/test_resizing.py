"""Images, masks and probabilities at another size."""

import pickle

import numpy as np
import pytest
import scipy.ndimage
import skimage.transform
import torch
from conftest import make_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import cross_val_predict, train_test_split
from sklearn.utils import _safe_indexing

from skunet.containers import open_container, pick_items
from skunet.resizing import ResizedImages, ResizedMasks, resize_image, resize_linearly, resize_mask

SIZES_2D = st.tuples(st.integers(1, 9), st.integers(1, 9))


def random_image(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ---- images


def test_larger_image_equals_scikit_image():
    image = random_image(1, 7, 9)
    expected = skimage.transform.resize(image[0], (16, 13), order=1, mode="edge", anti_aliasing=False)
    np.testing.assert_allclose(resize_image(image, (16, 13))[0], expected, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 4), (1, 1), (11, 5), (6, 30)])
def test_smaller_image_equals_pillow(size):
    image = random_image(1, 11, 15)
    expected = np.asarray(Image.fromarray(image[0]).resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resize_image(image, size)[0], expected, atol=1e-5)


def test_larger_volume_equals_scipy_zoom():
    volume = random_image(1, 4, 5, 3)
    expected = scipy.ndimage.zoom(volume[0], (2, 3, 2), order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(resize_image(volume, (8, 15, 6))[0], expected, atol=1e-5)


def test_smaller_volume_is_resized_axis_by_axis():
    volume = random_image(1, 6, 8, 10)
    rows = np.stack([resize_image(plane[None], (4, 5))[0] for plane in volume[0]])
    expected = np.stack([resize_image(rows[:, row][None], (3, 5))[0] for row in range(4)], axis=1)
    np.testing.assert_allclose(resize_image(volume, (3, 4, 5))[0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(4, 30), (9, 6)])
def test_ramp_stays_a_ramp_between_the_borders(size):
    ramp = np.tile(np.arange(12.0), (6, 1))[None]
    step = 12 / size[1]
    expected = (np.arange(size[1]) + 0.5) * step - 0.5
    margin = int(np.ceil(1 / step)) + 1
    resized = resize_image(ramp, size)[0, :, margin:-margin]
    np.testing.assert_allclose(resized, np.tile(expected[margin:-margin], (size[0], 1)))


def test_halving_weighs_neighbours_by_a_triangle():
    assert resize_image(np.array([[[0, 0, 0, 0, 80, 0, 0, 0]]], dtype=np.uint8), (1, 4)).tolist() == [[[0, 10, 30, 0]]]


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "uint16", "int16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64"]
)
def test_same_size_gives_the_same_bits_in_a_copy(dtype):
    image = (random_image(2, 5, 6) * 50).astype(dtype)
    resized = resize_image(image, (5, 6))
    assert resized.dtype == image.dtype
    assert resized.tobytes() == image.tobytes()
    assert not np.shares_memory(resized, image)


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "int16", "uint32", "int64", "uint64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("size", [(3, 4), (13, 2), (31, 29)])
def test_constant_channels_stay_constant_in_every_dtype(dtype, size):
    most = True if dtype == "bool" else np.finfo(dtype).max / 4 if dtype.startswith("f") else np.iinfo(dtype).max
    image = np.stack([np.full((7, 11), 0.1), np.full((7, 11), 1)]).astype(dtype)
    image[1] = most
    resized = resize_image(image, size)
    assert resized.dtype == image.dtype
    assert (resized == image[:, :1, :1]).all()


@given(SIZES_2D, SIZES_2D, st.sampled_from(["uint8", "int16", "float32", "float64"]))
@settings(max_examples=40)
def test_result_has_the_size_and_stays_in_the_range(old, new, dtype):
    image = (random_image(2, *old, seed=sum(old)) * 100).astype(dtype)
    resized = resize_image(image, new)
    assert resized.shape == (2, *new)
    axes = (1, 2)
    assert (resized.min(axes) >= image.min(axes)).all()
    assert (resized.max(axes) <= image.max(axes)).all()


def test_integers_are_rounded():
    assert resize_image(np.array([[[0, 3]]], dtype=np.int16), (1, 1)).tolist() == [[[2]]]
    assert resize_image(np.array([[[-9, 0]]], dtype=np.int16), (1, 4)).tolist() == [[[-9, -7, -2, 0]]]


def test_image_in_other_byte_order_and_read_only_is_resized():
    image = random_image(1, 4, 4).astype(">f4")
    image.flags.writeable = False
    np.testing.assert_array_equal(resize_image(image, (2, 2)), resize_image(image.astype("<f4"), (2, 2)))


def test_probabilities_stay_probabilities():
    probabilities = torch.softmax(3 * torch.from_numpy(random_image(1, 4, 5, 6, 7)), dim=1)
    resized = resize_linearly(probabilities, (11, 4, 9))
    assert resized.shape == (1, 4, 11, 4, 9)
    torch.testing.assert_close(resized.sum(1), torch.ones(1, 11, 4, 9))
    assert resized.min() >= 0


# ---- masks


@pytest.mark.parametrize("size", [(3, 4), (14, 20), (7, 1), (5, 11)])
def test_mask_equals_nearest_neighbours_of_torch(size):
    mask = np.random.default_rng(0).integers(0, 5, (7, 10))
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask[None, None]).float(), size, mode="nearest-exact")
    assert resize_mask(mask, size).tolist() == expected[0, 0].tolist()


def test_mask_of_strings_in_3d_keeps_its_labels():
    mask = np.array([[["ab", "c"]]]).repeat(3, axis=0)
    resized = resize_mask(mask, (1, 2, 4))
    assert resized.dtype == mask.dtype
    assert resized.tolist() == [[["ab", "ab", "c", "c"]] * 2]


def test_mask_follows_its_image():
    # A mask that is a threshold of the image is about that of the resized image.
    image = scipy.ndimage.gaussian_filter(random_image(64, 64), 4)
    followed = resize_mask(image > 0, (23, 31))
    assert np.mean(followed == (resize_image(image[None], (23, 31))[0] > 0)) > 0.95


# ---- ResizedImages


def resized_images(kind):
    images = [np.full((4, n), n) for n in (3, 4, 5)]
    sizes = [(8, 6), (8, 8), (8, 10)]
    if kind == "list":
        return ResizedImages(images, sizes)
    if kind == "object":
        array = np.empty(3, dtype=object)
        array[:] = images
        return ResizedImages(array, sizes)
    stack = np.stack([np.full((4, 4), n) for n in (3, 4, 5)])
    return ResizedImages(torch.from_numpy(stack) if kind == "tensor" else stack, [(8, 8)] * 3)


KINDS = ["list", "object", "stack", "tensor"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("key", "positions"),
    [
        (slice(1, None), [1, 2]),
        (np.array([2, 0]), [2, 0]),
        ([1, 1], [1, 1]),
        (np.array([True, False, True]), [0, 2]),
        ((np.array([2]), Ellipsis), [2]),
        (slice(0, 0), []),
    ],
)
def test_part_has_the_images_and_sizes_of_its_positions(kind, key, positions):
    whole = resized_images(kind)
    part = whole[key]
    assert type(part) is ResizedImages
    assert type(part.images) is type(whole.images)
    assert part.original_sizes == tuple(whole.original_sizes[at] for at in positions)
    assert [int(image[0, 0]) for image in part] == [3 + at for at in positions]
    assert len(part) == part.shape[0] == len(positions)


@pytest.mark.parametrize("kind", KINDS)
def test_scikit_learn_selects_images_with_their_sizes(kind):
    whole = resized_images(kind)
    assert int(_safe_indexing(whole, 1)[0, 0]) == 4
    part = _safe_indexing(whole, np.array([2, 1]))
    assert part.original_sizes == (whole.original_sizes[2], whole.original_sizes[1])
    train, test = train_test_split(whole, test_size=1, random_state=0)
    assert len(train) == 2
    assert len(test) == 1


def test_copies_and_text():
    whole = resized_images("list")
    assert pickle.loads(pickle.dumps(whole)).original_sizes == whole.original_sizes
    assert repr(whole) == "ResizedImages(list of 3 images)"
    assert whole.with_images([1, 2, 3]).images == [1, 2, 3]
    assert whole.images[0].shape == (4, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_door_knows_the_original_sizes(kind):
    whole = resized_images(kind)
    container = open_container(whole, "X")
    assert container.original_sizes == whole.original_sizes
    assert container.channels_first == (kind == "tensor")
    assert pick_items(container, np.array([2, 0])).original_sizes == (whole.original_sizes[2], whole.original_sizes[0])


# ---- ResizedMasks


def test_masks_are_resized_when_read_one_by_one():
    read = []

    class Masks(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    masks = ResizedMasks(Masks([np.eye(4, dtype=int), np.zeros((2, 6), int)]), [(4, 4), (2, 6)], [(2, 2), (4, 3)])
    assert read == []
    assert masks[1].shape == (4, 3)
    assert read == [1]
    assert [mask.shape for mask in masks[np.array([1, 0])]] == [(4, 3), (2, 2)]
    assert len(masks) == 2


def test_mask_of_another_size_than_the_image_had_raises():
    masks = ResizedMasks([np.zeros((2, 2))], [(4, 4)], [(2, 2)])
    with pytest.raises(ValueError, match=r"size of its image; image 0 had \(4, 4\).* mask 0 has \(2, 2\)"):
        masks[0]


def test_selected_images_can_be_cross_validated(cells):
    X, y = cells
    resized = ResizedImages(X[:6, ::2, ::2], [X.shape[1:]] * 6)
    assert cross_val_predict(make_segmenter(), resized, y[:6], cv=2).shape == y[:6].shape
