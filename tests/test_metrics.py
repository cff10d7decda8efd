import pickle
import warnings

import numpy as np
import pytest
from conftest import make_segmenter
from drawn_masks import masks
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skunet.metrics import (
    SCORERS,
    accuracy_from_counts,
    accuracy_scorer,
    confusion_counts,
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
from skunet.model_selection import cross_validate

SCORES = {
    iou_score: reference.jaccard_score,
    dice_score: reference.f1_score,
    precision_score: reference.precision_score,
    recall_score: reference.recall_score,
}
every_score = pytest.mark.parametrize("score", SCORES)


def sklearn_score(score, true, pred, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return SCORES[score](true.ravel(), pred.ravel(), **kwargs)


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


def test_unknown_average_raises():
    with pytest.raises(ValueError, match=r"average must be .* got 'binary'"):
        iou_score([0], [0], average="binary")


class Threshold(BaseEstimator):
    def __init__(self, at=0.5):
        self.at = at

    def fit(self, X, y):
        return self

    def predict(self, X):
        return (self.at < X).astype(np.uint8)


@pytest.mark.parametrize("name", SCORERS)
def test_scorers_leave_out_what_the_estimator_ignores(cells, name):
    X, y = cells
    masks = y.copy()
    masks[:, :9] = 255
    segmenter = make_segmenter(ignore_label=255).fit(X, masks)
    metric = SCORERS[name]._score_func
    expected = metric(masks, segmenter.predict(X), ignore_label=255)
    assert expected != metric(masks, segmenter.predict(X))
    assert SCORERS[name](segmenter, X, masks) == expected
    assert SCORERS[name](make_pipeline("passthrough", segmenter), X, masks) == expected
    found = cross_validate(FrozenEstimator(segmenter), X, masks, cv=[(range(12), range(12))], scoring=list(SCORERS))
    assert found[f"test_{name}"][0] == expected
    assert pickle.loads(pickle.dumps(SCORERS[name]))(segmenter, X, masks) == expected
    # What it started from has labels of its own.
    other = make_segmenter(pretrained=segmenter, classes=[0, 1, 255]).fit(X, masks)
    assert SCORERS[name](other, X, masks) == metric(masks, other.predict(X))
    assert make_scorer(metric)(segmenter, X, masks) == metric(masks, segmenter.predict(X))


@pytest.mark.parametrize("scorer", [iou_scorer, dice_scorer, accuracy_scorer, precision_scorer, recall_scorer])
def test_scorers_choose_in_grid_search(scorer):
    X = np.random.default_rng(0).random((6, 8, 8))
    y = (X > 0.3).astype(np.uint8)
    search = GridSearchCV(Threshold(), {"at": [0.1, 0.3, 0.6]}, scoring=scorer, cv=2).fit(X, y)
    assert search.best_params_ == {"at": 0.3}
    assert search.best_score_ == 1.0
