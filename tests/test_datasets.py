import numpy as np
import pytest
from scipy import ndimage
from sklearn.ensemble import RandomForestClassifier

from skunet.datasets import make_cells


def otsu_threshold(image):
    """Otsu 1979: the split of the histogram with the largest variance between its sides."""
    counts = np.bincount(image.ravel(), minlength=256).astype(float)
    levels = np.arange(256)
    below, above = counts.cumsum(), counts.sum() - counts.cumsum()
    with np.errstate(invalid="ignore", divide="ignore"):
        mean_below = (counts * levels).cumsum() / below
        mean_above = ((counts * levels).sum() - (counts * levels).cumsum()) / above
        return np.nanargmax(below * above * (mean_below - mean_above) ** 2)


def mean_iou(truth, prediction, n_classes=2):
    hits = [((truth == k) & (prediction == k)).sum() for k in range(n_classes)]
    unions = [((truth == k) | (prediction == k)).sum() for k in range(n_classes)]
    return np.mean(np.divide(hits, unions))


@pytest.fixture(scope="module")
def defaults():
    return make_cells(return_instances=True, random_state=0)


def test_defaults_are_grey_uint8_stacks(defaults):
    X, y, instances = defaults
    assert X.shape == y.shape == instances.shape == (20, 128, 128)
    assert (X.dtype, y.dtype, instances.dtype) == (np.uint8, np.uint8, np.int32)
    assert np.unique(y).tolist() == [0, 1]


def test_without_instances_two_arrays_come_back_equal_to_the_first_two(defaults):
    X, y = make_cells(random_state=0)
    np.testing.assert_array_equal(X, defaults[0])
    np.testing.assert_array_equal(y, defaults[1])


@pytest.mark.parametrize("n_channels", [2, 3, 4])
def test_channels_come_last_and_differ(n_channels):
    X, y = make_cells(2, 48, n_channels=n_channels, noise=0, random_state=0)
    assert X.shape == (2, 48, 48, n_channels)
    assert y.shape == (2, 48, 48)
    assert all((X[..., 0] != X[..., channel]).any() for channel in range(1, n_channels))


@pytest.mark.parametrize("n_classes", [2, 6])
def test_volumes_hold_every_class_in_parted_cells(n_classes):
    size = (16, 64, 64)
    X, y, instances = make_cells(2, size, spatial_ndim=3, n_classes=n_classes, return_instances=True, random_state=0)
    assert X.shape == y.shape == (2, *size)
    for labels, ids in zip(y, instances, strict=True):
        assert np.unique(labels).tolist() == list(range(n_classes))
        assert ndimage.label(labels, structure=np.ones((3, 3, 3)))[1] == ids.max() > 10


def test_size_may_differ_per_axis():
    X, y = make_cells(1, (32, 80), random_state=0)
    assert X.shape == y.shape == (1, 32, 80)


@pytest.mark.parametrize(("dtype", "peak"), [("uint8", 255), ("uint16", 65535), ("float32", 1)])
def test_dtype_sets_the_scale_and_not_the_picture(dtype, peak):
    X, _ = make_cells(2, 64, dtype=dtype, random_state=0)
    assert X.dtype == dtype
    assert X.min() >= 0
    assert X.max() <= peak
    assert X.max() > 0.8 * peak
    reference, _ = make_cells(2, 64, dtype="float32", random_state=0)
    np.testing.assert_allclose(X / peak, reference, atol=0.5 / peak + 1e-6)


def test_vary_size_gives_lists_of_several_sizes_each_axis_on_its_own():
    X, y, instances = make_cells(12, (40, 80), n_channels=3, vary_size=True, return_instances=True, random_state=0)
    assert isinstance(X, list)
    assert isinstance(y, list)
    assert [image.shape[:2] for image in X] == [mask.shape for mask in y] == [ids.shape for ids in instances]
    heights, widths = np.transpose([mask.shape for mask in y])
    assert 30 <= heights.min() < heights.max() <= 50
    assert 60 <= widths.min() < widths.max() <= 100
    assert len(np.unique(widths / heights)) > 6


def test_vary_size_never_goes_below_the_smallest_legal_size():
    _, y = make_cells(20, 16, vary_size=True, random_state=0)
    assert min(min(mask.shape) for mask in y) == 16


@pytest.mark.parametrize("make_seed", [int, np.random.RandomState, np.random.default_rng])
def test_equal_seeds_give_equal_bits_and_other_seeds_do_not(make_seed):
    first, again, other = (make_cells(2, 48, random_state=make_seed(seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).mean() > 0.5


def test_without_a_seed_every_call_differs():
    assert (make_cells(1, 48)[0] != make_cells(1, 48)[0]).mean() > 0.5


def test_a_generator_is_advanced_so_that_two_calls_differ():
    generator = np.random.default_rng(0)
    first, second = (make_cells(1, 48, random_state=generator)[0] for _ in range(2))
    assert (first != second).mean() > 0.5


@pytest.mark.parametrize("options", [{}, {"vary_size": True}, {"n_channels": 2, "n_classes": 3}])
def test_first_images_do_not_depend_on_how_many_follow(options):
    few = make_cells(3, 48, random_state=0, **options)
    many = make_cells(6, 48, random_state=0, **options)
    for short, long in zip(few, many, strict=True):
        for image, same in zip(short, long[:3], strict=True):
            np.testing.assert_array_equal(image, same)


def test_images_of_one_set_differ(defaults):
    assert len(np.unique(defaults[1].reshape(20, -1), axis=0)) == 20


@pytest.mark.parametrize("random_state", [None, 0])
def test_global_generator_is_left_alone_and_not_asked(random_state):
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    make_cells(1, 32, random_state=random_state)
    np.testing.assert_array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize("n_classes", [2, 3, 4, 5, 6])
def test_every_image_of_64_pixels_holds_every_class(n_classes):
    _, y = make_cells(60, 64, n_classes=n_classes, random_state=n_classes)
    assert all(np.unique(mask).tolist() == list(range(n_classes)) for mask in y)


@pytest.mark.parametrize("n_classes", [2, 3, 4, 5, 6])
def test_no_class_is_rare(n_classes):
    _, y = make_cells(20, n_classes=n_classes, random_state=1)
    assert (np.bincount(y.ravel()) / y.size).min() > 0.03


def test_instances_are_the_connected_components_of_the_mask_each_of_one_kind():
    _, y, instances = make_cells(10, n_classes=4, return_instances=True, random_state=0)
    for labels, ids in zip(y, instances, strict=True):
        np.testing.assert_array_equal(ids > 0, labels > 0)
        components, n_components = ndimage.label(labels > 0, structure=np.ones((3, 3)))
        assert np.unique(ids).tolist() == list(range(n_components + 1))
        assert len(np.unique(np.stack([components, ids, labels]).reshape(3, -1), axis=1)[0]) == n_components + 1
        assert np.bincount(ids.ravel()).min() >= 12


def test_most_cells_have_a_neighbour_within_three_pixels(defaults):
    has_neighbour = []
    for ids in defaults[2]:
        for number in range(1, ids.max() + 1):
            near = ndimage.binary_dilation(ids == number, np.ones((3, 3)), iterations=3)
            has_neighbour.append(len(np.unique(ids[near])) > 2)
    assert np.mean(has_neighbour) > 0.7


def test_n_cells_bounds_the_number_of_cells():
    for n_cells in (1, 6):
        instances = make_cells(8, n_cells=n_cells, return_instances=True, random_state=0)[2]
        assert all(1 <= ids.max() <= n_cells for ids in instances)
        assert max(ids.max() for ids in instances) == n_cells


def test_noise_grows_with_its_parameter_and_leaves_the_mask_alone():
    clean, mask = make_cells(4, 64, noise=0, dtype="float32", random_state=0)
    errors = []
    for noise in (1e-9, 0.05, 0.1, 0.2):
        noisy, same_mask = make_cells(4, 64, noise=noise, dtype="float32", random_state=0)
        np.testing.assert_array_equal(mask, same_mask)
        errors.append((noisy - clean)[(clean > 0.3) & (clean < 0.6)].std())
    assert errors[0] < 1e-5
    assert 0.02 < errors[1] < 0.05
    np.testing.assert_allclose(errors[2:], [2 * errors[1], 4 * errors[1]], rtol=0.15)


@pytest.mark.parametrize("noise", [0, 0.1])
def test_global_threshold_is_better_than_chance_and_clearly_imperfect(noise):
    X, y = make_cells(noise=noise, random_state=0)
    of_the_set = otsu_threshold(X) < X
    of_each_image = np.stack([otsu_threshold(image) < image for image in X])
    for prediction in (of_the_set, of_each_image):
        assert 0.5 < mean_iou(y, prediction) < 0.8


def test_even_the_best_threshold_fails(defaults):
    X, y, _ = defaults
    assert max(mean_iou(y, threshold < X) for threshold in range(0, 256, 4)) < 0.8


def test_kinds_are_about_equally_bright():
    X, y = make_cells(40, n_classes=6, random_state=0)
    brightness = [X[y == kind].mean() for kind in range(1, 6)]
    spread = min(X[y == kind].std() for kind in range(1, 6))
    assert np.ptp(brightness) < 0.6 * spread


def multiscale_features(images):
    """Intensity first, then mean and spread of the surroundings at several scales; (pixels, features)."""
    images = images / 255
    features = [images]
    for sigma in (1, 2, 4, 8, 16):
        mean = ndimage.gaussian_filter(images, (0, sigma, sigma))
        square = ndimage.gaussian_filter(images**2, (0, sigma, sigma))
        edges = ndimage.gaussian_laplace(images, (1e-9, sigma, sigma))
        features += [mean, np.sqrt(np.maximum(square - mean**2, 0)), edges]
    return np.stack(features, axis=-1).reshape(images.size, -1)


@pytest.mark.parametrize(("n_classes", "gain"), [(2, 0.06), (4, 0.04)])
def test_surroundings_tell_what_a_pixel_alone_does_not(n_classes, gain):
    X, y = make_cells(16, n_classes=n_classes, random_state=0)
    features = multiscale_features(X)
    train = np.random.default_rng(0).choice(12 * 128 * 128, 8000, replace=False)
    scores = []
    for n_features in (1, features.shape[1]):
        forest = RandomForestClassifier(30, min_samples_leaf=5, random_state=0)
        forest.fit(features[train, :n_features], y.ravel()[train])
        prediction = forest.predict(features[12 * 128 * 128 :, :n_features]).reshape(4, 128, 128)
        scores.append(mean_iou(y[12:], prediction, n_classes))
    assert scores[0] < 0.8
    assert scores[1] > scores[0] + gain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 0}, "n_samples must be at least 1; got 0"),
        ({"size": 15}, "size must be at least 16; got 15. Pass 16"),
        ({"size": (64, 8)}, "size must be at least 16; got 8"),
        ({"size": (16, 64, 64)}, "size must have 2 entries; got"),
        ({"size": (64, 64), "spatial_ndim": 3}, "size must have 3 entries; got"),
        ({"spatial_ndim": 1}, r"spatial_ndim must be in 2\.\.3; got 1"),
        ({"n_classes": 1}, r"n_classes must be in 2\.\.6; got 1. Pass 2"),
        ({"n_classes": 7}, r"n_classes must be in 2\.\.6; got 7. Pass 6"),
        ({"n_channels": 0}, "n_channels must be at least 1; got 0"),
        ({"n_cells": 1, "n_classes": 4}, "n_cells must be at least 3; got 1"),
        ({"noise": -0.1}, "noise must be finite and not negative; got -0.1"),
        ({"noise": np.nan}, "noise must be finite and not negative; got nan"),
        ({"dtype": "int8"}, "dtype must be one of .*uint16.*; got 'int8'"),
        ({"random_state": -1}, "random_state must be at least 0; got -1"),
    ],
)
def test_bad_values_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_cells(**options)


@pytest.mark.parametrize("name", ["n_samples", "size", "n_classes", "n_channels", "n_cells", "random_state"])
def test_what_is_no_integer_is_named(name):
    with pytest.raises(TypeError, match=f"{name} must be an integer"):
        make_cells(**{name: 32.5})


def test_legal_extremes_work():
    X, y = make_cells(2, 16, n_classes=6, n_cells=200, noise=3.0, random_state=np.int64(0))
    assert X.shape == y.shape == (2, 16, 16)
