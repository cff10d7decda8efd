import warnings

import numpy as np
import pytest
from drawn_masks import LABEL_SETS, masks
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference

from skunet import confusion
from skunet.confusion import confusion_counts, count_indices


def sklearn_counts(true, pred):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a single label
        return reference.confusion_matrix(true.ravel(), pred.ravel())


@given(masks())
def test_counts_equal_sklearn(pair):
    true, pred = pair
    np.testing.assert_array_equal(confusion_counts(true, pred), sklearn_counts(true, pred))


@given(masks(), st.integers(0, 99))
def test_weighted_counts_equal_sklearn_zeros_included(pair, seed):
    true, pred = pair
    weight = np.random.default_rng(seed).integers(0, 3, true.shape) / 2
    counts = confusion_counts(true, pred, sample_weight=weight)
    labels = np.union1d(true, pred)
    assert counts.dtype == np.float64
    assert counts.shape == (len(labels), len(labels))
    expected = np.zeros(counts.shape)
    np.add.at(expected, (np.searchsorted(labels, true), np.searchsorted(labels, pred)), weight)
    np.testing.assert_allclose(counts, expected)


@given(masks(), st.integers(1, 3))
def test_counts_of_batches_add_up(pair, batch_size):
    true, pred = pair
    labels = np.union1d(true, pred)
    parts = [
        confusion_counts(true[i : i + batch_size], pred[i : i + batch_size], labels=labels)
        for i in range(0, len(true), batch_size)
    ]
    np.testing.assert_array_equal(sum(parts), confusion_counts(true, pred))


@given(masks())
def test_lists_and_object_arrays_count_as_stacks(pair):
    true, pred = pair
    as_objects = np.empty(len(pred), object)
    as_objects[:] = list(pred)
    expected = confusion_counts(true, pred)
    np.testing.assert_array_equal(confusion_counts(list(true), as_objects), expected)
    np.testing.assert_array_equal(confusion_counts(true, list(pred)), expected)
    np.testing.assert_array_equal(confusion_counts(true.astype(object), pred), expected)


def test_images_of_several_sizes_count_as_their_pixels():
    generator = np.random.default_rng(0)
    true, pred = ([generator.integers(3, size=(n, 4)) for n in (2, 5, 1)] for _ in range(2))
    flat_true, flat_pred = (np.concatenate(masks) for masks in (true, pred))
    np.testing.assert_array_equal(confusion_counts(true, pred), confusion_counts(flat_true, flat_pred))
    weight = [0.5, 2.0, 1.0]
    per_pixel = [np.full(mask.shape, w) for mask, w in zip(true, weight, strict=True)]
    np.testing.assert_allclose(
        confusion_counts(true, pred, sample_weight=weight),
        confusion_counts(flat_true, flat_pred, sample_weight=np.concatenate(per_pixel)),
    )
    np.testing.assert_allclose(
        confusion_counts(true, pred, sample_weight=per_pixel),
        confusion_counts(true, pred, sample_weight=np.array(weight)),
    )


@pytest.mark.parametrize("labels", LABEL_SETS, ids=lambda labels: f"{labels.dtype}-{len(labels)}")
@pytest.mark.parametrize("shape", [(3, 21, 10), (40, 3, 3), (2, 63, 9)])
def test_counts_do_not_depend_on_the_blocks(labels, shape, monkeypatch):
    generator = np.random.default_rng(0)
    true, pred = generator.choice(labels, (2, *shape))
    weights = None, generator.random(shape), generator.random(shape[0])
    whole = [confusion_counts(true, pred, sample_weight=weight) for weight in weights]
    monkeypatch.setattr(confusion, "_BLOCK_PIXELS", 32)
    for weight, expected in zip(weights, whole, strict=True):
        np.testing.assert_allclose(confusion_counts(true, pred, sample_weight=weight), expected)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 9, 15, 16, 200, 1200])
@pytest.mark.parametrize("n_pixels", [10, 60_000, 60_001])
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_each_way_of_counting_equals_sklearn(n_classes, n_pixels, dtype):
    generator = np.random.default_rng(0)
    top = min(n_classes, np.iinfo(dtype).max + 1)
    true, pred = generator.integers(0, top, (2, n_pixels)).astype(dtype)
    pred[::2] = 0  # so that even and odd pixels, which may be counted as pairs, differ
    expected = sklearn_counts(true, pred)
    np.testing.assert_array_equal(confusion_counts(true, pred), expected)


def test_wide_labels_are_counted_without_a_wide_table(monkeypatch):
    monkeypatch.setattr(confusion, "_MAX_TABLE", 4)
    true, pred = np.random.default_rng(0).choice([0, 5, 1000], (2, 4, 10))
    expected = sklearn_counts(true, pred)
    np.testing.assert_array_equal(confusion_counts(true, pred), expected)
    np.testing.assert_array_equal(confusion_counts(true, pred, sample_weight=np.full(4, 2)), 2 * expected)


def test_strided_and_fortran_ordered_masks_are_counted_in_place():
    true, pred = np.random.default_rng(0).integers(4, size=(2, 6, 8, 10))
    expected = confusion_counts(true, pred)
    np.testing.assert_array_equal(confusion_counts(np.asfortranarray(true), pred), expected)
    np.testing.assert_array_equal(
        confusion_counts(true[:, ::-1, ::2], pred[:, ::-1, ::2]),
        confusion_counts(true[:, ::-1, ::2].copy(), pred[:, ::-1, ::2].copy()),
    )


def test_labels_set_the_order_of_rows_and_columns():
    counts = confusion_counts([["b", "a", "a"]], [["b", "b", "a"]], labels=["b", "c", "a"])
    np.testing.assert_array_equal(counts, [[1, 0, 0], [0, 0, 0], [1, 0, 1]])


def test_ignore_label_as_a_label_keeps_its_column():
    counts = confusion_counts([0, 0, 255], [0, 255, 0], labels=[0, 255], ignore_label=255)
    np.testing.assert_array_equal(counts, [[1, 1], [0, 0]])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int64", "uint8", "bool", "float32"])
@pytest.mark.parametrize("n_classes", [2, 11, 128])
def test_count_indices_equals_confusion_counts(dtype, n_classes):
    top = 2 if dtype == "bool" else n_classes
    generator = np.random.default_rng(0)
    low = 0 if dtype in ("bool", "uint8") else -1
    true = generator.integers(low, top, (4, 30, 30)).astype(dtype)
    pred = generator.integers(0, top, true.shape).astype(dtype)
    labels = np.arange(n_classes)
    for weight in (None, generator.random(4), generator.random(true.shape)):
        expected = confusion_counts(true, pred, labels=labels, ignore_label=-1, sample_weight=weight)
        counts = count_indices(true, pred, n_classes, weight)
        assert counts.dtype == expected.dtype
        np.testing.assert_allclose(counts, expected)


@pytest.mark.parametrize(("true", "pred"), [(2, 0), (-2, 0), (0, 2), (0, -1)])
def test_count_indices_out_of_range_raises(true, pred):
    with pytest.raises(ValueError, match="_indices must be from"):
        count_indices(np.array([true]), np.array([pred]), 2)


@pytest.mark.parametrize(
    ("true", "pred", "kwargs", "message"),
    [
        ([[0, 3]], [[0, 1]], {"labels": [0, 1]}, r"y_true must hold only the labels \[0 1\]; got 3\. Add"),
        ([["a"]], [["z"]], {"labels": ["a", "b"]}, "y_pred must hold only .* got 'z'"),
        ([[0, 1]], [[0, 255]], {"ignore_label": 255}, r"y_pred must hold only .* got 255"),
        ([[0]], [["a"]], {}, "numbers and strings"),
        ([[0]], [[0]], {"labels": ["a"]}, "numbers and strings"),
        ([[0]], [[0]], {"labels": [0, 0]}, "distinct labels"),
        ([[0]], [[0]], {"labels": []}, "non-empty"),
        ([[0.0, 1.0]], [[0.1, 0.9]], {}, "whole numbers; got 0.1"),
        ([[0.0, np.nan]], [[0, 0]], {}, "whole numbers; got nan"),
        (np.array([2**63], np.uint64), [1], {}, "fit in int64"),
        (np.zeros((2, 3, 4)), np.zeros((2, 3, 5)), {}, r"y_true\[0\], \(3, 4\); got \(3, 5\)"),
        ([np.zeros(3), np.zeros(4)], [np.zeros(3), np.zeros(5)], {}, r"y_true\[1\], \(4,\); got \(5,\)"),
        (np.zeros((2, 3)), np.zeros((3, 3)), {}, "one entry per image of y_true, 2; got 3"),
        ([[0]], [[0]], {"sample_weight": [1, 2]}, "sample_weight must have one entry per image"),
        (np.zeros((2, 3)), np.zeros((2, 3)), {"sample_weight": np.ones((2, 4))}, r"\(3,\); got shape \(4,\)"),
        ([[0]], [[0]], {"sample_weight": [-1.0]}, "finite and not negative"),
        ([[0]], [[0]], {"sample_weight": [np.nan]}, "finite and not negative"),
    ],
)
def test_bad_input_raises(true, pred, kwargs, message):
    with pytest.raises(ValueError, match=message):
        confusion_counts(true, pred, **kwargs)


def test_masks_of_neither_numbers_nor_strings_raise():
    with pytest.raises(TypeError, match="numbers or strings; got NoneType"):
        confusion_counts([None, 1], [0, 1])
