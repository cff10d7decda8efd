"""A large image in tiles: any callable on each, one result that equals the whole where that can be had."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Integral
from typing import Any, Protocol

import torch
from torch import Tensor

from skunet.mirroring import mirror_pad

__all__ = ["Geometry", "PlainGeometry", "Window", "assemble", "choose_tile_size", "predict_tiles"]

Window = tuple[slice, ...]  # over the spatial axes, the last of a tensor
Forward = Callable[[Tensor], Tensor]

# Kept pixels per side of an automatic tile: its largest activation stays in reach of the cache and below the
# size from which the allocator hands memory back after each use.
AUTO_TILE = {2: 512, 3: 96}
# Images up to this many pixels are predicted whole.
AUTO_WHOLE = {2: 1 << 20, 3: 1 << 21}


class Geometry(Protocol):
    """What tiling must know of a network; `UNet` has it."""

    @property
    def size_multiple(self) -> int:
        """Input sides are multiples of this, or differ from one by a constant."""

    @property
    def margin(self) -> int:
        """Pixels that the output is smaller than the input, on each side."""

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Pixels before and after an output pixel that can change it."""

    @property
    def is_exactly_tileable(self) -> bool:
        """Whether pixels beyond the receptive field have no influence."""

    def input_size(self, output_size: int) -> int:
        """Return the smallest legal input side with an output of at least `output_size`."""

    def output_size(self, input_size: int) -> int:
        """Return the output side of a legal input side."""


@dataclass(frozen=True)
class PlainGeometry:
    """A network that keeps the size, takes multiples of `size_multiple`, and of which no more is known.

    Examples
    --------
    >>> PlainGeometry(size_multiple=16).input_size(100)
    112
    """

    size_multiple: int
    margin: int = 0
    is_exactly_tileable: bool = False

    @property
    def receptive_field(self) -> tuple[int, int]:
        """A guess, for the overlap of blended tiles."""
        return (4 * self.size_multiple, 4 * self.size_multiple)

    def input_size(self, output_size: int) -> int:
        """Return the next multiple."""
        return _round_up(output_size, self.size_multiple)

    def output_size(self, input_size: int) -> int:
        """Return the same size."""
        return input_size


def _round_up(n: int, multiple: int) -> int:
    return -(-n // multiple) * multiple


def choose_tile_size(
    tile_size: str | int | Sequence[int] | None, size: Sequence[int], *, size_multiple: int
) -> tuple[int, ...] | None:
    """Return the kept pixels per axis of a tile, or None for the whole image in one.

    Parameters
    ----------
    tile_size : "auto", None, int or sequence of int
    size : sequence of int
        Pixels per axis of the image.
    size_multiple : int

    Examples
    --------
    >>> choose_tile_size(100, (300, 80), size_multiple=16)
    (112, 112)
    >>> choose_tile_size("auto", (300, 80), size_multiple=16) is None
    True
    """
    if tile_size is None:
        return None
    if isinstance(tile_size, str):
        n_pixels = 1
        for n in size:
            n_pixels *= n
        if n_pixels <= AUTO_WHOLE[len(size)]:
            return None
        tile_size = AUTO_TILE[len(size)]
    sides = [int(tile_size)] * len(size) if isinstance(tile_size, int | Integral) else list(tile_size)
    chosen = tuple(_round_up(side, size_multiple) for side in sides)
    return None if all(side >= n for side, n in zip(chosen, size, strict=True)) else chosen


def predict_tiles(
    images: Tensor, forward: Forward, *, tile_size: tuple[int, ...] | None, geometry: Geometry
) -> Iterator[tuple[Window, Tensor]]:
    """Yield windows of the images with the network's scores for them; together they cover each pixel once.

    Parameters
    ----------
    images : Tensor of shape (N, C, *S)
        Any size from 1 pixel; mirrored beyond its ends to what the network takes.
    forward : callable
        (N, C, *T) to scores (N, K, *T), or smaller by the margin.
    tile_size : tuple of int or None
        Kept pixels per axis, multiples of `geometry.size_multiple`; None for the whole image at once.
    geometry : Geometry

    Yields
    ------
    window : tuple of slice
        Over S.
    scores : Tensor of shape (N, K, *window)
        Equal to those of the whole image if the geometry is exactly tileable; blended otherwise.
    """
    size = tuple(images.shape[2:])
    padded = _pad(images, size, geometry)
    if tile_size is None:
        yield tuple(slice(0, n) for n in size), _crop(forward(padded), [0] * len(size), size)
    elif geometry.is_exactly_tileable:
        for keep in product(*(_axis_tiles(n, tile) for n, tile in zip(size, tile_size, strict=True))):
            yield keep, _predict_exactly(padded, forward, keep=keep, geometry=geometry)
    else:
        yield tuple(slice(0, n) for n in size), _predict_blended(padded, forward, size, tile_size, geometry)


def _pad(images: Tensor, size: Sequence[int], geometry: Geometry) -> Tensor:
    margin = geometry.margin
    before = [margin] * len(size)
    after = [geometry.input_size(n) - n - margin for n in size]
    return mirror_pad(images, before, after) if any(before) or any(after) else images


def _crop(scores: Tensor, starts: Sequence[int], size: Sequence[int]) -> Tensor:
    return _cut(scores, [slice(start, start + n) for start, n in zip(starts, size, strict=True)])


def _cut(tensor: Tensor, window: Sequence[slice]) -> Tensor:
    """Return a window of the last axes, as a view."""
    index: tuple[Any, ...] = (..., *window)
    return tensor[index]


def _axis_tiles(n: int, tile: int) -> list[slice]:
    return [slice(start, min(start + tile, n)) for start in range(0, n, tile)]


def _predict_exactly(padded: Tensor, forward: Forward, *, keep: Window, geometry: Geometry) -> Tensor:
    """Return the scores of a kept window, computed with all pixels that can change them.

    A tile starts at a multiple of `size_multiple`, so that poolings fall on the same pixels as in the whole,
    and never reads beyond the padded whole, so that zero padding falls on the same pixels too.
    """
    halos = [_round_up(max(reach - geometry.margin, 0), geometry.size_multiple) for reach in geometry.receptive_field]
    reads, starts = [], []
    for window, n_padded in zip(keep, padded.shape[2:], strict=True):
        first = max(window.start - halos[0], 0)
        last = min(window.stop + halos[1], geometry.output_size(n_padded))
        reads.append(slice(first, first + geometry.input_size(last - first)))
        starts.append(window.start - first)
    scores = forward(_cut(padded, reads))
    return _crop(scores, starts, [window.stop - window.start for window in keep])


def _predict_blended(
    padded: Tensor, forward: Forward, size: Sequence[int], tile_size: Sequence[int], geometry: Geometry
) -> Tensor:
    """Return scores of overlapping tiles, averaged with weights that fall off towards the tile's border."""
    total: Tensor | None = None
    n_outputs = [geometry.output_size(n) for n in padded.shape[2:]]
    weights = torch.zeros(n_outputs)
    spans = [_overlapping(n, tile, geometry.size_multiple) for n, tile in zip(n_outputs, tile_size, strict=True)]
    for window in product(*spans):
        reads = [slice(span.start, span.start + geometry.input_size(span.stop - span.start)) for span in window]
        scores = _crop(forward(_cut(padded, reads)), [0] * len(size), [span.stop - span.start for span in window])
        ramp = _ramp([span.stop - span.start for span in window])
        if total is None:
            total = torch.zeros((*scores.shape[:2], *n_outputs), device=scores.device)
        _cut(total, window).add_(scores * ramp.to(scores.device))
        weights[window] += ramp
    assert total is not None
    return _crop(total / weights.to(total.device), [0] * len(size), size)


def _overlapping(n: int, tile: int, multiple: int) -> list[slice]:
    """Return tiles that overlap by about half, the last ending with the image."""
    step = max(_round_up(tile // 2, multiple), multiple)
    starts = list(range(0, max(n - tile, 0) + 1, step))
    if starts[-1] + tile < n:
        starts.append(_round_up(n - tile, multiple))
    return [slice(start, min(start + tile, n)) for start in starts]


def _ramp(size: Sequence[int]) -> Tensor:
    """Return weights of a tile: a pyramid, positive everywhere."""
    ramp = torch.ones(())
    for n in size:
        positions = torch.arange(n, dtype=torch.float32)
        ramp = ramp[..., None] * (torch.minimum(positions, n - 1 - positions) + 1)
    return ramp


def assemble(tiles: Iterator[tuple[Window, Tensor]], size: Sequence[int]) -> Tensor:
    """Return the scores of all windows as one tensor (N, K, *S); of a single window without a copy."""
    window, scores = next(tiles)
    if all(part.stop - part.start == n for part, n in zip(window, size, strict=True)):
        return scores
    whole = scores.new_empty((*scores.shape[:2], *size))
    _cut(whole, window).copy_(scores)
    for window, scores in tiles:
        _cut(whole, window).copy_(scores)
    return whole
