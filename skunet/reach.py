"""Which pixels a U-Net reads, loses and needs, level by level."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["centre_crop", "cut", "lost_margin", "needed_windows", "read_interval", "shifted"]


def lost_margin(depth: int, lost_by_block: int, lost_by_upsampling: int) -> int:
    """Count the pixels that a network of `depth` levels loses at each side, if each layer loses so many."""
    margin = lost_by_block
    for _ in range(depth):
        margin = lost_by_block + 2 * margin + lost_by_upsampling + lost_by_block
    return margin


def read_interval(interval: tuple[int, int], depth: int, **layers: int) -> tuple[int, int]:
    """Find the first and last input pixel that an interval of output pixels depends on, along one axis.

    Output pixel p of a level lies on input pixel p. `layers` holds `convolutions`, `reach` and `shift`: pooling
    takes pairs counted from input pixel `shift`, as many as the encoder's block cuts off.
    """
    convolutions, reach, shift = layers["convolutions"], layers["reach"], layers["shift"]
    first, last = interval[0] - convolutions, interval[1] + convolutions
    if depth == 0:
        return first, last
    coarse = read_interval(((first - shift - reach) // 2, (last - shift + reach) // 2), depth - 1, **layers)
    # The skip connection reads `first` to `last`; the coarser level reads the pairs that it pooled.
    first, last = min(first, 2 * coarse[0] + shift), max(last, 2 * coarse[1] + 1 + shift)
    return first - convolutions, last + convolutions


def cut(features: Tensor, window: Sequence[slice]) -> Tensor:
    """Return a window of the last axes, as a view."""
    index: tuple[Any, ...] = (..., *window)
    return features[index]


def _grown(span: slice, by: int, end: int) -> slice:
    return slice(max(span.start - by, 0), min(span.stop + by, end))


def shifted(span: slice, by: int) -> slice:
    """Return an interval in the coordinates of something that begins at `by`."""
    return slice(span.start - by, span.stop - by)


def centre_crop(features: Tensor, sides: Sequence[int]) -> Tensor:
    """Cut the middle of size `sides` out of features (N, C, *S)."""
    for axis, side in enumerate(sides, start=2):
        if features.shape[axis] != side:
            features = features.narrow(axis, (features.shape[axis] - side) // 2, side)
    return features  # (N, C, *sides)


def needed_windows(
    window: Sequence[slice], sides: Sequence[int], *, depth: int, convolutions: int, reach: int
) -> list[tuple[list[slice], list[slice]]]:
    """Return for each level what the decoder of a padded network must read, and what is then right.

    Where what is read ends inside the image, its outermost pixels see zeros instead of their neighbours.

    Parameters
    ----------
    window : sequence of slice
        Of the logits.
    sides : sequence of int
        Pixels per axis, multiples of ``2**depth``.
    depth, convolutions : int
    reach : int
        Of the upsampling.

    Returns
    -------
    list of (reads, keeps)
        From the finest level to the coarsest, each a window in pixels of that level.

    Examples
    --------
    >>> needed_windows([slice(8, 12)], [32], depth=1, convolutions=2, reach=0)
    [([slice(6, 14, None)], [slice(8, 12, None)]), ([slice(1, 9, None)], [slice(3, 7, None)])]
    """
    needed = []
    keeps = list(window)
    for level in range(depth + 1):
        ends = [side // 2**level for side in sides]
        reads = [_grown(keep, convolutions, end) for keep, end in zip(keeps, ends, strict=True)]
        needed.append((reads, keeps))
        reached = [slice((read.start - reach) // 2, (read.stop - 1 + reach) // 2 + 1) for read in reads]
        keeps = [_grown(span, 0, end // 2) for span, end in zip(reached, ends, strict=True)]
    return needed
