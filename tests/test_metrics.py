import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn import metrics as reference
from sklearn.base import BaseEstimator
from sklearn.model_selection import GridSearchCV

from skunet import confusion
from skunet.metrics import (
    accuracy_from_counts,
    accuracy_scorer,
    confusion_counts,
    count_indices,
    dice_from_counts,
    dice_score,
    dice_scorer,
    iou_from_counts,
    iou_score,
    iou_scorer,
    per_image,
    pixel_accuracy,
    precision_from_counts,
    precision_score,
    precision_scorer,
    recall_from_counts,
    recall_score,
    recall_scorer,
)

SCORES = {
    iou_score: reference.jaccard_score,
    dice_score: reference.f1_score,
    precision_score: reference.precision_score,
    recall_score: reference.recall_score,
}
every_score = pytest.mark.parametrize("score", SCORES)

LABEL_SETS = [
    np.array([False, True]),
    np.array([0, 255], np.uint8),
    np.array([-128, 0, 127], np.int8),
    np.array([-3, -1, 2, 900]),
    np.array([0, 1000, 60_000], np.uint16),
    np.array([-(2**40), 0, 2**40]),
    np.array([0.0, 1.0, 7.0], np.float32),
    np.array(["cell", "background", "edge of a cell"]),
    np.arange(20),
]


@st.composite
def masks(draw, label_sets=LABEL_SETS):
    """Truth and prediction over one set of labels, not always all of them."""
    labels = draw(st.sampled_from(label_sets))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=4, max_side=6))
    # A generator with a drawn seed fills the masks far faster than element by element.
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    subsets = [labels[: draw(st.integers(1, len(labels)))] for _ in range(2)]
    return tuple(generator.choice(subset, shape) for subset in subsets)


def sklearn_counts(true, pred):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a single label
        return reference.confusion_matrix(true.ravel(), pred.ravel())


def sklearn_score(score, true, pred, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SCORES[score](true.ravel(), pred.ravel(), **kwargs)


@given(masks())
def test_counts_equal_sklearn(pair):
    true, pred = pair
    np.testing.assert_array_equal(confusion_counts(true, pred), sklearn_counts(true, pred))


@every_score
@pytest.mark.parametrize("average", [None, "macro", "micro", "weighted"])
@settings(max_examples=40)
@given(pair=masks())
def test_scores_equal_sklearn(score, average, pair):
    true, pred = pair
    # sklearn takes two labels for a binary problem; naming them makes all cases alike.
    labels = np.union1d(true, pred)
    expected = sklearn_score(score, true, pred, average=average, labels=labels)
    np.testing.assert_allclose(score(true, pred, average=average), expected)
    np.testing.assert_allclose(score(true, pred, average=average, labels=labels), expected)


@given(masks())
def test_accuracy_equals_sklearn(pair):
    true, pred = pair
    assert pixel_accuracy(true, pred) == pytest.approx(reference.accuracy_score(true.ravel(), pred.ravel()))


@every_score
@settings(max_examples=40)
@given(pair=masks(), seed=st.integers(0, 99))
def test_weights_equal_sklearn(score, pair, seed):
    true, pred = pair
    generator = np.random.default_rng(seed)
    per_pixel = generator.random(true.shape) + 0.1
    per_image_weight = generator.random(len(true)) + 0.1
    spread = np.broadcast_to(per_image_weight.reshape(-1, *[1] * (true.ndim - 1)), true.shape)
    for given_weight, pixels in ((per_pixel, per_pixel), (per_image_weight, spread)):
        expected = sklearn_score(score, true, pred, average="macro", sample_weight=pixels.ravel())
        assert score(true, pred, sample_weight=given_weight) == pytest.approx(expected)


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


@every_score
@settings(max_examples=40)
@given(pair=masks())
def test_ignored_pixels_equal_pixels_left_out(score, pair):
    true, pred = pair
    ignore_label = true.ravel()[0]
    pred = np.where(pred == ignore_label, true, pred)
    is_counted = true != ignore_label
    if is_counted.any():
        expected = score(true[is_counted], pred[is_counted], average=None)
        np.testing.assert_array_equal(score(true, pred, average=None, ignore_label=ignore_label), expected)


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
    weight = generator.random(shape)
    whole = confusion_counts(true, pred), confusion_counts(true, pred, sample_weight=weight)
    monkeypatch.setattr(confusion, "_BLOCK_PIXELS", 32)
    np.testing.assert_array_equal(confusion_counts(true, pred), whole[0])
    np.testing.assert_allclose(confusion_counts(true, pred, sample_weight=weight), whole[1])


@pytest.mark.parametrize("n_classes", [1, 2, 3, 9, 15, 16, 200, 1200])
@pytest.mark.parametrize("n_pixels", [10, 20_000, 20_001])
@pytest.mark.parametrize("dtype", ["uint8", "int64"])
def test_each_way_of_counting_equals_sklearn(n_classes, n_pixels, dtype):
    generator = np.random.default_rng(0)
    top = min(n_classes, np.iinfo(dtype).max + 1)
    true, pred = generator.integers(0, top, (2, n_pixels)).astype(dtype)
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


def test_three_by_three_case_by_hand():
    true = np.array([[[0, 0, 1], [0, 1, 1], [2, 2, 1]]])
    pred = np.array([[[0, 1, 1], [0, 1, 2], [2, 2, 1]]])
    counts = confusion_counts(true, pred)
    np.testing.assert_array_equal(counts, [[2, 1, 0], [0, 3, 1], [0, 0, 2]])
    np.testing.assert_allclose(iou_from_counts(counts), [2 / 3, 3 / 5, 2 / 3])
    np.testing.assert_allclose(dice_from_counts(counts), [4 / 5, 6 / 8, 4 / 5])
    np.testing.assert_allclose(precision_from_counts(counts), [1, 3 / 4, 2 / 3])
    np.testing.assert_allclose(recall_from_counts(counts), [2 / 3, 3 / 4, 1])
    assert accuracy_from_counts(counts) == pytest.approx(7 / 9)
    assert iou_score(true, pred) == pytest.approx((2 / 3 + 3 / 5 + 2 / 3) / 3)
    assert iou_score(true, pred, average="micro") == pytest.approx(7 / 11)
    assert iou_score(true, pred, average="weighted") == pytest.approx((3 * 2 / 3 + 4 * 3 / 5 + 2 * 2 / 3) / 9)


def test_absent_classes_are_nan_or_zero_by_the_rule():
    # Class 0 is right, 1 only in the truth, 2 only in the prediction, 3 in neither.
    counts = np.array([[5, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    for from_counts in (iou_from_counts, dice_from_counts, precision_from_counts, recall_from_counts):
        np.testing.assert_array_equal(from_counts(counts), [1, 0, 0, np.nan])


@every_score
def test_absent_class_is_left_out_of_the_mean(score):
    true, pred = np.array([[0, 0, 1]]), np.array([[0, 1, 1]])
    for average in ("macro", "micro", "weighted"):
        expected = score(true, pred, average=average)
        assert score(true, pred, average=average, labels=[0, 7, 1]) == expected


@every_score
@pytest.mark.parametrize("average", ["macro", "micro", "weighted"])
def test_score_is_nan_if_no_pixel_counts(score, average):
    mask = np.full((2, 3, 3), 255)
    assert np.isnan(score(mask, mask, average=average, ignore_label=255))
    assert np.isnan(score(mask, mask, average=average, sample_weight=np.zeros(2)))
    assert np.isnan(score(mask[:0], mask[:0], average=average))
    assert np.isnan(pixel_accuracy(mask, mask, ignore_label=255))
    assert score(mask, mask, average=None, ignore_label=255).shape == (0,)


def test_multilabel_scores_are_an_independent_reference():
    true, pred = np.random.default_rng(0).random((2, 5, 7, 6)) < 0.4
    flat_true, flat_pred = (mask.reshape(5, -1).astype(int) for mask in (true, pred))
    foreground = per_image(iou_score, true, pred, average=None, labels=[0, 1])[:, 1]
    samples = reference.jaccard_score(flat_true, flat_pred, average="samples")
    assert foreground.mean() == pytest.approx(samples)
    micro = reference.jaccard_score(flat_true, flat_pred, average="micro")
    assert iou_score(true, pred, average=None)[1] == pytest.approx(micro)


@given(masks(), st.integers(0, 99))
def test_per_image_equals_each_image_by_itself(pair, seed):
    true, pred = pair
    weight = np.random.default_rng(seed).random(true.shape) + 0.1
    expected = [iou_score(true[i], pred[i], sample_weight=weight[i]) for i in range(len(true))]
    np.testing.assert_allclose(per_image(iou_score, true, pred, sample_weight=weight), expected)
    as_lists = per_image(iou_score, list(true), list(pred), sample_weight=list(weight))
    np.testing.assert_allclose(as_lists, expected)


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


def test_unknown_average_raises():
    with pytest.raises(ValueError, match=r"average must be .* got 'binary'"):
        iou_score([0], [0], average="binary")


class Threshold(BaseEstimator):
    def __init__(self, at=0.5):
        self.at = at

    def fit(self, X, y):  # noqa: ARG002
        return self

    def predict(self, X):
        return (self.at < X).astype(np.uint8)


@pytest.mark.parametrize("scorer", [iou_scorer, dice_scorer, accuracy_scorer, precision_scorer, recall_scorer])
def test_scorers_choose_in_grid_search(scorer):
    X = np.random.default_rng(0).random((6, 8, 8))
    y = (X > 0.3).astype(np.uint8)
    search = GridSearchCV(Threshold(), {"at": [0.1, 0.3, 0.6]}, scoring=scorer, cv=2).fit(X, y)
    assert search.best_params_ == {"at": 0.3}
    assert search.best_score_ == 1.0
