"""A large image in tiles: any callable on each, one result that equals the whole where that can be had."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product
from numbers import Integral

import torch
from torch import Tensor

from skunet.blending import Forward, IsDone, never, predict_blended
from skunet.geometry import Geometry, round_up
from skunet.pixels import Pixels, Window, read_mirrored
from skunet.reach import cut
from skunet.turning import Turn, TurnedPixels

__all__ = ["assemble", "choose_tile_size", "predict_tiles"]

# Kept pixels per side of an automatic tile. At depth 4 with 32 filters 2048 x 2048 took 1.14 times as long as in one
# piece in tiles of 512, 1.08 times in tiles of 768, and 1.10 times in tiles of 1024, whose memory is larger.
AUTO_TILE = {2: 768, 3: 96}
# Images up to this many pixels are predicted whole.
AUTO_WHOLE = {2: 1 << 20, 3: 1 << 21}


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
    if len(sides) != len(size):
        raise ValueError(f"tile_size must be a number of pixels, or one per axis, {len(size)} here; got {tile_size}.")
    chosen = tuple(round_up(side, size_multiple) for side in sides)
    return None if all(side >= n for side, n in zip(chosen, size, strict=True)) else chosen


def predict_tiles(
    pixels: Pixels,
    forward: Forward,
    *,
    tile_size: tuple[int, ...] | None,
    geometry: Geometry,
    turns: Sequence[Turn] = (),
    is_done: IsDone = never,
) -> Iterator[tuple[Window, Tensor]]:
    """Yield windows of the images with the network's scores for them; together they cover each pixel once.

    Parameters
    ----------
    pixels : Pixels
        Images (N, C, *S) of any size from 1 pixel; mirrored beyond their ends to what the network takes.
    forward : callable
        From pixels (N, C, *T) and a window of the network's output, T less the margin, to the scores (N, K, *window).
    tile_size : tuple of int or None
        Kept pixels per axis, multiples of `geometry.size_multiple`; None for the whole image at once.
    geometry : Geometry
    turns : sequence of Turn
        Scores are the mean over the images turned in each of these ways, and turned back; none for the images alone.
    is_done : callable
        Whether a window may be left out.

    Yields
    ------
    window : tuple of slice
        Over S.
    scores : Tensor of shape (N, K, *window)
        Equal to those of the whole image if the geometry is exactly tileable; blended otherwise.
    """
    size = pixels.size
    views = [(TurnedPixels(pixels, turn), turn) for turn in turns]
    if tile_size is None or geometry.is_exactly_tileable:
        tiles = [[slice(0, n)] for n in size] if tile_size is None else _grid(size, tile_size)

        def predict(keep: Window) -> Tensor:
            if not views:
                return _predict_window(pixels, forward, keep=keep, geometry=geometry)
            return _mean(
                turn.undo(_predict_window(view, forward, keep=turn.window(keep, size), geometry=geometry))
                for view, turn in views
            )

        for keep in product(*tiles):
            yield from _predict_in_parts(keep, predict, geometry, is_done)
    elif not views:
        yield from predict_blended(pixels, forward, tile_size, geometry, is_done)
    elif not is_done(tuple(slice(0, n) for n in size)):
        # Bands of turned images lie across one another: each is put together whole.
        scores = (
            turn.undo(assemble(predict_blended(view, forward, turn.size(tile_size), geometry, never), view.size))
            for view, turn in views
        )
        yield tuple(slice(0, n) for n in size), _mean(scores)


def _predict_in_parts(
    keep: Window, predict: Callable[[Window], Tensor], geometry: Geometry, is_done: IsDone
) -> Iterator[tuple[Window, Tensor]]:
    """Yield a window with its scores; where the memory is not enough, two halves of it, and so on."""
    if is_done(keep):
        return
    axis = max(range(len(keep)), key=lambda axis: keep[axis].stop - keep[axis].start)
    span, multiple = keep[axis], geometry.size_multiple
    middle = span.start + round_up((span.stop - span.start) // 2, multiple)
    try:
        scores = predict(keep)
    except (RuntimeError, MemoryError) as error:
        can_split = geometry.is_exactly_tileable and middle < span.stop and not torch.is_grad_enabled()
        if not (can_split and _is_out_of_memory(error)):
            raise
    else:
        yield keep, scores
        return
    warnings.warn(
        f"The memory was not enough for tiles of {' x '.join(str(part.stop - part.start) for part in keep)}: smaller "
        "ones are used, with the same result. A smaller tile_size saves the attempt.",
        UserWarning,
        stacklevel=2,
    )
    for half in (slice(span.start, middle), slice(middle, span.stop)):
        yield from _predict_in_parts((*keep[:axis], half, *keep[axis + 1 :]), predict, geometry, is_done)


def _is_out_of_memory(error: Exception) -> bool:
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)


def _mean(tensors: Iterator[Tensor]) -> Tensor:
    total, n_tensors = next(tensors).clone(), 1
    for tensor in tensors:
        total += tensor
        n_tensors += 1
    return total.div_(n_tensors)


def _grid(size: Sequence[int], tile_size: Sequence[int]) -> list[list[slice]]:
    """Return the tiles along each axis."""
    return [
        [slice(start, min(start + tile, n)) for start in range(0, n, tile)]
        for n, tile in zip(size, tile_size, strict=True)
    ]


def _predict_window(pixels: Pixels, forward: Forward, *, keep: Window, geometry: Geometry) -> Tensor:
    """Return the scores of a kept window, computed with all pixels that can change them.

    What is read starts at a multiple of `size_multiple`, so that poolings fall on the same pixels as in the whole,
    and never goes beyond the padded whole, so that zero padding falls on the same pixels too.
    """
    margin, multiple = geometry.margin, geometry.size_multiple
    before, after = (max(reach - margin, 0) for reach in geometry.receptive_field)
    reads, starts = [], []
    for window, n in zip(keep, pixels.size, strict=True):
        n_whole = geometry.output_size(geometry.input_size(n))
        is_whole = window.start == 0 and window.stop == n
        first = 0 if is_whole else max((window.start - before) // multiple * multiple, 0)
        last = n_whole if is_whole else min(window.stop + after, n_whole)
        reads.append(slice(first - margin, first - margin + geometry.input_size(last - first)))
        starts.append(window.start - first)
    inside = (slice(start, start + span.stop - span.start) for start, span in zip(starts, keep, strict=True))
    return forward(read_mirrored(pixels, tuple(reads)), tuple(inside))


def assemble(tiles: Iterator[tuple[Window, Tensor]], size: Sequence[int]) -> Tensor:
    """Return the scores of all windows as one tensor (N, K, *S); of a single window without a copy."""
    window, scores = next(tiles)
    if all(part.stop - part.start == n for part, n in zip(window, size, strict=True)):
        return scores
    whole = scores.new_empty((*scores.shape[:2], *size))
    cut(whole, window).copy_(scores)
    for window, scores in tiles:
        cut(whole, window).copy_(scores)
    return whole
