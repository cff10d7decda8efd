"""From probabilities or labels to cleaner labels, and to instances: steps that `postprocess` takes."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin

from skunet.connected import check_labels, check_size, components, filled_from_around
from skunet.containers import open_container
from skunet.image_by_image import map_images
from skunet.instances import WatershedInstances, index_of

__all__ = [
    "ArgMax",
    "FillHoles",
    "KeepLargest",
    "RemoveSmall",
    "Threshold",
    "WatershedInstances",
]


class Threshold(BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """Give a label to the pixels where its probability reaches a threshold, and to others the best of the rest.

    Parameters
    ----------
    threshold : float, default=0.5
        0 to 1.
    label : label or None, default=None
        None is the last of the classes: of two, the foreground.

    Examples
    --------
    >>> probabilities = np.array([[0.9, 0.6, 0.2], [0.1, 0.4, 0.8]])
    >>> Threshold(0.3)(probabilities, np.array([0, 255]))
    array([  0, 255, 255])
    """

    takes_probabilities = True

    def __init__(self, threshold: float = 0.5, label: Any = None) -> None:
        self.threshold = threshold
        self.label = label

    def __call__(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the labels (*S) of probabilities (K, *S)."""
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be a number from 0 to 1; got {self.threshold!r}.")
        index = index_of(self.label, classes, "label")
        rest = np.delete(np.arange(len(classes)), index)
        best = rest[np.take(probabilities, rest, axis=0).argmax(0)]
        return classes.take(np.where(probabilities[index] >= self.threshold, index, best))


class ArgMax(BaseEstimator):  # type: ignore[misc]
    """Give each pixel its most probable label, given how common the labels are where the images come from.

    Probabilities are multiplied by the ratio of the new priors to the old (Saerens, Latinne and Decaestecker, 2002).

    Parameters
    ----------
    priors : dict of label to float, sequence of K floats, or None, default=None
        How common each label is; in any unit. None, as of labels that are not named, is 1.
    old_priors : dict of label to float, sequence of K floats, or None, default=None
        How common it was in training, e.g. the segmenter's `class_counts_`.

    Examples
    --------
    >>> probabilities = np.array([[0.6, 0.2], [0.4, 0.8]])
    >>> ArgMax({0: 1, 1: 3})(probabilities, np.array([0, 1]))
    array([1, 1])
    """

    takes_probabilities = True

    def __init__(self, priors: Any = None, old_priors: Any = None) -> None:
        self.priors = priors
        self.old_priors = old_priors

    def __call__(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the labels (*S) of probabilities (K, *S)."""
        ratio = self._weights("priors", classes) / self._weights("old_priors", classes)
        weighted = probabilities * ratio.reshape((-1,) + (1,) * (probabilities.ndim - 1))
        labels: np.ndarray = classes.take(weighted.argmax(0))
        return labels

    def _weights(self, name: str, classes: np.ndarray) -> np.ndarray:
        given = getattr(self, name)
        if given is None:
            given = {}
        elif not isinstance(given, Mapping):
            if np.shape(given) != (len(classes),):
                raise ValueError(f"{name} must have one number per class, {len(classes)}; got {given!r}.")
            given = dict(zip(classes.tolist(), map(float, given), strict=True))
        unknown = set(given) - set(classes.tolist())
        if unknown or any(not np.isfinite(value) or value < 0 for value in given.values()):
            raise ValueError(f"{name} must give numbers from 0 up to labels of {classes.tolist()}; got {given!r}.")
        weights = np.array([float(given.get(label, 1.0)) for label in classes.tolist()])
        if not weights.any():
            raise ValueError(f"{name} must not all be 0; got {given!r}.")
        if name == "old_priors" and not weights.all():
            raise ValueError(f"old_priors must be above 0; got {given!r}.")
        return weights


class MaskTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A transformer of masks that learns nothing."""

    background: Any

    def clean(self, mask: np.ndarray, *, background: Any) -> np.ndarray:
        """Return a mask (*S) made from one whose `background` is this label."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any = None) -> Self:  # noqa: ARG002
        """Do nothing.

        Returns
        -------
        self
        """
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def transform(self, X: Any) -> Any:
        """Clean masks.

        Parameters
        ----------
        X : ndarray (N, *S), list or object array of (*S)
            Masks. Where `background` is None, the least label in all of them is taken for it.

        Returns
        -------
        masks : in the container of X
        """
        masks = open_container(X, "y")
        background = self.background
        if background is None:
            background = min(np.unique(masks[index])[0] for index in range(len(masks)))
        return map_images(X, lambda one: self.clean(open_container(one, "y")[0], background=background))


def _labels_of(given: Any, mask: np.ndarray, background: Any) -> list[Any]:
    """Return the labels to work on: those given, or all but the background."""
    labels = np.unique(mask).tolist()
    if given is None:
        return [label for label in labels if label != background]
    check_labels(given)
    return [label for label in labels if label in list(given)]


class RemoveSmall(MaskTransformer):
    """Remove connected components of few pixels: they take the label of what is nearest.

    Parameters
    ----------
    min_size : int, default=64
        Pixels of the smallest component that stays.
    labels : list of labels or None, default=None
        Of which components are removed; None for all but the background (the first class).
    connectivity : int, default=1
        How many axes neighbours may differ on: 1 for those that share an edge (a face), up to 2 (3) for corners too.
    background : label or None, default=None
        None is the first class in `postprocess`, else the least label of the masks given.

    Examples
    --------
    >>> RemoveSmall(2).transform(np.array([[[0, 1, 0, 0], [0, 0, 1, 1]]]))
    array([[[0, 0, 0, 0],
            [0, 0, 1, 1]]])
    """

    def __init__(self, min_size: int = 64, labels: Any = None, connectivity: int = 1, background: Any = None) -> None:
        self.min_size = min_size
        self.labels = labels
        self.connectivity = connectivity
        self.background = background

    def clean(self, mask: np.ndarray, *, background: Any) -> np.ndarray:
        """Return a mask without small components."""
        check_size("min_size", self.min_size)
        is_gone = np.zeros(mask.shape, dtype=bool)
        for label in _labels_of(self.labels, mask, background):
            numbers, sizes = components(mask == label, self.connectivity)
            is_small = sizes < self.min_size
            is_small[0] = False
            is_gone |= is_small[numbers]
        return filled_from_around(mask, is_gone)


class KeepLargest(MaskTransformer):
    """Keep the largest connected component of each label: others take the label of what is nearest.

    Parameters
    ----------
    labels : list of labels or None, default=None
        Of which one component stays; None for all but the background (the first class).
    connectivity : int, default=1
        See `RemoveSmall`.
    background : label or None, default=None
        None is the first class in `postprocess`, else the least label of the masks given.

    Examples
    --------
    >>> KeepLargest().transform(np.array([[[0, 1, 0, 0], [0, 0, 1, 1]]]))
    array([[[0, 0, 0, 0],
            [0, 0, 1, 1]]])
    """

    def __init__(self, labels: Any = None, connectivity: int = 1, background: Any = None) -> None:
        self.labels = labels
        self.connectivity = connectivity
        self.background = background

    def clean(self, mask: np.ndarray, *, background: Any) -> np.ndarray:
        """Return a mask with one component per label."""
        is_gone = np.zeros(mask.shape, dtype=bool)
        for label in _labels_of(self.labels, mask, background):
            numbers, sizes = components(mask == label, self.connectivity)
            is_gone |= (numbers > 0) & (numbers != 1 + sizes[1:].argmax())
        return filled_from_around(mask, is_gone)


class FillHoles(MaskTransformer):
    """Fill background that is enclosed, away from the image's border, with the nearest label.

    Parameters
    ----------
    max_size : int or None, default=None
        Pixels of the largest hole that is filled; None for any.
    background : label or None, default=None
        None is the first class in `postprocess`, else the least label of the masks given.

    Examples
    --------
    >>> FillHoles().transform(np.array([[[0, 7, 7, 7], [0, 7, 0, 7], [0, 7, 7, 7]]]))
    array([[[0, 7, 7, 7],
            [0, 7, 7, 7],
            [0, 7, 7, 7]]])
    """

    def __init__(self, max_size: int | None = None, background: Any = None) -> None:
        self.max_size = max_size
        self.background = background

    def clean(self, mask: np.ndarray, *, background: Any) -> np.ndarray:
        """Return a mask without holes."""
        if self.max_size is not None:
            check_size("max_size", self.max_size)
        numbers, sizes = components(mask == background, 1)
        is_hole = sizes <= (mask.size if self.max_size is None else self.max_size)
        is_hole[0] = False
        for axis in range(mask.ndim):
            for side in (0, -1):
                is_hole[np.unique(numbers.take(side, axis))] = False
        return filled_from_around(mask, is_hole[numbers])
