"""Tiles that overlap and are averaged, where none equals the whole image."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise, product

import torch
from torch import Tensor

from skunet.geometry import Geometry, round_up, uncut_size
from skunet.pixels import Pixels, Window, read_mirrored
from skunet.reach import cut

__all__ = ["Forward", "IsDone", "never", "predict_blended"]

# From pixels (N, C, *T) and a window of the output to the scores (N, K, *window).
Forward = Callable[[Tensor, Window], Tensor]
# Whether a window need not be predicted.
IsDone = Callable[[Window], bool]


def never(window: Window) -> bool:  # noqa: ARG001
    """Say of every window that it must be predicted."""
    return False


def predict_blended(
    pixels: Pixels, forward: Forward, tile_size: Sequence[int], geometry: Geometry, is_done: IsDone
) -> Iterator[tuple[Window, Tensor]]:
    """Yield bands of scores of overlapping tiles, averaged with weights that fall off towards the tile's border."""
    n_outputs = [uncut_size(geometry, n) for n in pixels.size]
    rows, *others = (
        _overlapping(n, tile, geometry.size_multiple) for n, tile in zip(n_outputs, tile_size, strict=True)
    )
    n_done = [after.start - row.start for row, after in pairwise(rows)] + [rows[-1].stop - rows[-1].start]
    keeps = [
        (slice(row.start, min(row.start + n, pixels.size[0])), *(slice(0, n) for n in pixels.size[1:]))
        for row, n in zip(rows, n_done, strict=True)
    ]
    missing = [keep for keep in keeps if keep[0].stop > keep[0].start and not is_done(keep)]
    band: Tensor | None = None  # weighted sums of scores, from the first line of a row of tiles
    weights = torch.zeros(0)
    for i, (row, keep) in enumerate(zip(rows, keeps, strict=True)):
        if not missing or row.stop <= missing[0][0].start:
            continue  # no line that is missing lies in these tiles
        height = row.stop - row.start
        for columns in product(*others):
            scores = _predict_span(pixels, forward, (row, *columns), geometry)
            ramp = _ramp([span.stop - span.start for span in (row, *columns)]).to(scores.device)
            if band is None:
                band = scores.new_zeros((*scores.shape[:2], height, *n_outputs[1:]))
                weights = ramp.new_zeros((height, *n_outputs[1:]))
            window = (slice(0, height), *columns)
            cut(band, window).add_(scores * ramp)
            cut(weights, window).add_(ramp)
        assert band is not None
        if keep in missing:
            inside = [slice(0, span.stop - span.start) for span in keep]
            yield keep, cut(band, inside) / cut(weights, inside)
        if i + 1 < len(rows):
            following = rows[i + 1]
            band, weights = (
                _move_up(band, n_done[i], following, axis=2),
                _move_up(weights, n_done[i], following, axis=0),
            )


def _predict_span(pixels: Pixels, forward: Forward, window: Window, geometry: Geometry) -> Tensor:
    """Return the scores of a tile from its own pixels alone."""
    margin = geometry.margin
    reads = [
        slice(span.start - margin, span.start - margin + geometry.input_size(span.stop - span.start)) for span in window
    ]
    return forward(read_mirrored(pixels, tuple(reads)), tuple(slice(0, span.stop - span.start) for span in window))


def _move_up(band: Tensor, n_done: int, following: slice, *, axis: int) -> Tensor:
    """Return a band less its first lines, with zeros behind the others, as high as the following row of tiles."""
    kept = band.narrow(axis, n_done, band.shape[axis] - n_done)
    shape = list(band.shape)
    shape[axis] = following.stop - following.start
    moved = band.new_zeros(shape)
    moved.narrow(axis, 0, kept.shape[axis]).copy_(kept)
    return moved


def _overlapping(n: int, tile: int, multiple: int) -> list[slice]:
    """Return tiles that overlap by about half, the last ending with the image."""
    step = max(round_up(tile // 2, multiple), multiple)
    starts = list(range(0, max(n - tile, 0) + 1, step))
    if starts[-1] + tile < n:
        starts.append(round_up(n - tile, multiple))
    return [slice(start, min(start + tile, n)) for start in starts]


def _ramp(size: Sequence[int]) -> Tensor:
    """Return weights of a tile: a pyramid, positive everywhere."""
    ramp = torch.ones(())
    for n in size:
        positions = torch.arange(n, dtype=torch.float32)
        ramp = ramp[..., None] * (torch.minimum(positions, n - 1 - positions) + 1)
    return ramp
