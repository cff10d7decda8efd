import numpy as np
import pytest
from conftest import make_segmenter
from scipy import ndimage

from skunet.border_weights import border_weight_map
from skunet.datasets import make_cells


def formula(mask, w0, sigma, spacing=None):
    """Weights with the distances to all objects at once."""
    numbers, n_objects = ndimage.label(mask)
    distances = [ndimage.distance_transform_edt(numbers != i + 1, sampling=spacing) for i in range(n_objects)]
    first, second = np.sort(distances, axis=0)[:2]
    return np.where(mask > 0, 1, 1 + w0 * np.exp(-((first + second) ** 2) / (2 * sigma**2)))


@pytest.mark.parametrize("shape", [(60, 71), (14, 20, 21)])
@pytest.mark.parametrize("sigma", [1.5, 5.0])
@pytest.mark.parametrize("is_spaced", [False, True])
def test_weights_are_those_of_the_formula(shape, sigma, is_spaced):
    mask = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=shape), 2) > 0.06
    spacing = tuple(np.linspace(1, 2.5, mask.ndim)) if is_spaced else None
    found = border_weight_map(mask[None], w0=8.0, sigma=sigma, spacing=spacing)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[0], formula(mask, 8.0, sigma, spacing), atol=1e-3)


@pytest.mark.parametrize("labels", [[0, 255], [False, True], ["a", "b"]])
def test_any_labels(labels):
    mask = np.array(labels)[np.array([[1, 1, 0, 1, 1]])]
    weights = border_weight_map([mask], w0=10, sigma=3)
    assert isinstance(weights, list)
    assert weights[0][0, 2] == pytest.approx(1 + 10 * np.exp(-4 / 18))
    assert (weights[0][0, [0, 1, 3, 4]] == 1).all()


def test_instances_that_touch_are_told_apart():
    mask = np.array([[[1, 1, 2, 2], [0, 0, 0, 0]]])
    assert (border_weight_map(mask) == 1).all()
    assert (border_weight_map(mask, is_instances=True)[0, 1] > 5).all()


@pytest.mark.parametrize("mask", [np.zeros((5, 5), int), np.ones((5, 5), int), np.diag([0, 0, 1, 0, 0])])
@pytest.mark.parametrize("is_instances", [False, True])
def test_without_two_objects_there_are_no_gaps(mask, is_instances):
    assert (border_weight_map(mask[None], is_instances=is_instances) == 1).all()


@pytest.mark.parametrize(
    ("mask", "void"), [([2, 2, 1, 2, 2, 0], 0), ([1, 1, 0, 1, 1, 255], 255), (list("bbabbv"), "v")]
)
@pytest.mark.parametrize("is_instances", [False, True])
def test_pixels_to_ignore_are_neither_object_nor_background(mask, void, is_instances):
    mask = np.array([[mask]])
    if is_instances and mask.dtype.kind != "U":
        mask[0, 0, :2] = 7
    weights = border_weight_map(mask, is_instances=is_instances, ignore_label=void)
    assert weights[0, 0, 2] == pytest.approx(1 if is_instances and mask.dtype.kind == "U" else 1 + 10 * np.exp(-4 / 50))
    assert (weights[0, 0, [0, 1, 3, 4, 5]] == 1).all()


def test_background_is_the_least_label_of_all_masks():
    full, other = np.array([[1, 1, 2, 2, 1, 1]]), np.array([[0, 1, 0]])
    weights = border_weight_map([full, other], is_instances=True)
    assert (weights[0] == 1).all()
    assert (border_weight_map([full], is_instances=True)[0] == 1).all()  # 1 is background then, of one object


def test_masks_of_nothing_but_what_is_ignored_have_no_gaps():
    assert (border_weight_map(np.full((1, 4, 4), 255), ignore_label=255) == 1).all()


def test_a_segmenter_is_trained_with_them():
    X, y = make_cells(6, size=32, random_state=0)
    segmenter = make_segmenter().fit(X, y, sample_weight=border_weight_map(y))
    plain = make_segmenter().fit(X, y)
    assert segmenter.history[-1, "train_loss"] != plain.history[-1, "train_loss"]


@pytest.mark.parametrize(
    "bad", [{"w0": -1}, {"sigma": 0}, {"spacing": (1, 0)}, {"spacing": (3, 1, 1)}, {"sigma": np.nan}]
)
def test_what_is_out_of_range_is_refused(bad):
    with pytest.raises(ValueError, match="must be"):
        border_weight_map(np.zeros((1, 4, 4)), **bad)
