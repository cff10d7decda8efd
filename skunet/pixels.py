"""Images to read windows of, wherever they are kept, mirrored beyond their ends."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from skunet.containers import is_lazy
from skunet.images import Images, as_tensor, check_pixels
from skunet.mirroring import reflect
from skunet.reach import cut, shifted
from skunet.scaling import image_statistics, merge_statistics

__all__ = [
    "ArrayPixels",
    "Pixels",
    "PlacedPixels",
    "TensorPixels",
    "Window",
    "mirrored_window",
    "open_pixels",
    "pixel_statistics",
    "read_mirrored",
]

# Pixels that are read at a time where the whole image is looked through; images of no more are read at once.
BLOCK = 1 << 24

Window = tuple[slice, ...]  # over the spatial axes, the last of a tensor


class Pixels(Protocol):
    """Images (N, C, *S) of which windows are read."""

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per axis."""

    def read(self, window: Window) -> Tensor:
        """Return the pixels (N, C, *window) of a window inside the image."""


@dataclass(frozen=True)
class TensorPixels:
    """Images in memory.

    Attributes
    ----------
    images : Tensor of shape (N, C, *S)
    """

    images: Tensor

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return tuple(self.images.shape[2:])

    def read(self, window: Window) -> Tensor:
        """Return a view."""
        return cut(self.images, window)


@dataclass(frozen=True)
class ArrayPixels:
    """One image in anything that slices read parts of: an array, a memory map, a zarr or HDF5 data set.

    Attributes
    ----------
    array : array-like
        With `shape`, `dtype` and slicing.
    size : tuple of int
        Pixels per axis.
    first : int or None
        Position in a stack; None where the array is the image itself.
    channel_axis : {0, -1} or None
    name : str
        What errors call it.
    """

    array: Any
    size: tuple[int, ...]
    first: int | None = None
    channel_axis: int | None = None
    name: str = "image 0"

    @property
    def n_channels(self) -> int:
        """Number of channels."""
        return 1 if self.channel_axis is None else int(self.array.shape[self.channel_axis])

    def takes_windows(self) -> bool:
        """Return whether slices are read; a stack may take whole numbers alone."""
        try:
            shape = self._block(tuple(slice(0, 1) for _ in self.size)).shape
        except Exception:  # other people's arrays refuse in their own ways
            return False
        return shape[1:] == (1,) * len(self.size)

    def read(self, window: Window) -> Tensor:
        """Return pixels that are finite numbers, in a dtype that torch knows.

        Raises
        ------
        ValueError
            If a pixel is NaN or infinite.
        """
        block = self._block(window)
        check_pixels(block, self.name)
        return as_tensor(block[None])

    def _block(self, window: Window) -> np.ndarray:
        """Return the pixels (C, *window)."""
        index: tuple[Any, ...] = window
        if self.channel_axis is not None:
            index = (slice(None), *window) if self.channel_axis == 0 else (*window, slice(None))
        block = np.asarray(self.array[index if self.first is None else (self.first, *index)])
        if self.channel_axis is None:
            return block[None]
        return np.moveaxis(block, self.channel_axis, 0)


def open_pixels(images: Images, index: int) -> ArrayPixels:
    """Return one image, without reading it where it is kept in something lazy.

    Raises
    ------
    ValueError
        If an image in memory holds NaN or infinity, or has other axes than the first.
    """
    container, name = images.container, images.container.describe(index)
    channel_axis = -1 if images.has_channel_axis else None
    lazy = None
    item = container.open_item(index)
    if container.kind == "stack" and is_lazy(container.items):
        lazy = ArrayPixels(container.items, images.stack_size(), index, channel_axis, name)
    elif item is not None and len(item.shape) == images.spatial_ndim + images.has_channel_axis:
        lazy = ArrayPixels(item, tuple(item.shape[: images.spatial_ndim]), None, channel_axis, name)
    if lazy is not None and math.prod(lazy.size) > BLOCK and lazy.takes_windows():
        return lazy
    image = images[index]
    check_pixels(image, name)
    return ArrayPixels(image, image.shape[1:], None, 0, name)


@dataclass(frozen=True)
class PlacedPixels:
    """A part of an image, which reads as far as it goes.

    Attributes
    ----------
    part : Pixels
    starts : tuple of int
        Where in the image it begins.
    size : tuple of int
        Pixels per axis of the image.
    """

    part: Pixels
    starts: tuple[int, ...]
    size: tuple[int, ...]

    def read(self, window: Window) -> Tensor:
        """Return pixels of a window of the image that lies in the part."""
        return self.part.read(tuple(shifted(span, start) for span, start in zip(window, self.starts, strict=True)))


def mirrored_window(window: Window, size: Sequence[int]) -> Window:
    """Return which pixels inside an image of `size` a window shows that may go beyond its ends.

    Examples
    --------
    >>> mirrored_window((slice(-3, 1),), (10,))
    (slice(0, 4, None),)
    """
    positions = [reflect(np.arange(span.start, span.stop), n) for span, n in zip(window, size, strict=True)]
    return tuple(slice(int(at.min()), int(at.max()) + 1) for at in positions)


def read_mirrored(pixels: Pixels, window: Window) -> Tensor:
    """Return the pixels (N, C, *window) of a window that may begin before and end behind the image.

    Examples
    --------
    >>> read_mirrored(TensorPixels(torch.tensor([[[0, 1, 2]]])), (slice(-1, 7),))
    tensor([[[1, 0, 1, 2, 1, 0, 1, 2]]])
    """
    reads = mirrored_window(window, pixels.size)
    block = pixels.read(reads)
    for axis, (span, read, n) in enumerate(zip(window, reads, pixels.size, strict=True), start=2):
        if span != read:
            at = torch.from_numpy(reflect(np.arange(span.start, span.stop), n) - read.start)
            # Unlike index_select, indexing knows every dtype.
            block = block[(slice(None),) * axis + (at.to(block.device),)]
    return block


def pixel_statistics(pixels: Pixels) -> np.ndarray:
    """Return the statistics (N, C, 5) of images by `scaling.image_statistics`, read some lines at a time."""
    n_lines = max(1, BLOCK // math.prod(pixels.size[1:]))
    others = [slice(0, n) for n in pixels.size[1:]]
    blocks = (
        pixels.read((slice(start, min(start + n_lines, pixels.size[0])), *others))
        for start in range(0, pixels.size[0], n_lines)
    )
    statistics = [np.stack([image_statistics(image) for image in block.cpu().numpy()]) for block in blocks]
    return merge_statistics(np.stack(statistics))
