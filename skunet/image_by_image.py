"""What estimators around estimators do with images: hand on parts of them with all that belongs to them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import sklearn
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, ShuffleSplit, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length, check_random_state
from sklearn.utils.validation import _num_samples, check_is_fitted
from torch.utils.data import Dataset, Subset

from skunet.containers import Container, open_container, open_pairs, open_stack
from skunet.hyperparameters import find_setting
from skunet.image_array import pick_images
from skunet.images import Images, Results
from skunet.labels import count_labels
from skunet.metrics import iou_score
from skunet.training_set import pick

__all__ = [
    "LabelledImages",
    "fit_arguments",
    "is_fitted",
    "make_splitter",
    "map_images",
    "score_masks",
    "select_images",
]

N_FOLDS = 5


@dataclass(frozen=True)
class LabelledImages:
    """Images, masks and what belongs to each of them, as a user gives them to `fit`.

    Attributes
    ----------
    X, y : see `UNetSegmenter.fit`
    groups, sample_weight : array-like of length N, or None
    """

    X: Any
    y: Any = None
    groups: Any = None
    sample_weight: Any = None

    def __post_init__(self) -> None:
        for name in ("X", "y"):
            object.__setattr__(self, name, open_stack(getattr(self, name), name))

    def masks(self) -> Container:
        """Return the masks, to be read one at a time; raise ValueError if there is not one per image."""
        masks = open_pairs(self.X)[1] if isinstance(self.X, Dataset) else open_container(self.y, "y")
        n_images = _num_samples(self.X)  # zarr arrays have no length
        if n_images != len(masks):
            raise ValueError(f"X and y must have the same number of images; got {n_images} images, {len(masks)} masks.")
        check_consistent_length(masks, self.groups, self.sample_weight)
        return masks

    def select(self, indices: np.ndarray) -> "LabelledImages":
        """Return the images at `indices`, in containers of the same kinds."""
        masks = None if self.y is None else pick_images(self.y, indices)
        groups = None if self.groups is None else np.asarray(self.groups)[indices]
        weights = self.sample_weight
        if weights is not None and not isinstance(weights, np.ndarray):
            weights = list(weights)
        return LabelledImages(select_images(self.X, indices), masks, groups, pick(weights, indices))

    def with_weight(self) -> "LabelledImages":
        """Return the images that have any weight, or all where none has."""
        if self.sample_weight is None:
            return self
        self.masks()
        has_weight = np.array([np.any(weight) for weight in self.sample_weight])
        return self if has_weight.all() or not has_weight.any() else self.select(np.flatnonzero(has_weight))

    def fit(self, estimator: Any) -> Any:
        """Return a fitted clone, which was given groups and weights if its `fit` takes them."""
        given = {"groups": self.groups, "sample_weight": self.sample_weight}
        names = fit_arguments(estimator, {name: value for name, value in given.items() if value is not None})
        return clone(estimator).fit(self.X, self.y, **names)


def fit_arguments(estimator: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return those of the values that `fit` takes, under the names by which it takes them.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> fit_arguments(Pipeline([("scale", None), ("net", UNetSegmenter())]), {"groups": ["a", "b"]})
    {'net__groups': ['a', 'b']}
    """
    if isinstance(estimator, Pipeline) and not sklearn.get_config()["enable_metadata_routing"]:
        name, last = estimator.steps[-1]
        return {f"{name}__{key}": value for key, value in fit_arguments(last, values).items()}
    parameters = signature(estimator.fit).parameters
    # Searches hand on whatever they get; what networks get so goes to their forward pass.
    takes_all = hasattr(estimator, "estimator") and any(
        parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values()
    )
    return {key: value for key, value in values.items() if takes_all or key in parameters}


def make_splitter(cv: Any, *, has_groups: bool, random_state: Any) -> Any:
    """Return the splitter that `cv` stands for; see `TunedThresholdClassifierCV`.

    Parameters
    ----------
    cv : int, float, splitter, iterable of (train, test), or None
    has_groups : bool
        Whether numbers stand for splits that keep groups together.
    random_state : int, RandomState or None
        Of the split that a float stands for.
    """
    generator = check_random_state(random_state)
    if isinstance(cv, float):
        return (GroupShuffleSplit if has_groups else ShuffleSplit)(1, test_size=cv, random_state=generator)
    cv = N_FOLDS if cv is None else cv
    return GroupKFold(cv) if has_groups and isinstance(cv, Integral) else check_cv(cv)


def select_images(X: Any, indices: np.ndarray) -> Any:
    """Return the images at `indices` in a container of the same kind, of a torch Dataset a Subset; reads none."""
    return Subset(X, indices.tolist()) if isinstance(X, Dataset) else pick_images(X, indices)


def map_images(X: Any, function: Callable[[Any], np.ndarray], *, n_leading: int | None = None) -> Any:
    """Apply a function to one image at a time.

    Parameters
    ----------
    X : see `UNetSegmenter.fit`
    function : callable
        Gets a container like X of one image, and returns its map: an ndarray (*S), or (n_leading, *S).
    n_leading : int, optional
        Length of an axis before the spatial ones, e.g. classes; None for no such axis.

    Returns
    -------
    maps : ndarray (N, *S) or (N, n_leading, *S), list or object array
        In the container of X.

    Examples
    --------
    >>> map_images([np.ones((2, 2)), np.ones((1, 3))], lambda image: image[0] + 1)
    [array([[2., 2.],
           [2., 2.]]), array([[2., 2., 2.]])]
    """
    X = open_stack(X, "X")
    container = open_container(X, "X")
    maps = (function(select_images(X, np.array([index]))) for index in range(len(container)))
    first = next(maps)
    spatial_ndim = first.ndim - (n_leading is not None)
    images = Images(container, spatial_ndim, has_channel_axis=container.item_ndim() > spatial_ndim)
    results = Results(images, None, n_leading)  # masks of a list may have a dtype each
    for index, pixels in enumerate(chain([first], maps)):
        size = pixels.shape[-spatial_ndim:]
        results.begin(index, size)
        results.write(index, tuple(slice(0, n) for n in size), pixels)
    return results.give_back()


def is_fitted(estimator: Any) -> bool:
    """Return whether an estimator is fitted."""
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def score_masks(estimator: Any, X: Any, y: Any, sample_weight: Any) -> float:
    """Return the mean IoU of an estimator's predictions, from one confusion matrix over all pixels.

    Parameters
    ----------
    estimator : fitted estimator
        Pixels of its `ignore_label`, or of that of an estimator inside it, are not counted.
    X, y, sample_weight : see `UNetSegmenter.score`
    """
    masks = LabelledImages(X, y, sample_weight=sample_weight).masks()
    truth = [masks[index] for index in range(len(masks))]
    ignore_label = find_setting(estimator, "ignore_label")
    if hasattr(estimator, "classes_"):
        _warn_of_unknown_labels(truth, sample_weight, estimator.classes_.tolist(), ignore_label=ignore_label)
    return float(iou_score(truth, list(estimator.predict(X)), ignore_label=ignore_label, sample_weight=sample_weight))


def _warn_of_unknown_labels(
    masks: list[np.ndarray], sample_weight: Any, known: list[Any], *, ignore_label: Any
) -> None:
    """Warn of labels that no prediction can hold and that count."""
    found: set[Any] = set()
    weights = [1] * len(masks) if sample_weight is None else list(sample_weight)
    for index, (mask, weight) in enumerate(zip(masks, weights, strict=True)):
        labels = mask[np.broadcast_to(np.asarray(weight) > 0, mask.shape)] if np.ndim(weight) else mask
        if np.any(weight) and labels.size:
            found.update(count_labels(labels, f"mask {index}").values.tolist())
    unknown = sorted(found.difference(known, [ignore_label]))
    if unknown:
        warnings.warn(
            f"y holds labels {unknown} that the segmenter was not fitted on, {known}: their pixels count as "
            "wrong. Give masks the labels of fit; where training images lacked a class, list all in the parameter "
            "classes.",
            UserWarning,
            stacklevel=4,
        )
