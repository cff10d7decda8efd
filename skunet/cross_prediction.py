"""Predictions for each image by an estimator that was not fitted on it."""

import warnings
from typing import Any, Self

import numpy as np
from sklearn import model_selection
from sklearn.base import BaseEstimator, clone
from sklearn.utils.metadata_routing import get_routing_for_object

from skunet.containers import object_array
from skunet.hyperparameters import find_setting
from skunet.image_array import find_labels, give_back, indexable_pair
from skunet.splits import check_splitter

__all__ = ["cross_val_predict"]

# What a class gets that was not in the images of a fold, by method that tells classes apart.
NEVER_SEEN = {"predict_proba": 0.0, "predict_log_proba": float(np.finfo(np.float32).min)}


def cross_val_predict(
    estimator: Any,
    X: Any,
    y: Any = None,
    *,
    groups: Any = None,
    cv: Any = None,
    n_jobs: int | None = None,
    verbose: int = 0,
    params: dict[str, Any] | None = None,
    pre_dispatch: Any = "2*n_jobs",
    method: str = "predict",
) -> Any:
    """Predict each image by an estimator that was fitted without it.

    Parameters
    ----------
    estimator : image estimator
    X, y : containers of images and masks
        As for `UNetSegmenter.fit`, but no torch Dataset.
    groups, cv, n_jobs, verbose, params, pre_dispatch
        As in `sklearn.model_selection.cross_val_predict`.
    method : str, default="predict"
        "predict", "predict_proba", or another method that gives one array per image.

    Returns
    -------
    predictions : ndarray (N, *S), list or object array of (*S)
        In the container of X. With "predict_proba" (N, K, *S) or (K, *S), in the order of all labels that y holds
        or the estimator expects, without its `ignore_label`; 0 for a label that the images of a fold lacked.

    Warns
    -----
    RuntimeWarning
        If the training images of a fold lacked a label.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(4, size=16, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=2, max_epochs=1, verbose=0, random_state=0)
    >>> cross_val_predict(segmenter, X, y, cv=2, method="predict_proba").shape
    (4, 2, 16, 16)
    """
    check_splitter(cv, y)
    images, masks = indexable_pair(X, y)
    predictions = model_selection.cross_val_predict(
        OneByOne(estimator, method),
        images,
        masks,
        groups=groups,
        cv=cv,
        n_jobs=n_jobs,
        verbose=verbose,
        params=params,
        pre_dispatch=pre_dispatch,
    )
    if method in NEVER_SEEN:
        classes = _all_classes(predictions, masks, estimator)
        predictions = _align_classes(predictions, classes, fill=NEVER_SEEN[method])
    return give_back(X, predictions)


class OneByOne(BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """An estimator whose predictions are an object array of one item per image, which folds can be joined from.

    Parameters
    ----------
    estimator : image estimator
    method : str
        What `predict` calls. Where it tells classes apart, items are pairs of the fold's classes and their maps.
    """

    def __init__(self, estimator: Any, method: str) -> None:
        self.estimator = estimator
        self.method = method

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
        """Fit a clone."""
        masks = () if y is None else (y,)
        self.estimator_ = clone(self.estimator).fit(X, *masks, **fit_params)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return an object array (N,)."""
        results = [np.asarray(result) for result in getattr(self.estimator_, self.method)(X)]
        if self.method in NEVER_SEEN:
            return object_array([(self.estimator_.classes_, result) for result in results])
        return object_array(results)

    def get_metadata_routing(self) -> Any:
        """Return what the estimator requests."""
        return get_routing_for_object(self.estimator)


def _all_classes(predictions: np.ndarray, masks: Any, estimator: Any) -> np.ndarray:
    """Return the sorted labels that any fold learned or any mask holds, without those to ignore."""
    found = [classes for classes, _ in predictions]
    if masks is not None:
        labels = find_labels(masks)
        ignored = find_setting(estimator, "ignore_label")
        found.append(labels if ignored is None else labels[labels != ignored])
    return np.unique(np.concatenate(found))


def _align_classes(predictions: np.ndarray, classes: np.ndarray, *, fill: float) -> np.ndarray:
    """Return maps (K, *S) of all classes from pairs of the classes that a fold knew and their maps."""
    aligned = []
    for known, maps in predictions:
        result = np.full((len(classes), *maps.shape[1:]), fill, dtype=maps.dtype)
        result[np.searchsorted(classes, known)] = maps
        aligned.append(result)
    fewest = min(len(known) for known, _ in predictions)
    if fewest < len(classes):
        warnings.warn(
            f"A fold was fitted on {fewest} of {len(classes)} classes; the others get {fill:g} in its predictions. "
            "Spread rare classes over the folds, or list all in the estimator's classes.",
            RuntimeWarning,
            stacklevel=3,
        )
    return object_array(aligned)
