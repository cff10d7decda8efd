"""Pixel weights that make a network learn the gaps between objects that touch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import ndimage

from skunet.containers import open_container
from skunet.hyperparameters import check_spacing
from skunet.image_by_image import map_images

__all__ = ["border_weight_map"]

# Widths of the Gaussian beyond which the weight of a border is nothing: exp(-0.5 * 5**2) is 4e-6.
REACH = 5.0


def border_weight_map(
    masks: Any,
    *,
    w0: float = 10.0,
    sigma: float = 5.0,
    spacing: float | Sequence[float] | None = None,
    is_instances: bool = False,
    ignore_label: Any = None,
) -> Any:
    """Return weights that grow in the gaps between objects, for `fit(..., sample_weight=...)`.

    The weight of a background pixel is 1 + w0 exp(-(d1 + d2)^2 / (2 sigma^2)), with its distances d1 and d2 to the
    nearest object and the second nearest; that of others is 1 [1]_. The paper's factor that balances classes is
    `class_weight="balanced"`.

    Parameters
    ----------
    masks : ndarray (N, *S), list or object array of (*S)
        The least label of all but `ignore_label` is background. Objects are connected components of the others, or
        labels.
    w0 : float, default=10.0
        Weight of the narrowest gap, at least 0.
    sigma : float, default=5.0
        Width of the gaps that count, above 0, in the units of `spacing`.
    spacing : float or sequence of float, optional
        Distance between pixels along each axis; 1 by default.
    is_instances : bool, default=False
        Whether each label is one object, also where two touch.
    ignore_label : label, optional
        Pixels of this label are neither object nor background; they weigh 1.

    Returns
    -------
    weights : ndarray (N, *S), list or object array of (*S), float32
        In the container of `masks`.

    Raises
    ------
    ValueError
        If a parameter is out of its range.

    References
    ----------
    .. [1] O. Ronneberger, P. Fischer, T. Brox. "U-Net: Convolutional Networks for Biomedical Image Segmentation",
       MICCAI 2015.

    Examples
    --------
    >>> border_weight_map(np.array([[[1, 0, 1, 0, 0, 0]]]), w0=10, sigma=2).round(1)
    array([[[1. , 7.1, 1. , 2.4, 1.1, 1. ]]], dtype=float32)
    """
    if not (np.isfinite(w0) and w0 >= 0 and np.isfinite(sigma) and sigma > 0):
        raise ValueError(f"w0 must be at least 0 and sigma above 0; got {w0!r} and {sigma!r}.")
    check_spacing(spacing)

    container = open_container(masks, "y")
    of_masks = (np.unique(container[index]) for index in range(len(container)))
    present = np.unique(np.concatenate([labels[labels != ignore_label] for labels in of_masks]))

    def weigh(one: Any) -> np.ndarray:
        mask = open_container(one, "y")[0]
        check_spacing(spacing, mask.ndim)
        is_known = np.full(mask.shape, True) if ignore_label is None else mask != ignore_label
        numbers = np.zeros(mask.shape, dtype=np.int64)
        numbers[is_known] = np.searchsorted(present, mask[is_known])
        if not is_instances:
            numbers = ndimage.label(numbers > 0)[0]
        steps = np.broadcast_to(1.0 if spacing is None else spacing, mask.ndim).astype(float)
        nearest, second = _two_distances(numbers, REACH * sigma, steps)
        gap = w0 * np.exp(-((nearest + second) ** 2) / (2 * sigma**2))
        return np.where(is_known & (numbers == 0), 1 + gap, 1).astype(np.float32)

    return map_images(masks, weigh)


def _two_distances(numbers: np.ndarray, reach: float, spacing: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distances to the nearest object and the second nearest, infinite beyond `reach`."""
    nearest = np.full(numbers.shape, np.inf, dtype=np.float32)
    second = nearest.copy()
    margins = np.ceil(reach / spacing).astype(int)
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        if box is None:
            continue
        around = tuple(
            slice(max(span.start - margin, 0), span.stop + margin) for span, margin in zip(box, margins, strict=True)
        )
        distance = ndimage.distance_transform_edt(numbers[around] != number, sampling=spacing).astype(np.float32)
        second[around] = np.minimum(second[around], np.maximum(nearest[around], distance))
        nearest[around] = np.minimum(nearest[around], distance)
    return nearest, second
