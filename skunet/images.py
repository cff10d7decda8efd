"""The door: what users hold becomes images (C, *S), and results go back in the container they came in."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skunet.containers import Container, object_array, pick_items

__all__ = ["Images", "Results", "as_tensor", "can_hold", "check_out", "check_pixels", "open_images", "subset"]


@dataclass(frozen=True)
class Images:
    """Images in internal form: each (C, *S), in its own dtype.

    Attributes
    ----------
    container : Container
    spatial_ndim : {2, 3}
    has_channel_axis : bool
    """

    container: Container
    spatial_ndim: int
    has_channel_axis: bool

    def __len__(self) -> int:
        return len(self.container)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> np.ndarray:
        image = self.container[index]
        if image.ndim != self.spatial_ndim + self.has_channel_axis:
            raise ValueError(
                f"All images must have {self.spatial_ndim + self.has_channel_axis} axes as the first; "
                f"{self.container.describe(index)} has shape {image.shape}."
            )
        return self.arrange(image, axis=0)

    def stack_size(self) -> tuple[int, ...]:
        """Return the pixels per axis that all images of a stack have."""
        shape = self.container.shape or ()
        if not self.has_channel_axis:
            return shape[1:]
        return shape[2:] if self.container.channels_first else shape[1:-1]

    def size(self, index: int) -> tuple[int, ...]:
        """Return the pixels per axis of one image."""
        return self.stack_size() if self.container.shape is not None else self[index].shape[1:]

    def user_size(self, index: int, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the pixels per axis of what is given back for an image that has `size`."""
        original_sizes = self.container.original_sizes
        return size if original_sizes is None else original_sizes[index]

    def arrange(self, image: np.ndarray, *, axis: int) -> np.ndarray:
        """Return images with the channels at `axis`: 0 for one image, 1 for a batch."""
        if not self.has_channel_axis:
            return np.expand_dims(image, axis)
        return image if self.container.channels_first else np.moveaxis(image, -1, axis)


def open_images(
    container: Container, *, spatial_ndim: int, n_channels: int | None = None, mask_ndim: int | None = None
) -> Images:
    """Settle which axis of the images is what, from shapes alone.

    Parameters
    ----------
    container : Container
    spatial_ndim : int
    n_channels : int, optional
        What the network was fitted on; None at fit.
    mask_ndim : int, optional
        Axes of one mask, for the error.

    Raises
    ------
    ValueError
        If rank or channels do not fit.
    """
    n_extra = container.item_ndim() - spatial_ndim
    images = Images(container, spatial_ndim, has_channel_axis=n_extra == 1)
    if n_extra not in (0, 1):
        raise ValueError(_rank_message(container, spatial_ndim, mask_ndim))
    if n_channels is not None:
        found = _n_channels(container) if n_extra else 1
        if found != n_channels:
            raise ValueError(
                f"X has {found} channel(s), but UNetSegmenter is expecting {n_channels} as fitted "
                f"(got shape {_shape_text(container)}). {_channel_hint(container, n_channels, spatial_ndim)}"
            )
        _warn_of_one_colour_image(container, n_extra)
    return images


def _n_channels(container: Container) -> int:
    return container.item_shape(0)[0 if container.channels_first else -1]


def _warn_of_one_colour_image(container: Container, n_extra: int) -> None:
    if n_extra == 0 and container.shape is not None and container.shape[-1] in (3, 4):
        n_images, *size = container.shape
        warnings.warn(
            f"X of shape {container.shape} is taken for {n_images} images of {' x '.join(map(str, size))} pixels. "
            "If it is one colour image: the segmenter was fitted on images without colour.",
            UserWarning,
            stacklevel=6,
        )


def _shape_text(container: Container) -> str:
    return str(container.shape if container.shape is not None else f"{container.item_shape(0)} of image 0")


def _rank_message(container: Container, spatial_ndim: int, mask_ndim: int | None) -> str:
    if mask_ndim is None:
        axes = "(N, H, W)" if spatial_ndim == 2 else "(N, D, H, W)"
        return (
            f"X must be a stack {axes}, with one more axis for channels, or a list of such images, as fitted; "
            f"got shape {_shape_text(container)}. Pass one image alone as X[None]. Reshape your data."
        )
    return (
        f"X must have the axes of y, or one more for channels; got shape {_shape_text(container)} and masks of "
        f"{mask_ndim} axes. Each image needs one mask of its height and width (a volume also of its depth)."
    )


def _channel_hint(container: Container, n_channels: int, spatial_ndim: int) -> str:
    shape = container.item_shape(0)
    if len(shape) == spatial_ndim + 1 and shape[0] == n_channels:
        axis = 1 if container.shape is not None else 0
        return f"Channels come last: pass np.moveaxis(X, {axis}, -1)."
    if len(shape) == spatial_ndim and shape[-1] == n_channels:
        return "Pass one image alone as X[None]."
    return "Channels are the last axis of arrays and the first of tensors."


def subset(images: Images, indices: np.ndarray) -> Images:
    """Return the images at `indices`, without reading any."""
    return replace(images, container=pick_items(images.container, indices))


class Results:
    """Arrays to give back, one per image, in the container that the images came in, or in arrays that the user gave.

    Parameters
    ----------
    images : Images
    dtype : dtype or None
        None is that of what is written first, a whole image.
    n_leading : int, optional
        Length of an axis before the spatial ones, e.g. classes; None for no such axis.
    out : array-like, list of array-like, or None
        Anything with `shape`, `dtype` and assignment to slices, of the shape of the results: of a stack a stack, of a
        list a list. None makes new arrays.

    Raises
    ------
    ValueError
        If `out` has not the shape of the results; for lists when an image is begun.
    """

    def __init__(self, images: Images, dtype: Any, n_leading: int | None = None, *, out: Any = None) -> None:
        self.is_stack = images.container.kind == "stack"
        self.kind = images.container.kind
        self.dtype = dtype
        self.leading = () if n_leading is None else (n_leading,)
        self.out = out
        self.arrays: Any = [] if out is None else out
        if self.is_stack:
            shape = (len(images), *self.leading, *images.user_size(0, images.stack_size()))
            if out is None:
                self.arrays = None if dtype is None else np.empty(shape, dtype=dtype)
            else:
                _check_shape(out, shape, "out")
            self.shape = shape
        elif out is not None and (not isinstance(out, list | tuple | np.ndarray) or len(out) != len(images)):
            got = f"{len(out)} in a {type(out).__name__}" if isinstance(out, list | tuple) else type(out).__name__
            raise ValueError(f"out must be a list of {len(images)} arrays, one per image; got {got}.")

    def begin(self, index: int, size: tuple[int, ...]) -> None:
        """Make, or check, the array of an image of so many pixels per axis; images come in their order."""
        if self.is_stack:
            return
        shape = (*self.leading, *size)
        if self.out is None:
            self.arrays.append(None if self.dtype is None else np.empty(shape, dtype=self.dtype))
        else:
            _check_shape(self.arrays[index], shape, f"out[{index}]")

    def write(self, index: int, window: tuple[slice, ...], values: np.ndarray) -> None:
        """Write what an image has in a window of its last axes."""
        if self.dtype is None:
            self._prepare_for(index, values)
        self.array(index)[self._place(index, window)] = values

    def _prepare_for(self, index: int, values: np.ndarray) -> None:
        """Make the array that takes an image if there is none yet, or check that it can hold its values."""
        if self.is_stack and self.arrays is None:
            self.arrays = np.empty(self.shape, dtype=values.dtype)
        elif not self.is_stack and self.arrays[index] is None:
            self.arrays[index] = np.empty(values.shape, dtype=values.dtype)
        dtype = self.array(index).dtype
        if dtype == values.dtype:
            return
        found = np.unique(values)
        if not can_hold(dtype, found):
            raise ValueError(
                f"Results of dtype {dtype} cannot hold what image {index} has, {values.dtype} from {found[0]} to "
                f"{found[-1]}. Give an out that can, or let postprocess give all images one dtype."
            )

    def read(self, index: int, window: tuple[slice, ...]) -> np.ndarray:
        """Return what is written in a window of an image."""
        return np.asarray(self.array(index)[self._place(index, window)])

    def _place(self, index: int, window: tuple[slice, ...]) -> tuple[Any, ...]:
        place = (*(slice(None) for _ in self.leading), *window)
        return (index, *place) if self.is_stack else place

    def array(self, index: int) -> Any:
        """Return the array that takes an image: that of all, or its own."""
        return self.arrays if self.is_stack else self.arrays[index]

    def give_back(self) -> Any:
        """Return all results; those in arrays of the user as they were given."""
        if self.out is not None:
            return self.out
        if self.kind == "object_array":
            return object_array(self.arrays)
        if self.kind == "dataset" and len({array.shape for array in self.arrays}) == 1:
            return np.stack(self.arrays)
        return self.arrays


def _check_shape(array: Any, shape: tuple[int, ...], name: str) -> None:
    found = getattr(array, "shape", None)
    if found is None or tuple(found) != shape:
        got = f"shape {tuple(found)}" if found is not None else type(array).__name__
        raise ValueError(f"{name} must be an array of the shape of the result, {shape}; got {got}.")


def check_out(out: Any, X: Any, values: Any) -> None:
    """Raise ValueError if arrays to write into cannot be written, cannot hold values, or overlap.

    Parameters
    ----------
    out : array-like, list of array-like, or None
    X : see `UNetSegmenter.predict`
        Which must not be overwritten while it is read.
    values : array-like
        Some that will be written.
    """
    is_list = isinstance(out, list | tuple) or (isinstance(out, np.ndarray) and out.dtype.kind == "O")
    arrays = [] if out is None else list(out) if is_list else [out]
    inputs = list(X) if isinstance(X, list | tuple) else [X]
    for index, array in enumerate(arrays):
        if isinstance(array, np.memmap) and array.mode == "c":
            raise ValueError('out must reach its file; got a memory map of mode "c", a copy. Open it with mode "r+".')
        if not hasattr(array, "__setitem__") or not getattr(getattr(array, "flags", None), "writeable", True):
            raise ValueError(f"out must be something that can be written; got a read-only {type(array).__name__}.")
        if not can_hold(getattr(array, "dtype", None), np.asarray(values)):
            raise ValueError(f"out must hold values such as {np.asarray(values).tolist()}; got dtype {array.dtype}.")
        others = [other for other in (*inputs, *arrays[:index]) if isinstance(other, np.ndarray)]
        if isinstance(array, np.ndarray) and any(np.shares_memory(array, other) for other in others):
            raise ValueError("out must be memory of its own; got X itself, or one array twice. Pass other arrays.")


def can_hold(dtype: Any, values: np.ndarray) -> bool:
    """Return whether arrays of a dtype, or of any for None, keep values as they are."""
    try:
        if dtype is None or np.can_cast(values.dtype, dtype):
            return True
        with np.errstate(invalid="ignore"):
            return np.array_equal(values.astype(dtype), values)
    except (TypeError, ValueError):
        return False


def as_tensor(array: np.ndarray) -> Tensor:
    """Return pixels as a tensor of a dtype that torch computes in; uint8 stays uint8, bool becomes it."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    wider: dict[tuple[str, int], Any] = {
        ("b", 1): np.uint8,
        ("u", 4): np.int64,
        ("u", 8): np.float64,
        ("f", 16): np.float64,
    }
    dtype = np.dtype(wider.get((kind, size), array.dtype)).newbyteorder("=")
    array = np.ascontiguousarray(array, dtype=dtype)
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def check_pixels(image: np.ndarray, name: str) -> None:
    """Raise ValueError if an image (C, *S) cannot be worked on: no pixels, no real numbers, NaN or infinity."""
    if image.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {image.dtype}. Pass X.real or abs(X).")
    if image.dtype.kind not in "buif":
        raise ValueError(f"Images must hold numbers; {name} has dtype {image.dtype}.")
    if image.size == 0:
        raise ValueError(f"Images must have at least 1 pixel per axis; {name} has shape {image.shape[1:]}.")
    if image.dtype.kind == "f" and not np.isfinite([image.min(), image.max()]).all():
        raise ValueError(f"Input X contains NaN or infinity: {name}. Replace such pixels, e.g. np.nan_to_num(X).")
