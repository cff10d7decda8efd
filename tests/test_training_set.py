import numpy as np
import pytest
import torch

from skunet.containers import open_container, pick_items
from skunet.training_set import open_training_set

RNG = np.random.default_rng(0)
X, y = RNG.integers(0, 255, (4, 6, 8)).astype(np.uint8), np.tile([0, 255], (4, 6, 4)).astype(np.uint8)


def ragged():
    sizes = [(6, 8), (5, 5), (7, 3)]
    return [RNG.random((*size, 3)) for size in sizes], [np.arange(np.prod(size)).reshape(size) % 2 for size in sizes]


def test_the_shapes_of_x_and_y_settle_rank_and_channels():
    for images, masks, channels, rank in [
        (X, y, 1, 2),
        (X[..., None], y, 1, 2),
        (np.repeat(X[..., None], 3, axis=-1), y, 3, 2),
        (torch.zeros(4, 5, 6, 8), y, 5, 2),
        (torch.zeros(4, 6, 8), torch.from_numpy(y), 1, 2),
        (RNG.random((2, 4, 5, 6)), RNG.integers(0, 2, (2, 4, 5, 6)), 1, 3),
        (RNG.random((2, 4, 5, 6, 2)), RNG.integers(0, 2, (2, 4, 5, 6)), 2, 3),
        (*ragged(), 3, 2),
    ]:
        data = open_training_set(images, masks)
        assert (data.n_channels, data.images.spatial_ndim) == (channels, rank)
        assert data.images[0].shape == (channels, *np.shape(masks[0]))


def test_uint8_stays_uint8_and_is_not_copied():
    image = open_training_set(X, y).images[1]
    assert image.dtype == np.uint8
    assert np.shares_memory(image, X)


def raises(message, *arguments, error=ValueError, **options):
    with pytest.raises(error, match=message):
        open_training_set(*arguments, **options)


def test_shapes_that_do_not_fit_raise_with_the_remedy():
    nchw = np.moveaxis(np.repeat(X[..., None], 3, axis=-1), -1, 1)
    raises(r"np\.moveaxis\(X, 1, -1\)", nchw, y)
    raises(r"np\.moveaxis\(image, 0, -1\)", list(nchw), list(y))
    raises(r"X\[None\]", X[0], y[0])
    raises(r"X\[None\]", np.zeros((6, 8, 3)), y[0])
    raises("same number of images; got 4 images and 3 masks", X, y[:3])
    raises(r"image 2 has \(6, 8\) and mask 2 has \(6, 7\)", list(X), [y[0], y[1], y[2][:, :7], y[3]])
    raises(r"pass y\[\.\.\., 0\]", np.repeat(X[..., None], 3, axis=-1), y[..., None])
    raises("y must be a stack of masks", list(X), [0, 1, 0, 1])
    raises(r"no channel axis.*Pass y\[\.\.\., 0\]", X, y[..., None])
    raises(r"first in tensors: pass X.movedim\(-1, 1\)", torch.zeros(4, 6, 8, 3), y)
    raises("Masks must have 2 axes", list(X), [np.zeros((1, 2, 6, 8))] * 4)
    raises("All images must have 3 channels", *(lambda a, b: ([a[0], a[1][..., :2], a[2]], b))(*ragged()))
    raises("All images must have 3 axes", *(lambda a, b: ([a[0], a[1][..., 0], a[2]], b))(*ragged()))


def test_flat_volumes_warn_and_say_how_to_mean_images():
    with pytest.warns(UserWarning, match=r"volumes of width 1\. .*y\[\.\.\., 0\]"):
        open_training_set(X[..., None], y[..., None])


def test_colour_masks_beside_colour_images_warn():
    colour = np.repeat(X[..., None], 3, axis=-1)
    with pytest.warns(UserWarning, match=r"volumes of width 3.*pass masks without a channel axis, y\[\.\.\., 0\]"):
        open_training_set(colour, np.repeat(y[..., None], 3, axis=-1))
    with pytest.warns(UserWarning, match=r"volumes of depth 1.*X\[:, 0\], y\[:, 0\]"):
        open_training_set(X[:, None], y[:, None])


def test_one_map_per_class_raises_with_the_remedy():
    raises(r"y\.argmax\(axis=-1\)", np.repeat(X[..., None], 3, axis=-1), np.stack([y, y], axis=-1))


FLAT = np.tile([0, 1], (4, 6, 4))
ONE_HOT = np.stack([FLAT == 0, FLAT == 1], axis=-1)


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (ONE_HOT, r"no class axis; got \(6, 8, 2\) for mask 0, .* of \(6, 8\) pixels\..* pass y\.argmax\(axis=-1\)\.$"),
        (np.moveaxis(ONE_HOT, -1, 1), r"no class axis; .* pass y\.argmax\(axis=1\)\.$"),
        (torch.from_numpy(np.moveaxis(ONE_HOT, -1, 1)), r"pass y\.argmax\(axis=1\)\.$"),
        (list(ONE_HOT), r"pass mask\.argmax\(axis=-1\) of each mask\.$"),
        (list(np.moveaxis(ONE_HOT, -1, 1)), r"pass mask\.argmax\(axis=0\) of each mask\.$"),
        (np.stack([FLAT] * 3, axis=-1), r"no channel axis; got \(6, 8, 3\) .* Pass y\[\.\.\., 0\]\.$"),
        (np.stack([FLAT] * 3 + [np.full_like(FLAT, 255)], axis=-1), r"no channel axis; .* Pass y\[\.\.\., 0\]\.$"),
        (np.stack([FLAT] * 3, axis=1), r"no channel axis; .* Pass y\[:, 0\]\.$"),
        (FLAT[:, None], r"no channel axis; .* Pass y\[:, 0\]\.$"),
        (list(FLAT[..., None]), r"Pass mask\[\.\.\., 0\] of each mask\.$"),
        (list(FLAT[:, None]), r"Pass mask\[0\] of each mask\.$"),
    ],
)
@pytest.mark.parametrize("fitted", [None, 2])
def test_masks_of_one_axis_more_raise_with_the_remedy(masks, message, fitted):
    raises(message, list(X) if isinstance(masks, list) else X, masks, spatial_ndim=fitted)


def test_the_remedies_for_masks_of_one_axis_more_give_the_labels():
    for masks in (ONE_HOT.argmax(axis=-1), np.moveaxis(ONE_HOT, -1, 1).argmax(axis=1)):
        assert open_training_set(X, masks).codec.classes.tolist() == [0, 1]


def test_masks_of_volumes_with_a_class_axis_raise_with_the_remedy():
    volumes = RNG.random((2, 4, 5, 6))
    masks = RNG.integers(0, 2, (2, 4, 5, 6))
    raises(r"y\.argmax\(axis=-1\)", volumes, np.stack([masks, 1 - masks], axis=-1))
    raises(r"y\.argmax\(axis=1\)", volumes, np.stack([masks, 1 - masks], axis=1))
    raises(r"Pass y\[\.\.\., 0\]", volumes, masks[..., None])


def test_axes_that_no_remedy_fits_raise_without_one():
    raises(r"shape \(4, 6, 8\) and masks of 3 axes\. Each image needs one mask", X, np.zeros((4, 5, 5, 5), int))
    raises(r"masks of 2 axes\. Each image needs one mask", np.zeros((4, 2, 6, 8, 3)), y)


def test_bad_pixels_raise_with_the_index():
    images = X.astype(np.float32)
    images[2, 0, 0] = np.nan
    raises("contains NaN or infinity: image 2", images, y)
    images[2, 0, 0] = np.inf
    raises("contains NaN or infinity: image 2", images, y)
    raises("Complex data not supported", X.astype(complex), y)
    raises("at least 1 pixel", np.zeros((2, 0, 4)), np.zeros((2, 0, 4)))


def test_y_is_required():
    raises("requires y to be passed, but the target y is None", X, None)


def test_what_was_fitted_is_held_to():
    raises(r"X has 1 channel\(s\), but UNetSegmenter is expecting 3", X, y, spatial_ndim=2, n_channels=3)
    raises("Masks must have 3 axes, as fitted; got 2", X, y, spatial_ndim=3, n_channels=1)


def test_images_without_weight_are_dropped_and_unit_weights_forgotten():
    data = open_training_set(X, y, sample_weight=[1, 0, 1, 1], groups=[1, 2, 3, 4])
    assert len(data) == 3
    assert data.groups.tolist() == [1, 3, 4]
    assert data.weights is None
    np.testing.assert_array_equal(data.images[1], X[2][None])
    np.testing.assert_array_equal(data.masks[1], y[2])
    per_pixel = np.ones(y.shape)
    per_pixel[0] = 0
    assert len(open_training_set(X, y, sample_weight=per_pixel)) == 3


def test_bad_weights_and_groups_raise():
    raises("one entry per image, 4; got 3", X, y, sample_weight=[1, 1, 1])
    raises("one entry per image, 4; got 8", X, y, sample_weight=np.ones((8, *np.shape(y)[1:])))
    raises("at least 0; got NaN, infinity or a negative", X, y, sample_weight=[1, -1, 1, 1])
    raises("must not be zero for all images", X, y, sample_weight=np.zeros(4))
    raises(r"size of the mask \(6, 8\); got \(6, 7\) for image 0", X, y, sample_weight=np.ones((4, 6, 7)))
    raises("one value per image", X, y, groups=[1, 2])


def test_errors_name_images_as_the_user_counts_them(tmp_path):
    weights, masks = [0, 1, 1, 1], np.array(y)
    masks[2, 0, 0] = 7
    raises("mask 2 holds", X, masks, classes=[0, 255], sample_weight=weights)
    raises(r"got \(6, 7\) for image 1", X, y, sample_weight=[np.zeros((6, 8)), *np.ones((3, 6, 7))])
    images = [*X[:3], X[3][None]]
    raises("image 3 has shape", images, list(y), sample_weight=weights)
    picked = pick_items(pick_items(open_container([tmp_path / f"{i}.png" for i in range(4)], "X"), [3, 1]), [1])
    assert picked.describe(0) == f"image 1 ({tmp_path / '1.png'})"


def test_selecting_keeps_everything_together():
    data = open_training_set(*ragged(), sample_weight=[1, 2, 3], groups=["a", "b", "c"]).select(np.array([2, 0]))
    assert data.sizes.tolist() == [[7, 3], [6, 8]]
    assert data.weights.tolist() == [3, 1]
    assert data.groups.tolist() == ["c", "a"]
    assert data.images[0].shape == (3, 7, 3)
    assert data.statistics.shape == (2, 3, 5)


def test_pixels_without_weight_do_not_count_as_pixels_of_a_class(cells):
    X, y = cells
    weights = np.ones(y.shape)
    weights[:, :, 16:] = 0
    other = y.copy()
    other[:, :, 16:] = 1 - other[:, :, 16:]
    counts = [open_training_set(X, masks, sample_weight=weights).class_counts for masks in (y, other)]
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], np.bincount(y[:, :, :16].ravel()))
