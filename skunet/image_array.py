"""Images in a form that scikit-learn's own tools can count, index and split, without reading them."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import _safe_indexing
from torch import Tensor

from skunet.containers import is_lazy, object_array, open_container, open_stack
from skunet.image_files import read_mask
from skunet.labels import count_labels
from skunet.resizing import ResizedImages

__all__ = ["StackView", "find_labels", "give_back", "image_array", "indexable_pair", "pick_images"]

# Bytes from which on joblib maps arrays into the memory of workers.
MAPPED = 1 << 20


def image_array(images: Any) -> np.ndarray:
    """Return a 1-D object array with one image (or mask) per item, which scikit-learn's own tools can split.

    They refuse lists of arrays of equal height under an integer `cv`, and take mask paths that are `str` for class
    names. The tools of `skunet.model_selection` need no such care.

    Parameters
    ----------
    images : list, stack, lazy array or Tensor
        As for `UNetSegmenter.fit`. Nothing is read: items of a lazy array are read when used.

    Returns
    -------
    array : ndarray of shape (N,), object
        Arrays or tensors as they are, a `Path` for each path.

    Raises
    ------
    TypeError, ValueError
        If this is no container of images, or a torch Dataset, whose pairs cannot be split into X and y.

    Examples
    --------
    >>> image_array([np.zeros((4, 4)), np.zeros((4, 6))]).shape
    (2,)
    """
    return _one_by_one(images, "X")


def indexable_pair(X: Any, y: Any, estimator: Any = None) -> tuple[Any, Any]:
    """Return images and masks for scikit-learn's tools: stacks in memory as they are, all else as object arrays.

    Masks in files become paths that numpy can read, so that any scorer finds arrays. An estimator that
    `takes_lazy_images` gets large and lazy stacks as views: scikit-learn then cuts its folds without copying, and
    workers share the pixels, which joblib maps into their memory, or read them themselves.
    """
    images = _indexable(X, "X") if not getattr(estimator, "takes_lazy_images", False) else _viewed(X)
    return images, None if y is None else _indexable(y, "y")


def _viewed(data: Any) -> Any:
    """Return a large or lazy stack as a view, all else as it can be indexed."""
    stack = open_stack(data, "X")
    if _is_lazy_stack(stack):
        return StackView(stack, np.arange(stack.shape[0]))
    images = _indexable(stack, "X")
    is_large = isinstance(images, np.ndarray) and images.nbytes > MAPPED and images.dtype != object
    return StackView(images, np.arange(len(images))) if is_large else images


def _is_lazy_stack(data: Any) -> bool:
    """Return whether this is like an array, in a file or elsewhere, and no table."""
    return isinstance(data, np.memmap) or (is_lazy(data) and not hasattr(data, "iloc"))


def _indexable(data: Any, name: Literal["X", "y"]) -> Any:
    return data if _is_in_memory(data) else _one_by_one(data, name)


def _is_in_memory(data: Any) -> bool:
    """Return whether this is an array whose items scikit-learn can pick by itself."""
    if isinstance(data, ResizedImages):
        return True  # with their original sizes
    if isinstance(data, np.ndarray) and not isinstance(data, np.memmap):
        return data.ndim != 1 or data.dtype.kind not in "OUS"
    return isinstance(data, Tensor)


def _one_by_one(data: Any, name: Literal["X", "y"]) -> np.ndarray:
    container = open_container(data, name)
    if container.kind == "dataset":
        raise TypeError(
            f"{name} must be arrays, lists or paths; got {type(data).__name__}. "
            "Its (image, mask) pairs cannot be split into X and y: pass images and masks by themselves."
        )
    if container.shape is None:
        return object_array([_as_item(item, name) for item in container.items])
    if isinstance(container.items, Tensor):
        return object_array(list(container.items))
    return object_array([StackItem(container.items, index) for index in range(len(container))])


def _as_item(item: Any, name: Literal["X", "y"]) -> Any:
    if isinstance(item, str | Path):
        return MaskFile(item) if name == "y" else Path(item)
    # numpy's protocol: arrays, tensors, and lazy arrays of zarr and dask, which are read by those who use them.
    return item if hasattr(item, "__array__") else np.asarray(item)


class MaskFile(type(Path())):  # type: ignore[misc]  # Path itself cannot be subclassed before Python 3.12
    """The path of a mask, which numpy reads as the mask: scorers need arrays, errors want the name of the file."""

    __slots__ = ()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(read_mask(self), dtype=dtype, copy=copy)


class StackItem:
    """One image of a lazy array, read whenever it is used.

    Parameters
    ----------
    stack : object with [int], .shape and .dtype
    index : int
    """

    def __init__(self, stack: Any, index: int) -> None:
        self.stack, self.index = stack, index

    @property
    def shape(self) -> tuple[int, ...]:
        """Axes of the image, known without reading it."""
        return tuple(self.stack.shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes of the image."""
        return len(self.stack.shape) - 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.stack[self.index], dtype=dtype, copy=copy)


class StackView(Sequence[Any]):
    """Some images of a lazy array: again a lazy array.

    Parameters
    ----------
    stack : object with [int], .shape and .dtype
    indices : ndarray of int
        Positions of the images in `stack`.
    """

    def __init__(self, stack: Any, indices: np.ndarray) -> None:
        self.stack, self.indices = stack, indices

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, *axes of an image)."""
        return (len(self.indices), *self.stack.shape[1:])

    @property
    def ndim(self) -> int:
        """Number of axes of the stack."""
        return len(self.stack.shape)

    @property
    def dtype(self) -> Any:
        """Type of the pixels."""
        return self.stack.dtype

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: Any) -> Any:
        """Return one image, or part of it, read, for an integer; a view for a slice or positions."""
        which, *within = key if isinstance(key, tuple) else (key,)
        indices = self.indices[which]
        if np.ndim(indices) == 0:
            if within and all(isinstance(part, slice) for part in within):
                with suppress(Exception):  # a stack may take whole numbers alone, and refuses others in its own way
                    return np.asarray(self.stack[(int(indices), *within)])
            image = np.asarray(self.stack[int(indices)])
            return image[tuple(within)] if within else image
        if not all(_takes_all(part) for part in within):  # scikit-learn asks for [which, ...]
            raise IndexError(
                f"A view of a lazy array must be indexed by images only; got {key!r}. Take parts of one image at a "
                "time, view[i, ...], or read it first with numpy.asarray(view)."
            )
        return StackView(self.stack, indices)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:  # always a copy
        return np.stack([self[index] for index in range(len(self))]).astype(dtype or self.dtype, copy=False)


def _takes_all(part: Any) -> bool:
    """Return whether an index leaves the axes that it is for as they are."""
    return part is Ellipsis or (isinstance(part, slice) and part == slice(None))


def pick_images(data: Any, indices: np.ndarray) -> Any:
    """Return the items at `indices` in a container of the same kind; of a lazy array a `StackView`, unread."""
    if _is_lazy_stack(data):
        return StackView(data, np.asarray(indices))
    return _safe_indexing(data, indices)


def give_back(X: Any, results: np.ndarray) -> Any:
    """Return results, one per image, in the kind of container that X is: a stack, a list or an object array.

    Parameters
    ----------
    X : container of N images
    results : ndarray of shape (N,), object
    """
    kind = open_container(X, "X").kind
    if kind == "stack":
        return np.stack(list(results))
    return list(results) if kind == "list" else results


def find_labels(y: Any) -> np.ndarray:
    """Return the sorted labels of all masks, (K,), which are read one at a time."""
    masks = open_container(y, "y")
    return np.unique(np.concatenate([count_labels(masks[i], masks.describe(i)).values for i in range(len(masks))]))
