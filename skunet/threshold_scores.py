"""Scores of binary masks at many thresholds, from one histogram of the foreground's probabilities."""

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np

from skunet.hyperparameters import find_setting
from skunet.image_by_image import LabelledImages, select_images
from skunet.labels import LabelCodec, count_labels, learn_codec
from skunet.metrics import SCORERS, find_scorer

__all__ = [
    "Histogram",
    "candidate_thresholds",
    "check_binary",
    "check_masks",
    "check_response_method",
    "count_thresholds",
    "find_score",
    "mean_over_folds",
    "score_tables",
]

# Pixels that are counted at a time.
BLOCK = 1 << 20


def check_response_method(method: str) -> None:
    """Raise ValueError unless the method gives probabilities."""
    if method not in ("auto", "predict_proba"):
        raise ValueError(f'response_method must be "auto" or "predict_proba"; got {method!r}.')


def candidate_thresholds(thresholds: Any) -> np.ndarray:
    """Return the thresholds (T,) to try, ascending; see `TunedThresholdClassifierCV`.

    Raises
    ------
    ValueError
        If these are no numbers from 0 to 1, or fewer than 2 are asked for.

    Examples
    --------
    >>> candidate_thresholds(4)
    array([0.  , 0.25, 0.5 , 0.75])
    """
    is_whole = isinstance(thresholds, Integral)
    if is_whole and thresholds >= 2:
        return np.arange(int(thresholds)) / int(thresholds)
    values = np.unique(thresholds)
    if is_whole or values.dtype.kind not in "uif" or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"thresholds must be a whole number of at least 2, or numbers from 0 to 1; got {thresholds!r}."
        )
    return values.astype(np.float64)


class Histogram:
    """How many pixels of either class have a probability between one threshold and the next.

    Parameters
    ----------
    thresholds : ndarray of shape (T,), float64, ascending

    Examples
    --------
    >>> histogram = Histogram(np.array([0.25, 0.75]))
    >>> histogram.add(np.array([0.1, 0.5, 0.9]), np.array([0, 1, 1]))
    >>> histogram.tables().tolist()
    [[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]]]
    """

    def __init__(self, thresholds: np.ndarray) -> None:
        self.thresholds = thresholds
        self.amounts = np.zeros((2, len(thresholds) + 1))

    def add(self, probabilities: np.ndarray, truth: np.ndarray, weight: Any = None) -> None:
        """Count the pixels of an image.

        Parameters
        ----------
        probabilities : ndarray of shape (*S), float
        truth : ndarray of shape (*S), int
            Class indices; -1 counts nowhere.
        weight : float or ndarray of shape (*S), optional
        """
        weights = None if weight is None else np.broadcast_to(np.asarray(weight, np.float64), truth.shape).ravel()
        probabilities, truth = probabilities.ravel(), truth.ravel()
        for start in range(0, truth.size, BLOCK):
            block = slice(start, start + BLOCK)
            is_counted = truth[block] >= 0
            bins = np.searchsorted(self.thresholds, probabilities[block][is_counted], side="right")
            codes = truth[block][is_counted] * self.amounts.shape[1] + bins
            block_weights = None if weights is None else weights[block][is_counted]
            counts = np.bincount(codes, block_weights, minlength=self.amounts.size)
            self.amounts += counts.reshape(self.amounts.shape)

    def tables(self) -> np.ndarray:
        """Return the confusion counts (T, 2, 2) at each threshold: rows truth, columns prediction.

        A pixel is foreground where its probability is at least the threshold.
        """
        is_foreground = self.amounts[:, ::-1].cumsum(axis=1)[:, -2::-1]  # (2, T)
        is_background = self.amounts.cumsum(axis=1)[:, :-1]  # (2, T)
        return np.stack([is_background, is_foreground], axis=-1).swapaxes(0, 1)  # (T, 2, 2)


def count_thresholds(estimator: Any, images: LabelledImages, thresholds: np.ndarray) -> np.ndarray:
    """Return the confusion counts (T, 2, 2) of a fitted estimator at each threshold, one image at a time."""
    classes = check_masks(estimator, images, estimator.classes_)
    codec = LabelCodec(classes, find_setting(estimator, "ignore_label"))
    masks = images.masks()
    weights = [None] * len(masks) if images.sample_weight is None else list(images.sample_weight)
    histogram = Histogram(thresholds)
    for index, weight in enumerate(weights):
        image = select_images(images.X, np.array([index]))
        histogram.add(estimator.predict_proba(image)[0][1], codec.encode(masks[index]), weight)
    return histogram.tables()


def score_tables(tables: np.ndarray, classes: np.ndarray, score: Callable[..., Any]) -> np.ndarray:
    """Return the score (T,) of each table of counts (T, 2, 2): of one pixel per cell, which weighs its count.

    Examples
    --------
    >>> score_tables(np.array([[[2, 0], [1, 1]]]), np.array([0, 255]), find_score("accuracy"))
    array([0.75])
    """
    truth, predicted = np.repeat(classes, 2), np.tile(classes, 2)
    return np.array([score(truth, predicted, sample_weight=table.ravel()) for table in tables], np.float64)


def find_score(scoring: Any) -> Callable[..., Any] | None:
    """Return the function of truth, prediction and weights that `scoring` stands for.

    Parameters
    ----------
    scoring : see `TunedThresholdClassifierCV`

    Returns
    -------
    callable, or None
        None for a callable that is no scorer of `skunet.metrics`: it may not be a function of the counts.

    Raises
    ------
    ValueError
        As from `find_scorer`.
    """
    scorer = find_scorer("iou" if scoring is None else scoring)
    # What make_scorer was given can be read nowhere else.
    metric: Any = getattr(scorer, "_score_func", None)
    if metric not in [own._score_func for own in SCORERS.values()]:
        return None
    return lambda *masks, **weights: scorer._sign * metric(*masks, **scorer._kwargs, **weights)


def check_masks(estimator: Any, images: LabelledImages, classes: Any) -> np.ndarray:
    """Return the two labels of masks for an estimator; raise ValueError if there are others, or more.

    Parameters
    ----------
    estimator : estimator
        Its `ignore_label`, or that of an estimator inside it, is no class.
    images : LabelledImages
    classes : sequence of labels or None
        Labels to expect; None takes those of the masks.
    """
    masks = images.masks()
    counts = [count_labels(masks[index], masks.describe(index)) for index in range(len(masks))]
    codec, _ = learn_codec(counts, classes=classes, ignore_label=find_setting(estimator, "ignore_label"))
    return check_binary(codec.classes)


def check_binary(classes: np.ndarray) -> np.ndarray:
    """Return the labels; raise ValueError if they are not two."""
    if len(classes) != 2:
        raise ValueError(
            f"A threshold needs exactly 2 classes; got {len(classes)}: {classes.tolist()}. "
            "Make masks of one class against the rest, e.g. (y == label), or use the estimator without a threshold."
        )
    return classes


def mean_over_folds(scores: np.ndarray) -> np.ndarray:
    """Return the mean score at each threshold (T,) of the folds (F, T) that have one; raise ValueError if none has."""
    is_counted = ~np.isnan(scores).any(axis=1)
    if not is_counted.any():
        raise ValueError("The score must be a number in at least one fold; all are NaN: no held-out pixel counts.")
    means: np.ndarray = scores[is_counted].mean(axis=0)
    return means
