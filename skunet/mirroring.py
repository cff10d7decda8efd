"""Images continued beyond their ends, as in mirrors that stand on the first and the last pixel."""

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["mirror_pad", "reflect"]

Positions = TypeVar("Positions", bound=Any)  # of a numpy array or a Tensor


def reflect(positions: Positions, n: int) -> Positions:
    """Return integer positions folded back into 0..n-1: beyond an end they run back over the image.

    Examples
    --------
    >>> reflect(torch.arange(5), 3).tolist()
    [0, 1, 2, 1, 0]
    """
    last = n - 1
    folded: Positions = last - abs(last - positions % max(2 * last, 1))
    return folded


def mirror_pad(images: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Pad the last axes with the values of ``numpy.pad(mode="reflect")``: the edge pixel is not repeated.

    Parameters
    ----------
    images : Tensor of shape (..., *S), any dtype
    before, after : sequence of int >= 0
        Pixels to add in front of and behind each axis of S. More than it has mirror it again and again.

    Returns
    -------
    Tensor of shape (..., *(before + S + after)), same dtype; `images` itself where nothing is added

    Raises
    ------
    ValueError
        If the pads do not fit the axes, or there are no pixels.

    Examples
    --------
    >>> mirror_pad(torch.tensor([[0, 1, 2]]), before=[1], after=[4])
    tensor([[1, 0, 1, 2, 1, 0, 1, 2]])
    """
    start = images.ndim - len(before)
    if start < 0 or len(after) != len(before) or any(pad < 0 for pad in (*before, *after)):
        raise ValueError(f"before and after must hold one pad >= 0 per axis; got {(before, after)}. Match the axes.")
    for axis, (front, back) in enumerate(zip(before, after, strict=True), start=start):
        if front or back:
            side = images.shape[axis]
            if side == 0:
                shape = tuple(images.shape)
                raise ValueError(f"images must have pixels on each axis; got {shape}. Leave empty images out.")
            positions = reflect(torch.arange(-front, side + back, device=images.device), side)
            # Unlike index_select, indexing knows every dtype.
            images = images[(slice(None),) * axis + (positions,)]
    return images
