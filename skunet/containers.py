"""What users keep arrays in: stacks, lists, files, lazy arrays, data sets; opened without being read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from skunet.image_files import open_array, read_image, read_mask
from skunet.resizing import ResizedImages

__all__ = ["Container", "is_lazy", "object_array", "open_container", "open_pairs", "open_stack", "pick_items"]

Kind = Literal["stack", "list", "object_array", "dataset"]
RULES = {
    "X": "a stack (N, H, W) or (N, H, W, C), volumes (N, D, H, W) or (N, D, H, W, C), or a list of images",
    "y": "a stack of masks (N, H, W), of volumes (N, D, H, W), or a list of masks",
}


@dataclass(frozen=True)
class Container:
    """Arrays in whatever a user keeps them, read one at a time.

    Attributes
    ----------
    name : str
        What errors call it: "X" or "y".
    kind : {"stack", "list", "object_array", "dataset"}
        What results are given back in; of a data set a stack where sizes are equal, else a list.
    items : object with len and [int]
    read : callable
        Turns one item into an ndarray.
    shape : tuple of int or None
        Of a stack; None where items are read one by one.
    channels_first : bool
    original_sizes : tuple of N tuples of int, or None
        Pixels per axis of each image before it was resized, which results are brought back to; None where images
        are as the user has them.
    """

    name: str
    kind: Kind
    items: Any
    read: Callable[[Any], np.ndarray]
    shape: tuple[int, ...] | None = None
    channels_first: bool = False
    original_sizes: tuple[tuple[int, ...], ...] | None = None

    def __len__(self) -> int:
        return len(self.items) if self.shape is None else self.shape[0]  # zarr arrays have no length

    def __getitem__(self, index: int) -> np.ndarray:
        return self.read(self.items[int(index)])

    def describe(self, index: int) -> str:
        """Return what an error calls one item, with its path where it has one."""
        one, items = "mask" if self.name == "y" else "image", self.items
        while isinstance(items, PickedItems):
            index, items = int(items.indices[index]), items.items
        path = items[index] if isinstance(items, list | np.ndarray) else None
        return f"{one} {index}" + (f" ({path})" if isinstance(path, str | Path) else "")

    def item_ndim(self) -> int:
        """Return the number of axes of one item, from the shape or from the first."""
        return len(self.shape) - 1 if self.shape is not None else len(self.item_shape(0))

    def item_shape(self, index: int) -> tuple[int, ...]:
        """Return the shape of one item, as it comes, without reading it where that can be."""
        if self.shape is not None:
            return self.shape[1:]
        lazy = self.open_item(index)
        return self[index].shape if lazy is None else tuple(lazy.shape)

    def open_item(self, index: int) -> Any | None:
        """Return one item as something to read parts of, or None where it must be read whole."""
        if self.kind not in ("list", "object_array"):
            return None
        item = self.items[index]
        if isinstance(item, str | Path):
            return open_array(item) if self.read is read_image else None  # what is read of a mask may be less
        return item if is_lazy(item) else None


def is_lazy(data: Any) -> bool:
    """Return whether this is like an array, but none in memory."""
    is_like_array = all(hasattr(data, name) for name in ("shape", "dtype", "__getitem__"))
    return is_like_array and not isinstance(data, np.ndarray | Tensor)


def object_array(items: Sequence[Any]) -> np.ndarray:
    """Return a 1-D object array of the items."""
    array = np.empty(len(items), dtype=object)
    for index in range(len(items)):  # one by one: arrays of equal size would be taken apart
        array[index] = items[index]
    return array


def open_container(data: Any, name: str) -> Container:
    """Open a user's container without reading its arrays.

    Parameters
    ----------
    data : ndarray, lazy array, Tensor, list, 1-D object array, torch Dataset, or ResizedImages
    name : {"X", "y"}

    Raises
    ------
    TypeError, ValueError
        If this is no container of images, or empty.
    """
    if isinstance(data, str | Path):
        data = _open_path(data, name)
    if data is None or isinstance(data, dict | set):
        got = "None" if data is None else f"{type(data).__name__} {str(data)[:80]!r}"
        raise (TypeError if data is not None else ValueError)(f"{name} must be {RULES[name]} or of paths; got {got}.")
    container = _open_known(data, name)
    if len(container) == 0:
        raise ValueError(f"{name} must hold at least one image; got 0 sample(s) (shape={np.shape(data)}).")
    return container


def open_stack(data: Any, name: str) -> Any:
    """Return the stack that a path names, of which items can be picked; anything else as it is."""
    return open_container(data, name).items if isinstance(data, str | Path) else data


def _open_path(path: str | Path, name: str) -> Any:
    """Open the stack that a TIFF file or a zarr array holds."""
    stack = open_array(path)
    if stack is None:
        raise TypeError(
            f"{name} must be {RULES[name]} or of paths, or the path of one TIFF file or zarr array that holds a stack; "
            f"got {type(path).__name__} {str(path)[:80]!r}. For a folder pass its files: find_images(folder)."
        )
    if len(stack.shape) < 3:
        raise ValueError(f"{path} holds one image, shape {tuple(stack.shape)}, and no stack: pass [path].")
    return stack


def _open_known(data: Any, name: str) -> Container:
    if isinstance(data, ResizedImages):
        return replace(_open_known(data.images, name), original_sizes=data.original_sizes)
    if isinstance(data, Dataset):
        return Container(name, "dataset", data, _to_array, channels_first=True)
    if isinstance(data, Tensor):
        return Container(name, "stack", data, _to_array, tuple(data.shape), channels_first=True)
    if isinstance(data, list | tuple):
        return _open_items(list(data), name, "list")
    if isinstance(data, np.ndarray) and (data.dtype.kind == "O" or (data.dtype.kind in "US" and data.ndim == 1)):
        return _open_object_array(data, name)
    if all(hasattr(data, attribute) for attribute in ("shape", "dtype", "__getitem__")):
        if len(data.shape) < 3:
            raise ValueError(
                f"{name} must be {RULES[name]}; got shape {tuple(data.shape)}. Reshape your data: "
                f"one image alone is a stack of one, {'X[None]' if name == 'X' else 'X[None] with y[None]'}."
            )
        return Container(name, "stack", data, np.asarray, tuple(data.shape))
    if hasattr(data, "__array__"):
        return _open_known(np.asarray(data), name)
    raise TypeError(f"{name} must be {RULES[name]}; got {type(data).__name__}.")


def _open_object_array(data: np.ndarray, name: str) -> Container:
    if data.ndim == 1:
        return _open_items(data.tolist(), name, "object_array")
    try:  # a stack of Python numbers, or of labels
        return _open_known(np.array(data.tolist()) if name == "y" else data.astype(np.float64), name)
    except (TypeError, ValueError) as error:
        raise TypeError(f"argument {name} must hold numbers; got an array of dtype {data.dtype}: {error}") from error


def _open_items(items: list[Any], name: str, kind: Kind) -> Container:
    if items and all(isinstance(item, str | Path) for item in items):
        return Container(name, kind, items, read_mask if name == "y" else read_image)
    if any(isinstance(item, str | Path) for item in items):
        raise TypeError(f"{name} must be a list of paths or a list of arrays; got both. Read the files first.")
    if items and all(isinstance(item, Tensor) for item in items):
        return Container(name, kind, items, _to_array, channels_first=True)
    if items and np.ndim(items[0]) < 2:
        raise ValueError(
            f"{name} must be {RULES[name]}; item 0 of the list has shape {np.shape(items[0])}. "
            "Reshape your data: one image alone is a list of one, [image]."
        )
    return Container(name, kind, items, _to_labels if name == "y" else np.asarray)


def _to_labels(item: Any) -> np.ndarray:
    """Return a mask as an array of one dtype, also where it holds Python objects."""
    mask = np.asarray(item)
    return np.array(mask.tolist()) if mask.dtype.kind == "O" else mask


def _to_array(item: Any) -> np.ndarray:
    """Return a tensor, or the first of an (image, mask) pair, as an array."""
    item = item[0] if isinstance(item, tuple | list) else item
    if not isinstance(item, Tensor):
        return np.asarray(item)
    item = item.float() if item.dtype == torch.bfloat16 else item
    return np.asarray(item.detach().cpu())


class PairColumn(Sequence[Any]):
    """Images (column 0) or masks (column 1) of a Dataset of pairs.

    Both columns share the pair that was read last, so that a Dataset that draws its own transforms gives
    image and mask of one draw.
    """

    def __init__(self, pairs: "Dataset[Any]", column: int, last: dict[int, Any]) -> None:
        self.pairs, self.column, self.last = pairs, column, last

    def __len__(self) -> int:
        return len(self.pairs)  # type: ignore[arg-type]  # Dataset promises no __len__

    def __getitem__(self, index: Any) -> Any:
        # The image is read before its mask, and afresh each time; the mask belongs to the image read last.
        if self.column == 0 or index not in self.last:
            self.last.clear()
            self.last[index] = self.pairs[index]
        return self.last[index][self.column]


def open_pairs(pairs: "Dataset[Any]") -> tuple[Container, Container]:
    """Open a torch Dataset of (image, mask) pairs, channels first.

    Raises
    ------
    ValueError
        If its items are no pairs.
    """
    if len(pairs) == 0:  # type: ignore[arg-type]
        raise ValueError("X must hold at least one image; got a Dataset of length 0.")
    first = pairs[0]
    if not isinstance(first, tuple | list) or len(first) != 2:
        raise ValueError(f"A Dataset must give (image, mask) pairs, channels first; got {type(first).__name__}.")
    last: dict[int, Any] = {}
    columns = (PairColumn(pairs, 0, last), PairColumn(pairs, 1, last))
    images, masks = (
        Container(name, "dataset", column, _to_array, channels_first=True)
        for name, column in zip(("X", "y"), columns, strict=True)
    )
    return images, masks


def pick_items(container: Container, indices: np.ndarray) -> Container:
    """Return a container of the items at `indices`, without reading any."""
    shape = None if container.shape is None else (len(indices), *container.shape[1:])
    original_sizes = container.original_sizes
    if original_sizes is not None:
        original_sizes = tuple(original_sizes[index] for index in indices)
    items = PickedItems(container.items, indices)
    return replace(container, items=items, shape=shape, original_sizes=original_sizes)


class PickedItems(Sequence[Any]):
    """Some items of a container, by position."""

    def __init__(self, items: Any, indices: np.ndarray) -> None:
        self.items, self.indices = items, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        return self.items[int(self.indices[index])]
