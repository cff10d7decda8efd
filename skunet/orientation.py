"""Whether scenes have a top and a bottom, a left and a right: along which axes they may be mirrored in training."""

from collections.abc import Iterable

import numpy as np

__all__ = ["choose_samples", "find_flip_axes", "sample_mask"]

# Per side, by the spatial rank: the pixels looked at of a mask, and the cells that they are counted in.
SIDE = {2: 32, 3: 16}
CELLS = 8
# Fewer images may be alike by chance. More than MOST tell nothing new.
LEAST, MOST = 8, 1000
# An axis has a direction where that explains a quarter of what makes masks differ from symmetric ones, and a fifth of
# the pixels had another class in the mirror. Found: road scenes .45 and .87 from top to bottom, .02 and .12 from left
# to right; sections of tissue .09 and .07; photos of cars .05 and .05; neighbouring slices of one volume .69 and .14.
LEAST_EXPLAINED, LEAST_MOVED = 0.25, 0.2


def sample_mask(mask: np.ndarray) -> np.ndarray:
    """Return pixels of a mask on a regular grid that has the symmetries of the mask.

    Examples
    --------
    >>> sample_mask(np.arange(100)[:, None])[[0, 1, -2, -1], 0]
    array([ 1,  4, 95, 98])
    """
    side = SIDE[mask.ndim]
    axes = []
    for n in mask.shape:
        first = ((np.arange(side // 2) + 0.5) * n / side).astype(np.int64)
        axes.append(np.concatenate([first, n - 1 - first[::-1]]))
    return np.asarray(mask[np.ix_(*axes)])


def find_flip_axes(samples: Iterable[np.ndarray], *, spatial_ndim: int, n_classes: int) -> tuple[int, ...]:
    """Return the axes along which the masks have no direction.

    The direction of an axis is what the layouts of the masks (the share of each class in each cell of a coarse grid)
    have in common, and their mirror images have not.

    Parameters
    ----------
    samples : iterable of ndarray
        By `sample_mask`, as class indices; less than 0 is no class.
    spatial_ndim : {2, 3}
    n_classes : int

    Returns
    -------
    tuple of int
        Of -spatial_ndim..-1; all where there are less than 8 masks.

    Examples
    --------
    >>> rows = np.repeat([0, 1], 16)[:, None]  # sky above, earth below
    >>> find_flip_axes([rows.repeat(32, axis=1)] * 8, spatial_ndim=2, n_classes=2)
    (-1,)
    """
    axes = tuple(range(-spatial_ndim, 0))
    layouts = [_layout(sample, n_classes) for sample in samples]
    if len(layouts) < LEAST:
        return axes
    return tuple(axis for axis in axes if not _has_direction(layouts, axis - 1))


def choose_samples(n_masks: int) -> range:
    """Return the positions of the masks to sample: all, or as many as are enough, evenly spread."""
    return range(0, n_masks, max(1, -(-n_masks // MOST)))


def _layout(sample: np.ndarray, n_classes: int) -> np.ndarray:
    """Return how many pixels each class has in each cell, (CELLS, ..., CELLS, K)."""
    cells = np.zeros((1,) * sample.ndim, dtype=np.int64)
    for axis, side in enumerate(sample.shape):
        at = np.arange(side) * CELLS // side
        cells = cells * CELLS + at.reshape([-1 if other == axis else 1 for other in range(sample.ndim)])
    has_class = sample >= 0
    places = (cells * n_classes + sample)[has_class]
    counts = np.bincount(places, minlength=CELLS**sample.ndim * n_classes)
    return counts.reshape(*(CELLS,) * sample.ndim, n_classes).astype(np.float32)


def _has_direction(layouts: list[np.ndarray], axis: int) -> bool:
    n_layouts, mean, squares, odd_squares = len(layouts), np.zeros_like(layouts[0]), 0.0, 0.0
    for layout in layouts:
        layout = _both_known(layout, axis)
        mean += layout / n_layouts
        squares += float((layout**2).sum())
        odd_squares += float(((layout - np.flip(layout, axis)) ** 2).sum()) / 4
    odd = (mean - np.flip(mean, axis)) / 2
    # Without what each layout has in common with itself alone.
    common = (n_layouts**2 * float((odd**2).sum()) - odd_squares) / (n_layouts * (n_layouts - 1))
    differences = squares / n_layouts - float(((mean - odd) ** 2).sum())
    moved = float(np.abs(odd).sum() / max(mean.sum(), 1e-30))
    return common >= LEAST_EXPLAINED * differences and moved >= LEAST_MOVED


def _both_known(layout: np.ndarray, axis: int) -> np.ndarray:
    """Return a layout as if each cell had as many pixels with a class as its mirror image, where that has fewer."""
    n_known = layout.sum(axis=-1, keepdims=True)
    weighted: np.ndarray = layout * (np.minimum(n_known, np.flip(n_known, axis)) / np.maximum(n_known, 1))
    return weighted
