"""Scores of masks, all taken from one table of counts: how often label i was predicted as label j.

Counts of images, batches or tiles add up, so that a score of a data set never depends on how it was cut into
pieces. Every score of this module is a function of such a table.
"""

from collections.abc import Callable
from types import FunctionType
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics._scorer import _Scorer

from skunet.confusion import Array, Counts, Masks, _pair_up, confusion_counts, count_indices
from skunet.hyperparameters import find_setting

__all__ = [
    "accuracy_from_counts",
    "accuracy_scorer",
    "confusion_counts",
    "count_indices",
    "dice_from_counts",
    "dice_score",
    "dice_scorer",
    "iou_from_counts",
    "iou_score",
    "iou_scorer",
    "per_image",
    "pixel_accuracy",
    "precision_from_counts",
    "precision_score",
    "precision_scorer",
    "recall_from_counts",
    "recall_score",
    "recall_scorer",
]

Average = Literal["macro", "weighted", "micro"] | None


def iou_from_counts(counts: Counts) -> NDArray[np.float64]:
    """Return each class's intersection over union, (K,) float64; NaN if in neither truth nor prediction."""
    return _class_scores(_iou_parts, counts)


def dice_from_counts(counts: Counts) -> NDArray[np.float64]:
    """Return each class's Dice score (F1), (K,) float64; NaN if in neither truth nor prediction."""
    return _class_scores(_dice_parts, counts)


def precision_from_counts(counts: Counts) -> NDArray[np.float64]:
    """Return each class's precision, (K,) float64; 0 if only in the truth, NaN if not there either."""
    return _class_scores(_precision_parts, counts)


def recall_from_counts(counts: Counts) -> NDArray[np.float64]:
    """Return each class's recall, (K,) float64; 0 if only predicted, NaN if not predicted either."""
    return _class_scores(_recall_parts, counts)


def accuracy_from_counts(counts: Counts) -> float:
    """Return the share of pixels predicted right, 0 to 1; NaN if no pixel counts."""
    return _ratio(np.trace(counts), np.sum(counts))


def iou_score(
    y_true: Masks,
    y_pred: Masks,
    *,
    labels: ArrayLike | None = None,
    average: Average = "macro",
    ignore_label: Any = None,
    sample_weight: Masks | None = None,
) -> NDArray[np.float64] | float:
    """Score masks by intersection over union (Jaccard index), from one table of counts over all pixels.

    Parameters
    ----------
    y_true, y_pred, labels, ignore_label, sample_weight
        As in `confusion_counts`.
    average : {"macro", "weighted", "micro"} or None, default="macro"
        "macro": mean over the classes that are in the truth or in the prediction; "weighted": mean weighted
        with the classes' frequency in the truth; "micro": from the pooled hits and misses of all classes;
        None: one score per class, NaN for a class that is in neither.

    Returns
    -------
    score : float, or ndarray (K,) float64 if `average` is None
        0 to 1; NaN if no pixel counts at all.

    Examples
    --------
    >>> iou_score([[0, 0, 0, 255]], [[0, 0, 255, 255]], average=None).round(2)
    array([0.67, 0.5 ])
    """
    return _score(_iou_parts, average, y_true, y_pred, labels, ignore_label, sample_weight)


def dice_score(
    y_true: Masks,
    y_pred: Masks,
    *,
    labels: ArrayLike | None = None,
    average: Average = "macro",
    ignore_label: Any = None,
    sample_weight: Masks | None = None,
) -> NDArray[np.float64] | float:
    """Score masks by the Dice coefficient (F1 over pixels); arguments and result as in `iou_score`."""
    return _score(_dice_parts, average, y_true, y_pred, labels, ignore_label, sample_weight)


def precision_score(
    y_true: Masks,
    y_pred: Masks,
    *,
    labels: ArrayLike | None = None,
    average: Average = "macro",
    ignore_label: Any = None,
    sample_weight: Masks | None = None,
) -> NDArray[np.float64] | float:
    """Score masks by precision; arguments and result as in `iou_score`, and 0 for a class never predicted."""
    return _score(_precision_parts, average, y_true, y_pred, labels, ignore_label, sample_weight)


def recall_score(
    y_true: Masks,
    y_pred: Masks,
    *,
    labels: ArrayLike | None = None,
    average: Average = "macro",
    ignore_label: Any = None,
    sample_weight: Masks | None = None,
) -> NDArray[np.float64] | float:
    """Score masks by recall; arguments and result as in `iou_score`, and 0 for a class that is never true."""
    return _score(_recall_parts, average, y_true, y_pred, labels, ignore_label, sample_weight)


def pixel_accuracy(
    y_true: Masks, y_pred: Masks, *, ignore_label: Any = None, sample_weight: Masks | None = None
) -> float:
    """Return the share of pixels predicted right, 0 to 1; NaN if no pixel counts."""
    return accuracy_from_counts(
        confusion_counts(y_true, y_pred, ignore_label=ignore_label, sample_weight=sample_weight)
    )


def per_image(
    metric: Callable[..., Any],
    y_true: Masks,
    y_pred: Masks,
    *,
    sample_weight: Masks | None = None,
    **kwargs: Any,
) -> NDArray[np.float64]:
    """Score each image by itself.

    Parameters
    ----------
    metric : callable
        A score of this module, or any function of stacks `(y_true, y_pred, **kwargs)`.
    y_true, y_pred, sample_weight
        As in `confusion_counts`; `metric` gets them one image at a time.
    **kwargs
        Passed on to `metric`. With `average=None`, pass `labels` too, so that all images have the same.

    Returns
    -------
    scores : ndarray (N,) float64, or (N, K) if `metric` scores each class

    Examples
    --------
    >>> per_image(pixel_accuracy, [[0, 1], [1, 1]], [[0, 1], [1, 0]])
    array([1. , 0.5])
    """
    scores = []
    for true, pred, weight in _pair_up(y_true, y_pred, sample_weight):
        for i in range(len(true)):
            weighting = {} if weight is None else {"sample_weight": weight[i : i + 1]}
            scores.append(metric(true[i : i + 1], pred[i : i + 1], **weighting, **kwargs))
    return np.array(scores, np.float64)


# What a score divides and by what, for each class: (hits, in truth, in prediction) -> (dividend, divisor).
Parts = Callable[[Array, Array, Array], tuple[Array, Array]]


def _iou_parts(hits: Array, in_truth: Array, in_pred: Array) -> tuple[Array, Array]:
    return hits, in_truth + (in_pred - hits)  # in this order rounding never makes it less than the hits


def _dice_parts(hits: Array, in_truth: Array, in_pred: Array) -> tuple[Array, Array]:
    return 2 * hits, in_truth + in_pred


def _precision_parts(hits: Array, in_truth: Array, in_pred: Array) -> tuple[Array, Array]:  # noqa: ARG001
    return hits, in_pred


def _recall_parts(hits: Array, in_truth: Array, in_pred: Array) -> tuple[Array, Array]:  # noqa: ARG001
    return hits, in_truth


def _margins(counts: Counts) -> tuple[Array, Array, Array]:
    """Return each class's hits, its pixels in the truth and its pixels in the prediction, (K,)."""
    return np.diagonal(counts), np.sum(counts, axis=1), np.sum(counts, axis=0)


def _class_scores(parts: Parts, counts: Counts) -> NDArray[np.float64]:
    """Return each class's score: 0 where there is nothing to divide by, NaN where the class is absent."""
    hits, in_truth, in_pred = _margins(counts)
    dividend, divisor = parts(hits, in_truth, in_pred)
    scores = np.where(in_truth + in_pred > 0, 0.0, np.nan)
    return np.divide(dividend, divisor, out=scores, where=divisor > 0)


def _ratio(dividend: Any, divisor: Any) -> float:
    """Return the quotient, or NaN where no pixel counts."""
    return float(dividend / divisor) if divisor > 0 else float("nan")


def _score(
    parts: Parts,
    average: Average,
    y_true: Masks,
    y_pred: Masks,
    labels: ArrayLike | None,
    ignore_label: Any,
    sample_weight: Masks | None,
) -> NDArray[np.float64] | float:
    """Count, score and average; see `iou_score`."""
    if average not in ("macro", "weighted", "micro", None):
        raise ValueError(f"average must be 'macro', 'weighted', 'micro' or None; got {average!r}.")
    counts = confusion_counts(y_true, y_pred, labels=labels, ignore_label=ignore_label, sample_weight=sample_weight)
    hits, in_truth, in_pred = _margins(counts)
    if average == "micro":
        return _ratio(*(part.sum() for part in parts(hits, in_truth, in_pred)))
    scores = _class_scores(parts, counts)
    if average is None:
        return scores
    is_present = in_truth + in_pred > 0
    importance = is_present.astype(np.float64) if average == "macro" else in_truth
    return _ratio(np.sum(scores[is_present] * importance[is_present]), np.sum(importance))


class MaskScorer(_Scorer):  # type: ignore[misc]
    """scikit-learn's scorer, which leaves out the pixels of the estimator's `ignore_label`."""

    def _score(self, method_caller: Any, estimator: Any, X: Any, y_true: Any, **kwargs: Any) -> Any:
        given = {"ignore_label": find_setting(estimator, "ignore_label")} | kwargs
        return super()._score(method_caller, estimator, X, y_true, **given)


def _make_scorer(score: Callable[..., Any]) -> MaskScorer:
    return MaskScorer(score, sign=1, kwargs={}, response_method="predict")


iou_scorer = _make_scorer(iou_score)
dice_scorer = _make_scorer(dice_score)
accuracy_scorer = _make_scorer(pixel_accuracy)
precision_scorer = _make_scorer(precision_score)
recall_scorer = _make_scorer(recall_score)
SCORERS = {
    "iou": iou_scorer,
    "dice": dice_scorer,
    "accuracy": accuracy_scorer,
    "precision": precision_scorer,
    "recall": recall_scorer,
}


def find_scorer(scoring: Any) -> Any:
    """Return the scorer that `scoring` stands for.

    Parameters
    ----------
    scoring : {"iou", "dice", "accuracy", "precision", "recall"}, scorer, callable or None

    Returns
    -------
    scorer, callable or None
        What is no name, as it is.

    Raises
    ------
    ValueError
        If there is no scorer of this name, or a metric stands where a scorer must.

    Examples
    --------
    >>> find_scorer("dice") is dice_scorer
    True
    """
    if scoring is None or (isinstance(scoring, str) and scoring in SCORERS):
        return None if scoring is None else SCORERS[scoring]
    if not callable(scoring):
        raise ValueError(f"scoring must be one of {list(SCORERS)}, a scorer or a callable; got {scoring!r}.")
    # A scorer of scikit-learn is an object, whose class has a module of that name too.
    module = scoring.__module__ if isinstance(scoring, FunctionType) else ""
    if module == __name__ or module.startswith("sklearn.metrics"):
        own = [f"skunet.metrics.{name}_scorer" for name, scorer in SCORERS.items() if scorer._score_func is scoring]
        remedy = own[0] if own else "skunet.metrics.iou_scorer or another scorer"
        raise ValueError(
            f"scoring must be a scorer, called as scoring(estimator, X, y); got the metric {scoring.__name__}. "
            f"Pass {remedy}, or, with arguments, sklearn.metrics.make_scorer({scoring.__name__}, ...)."
        )
    return scoring


def find_scorers(scoring: Any) -> Any:
    """Return what scikit-learn takes for one or several scores; see `find_scorer`.

    Parameters
    ----------
    scoring : as for `find_scorer`, or a list or tuple of names, or a dict of names to any of these

    Examples
    --------
    >>> list(find_scorers(["iou", "dice"]))
    ['iou', 'dice']
    """
    if isinstance(scoring, dict):
        return {name: find_scorer(each) for name, each in scoring.items()}
    if not isinstance(scoring, list | tuple | set):
        return find_scorer(scoring)
    if not scoring or not all(isinstance(name, str) for name in scoring) or len(set(scoring)) < len(scoring):
        return scoring  # scikit-learn says what is wrong
    return {name: find_scorer(name) for name in scoring}
