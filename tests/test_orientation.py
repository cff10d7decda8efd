import numpy as np
import pytest
from conftest import make_segmenter

from skunet import UNetSegmenter
from skunet.augmentation import Augment
from skunet.orientation import find_flip_axes, sample_mask


def roads(n_images, generator, size=(24, 30)):
    """Sky above a horizon of another height each time, and trees anywhere on it."""
    masks = np.zeros((n_images, *size), np.uint8)
    for mask in masks:
        horizon = generator.integers(8, 16)
        mask[horizon:] = 50
        left = generator.integers(0, 20)
        mask[horizon - 6 : horizon, left : left + 8] = 255
    return masks


def blobs(n_images, generator, size):
    """One object anywhere."""
    masks = np.zeros((n_images, *size), np.uint8)
    for mask in masks:
        first = [generator.integers(0, side - side // 2 + 1) for side in size]
        mask[tuple(slice(start, start + side // 2) for start, side in zip(first, size, strict=True))] = 1
    return masks


def axes_of(masks):
    classes = np.unique(np.concatenate([mask.ravel() for mask in masks]))
    samples = [np.searchsorted(classes, sample_mask(mask)) for mask in masks]
    return find_flip_axes(samples, spatial_ndim=masks[0].ndim, n_classes=len(classes))


def test_a_direction_is_found_along_each_axis():
    masks = roads(12, np.random.default_rng(0))
    assert axes_of(masks) == axes_of(masks[:, ::-1]) == (-1,)
    assert axes_of(masks.transpose(0, 2, 1)) == (-2,)
    volumes = np.repeat(masks[:, :, None], 20, axis=2)
    assert axes_of(volumes) == (-2, -1)


@pytest.mark.parametrize("size", [(24, 30), (9, 50), (10, 24, 24), (2, 40, 40)])
@pytest.mark.parametrize("n_images", [1, 3, 8, 40])
def test_what_lies_anywhere_has_none(size, n_images):
    assert axes_of(blobs(n_images, np.random.default_rng(1), size)) == tuple(range(-len(size), 0))


def test_few_images_and_small_differences_tell_nothing():
    masks = roads(12, np.random.default_rng(0))
    assert axes_of(masks[:7]) == (-2, -1)
    corner = np.zeros((12, 32, 32), int)  # the same pixels in all images, but few of them
    corner[:, :10, :10] = 1
    assert axes_of(corner) == (-2, -1)


def test_samples_have_the_symmetries_of_the_mask():
    mask = np.random.default_rng(0).integers(0, 5, (17, 45))
    np.testing.assert_array_equal(sample_mask(mask[::-1]), sample_mask(mask)[::-1])
    np.testing.assert_array_equal(sample_mask(mask[:, ::-1]), sample_mask(mask)[:, ::-1])


def test_the_fit_keeps_to_it_and_so_does_the_file(tmp_path, capsys):
    y = roads(10, np.random.default_rng(0))
    X = y + np.random.default_rng(1).normal(0, 30, y.shape)
    segmenter = make_segmenter(verbose=1, tta=True).fit(X, y)
    assert segmenter.flip_axes_ == (-1,)
    assert "mirrored along axes (-1,) alone" in capsys.readouterr().out
    sideways = (segmenter.set_params(tta=["flip_horizontal"]).predict_proba(X), segmenter.set_params(tta=True))
    np.testing.assert_array_equal(sideways[0], segmenter.predict_proba(X))
    segmenter.save(tmp_path / "file")
    loaded = UNetSegmenter.load(tmp_path / "file")
    assert loaded.flip_axes_ == (-1,)
    assert loaded.set_params(verbose=0).partial_fit(X[:2], y[:2]).flip_axes_ == (-1,)  # as first found
    assert segmenter.fit(X[:2], y[:2]).flip_axes_ == (-2, -1)


def test_what_is_asked_for_is_done_all_the_same():
    y = roads(10, np.random.default_rng(0))
    X = y.astype(float)
    ways = [make_segmenter(augment=augment).fit(X, y).predict_proba(X) for augment in ("default", Augment(flip=True))]
    assert not np.array_equal(*ways)


def test_ignored_pixels_have_no_direction():
    y = blobs(12, np.random.default_rng(0), (32, 32))
    y[:, :16] = 9  # only the lower halves are annotated
    segmenter = make_segmenter(ignore_label=9).fit(y.astype(float), y)
    assert segmenter.flip_axes_ == (-2, -1)
