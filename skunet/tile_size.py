"""How large tiles are: as given, or as the memory allows."""

import math
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from numbers import Integral
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from skunet.geometry import Geometry, round_up

__all__ = ["AUTO_WHOLE", "TileMemory", "auto_tile_size", "choose_tile_size", "measure_tile"]

# Kept pixels per side of an automatic tile, and how many may be read for a larger one. At depth 4 with 32 filters
# 3500 x 3500 took 16.7 s and 468 MB in tiles of 512, 14.5 s and 698 MB of 768, 13.9 s and 867 MB of 896, 14.2 s and
# 1158 MB of 1024 (2 cores, bfloat16).
AUTO_TILE = {2: (768, 1136), 3: (96, 96)}
# On a GPU, whose memory is asked all the same: the larger the tile, the smaller the share of what is read around it.
GPU_TILE = {2: (2048, 2400), 3: (160, 160)}
# Images up to this many pixels are predicted whole.
AUTO_WHOLE = {2: 1 << 20, 3: 1 << 21}
GPU_WHOLE = {2: 1 << 22, 3: 1 << 22}
# Peaks were 1.1 to 1.8 times what the tensors take: scratch of the convolutions and what is kept come on top.
PEAK = 1.8


@dataclass(frozen=True)
class TileMemory:
    """Bytes that a forward pass takes beside the weights.

    Attributes
    ----------
    constant : float
    per_pixel : float
        For each pixel that the network reads.
    """

    constant: float
    per_pixel: float

    def bytes_for(self, sides: Sequence[int]) -> float:
        """Return the bytes for a tile of so many pixels per axis.

        Examples
        --------
        >>> TileMemory(constant=500, per_pixel=2).bytes_for((10, 10))
        700
        """
        return self.constant + self.per_pixel * math.prod(sides)


def choose_tile_size(
    tile_size: int | Sequence[int] | None, size: Sequence[int], *, size_multiple: int
) -> tuple[int, ...] | None:
    """Return the kept pixels per axis of a tile, or None for the whole image in one.

    Parameters
    ----------
    tile_size : None, int or sequence of int
    size : sequence of int
        Pixels per axis of the image.
    size_multiple : int

    Raises
    ------
    ValueError
        If there is not one number per axis.

    Examples
    --------
    >>> choose_tile_size(100, (300, 80), size_multiple=16)
    (112, 112)
    >>> choose_tile_size(300, (300, 80), size_multiple=16) is None
    True
    """
    if tile_size is None:
        return None
    sides = [int(tile_size)] * len(size) if isinstance(tile_size, int | Integral) else list(tile_size)
    if len(sides) != len(size):
        raise ValueError(f"tile_size must be a number of pixels, or one per axis, {len(size)} here; got {tile_size}.")
    chosen = tuple(round_up(side, size_multiple) for side in sides)
    return None if all(side >= n for side, n in zip(chosen, size, strict=True)) else chosen


def auto_tile_size(
    size: Sequence[int],
    *,
    geometry: Geometry,
    memory: TileMemory | None = None,
    limit: float | None = None,
    is_gpu: bool = False,
) -> tuple[int, ...] | None:
    """Return the kept pixels per axis of a tile that is fast and keeps within a limit, or None for the whole image.

    Parameters
    ----------
    size : sequence of int
        Pixels per axis of the image.
    geometry : Geometry
        Of networks of which tiles would be blended, images are taken whole if at all possible.
    memory : TileMemory, optional
    limit : float, optional
        In bytes. Without memory and limit, tiles are as large as is fast.
    is_gpu : bool

    Examples
    --------
    >>> from skunet.geometry import PlainGeometry
    >>> geometry = PlainGeometry(16, (50, 50), is_exactly_tileable=True)
    >>> auto_tile_size((300, 80), geometry=geometry) is None
    True
    >>> auto_tile_size((3000, 3000), geometry=geometry)
    (1008, 1008)
    >>> auto_tile_size((3000, 3000), geometry=geometry, memory=TileMemory(0, 500), limit=50e6)
    (192, 192)
    """
    ndim, multiple = len(size), geometry.size_multiple
    tiles, wholes = (GPU_TILE, GPU_WHOLE) if is_gpu else (AUTO_TILE, AUTO_WHOLE)
    is_limited = memory is not None and limit is not None

    def fits(sides: Sequence[int]) -> bool:
        return memory is None or limit is None or memory.bytes_for(sides) <= limit

    fits_whole = fits([geometry.input_size(n) for n in size])
    if fits_whole and (math.prod(size) <= wholes[ndim] or (is_limited and not geometry.is_exactly_tileable)):
        return None
    around = geometry.receptive_field if geometry.is_exactly_tileable else (geometry.margin, geometry.margin)
    side, most_read = tiles[ndim]
    while True:
        chosen, reads = zip(*(_part(n, side, most_read, around, multiple) for n in size), strict=True)
        if side <= multiple and not fits(reads):
            _warn_of_limit(reads, memory, limit)
        if side <= multiple or fits(reads):
            return choose_tile_size(chosen, size, size_multiple=multiple)
        side = most_read = side // 2


def _warn_of_limit(sides: Sequence[int], memory: TileMemory | None, limit: float | None) -> None:
    if memory is not None and limit is not None:
        warnings.warn(
            f"The smallest tile takes about {memory.bytes_for(sides) / 1e6:,.2g} MB, and may take {limit / 1e6:,.2g}. "
            "Give a higher memory_limit; until then tiles are small, and slow.",
            UserWarning,
            stacklevel=2,
        )


def _part(n: int, side: int, most_read: int, around: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Return the largest of equal parts of an axis, and what is read for it: small enough, or reading little enough."""
    for n_parts in count(1):
        part = round_up(-(-n // n_parts), multiple)
        read = part + (0 if n_parts == 1 else max(around) if n_parts == 2 else sum(around))
        if read <= most_read or part <= max(side, multiple):
            break
    return part, read


def measure_tile(run: Callable[[tuple[int, ...]], Any], sizes: Sequence[tuple[int, ...]]) -> TileMemory:
    """Measure what a forward pass takes at its peak, on small tiles.

    Parameters
    ----------
    run : callable
        Takes the pixels per axis that the network reads, and runs it on as many.
    sizes : sequence of 2 tuples of int
        The smaller first.

    Examples
    --------
    >>> import torch
    >>> measure_tile(lambda size: torch.zeros(size, dtype=torch.uint8) + 1, [(100, 100), (200, 200)])
    TileMemory(constant=0.0, per_pixel=3.6)
    """
    peaks = []
    for size in sizes:
        with _PeakBytes() as counter:
            run(size)
        peaks.append(counter.peak)
    pixels = [math.prod(size) for size in sizes]
    per_pixel = max(peaks[1] - peaks[0], 0) / (pixels[1] - pixels[0])
    return TileMemory(max(peaks[0] - per_pixel * pixels[0], 0.0), PEAK * per_pixel)


class _PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch gives it no types
    """Counts the bytes of the tensors that are alive at a time, of those made inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live = self.peak = 0
        self.known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                storage = leaf.untyped_storage()
                if id(storage) not in given and id(storage) not in self.known:
                    self._count(storage)
        return result

    def _count(self, storage: Any) -> None:
        key, n_bytes = id(storage), storage.nbytes()
        self.live += n_bytes
        self.peak = max(self.peak, self.live)

        def forget(_: Any) -> None:
            self.live -= n_bytes
            del self.known[key]

        self.known[key] = weakref.ref(storage, forget)
