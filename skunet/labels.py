"""Labels of masks: learn them, check them, turn them into class indices and back."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["LabelCodec", "LabelCounts", "count_labels", "learn_codec"]

MAX_CLASSES = 256
# One mask with more values than this, and no `classes` given, is not a mask of classes.
MAX_VALUES_PER_MASK = 64
# Share of pixels at the two ends, and number of values, of a two-class mask whose edges were blurred.
SOFT_ENDS_SHARE, SOFT_VALUES = 0.7, 8
RARE_SHARE = 0.001
# Integer labels within a span of this many values are looked up in a table.
TABLE_SPAN = 1 << 16
# Pixels that are held as int64 at a time.
CHUNK = 1 << 20


@dataclass(frozen=True)
class LabelCounts:
    """The values of one mask and how many pixels have each."""

    values: np.ndarray
    counts: np.ndarray
    dtype: np.dtype[Any]

    def without(self, ignore_label: Any) -> "LabelCounts":
        """Return the counts of all other labels."""
        if ignore_label is None:
            return self
        is_kept = self.values != ignore_label
        return LabelCounts(self.values[is_kept], self.counts[is_kept], self.dtype)

    @property
    def is_soft_edged(self) -> bool:
        """Whether the mask looks like a two-class mask with blurred edges."""
        if len(self.values) <= SOFT_VALUES or self.values.dtype.kind not in "uif":
            return False
        ends, inner = self.counts[[0, -1]], self.counts[1:-1]
        is_polar = ends.sum() >= SOFT_ENDS_SHARE * self.counts.sum() and ends.min() > inner.max()
        # Labels 0, 1, 2, ... without gaps are classes, as long as they are few.
        is_gapped = self.values[-1] - self.values[0] >= 2.0 * (len(self.values) - 1)
        return bool(is_polar and (is_gapped or len(self.values) > MAX_VALUES_PER_MASK))


def count_labels(mask: np.ndarray, name: str) -> LabelCounts:
    """Count the labels of one mask.

    Parameters
    ----------
    mask : ndarray of shape (*S), bool, int, float with whole numbers, or str
    name : str
        What an error calls the mask, e.g. "mask 3".

    Raises
    ------
    ValueError
        If the mask holds NaN, infinity, or numbers that are not whole.

    Examples
    --------
    >>> counts = count_labels(np.array([[0, 255], [255, 255]], dtype=np.uint8), "mask 0")
    >>> counts.values.tolist(), counts.counts.tolist()
    ([0, 255], [1, 3])
    """
    if mask.dtype.kind in "fc":
        _check_whole(mask, name)
    if mask.dtype.kind in "bui" and mask.size and int(mask.max()) - int(mask.min()) < TABLE_SPAN:
        return _count_integers(mask)
    if mask.dtype.kind == "O":
        mask = mask.astype(np.array(mask.ravel().tolist()).dtype)
        return count_labels(mask, name)
    values, counts = np.unique(mask, return_counts=True)
    return LabelCounts(values, counts, mask.dtype)


def _count_integers(mask: np.ndarray) -> LabelCounts:
    """Count by bins, several times as fast as the sort that np.unique does."""
    low, high = int(mask.min()), int(mask.max())
    counts = np.zeros(high - low + 1, dtype=np.int64)
    pixels = mask.ravel()
    for start in range(0, pixels.size, CHUNK):
        counts += np.bincount(pixels[start : start + CHUNK].astype(np.int64) - low, minlength=len(counts))
    present = np.flatnonzero(counts)
    return LabelCounts((present + low).astype(mask.dtype), counts[present], mask.dtype)


def _check_whole(mask: np.ndarray, name: str) -> None:
    if mask.dtype.kind == "c":
        raise ValueError(f"Complex data not supported: {name} has dtype {mask.dtype}.")
    if not np.isfinite(mask).all():
        raise ValueError(f"{name} contains NaN or infinity. Give such pixels a label and pass it as ignore_label.")
    fraction = mask != np.round(mask)
    if fraction.any():
        raise ValueError(
            f"Unknown label type: {name} must hold whole numbers; got {mask[fraction].flat[0]:g}, with "
            f"{len(np.unique(mask))} values in all. Threshold a soft mask, e.g. (y > 0.5)."
        )


def learn_codec(
    masks: Sequence[LabelCounts],
    *,
    classes: Iterable[Any] | None,
    ignore_label: Any,
    names: Sequence[str] | None = None,
) -> tuple["LabelCodec", np.ndarray]:
    """Learn the classes of a set of masks.

    Parameters
    ----------
    masks : sequence of LabelCounts, one per mask
    classes : iterable of labels or None
        The labels to expect. None takes all that are in the masks.
    ignore_label : label or None
    names : sequence of str, optional
        What errors call the masks.

    Returns
    -------
    codec : LabelCodec
    counts : ndarray of shape (K,), int64
        Pixels of each class.

    Raises
    ------
    ValueError
        If a label is not listed in `classes`, if there are fewer than 2 or more than 256 classes, if all pixels are
        `ignore_label`, if that is text among numbers or a number among texts, or if a mask looks like its edges were
        blurred.
    """
    dtype = np.result_type(*{counts.dtype for counts in masks})
    if ignore_label is not None and isinstance(ignore_label, str) != (dtype.kind in "US"):
        raise ValueError(
            f"ignore_label must be written as the labels of y are, which hold {dtype}; got {ignore_label!r}."
        )
    masks = [mask.without(ignore_label) for mask in masks]
    found = np.unique(np.concatenate([counts.values.astype(dtype) for counts in masks]))
    if not len(found):
        raise ValueError(
            f"y must hold pixels with a label; all are ignore_label={ignore_label!r}. Label some, or drop ignore_label."
        )
    expected = _expected(classes, dtype, found)
    codec = LabelCodec(expected if ignore_label is None else expected[expected != ignore_label], ignore_label)
    for name, mask in zip(names or [f"mask {index}" for index in range(len(masks))], masks, strict=True):
        _check_values(mask, name, codec, is_listed=classes is not None)
    if classes is None:
        _check_union(masks, dtype)
        _warn_of_two_scales(masks, found, names)
    _check_number(codec.classes, is_listed=classes is not None)
    pixels = np.zeros(len(codec.classes), dtype=np.int64)
    for mask in masks:
        indices = codec.encode(mask.values.astype(dtype))
        np.add.at(pixels, indices[indices >= 0], mask.counts[indices >= 0])
    return codec, pixels


def _expected(classes: Iterable[Any] | None, dtype: np.dtype[Any], found: np.ndarray) -> np.ndarray:
    if classes is None:
        return found
    listed = np.unique(np.asarray(list(classes)))
    if listed.dtype.kind in "OUS" or dtype.kind in "OUS":
        return listed
    # Labels come back in the dtype of y where it holds them all.
    cast = listed.astype(dtype)
    return cast if np.array_equal(cast, listed) else listed


def _check_union(masks: Sequence[LabelCounts], dtype: np.dtype[Any]) -> None:
    """Raise ValueError if the masks together look blurred: in a small one, few of the values occur."""
    values = np.concatenate([mask.values.astype(dtype) for mask in masks])
    together, places = np.unique(values, return_inverse=True)
    counts = np.bincount(places, weights=np.concatenate([mask.counts for mask in masks]))
    if LabelCounts(together, counts, dtype).is_soft_edged:
        raise ValueError(_blurred_message("The masks together have", len(together)))


def _blurred_message(who_has: str, n_values: int) -> str:
    return (
        f"{who_has} {n_values} values; was it saved as JPEG or resized with interpolation? "
        "Masks must hold one label per class. Threshold a soft mask, e.g. (y > 127); turn object ids into "
        "a mask with (y > 0); or list the labels that you mean in classes=."
    )


def _warn_of_two_scales(masks: Sequence[LabelCounts], found: np.ndarray, names: Sequence[str] | None) -> None:
    """Warn where some masks hold 0 and 1, others 0 and 255."""
    if found.dtype.kind in "US" or found.tolist() != [0, 1, 255]:
        return
    tops = [int(mask.values[-1]) if len(mask.values) else 0 for mask in masks]
    if any(1 in mask.values and 255 in mask.values for mask in masks):
        return
    one = tops.index(min(set(tops) - {0, 255}))
    warnings.warn(
        f"No mask holds both 1 and 255, but {names[one] if names else f'mask {one}'} has 1 and others have 255: these "
        "are trained as two classes. If both mean the same, pass y > 0.",
        UserWarning,
        stacklevel=5,
    )


def _check_values(mask: LabelCounts, name: str, codec: "LabelCodec", *, is_listed: bool) -> None:
    is_unlisted = ~np.isin(mask.values, codec.known())
    is_soft = mask.is_soft_edged or (not is_listed and len(mask.values) > MAX_VALUES_PER_MASK)
    if is_soft and (is_unlisted.any() or not is_listed):
        raise ValueError(_blurred_message(f"{name} has", len(mask.values)))
    if is_unlisted.any():
        raise ValueError(
            f"y must hold only labels listed in classes={codec.classes.tolist()}; {name} holds "
            f"{mask.values[is_unlisted][:5].tolist()}. Add them to classes, or pass one as ignore_label."
        )


def _check_number(classes: np.ndarray, *, is_listed: bool) -> None:
    if len(classes) > MAX_CLASSES:
        raise ValueError(
            f"y must hold at most {MAX_CLASSES} classes; got {len(classes)}. "
            "If these are object ids, segment (y > 0) and separate the objects afterwards."
        )
    if len(classes) < 2:
        where = "classes lists" if is_listed else "y holds"
        raise ValueError(
            f"A segmenter needs at least 2 classes; {where} only 1 class: {classes.tolist()}. "
            "Add images that show the others, or list all labels in classes=."
        )


def warn_of_rare_classes(codec: "LabelCodec", counts: np.ndarray, *, stacklevel: int) -> None:
    """Warn about classes that cover less than 0.1 % of the pixels, as they are easily never predicted."""
    shares = counts / max(counts.sum(), 1)
    rare = (counts > 0) & (shares < RARE_SHARE)
    if rare.any():
        texts = [
            f"{label!r} ({share:.2g})" for label, share in zip(codec.classes[rare].tolist(), shares[rare], strict=True)
        ]
        warnings.warn(
            f"These classes cover less than {RARE_SHARE:.1%} of the pixels (share in brackets): {', '.join(texts)}. "
            'They may never be predicted; class_weight="balanced" and balanced_share=0.33 can help.',
            UserWarning,
            stacklevel=stacklevel,
        )


@dataclass(frozen=True)
class LabelCodec:
    """The labels of a problem: to class indices and back.

    Parameters
    ----------
    classes : ndarray of shape (K,)
        Sorted labels, without `ignore_label`.
    ignore_label : label or None

    Examples
    --------
    >>> codec = LabelCodec(np.array([0, 255], dtype=np.uint8), ignore_label=7)
    >>> codec.encode(np.array([255, 0, 7], dtype=np.uint8)).tolist()
    [1, 0, -1]
    >>> codec.decode(np.array([1, 0])).tolist()
    [255, 0]
    """

    classes: np.ndarray
    ignore_label: Any = None

    @property
    def has_numbers(self) -> bool:
        """Whether the labels are numbers, so that a tensor can hold them."""
        return self.classes.dtype.kind in "buif"

    def known(self) -> np.ndarray:
        """Return the labels that a mask may hold, `ignore_label` included."""
        if self.ignore_label is None:
            return self.classes
        return np.append(self.classes, np.asarray(self.ignore_label))

    def encode(self, mask: np.ndarray) -> np.ndarray:
        """Return class indices (int64, -1 = ignore or unknown), in the shape of `mask`."""
        positions = np.searchsorted(self.classes, mask).clip(max=len(self.classes) - 1)
        return np.where(self.classes[positions] == mask, positions, -1)

    def encode_tensor(self, mask: Tensor) -> Tensor:
        """Return class indices (int64, -1 = ignore or unknown) of a tensor of labels.

        Where labels are no numbers, the tensor holds class indices already.
        """
        indices, n_classes = mask.to(torch.int64), len(self.classes)
        low, high = self._span()
        if not self.has_numbers or (low == 0 and high == n_classes - 1):
            return torch.where((indices >= 0) & (indices < n_classes), indices, -1)
        if high - low < TABLE_SPAN:
            table = functional.pad(self._table(low, high), (1, 1), value=-1)  # what lies beyond is unknown
            return table.to(mask.device)[(indices - low).clamp_(-1, high - low + 1) + 1]
        classes = torch.as_tensor(self.classes.astype(np.int64), device=mask.device)
        positions = torch.searchsorted(classes, indices).clamp_(max=n_classes - 1)
        return torch.where(classes[positions] == indices, positions, -1)

    def _span(self) -> tuple[int, int]:
        """Return the lowest and highest label that can occur; (0, -1) where labels are no numbers."""
        if not self.has_numbers:
            return 0, -1
        known = self.known()
        return int(known.min()), int(known.max())

    def _table(self, low: int, high: int) -> Tensor:
        return torch.as_tensor(self.encode(np.arange(low, high + 1).astype(self.known().dtype)))

    def decode(self, indices: np.ndarray) -> np.ndarray:
        """Return the labels of class indices, in the dtype of `classes`."""
        return self.classes.take(indices)

    def to_tensor(self, masks: np.ndarray) -> Tensor:
        """Return masks as a tensor of labels: class indices where the labels are no numbers."""
        if not self.has_numbers:
            return torch.as_tensor(self.encode(masks))
        if masks.dtype.kind == "O":
            masks = masks.astype(self.classes.dtype)
        if masks.dtype.kind == "u" and masks.dtype.itemsize > 1:
            masks = masks.astype(np.int64)  # torch computes little in wide unsigned types
        if masks.dtype == np.float64:
            masks = masks.astype(np.int64)  # Apple's GPUs have no float64
        masks = np.ascontiguousarray(masks)
        return torch.as_tensor(masks if masks.flags.writeable else masks.copy())
