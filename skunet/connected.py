"""Connected components of masks, and what fills the place of those that go."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from scipy import ndimage

__all__ = ["check_labels", "check_size", "components", "filled_from_around"]


def components(is_part: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return components by number, from 1, and the pixels of each number, 0 included."""
    if connectivity not in range(1, is_part.ndim + 1):
        raise ValueError(f"connectivity must be a whole number from 1 to {is_part.ndim}; got {connectivity!r}.")
    numbers, _ = ndimage.label(is_part, ndimage.generate_binary_structure(is_part.ndim, connectivity))
    return numbers, np.bincount(numbers.ravel())


def check_size(name: str, value: Any) -> None:
    """Raise ValueError unless this is a number of pixels."""
    if not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")


def check_labels(labels: Any) -> None:
    """Raise ValueError unless these are labels, or None."""
    if labels is not None and (isinstance(labels, str) or not isinstance(labels, Sequence | np.ndarray)):
        raise ValueError(f"labels must be None or a list of labels; got {labels!r}.")


def filled_from_around(mask: np.ndarray, is_gone: np.ndarray) -> np.ndarray:
    """Return a mask where pixels that are gone have the label of the nearest that is not; all gone is none gone."""
    if not is_gone.any() or is_gone.all():
        return mask
    nearest = ndimage.distance_transform_edt(is_gone, return_distances=False, return_indices=True)
    filled: np.ndarray = mask[tuple(nearest)]
    return filled
