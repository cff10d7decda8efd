"""scikit-learn's functions for cross-validation, on images in any container."""

from collections.abc import Callable
from inspect import signature
from typing import Any, Self, TypeVar

import numpy as np
from sklearn import model_selection
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from sklearn.utils.metadata_routing import get_routing_for_object
from sklearn.utils.parallel import Parallel, delayed

from skunet.containers import open_container
from skunet.image_array import find_labels, indexable_pair
from skunet.metrics import find_scorer, find_scorers
from skunet.splits import check_splitter

__all__ = [
    "cross_val_score",
    "cross_validate",
    "learning_curve",
    "permutation_test_score",
    "validation_curve",
]

Function = TypeVar("Function", bound=Callable[..., Any])


def _with_signature_of(model: Callable[..., Any]) -> Callable[[Function], Function]:
    """Show the parameters of scikit-learn's function, which the keywords are passed on to."""

    def show(function: Function) -> Function:
        function.__signature__ = signature(model)  # type: ignore[attr-defined]  # read by inspect
        return function

    return show


def _check(parameters: dict[str, Any], y: Any, *, find: Callable[[Any], Any] = find_scorer) -> dict[str, Any]:
    """Return parameters with scorers for their names; raise ValueError where masks cannot be scored or split."""
    check_splitter(parameters.get("cv"), y)
    return parameters | {"scoring": find(parameters.get("scoring"))}


@_with_signature_of(model_selection.cross_val_score)
def cross_val_score(estimator: Any, X: Any, y: Any = None, **parameters: Any) -> np.ndarray:
    """Score an estimator by cross-validation.

    Parameters
    ----------
    estimator : image estimator
    X, y : containers of images and masks
        As for `UNetSegmenter.fit`, but no torch Dataset.
    **parameters
        Those of `sklearn.model_selection.cross_val_score`. An integer `cv` stands for `KFold` without shuffling.
        `scoring` is "iou", "dice", "accuracy", "precision", "recall", a scorer or a callable, and None the
        estimator's own score.

    Returns
    -------
    scores : ndarray of shape (n_splits,)

    Raises
    ------
    ValueError
        If `scoring` is another name, or `cv` stratifies by one class per image; before any training.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(4, size=16, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=2, max_epochs=1, verbose=0, random_state=0)
    >>> cross_val_score(segmenter, list(X), list(y), cv=2).shape
    (2,)
    """
    parameters = _check(parameters, y)
    scores: np.ndarray = model_selection.cross_val_score(estimator, *indexable_pair(X, y, estimator), **parameters)
    return scores


@_with_signature_of(model_selection.cross_validate)
def cross_validate(estimator: Any, X: Any, y: Any = None, **parameters: Any) -> dict[str, Any]:
    """Evaluate one or several scores by cross-validation.

    Parameters
    ----------
    estimator, X, y
        As in `cross_val_score`.
    **parameters
        Those of `sklearn.model_selection.cross_validate`. `scoring` may also be a list of names, or a dict.

    Returns
    -------
    results : dict
        As from scikit-learn's function.
    """
    parameters = _check(parameters, y, find=find_scorers)
    results: dict[str, Any] = model_selection.cross_validate(estimator, *indexable_pair(X, y, estimator), **parameters)
    return results


@_with_signature_of(model_selection.validation_curve)
def validation_curve(estimator: Any, X: Any, y: Any, **parameters: Any) -> tuple[np.ndarray, np.ndarray]:
    """Score an estimator in training and validation, for several values of a parameter.

    Parameters
    ----------
    estimator, X, y
        As in `cross_val_score`.
    **parameters
        Those of `sklearn.model_selection.validation_curve`.

    Returns
    -------
    train_scores, test_scores : ndarray of shape (n_values, n_splits)
    """
    parameters = _check(parameters, y)
    train_scores, test_scores = model_selection.validation_curve(estimator, *indexable_pair(X, y), **parameters)
    return train_scores, test_scores


@_with_signature_of(model_selection.learning_curve)
def learning_curve(
    estimator: Any, X: Any, y: Any, *, exploit_incremental_learning: bool = False, **parameters: Any
) -> tuple[np.ndarray, ...]:
    """Score an estimator in training and validation, for several numbers of training images.

    Parameters
    ----------
    estimator, X, y
        As in `cross_val_score`.
    exploit_incremental_learning : bool, default=False
        Whether to go on from the last number with `partial_fit`.
    **parameters
        Those of `sklearn.model_selection.learning_curve`.

    Returns
    -------
    train_sizes, train_scores, test_scores, and fit_times, score_times where asked for
        As from scikit-learn's function.
    """
    parameters = _check(parameters, y)
    X, y = indexable_pair(X, y)
    if exploit_incremental_learning and y.dtype == object and hasattr(estimator, "partial_fit"):
        estimator = KnowsLabels(estimator, find_labels(y))
    parameters["exploit_incremental_learning"] = exploit_incremental_learning
    curve: tuple[np.ndarray, ...] = model_selection.learning_curve(estimator, X, y, **parameters)
    return curve


class KnowsLabels(BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """An estimator whose `partial_fit` is told all labels: scikit-learn cannot find them in an object array.

    Parameters
    ----------
    estimator : estimator with partial_fit
    labels : ndarray of shape (K,)
    """

    def __init__(self, estimator: Any, labels: np.ndarray) -> None:
        self.estimator = estimator
        self.labels = labels

    def fit(self, X: Any, y: Any, **fit_params: Any) -> Self:
        """Train a clone; scikit-learn asks every estimator for this method."""
        self.estimator_ = clone(self.estimator).fit(X, y, **fit_params)
        return self

    def partial_fit(self, X: Any, y: Any, **fit_params: Any) -> Self:
        """Train a clone further."""
        if not hasattr(self, "estimator_"):
            self.estimator_ = clone(self.estimator)
        self.estimator_.partial_fit(X, y, classes=self.labels, **fit_params)
        return self

    def predict(self, X: Any) -> Any:
        """Return what the estimator predicts."""
        return self.estimator_.predict(X)

    def score(self, X: Any, y: Any, **score_params: Any) -> Any:
        """Return the estimator's own score."""
        return self.estimator_.score(X, y, **score_params)

    def get_metadata_routing(self) -> Any:
        """Return what the estimator requests."""
        return get_routing_for_object(self.estimator)


def permutation_test_score(
    estimator: Any,
    X: Any,
    y: Any,
    *,
    groups: Any = None,
    cv: Any = None,
    n_permutations: int = 100,
    n_jobs: int | None = None,
    random_state: Any = 0,
    verbose: int = 0,
    scoring: Any = None,
    params: dict[str, Any] | None = None,
) -> tuple[float, np.ndarray, float]:
    """Ask how often a score as good would be found if images and masks had nothing to do with each other.

    Parameters
    ----------
    estimator, X, y
        As in `cross_val_score`. Masks are exchanged among images of one size (and of one group).
    groups, cv, n_permutations, n_jobs, random_state, verbose, scoring, params
        As in `sklearn.model_selection.permutation_test_score`, whose values this gives for a stack.

    Returns
    -------
    score : float
    permutation_scores : ndarray of shape (n_permutations,)
    pvalue : float
        In 0..1.

    Raises
    ------
    ValueError
        If no two images are of one size (and one group).
    """
    if n_permutations < 1:
        raise ValueError(f"n_permutations must be at least 1; got {n_permutations}.")
    arguments = _check({"groups": groups, "cv": cv, "scoring": scoring, "params": params}, y)
    arguments["cv"] = model_selection.check_cv(cv)
    X, y = indexable_pair(X, y)
    exchangeable = _exchangeable_images(y, groups)
    generator = check_random_state(random_state)
    score = _mean_score(estimator, X, y, arguments)
    scores = Parallel(n_jobs=n_jobs, verbose=verbose)(
        delayed(_mean_score)(estimator, X, y[_permute_within(exchangeable, generator)], arguments)
        for _ in range(n_permutations)
    )
    permutation_scores = np.array(scores)
    return score, permutation_scores, float((np.sum(permutation_scores >= score) + 1) / (n_permutations + 1))


def _mean_score(estimator: Any, X: Any, y: Any, arguments: dict[str, Any]) -> float:
    return float(np.mean(model_selection.cross_val_score(estimator, X, y, error_score="raise", **arguments)))


def _exchangeable_images(y: Any, groups: Any) -> np.ndarray:
    """Return a number per image, equal for those of one size and one group."""
    masks = open_container(y, "y")
    sizes = [masks.shape[1:] if masks.shape is not None else masks[index].shape for index in range(len(masks))]
    size_numbers = [sorted(set(sizes)).index(size) for size in sizes]
    group_numbers = np.zeros(len(sizes), dtype=int) if groups is None else np.unique(groups, return_inverse=True)[1]
    numbers = np.unique(np.stack([group_numbers, size_numbers], axis=1), axis=0, return_inverse=True)[1].ravel()
    if len(set(numbers)) == len(numbers):
        raise ValueError(
            f"Some images must share their size (and group), to exchange masks among them; got {len(numbers)} images "
            "without any such pair. Resize or crop them to a few sizes."
        )
    return numbers


def _permute_within(numbers: np.ndarray, generator: np.random.RandomState) -> np.ndarray:
    """Return positions in an order that is random among images of one number."""
    order = np.arange(len(numbers))
    for number in np.unique(numbers):
        order[numbers == number] = generator.permutation(order[numbers == number])
    return order
