"""Images of another size, their masks along with them, and results back at the size that the user has."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["ResizedImages", "ResizedMasks", "resize_image", "resize_linearly", "resize_mask"]

Size = tuple[int, ...]


def resize_linearly(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return maps of numbers at another size, by linear interpolation.

    Pixels are areas: the image's outer edges stay where they are (half-pixel centres). An axis that shrinks is
    smoothed with a triangle as wide as two of the new pixels, against aliasing.

    Parameters
    ----------
    maps : Tensor of shape (N, C, *S), float32 or float64
    size : sequence of int
        Pixels per axis of the result, at least 1.

    Returns
    -------
    Tensor of shape (N, C, *size)
        The same tensor where it has this size. What sums to 1 over an axis before S does so afterwards.

    Examples
    --------
    >>> resize_linearly(torch.tensor([[[[0.0, 4.0]]]]), (1, 4)).tolist()
    [[[[0.0, 1.0, 3.0, 4.0]]]]
    """
    size = tuple(size)
    if tuple(maps.shape[2:]) == size:
        return maps
    if len(size) == 2:
        return _resize_planes(maps, size)
    leading, depth = maps.shape[:2], maps.shape[2]
    maps = _resize_planes(maps.flatten(1, 2), size[1:])  # (N, C * D, H, W)
    maps = maps.reshape(leading[0], leading[1], depth, -1)  # (N, C, D, H * W)
    return _resize_planes(maps, (size[0], maps.shape[-1])).reshape(*leading, *size)  # (N, C, D, H, W)


def _resize_planes(planes: Tensor, size: Size) -> Tensor:
    """Return planes (N, C, H, W) at another size."""
    if tuple(planes.shape[2:]) == size:
        return planes
    shrinks = any(new < old for new, old in zip(size, planes.shape[2:], strict=True))
    return functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=shrinks)


def resize_image(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return an image at another size, by linear interpolation as of `resize_linearly`.

    Parameters
    ----------
    image : ndarray of shape (C, *S), any real dtype
    size : sequence of int
        Pixels per axis of the result.

    Returns
    -------
    ndarray of shape (C, *size), in the dtype of `image`; a copy
        Within the range of each channel, so that what is constant stays as it is; integers are rounded. An image
        that has this size is unchanged, bit for bit.

    Examples
    --------
    >>> resize_image(np.array([[[0, 100, 200, 200]]], dtype=np.uint8), (1, 2)).tolist()
    [[[71, 186]]]
    """
    if image.shape[1:] == tuple(size):
        return image.copy()
    is_exact_in_float32 = image.dtype.itemsize <= (4 if image.dtype.kind == "f" else 2)
    numbers = torch.from_numpy(image.astype(np.float32 if is_exact_in_float32 else np.float64, order="C"))
    resized: np.ndarray = resize_linearly(numbers[None], size)[0].numpy()  # (C, *size)
    return _to_dtype_of(image, resized)


def _to_dtype_of(image: np.ndarray, resized: np.ndarray) -> np.ndarray:
    """Return resized pixels in the dtype of the image, without rounding errors that leave its range."""
    axes = tuple(range(1, image.ndim))
    low, high = image.min(axis=axes, keepdims=True), image.max(axis=axes, keepdims=True)  # (C, 1, 1)
    numbers = resized if image.dtype.kind == "f" else np.rint(resized)
    with np.errstate(invalid="ignore"):  # an int64 near its end, rounded to float64, is beyond it
        pixels = numbers.astype(image.dtype)
    return np.where(numbers <= low, low, np.where(numbers >= high, high, pixels))


def resize_mask(mask: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """Return a mask, or weights of pixels, at another size: each pixel from the nearest one.

    Parameters
    ----------
    mask : ndarray of shape (*S), any dtype
    size : sequence of int
        Pixels per axis of the result.

    Returns
    -------
    ndarray of shape `size`, in the dtype of `mask`

    Examples
    --------
    >>> resize_mask(np.array([["a", "b"]]), (1, 4)).tolist()
    [['a', 'a', 'b', 'b']]
    """
    resized: np.ndarray = mask[np.ix_(*(_nearest(new, old) for new, old in zip(size, mask.shape, strict=True)))]
    return resized


def _nearest(new: int, old: int) -> np.ndarray:
    """Return the pixel that holds the centre of each new pixel; the later one where it lies between two."""
    return (2 * np.arange(new) + 1) * old // (2 * new)


class ResizedImages:
    """Images of another size that know what size they had.

    `UNetSegmenter` resizes their masks, which keep the original size, along with them, and brings what it predicts
    back to the original size.

    Parameters
    ----------
    images : ndarray, Tensor, list or object array
        A stack (N, *S) or (N, *S, C), or N images of several sizes; tensors with channels first.
    original_sizes : sequence of N tuples of int
        Pixels per axis that each image had before; equal for a stack.

    Attributes
    ----------
    shape : tuple of int
        Of the stack, or (N,).

    Examples
    --------
    >>> resized = ResizedImages(np.zeros((3, 8, 8)), [(16, 16)] * 3)
    >>> resized[0].shape, resized[1:].original_sizes
    ((8, 8), ((16, 16), (16, 16)))
    """

    def __init__(self, images: Any, original_sizes: Sequence[Size]) -> None:
        self.images = images
        self.original_sizes = tuple(tuple(int(n) for n in size) for size in original_sizes)

    def __len__(self) -> int:
        return len(self.original_sizes)

    def __getitem__(self, key: Any) -> Any:
        """Return one image, or `ResizedImages` of a slice, an array of positions, or a mask of bool."""
        positions = np.arange(len(self))[key]  # also of scikit-learn's `[key, ...]`
        if np.ndim(positions) == 0:
            return self.images[int(positions)]
        images = (
            [self.images[at] for at in positions] if isinstance(self.images, list) else self.images[positions.tolist()]
        )
        return ResizedImages(images, [self.original_sizes[at] for at in positions])

    @property
    def shape(self) -> Size:
        """Return the shape of the stack, or the number of images; scikit-learn selects images only where it is."""
        return (len(self),) if isinstance(self.images, list) else tuple(self.images.shape)

    def with_images(self, images: Any) -> "ResizedImages":
        """Return other images, as many and in the same order, with the same original sizes."""
        return ResizedImages(images, self.original_sizes)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.images).__name__} of {len(self)} images)"


class ResizedMasks:
    """Masks of images that were resized, resized to them whenever they are read.

    Parameters
    ----------
    masks : object with len and [int]
        Of the original sizes.
    original_sizes, sizes : sequence of N tuples of int
        Pixels per axis that the images had, and have.
    """

    def __init__(self, masks: Any, original_sizes: Sequence[Size], sizes: Sequence[Size]) -> None:
        self.masks, self.original_sizes, self.sizes = masks, original_sizes, sizes

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, key: Any) -> np.ndarray:
        """Return one mask, or an object array of those at several positions."""
        positions = np.arange(len(self))[key]
        if np.ndim(positions) == 0:
            return self._read(int(positions))
        selected = np.empty(len(positions), dtype=object)
        for place, position in enumerate(positions):
            selected[place] = self._read(int(position))
        return selected

    def _read(self, index: int) -> np.ndarray:
        mask: np.ndarray = self.masks[index]
        if mask.shape != self.original_sizes[index]:
            raise ValueError(
                f"A mask must have the size of its image; image {index} had {self.original_sizes[index]} before it was "
                f"resized, and mask {index} has {mask.shape}. Pass masks as they are: they are resized along with it."
            )
        return resize_mask(mask, self.sizes[index])
