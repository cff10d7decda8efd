"""Images turned as they are read, and predictions turned back: for averages over flips and right-angle turns."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skunet.pixels import Pixels, Window

__all__ = ["TURNS", "Turn", "TurnedPixels", "choose_turns"]


@dataclass(frozen=True)
class Turn:
    """Axes put in another order, then some of them reversed: the flips and right-angle turns of an image.

    Attributes
    ----------
    axes : tuple of int
        Which axis each axis of the turned image is.
    flips : tuple of bool
        Whether it then runs backwards.
    """

    axes: tuple[int, ...]
    flips: tuple[bool, ...]

    @classmethod
    def none(cls, ndim: int) -> "Turn":
        """Return the turn that leaves an image as it is."""
        return cls(tuple(range(ndim)), (False,) * ndim)

    def size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Return the pixels per axis of a turned image."""
        return tuple(size[axis] for axis in self.axes)

    def window(self, window: Window, size: Sequence[int]) -> Window:
        """Return where a window of an image of `size` lies in the turned image.

        Examples
        --------
        >>> Turn((1, 0), (False, True)).window((slice(0, 2), slice(3, 4)), (8, 5))
        (slice(3, 4, None), slice(6, 8, None))
        """
        return tuple(
            _backwards(window[axis], size[axis]) if flip else window[axis]
            for axis, flip in zip(self.axes, self.flips, strict=True)
        )

    def window_before(self, window: Window, size: Sequence[int]) -> Window:
        """Return where a window of the turned image lies in the image, of `size`, that was turned."""
        upright = [
            _backwards(span, size[axis]) if flip else span
            for span, axis, flip in zip(window, self.axes, self.flips, strict=True)
        ]
        return tuple(upright[self.axes.index(axis)] for axis in range(len(size)))

    def apply(self, tensor: Tensor) -> Tensor:
        """Turn the last axes of a tensor (..., *S)."""
        n_before = tensor.ndim - len(self.axes)
        turned = tensor.permute(*range(n_before), *(n_before + axis for axis in self.axes))
        backwards = [n_before + axis for axis, flip in enumerate(self.flips) if flip]
        if tensor.dtype == torch.uint16:  # which torch turns round on no CPU
            return turned.view(torch.int16).flip(backwards).view(torch.uint16)
        return turned.flip(backwards)

    def undo(self, tensor: Tensor) -> Tensor:
        """Turn the last axes of a tensor back."""
        n_before = tensor.ndim - len(self.axes)
        upright = tensor.flip([n_before + axis for axis, flip in enumerate(self.flips) if flip])
        return upright.permute(*range(n_before), *(n_before + self.axes.index(axis) for axis in range(len(self.axes))))


def _backwards(span: slice, n: int) -> slice:
    return slice(n - span.stop, n - span.start)


@dataclass(frozen=True)
class TurnedPixels:
    """Images that are turned as they are read."""

    pixels: Pixels
    turn: Turn

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per axis, turned."""
        return self.turn.size(self.pixels.size)

    def read(self, window: Window) -> Tensor:
        """Return turned pixels (N, C, *window)."""
        return self.turn.apply(self.pixels.read(self.turn.window_before(window, self.pixels.size)))


# Of the last two axes, by the names that `tta` knows: order of axes, and which of them run backwards.
TURNS = {
    "flip_vertical": ((0, 1), (True, False)),
    "flip_horizontal": ((0, 1), (False, True)),
    "turn_180": ((0, 1), (True, True)),
    "transpose": ((1, 0), (False, False)),
    "turn_90": ((1, 0), (True, False)),
    "turn_270": ((1, 0), (False, True)),
    "antitranspose": ((1, 0), (True, True)),
}
UNTURNED = ((0, 1), (False, False))
FLIP_DEPTH = "flip_depth"  # of volumes


def choose_turns(tta: bool | Sequence[str], *, spatial_ndim: int, flip_axes: Sequence[int] | None = None) -> list[Turn]:
    """Return the turns that test-time augmentation averages over, the image as it is among them; none for False.

    Parameters
    ----------
    tta : bool or sequence of str
        True takes all turns of the last two axes, with volumes each of them also flipped in depth, save those that
        mirror another axis than `flip_axes`.
    spatial_ndim : {2, 3}
    flip_axes : sequence of int, optional
        Of -spatial_ndim..-1; all by default.

    Raises
    ------
    ValueError
        If a name is not known.

    Examples
    --------
    >>> len(choose_turns(True, spatial_ndim=2)), len(choose_turns(True, spatial_ndim=3))
    (8, 16)
    >>> choose_turns(["turn_90"], spatial_ndim=2)
    [Turn(axes=(0, 1), flips=(False, False)), Turn(axes=(1, 0), flips=(True, False))]
    """
    if isinstance(tta, bool | np.bool_):
        flips = (False, True)[: spatial_ndim - 1]
        turns = [_make_turn(plane, flip, spatial_ndim) for flip in flips for plane in (UNTURNED, *TURNS.values())]
        free = range(spatial_ndim) if flip_axes is None else [axis % spatial_ndim for axis in flip_axes]
        fixed = set(range(spatial_ndim)) - set(free)
        return [turn for turn in turns if tta and not any(turn.flips[at] or turn.axes[at] != at for at in fixed)]
    known = [*TURNS, FLIP_DEPTH] if spatial_ndim == 3 else list(TURNS)
    if isinstance(tta, str) or not set(tta) <= set(known):
        raise ValueError(f"tta must be True, False or a list of {known}; got {tta!r}. Choose some of these.")
    chosen = [(TURNS.get(name, UNTURNED), name == FLIP_DEPTH) for name in dict.fromkeys(tta)]
    return [_make_turn(plane, flip, spatial_ndim) for plane, flip in [(UNTURNED, False), *chosen]]


def _make_turn(plane: tuple[tuple[int, int], tuple[bool, bool]], is_flipped_in_depth: bool, spatial_ndim: int) -> Turn:
    axes, flips = plane
    if spatial_ndim == 2:
        return Turn(axes, flips)
    return Turn((0, *(axis + 1 for axis in axes)), (is_flipped_in_depth, *flips))
