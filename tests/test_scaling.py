import numpy as np
import pytest
import torch
from conftest import make_segmenter

from skunet.scaling import fit_scaling, image_scaling, image_statistics, scale


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 200, (2, 5, 7)).astype(np.uint8), rng.integers(50, 250, (2, 3, 4)).astype(np.uint8)]


def constants_of(scaling, images):
    return fit_scaling(scaling, np.stack([image_statistics(image) for image in images]))


def test_statistics_equal_numpy_for_all_dtypes():
    for dtype in (np.uint8, np.uint16, np.int32, np.float32, bool):
        image = (np.random.default_rng(1).random((3, 6, 5)) * 200).astype(dtype)
        expected = [[c.size, c.mean(dtype=float), c.var(dtype=float), c.min(), c.max()] for c in image]
        np.testing.assert_allclose(image_statistics(image), np.array(expected, dtype=float), rtol=1e-9)


def test_dataset_scaling_uses_the_pixels_of_all_images(images):
    offset, divisor = constants_of("dataset", images)
    pixels = np.concatenate([image.reshape(2, -1) for image in images], axis=1).astype(float)
    np.testing.assert_allclose(offset, pixels.mean(axis=1))
    np.testing.assert_allclose(divisor, pixels.std(axis=1))


def test_image_scaling_gives_each_image_mean_0_and_std_1(images):
    assert constants_of("image", images) is None
    for image in images:
        constants = torch.from_numpy(image_scaling("image", image_statistics(image)))
        scaled = scale(torch.from_numpy(image)[None], constants)[0]
        np.testing.assert_allclose(scaled.mean(dim=(1, 2)), 0, atol=1e-6)
        np.testing.assert_allclose(scaled.std(dim=(1, 2), correction=0), 1, rtol=1e-5)


def test_minmax_scaling_spans_0_to_1(images):
    scaled = scale(
        torch.from_numpy(images[0])[None], torch.from_numpy(image_scaling("minmax", image_statistics(images[0])))
    )
    assert scaled.amin(dim=(2, 3)).tolist() == [[0, 0]]
    assert scaled.amax(dim=(2, 3)).tolist() == [[1, 1]]


@pytest.mark.parametrize("scaling", ["dataset", "image", "minmax"])
def test_a_constant_image_becomes_zero_not_nan(scaling):
    image = np.full((1, 4, 4), 1e6, dtype=np.float32)
    statistics = image_statistics(image)
    constants = fit_scaling(scaling, statistics[None])
    constants = image_scaling(scaling, statistics) if constants is None else constants
    assert scale(torch.from_numpy(image)[None], torch.from_numpy(constants)).abs().max() == 0


def test_given_numbers_and_none():
    image = torch.tensor([[[[10.0]], [[20.0]]]])
    statistics = np.zeros((1, 2, 5))
    assert scale(image, torch.from_numpy(fit_scaling((10, 5), statistics))).flatten().tolist() == [0, 2]
    assert scale(image, torch.from_numpy(fit_scaling(([10, 0], [1, 4]), statistics))).flatten().tolist() == [0, 5]
    assert scale(image, torch.from_numpy(fit_scaling(None, statistics))).flatten().tolist() == [10, 20]


def test_wide_integers_at_a_large_offset_keep_their_differences():
    image = np.array([[[2**40, 2**40 + 1, 2**40 + 2]]])
    scaled = scale(torch.from_numpy(image)[None], torch.from_numpy(image_scaling("minmax", image_statistics(image))))
    assert scaled.flatten().tolist() == [0, 0.5, 1]


@pytest.mark.parametrize("scaling", ["dataset", "image", "minmax"])
def test_constant_images_become_exactly_zero(scaling):
    images = np.full((3, 1, 7, 7), 0.1)  # whose mean rounds to another number
    statistics = np.stack([image_statistics(image) for image in images])
    constants = fit_scaling(scaling, statistics)
    constants = image_scaling(scaling, statistics) if constants is None else constants
    assert not scale(torch.from_numpy(images), torch.from_numpy(constants)).any()


def test_gray_images_are_scaled_one_by_one_so_that_exposure_does_not_matter(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=3).fit(X, y)
    assert segmenter.fitted_scaling_ == "image"
    assert np.array_equal(segmenter.predict(X), segmenter.predict(3.0 * X + 100))


def test_colours_are_scaled_as_in_the_training_images(cells):
    X, y = cells
    colours = np.stack([X, 255 - X], axis=-1)
    assert make_segmenter().fit(colours, y).fitted_scaling_ == "dataset"
    auto, chosen = (
        make_segmenter(scaling=scaling).fit(colours, y).predict_proba(colours) for scaling in ("auto", "dataset")
    )
    assert np.array_equal(auto, chosen)
