"""Objects told apart by a watershed, and numbered."""

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import ndimage
from sklearn.base import BaseEstimator

from skunet.connected import check_size, components

__all__ = ["WatershedInstances", "index_of"]

# Pixels by which the way from one top of an object to another dips, at least, where they are two objects: 104 bars and
# 78 ellipses of all directions stay whole with 0.8 to 0.99 (with 0.5, 45 and 67), discs 1.4 radii apart are two.
DIP = 0.9


def index_of(label: Any, classes: np.ndarray, name: str) -> int:
    """Return the position of a label; the last for None."""
    if label is None:
        return len(classes) - 1
    found = np.flatnonzero(classes == label)
    if len(found) != 1:
        raise ValueError(f"{name} must be one of the labels {classes.tolist()}; got {label!r}.")
    return int(found[0])


class WatershedInstances(BaseEstimator):  # type: ignore[misc]
    """Tell touching objects apart by a watershed, and number them from 1; other pixels are 0.

    With a class of boundaries, objects grow from what lies inside them over the boundaries' probability; without one,
    from the points farthest from their rims (Beucher and Lantuejoul, 1979; Vincent and Soille, 1991). The values are
    no labels of the classes, and `score` does not take them.

    Parameters
    ----------
    label : label or None, default=None
        Of the objects; None is the last of the classes.
    boundary : label or None, default=None
        Of the boundaries between objects, if there is such a class; its pixels go to the objects.
    min_distance : int, default=5
        Without boundaries: pixels between the middles of two objects, at least; their neck is narrower by 2 or more.
    min_size : int, default=1
        Pixels of the smallest object; with boundaries, of what lies inside them.

    Raises
    ------
    ImportError
        Without scikit-image: install `skunet[instances]`.
    """

    takes_probabilities = True
    gives_instances = True

    def __init__(self, label: Any = None, boundary: Any = None, min_distance: int = 5, min_size: int = 1) -> None:
        self.label = label
        self.boundary = boundary
        self.min_distance = min_distance
        self.min_size = min_size

    def __call__(self, probabilities: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Return the instances (*S), int32, of probabilities (K, *S)."""
        watershed, find_peaks, find_tops = _import_watershed()
        check_size("min_distance", self.min_distance)
        check_size("min_size", self.min_size)
        best = probabilities.argmax(0)
        is_inside = best == index_of(self.label, classes, "label")
        if self.boundary is not None:
            boundary = index_of(self.boundary, classes, "boundary")
            markers, sizes = components(is_inside, 1)
            markers = _numbered(markers, sizes >= self.min_size)
            instances = watershed(probabilities[boundary], markers, mask=is_inside | (best == boundary))
        else:
            distance = ndimage.distance_transform_edt(is_inside)
            numbers, _ = components(is_inside, 1)
            peaks = find_peaks(distance, min_distance=self.min_distance, labels=numbers, exclude_border=False)
            # The ridge of a long object has many peaks; those with no dip between them are one.
            tops, _ = components(is_inside & find_tops(distance), is_inside.ndim)
            # Corners connect tops, but no top is of two objects.
            both = np.where(tops > 0, tops.astype(np.int64) * (numbers.max() + 1) + numbers, 0)
            tops = np.searchsorted(np.unique(np.append(both, 0)), both)
            is_marked = np.zeros(tops.max() + 1, dtype=bool)
            is_marked[tops[tuple(peaks.T)]] = True
            instances = watershed(-distance, _numbered(tops, is_marked), mask=is_inside)
            instances = _numbered(instances, np.bincount(instances.ravel()) >= self.min_size)
        return np.asarray(instances, dtype=np.int32)


def _numbered(numbers: np.ndarray, is_kept: np.ndarray) -> np.ndarray:
    """Return numbers of objects from 1 on without gaps, 0 for those that are not kept."""
    is_kept[0] = False
    renumbered: np.ndarray = np.where(is_kept, np.cumsum(is_kept), 0)[numbers]
    return renumbered


def _import_watershed() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    """Return the watershed, a finder of peaks, and one of the regions around peaks that no dip tells apart."""
    try:
        from skimage.feature import peak_local_max
        from skimage.morphology import local_maxima, reconstruction
        from skimage.segmentation import watershed
    except ImportError as error:
        raise ImportError("WatershedInstances needs scikit-image: pip install 'skunet[instances]'.") from error

    filled: Callable[..., Any] = reconstruction
    maxima: Callable[..., Any] = local_maxima

    def find_tops(heights: np.ndarray) -> np.ndarray:
        return np.asarray(maxima(filled(heights - DIP, heights)))

    return watershed, peak_local_max, find_tops
