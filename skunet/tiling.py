"""A large image in tiles: any callable on each, one result that equals the whole where that can be had."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
from torch import Tensor

from skunet.blending import Forward, IsDone, never, predict_blended
from skunet.geometry import Geometry, round_up, uncut_size
from skunet.hardware import is_out_of_memory
from skunet.pixels import Pixels, Window, mirrored_window, read_mirrored
from skunet.reach import cut
from skunet.turning import Turn, TurnedPixels

__all__ = ["assemble", "predict_tiles", "predict_whole", "read_window"]


def predict_tiles(
    pixels: Pixels,
    forward: Forward,
    *,
    tile_size: tuple[int, ...] | None,
    geometry: Geometry,
    turns: Sequence[Turn] = (),
    is_done: IsDone = never,
    region: Window | None = None,
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
    region : tuple of slice, optional
        Where scores are asked for, of a geometry that is exactly tileable, starting at multiples of its
        `size_multiple`; None for everywhere.

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
        asked = region or tuple(slice(0, n) for n in size)
        tiles = [[span] for span in asked] if tile_size is None else _grid(asked, tile_size)

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


def predict_whole(pixels: Pixels, forward: Forward, geometry: Geometry) -> Tensor:
    """Return the scores (N, K, *S) of images in one piece, or raise: for what counts statistics of all of them."""
    return _predict_window(pixels, forward, keep=tuple(slice(0, n) for n in pixels.size), geometry=geometry)


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
        if not (can_split and is_out_of_memory(error)):
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


def _mean(tensors: Iterator[Tensor]) -> Tensor:
    total, n_tensors = next(tensors).clone(), 1
    for tensor in tensors:
        total += tensor
        n_tensors += 1
    return total.div_(n_tensors)


def _grid(region: Window, tile_size: Sequence[int]) -> list[list[slice]]:
    """Return the tiles along each axis."""
    return [
        [slice(start, min(start + tile, span.stop)) for start in range(span.start, span.stop, tile)]
        for span, tile in zip(region, tile_size, strict=True)
    ]


def _predict_window(pixels: Pixels, forward: Forward, *, keep: Window, geometry: Geometry) -> Tensor:
    """Return the scores of a kept window, computed with all pixels that can change them."""
    reads, inside = _surroundings(keep, pixels.size, geometry)
    return forward(read_mirrored(pixels, reads), inside)


def _surroundings(keep: Window, size: Sequence[int], geometry: Geometry) -> tuple[Window, Window]:
    """Return what must be read for a kept window, and where it lies in the network's output.

    What is read starts at a multiple of `size_multiple`, so that poolings fall on the same pixels as in the whole,
    and never goes beyond the padded whole, so that zero padding falls on the same pixels too.
    """
    margin, multiple = geometry.margin, geometry.size_multiple
    are_whole = [window.start == 0 and window.stop == n for window, n in zip(keep, size, strict=True)]
    before, after = (0, 0) if all(are_whole) else (max(reach - margin, 0) for reach in geometry.receptive_field)
    reads, starts = [], []
    for window, n, is_whole in zip(keep, size, are_whole, strict=True):
        n_whole = uncut_size(geometry, n)
        first = 0 if is_whole else max((window.start - before) // multiple * multiple, 0)
        last = n_whole if is_whole else min(window.stop + after, n_whole)
        reads.append(slice(first - margin, first - margin + geometry.input_size(last - first)))
        starts.append(window.start - first)
    inside = tuple(slice(start, start + span.stop - span.start) for start, span in zip(starts, keep, strict=True))
    return tuple(reads), inside


def read_window(region: Window, size: Sequence[int], *, geometry: Geometry, turns: Sequence[Turn]) -> Window:
    """Return which pixels of an image of `size` the scores of a region depend on; all where tiles are not exact."""
    if not geometry.is_exactly_tileable:
        return tuple(slice(0, n) for n in size)
    reads = []
    for turn in turns or [Turn.none(len(size))]:
        turned = turn.size(size)
        around = _surroundings(turn.window(region, size), turned, geometry)[0]
        reads.append(turn.window_before(mirrored_window(around, turned), size))
    return tuple(
        slice(min(span.start for span in spans), max(span.stop for span in spans)) for spans in zip(*reads, strict=True)
    )


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
