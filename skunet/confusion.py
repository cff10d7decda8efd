"""Count how often label i was predicted as label j, over masks of any labels and sizes.

Each block of pixels is turned into a short list of (true label, predicted label, amount), and the lists are
joined in the end: one pass over the masks, with memory for one block, and no search for labels beforehand.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["confusion_counts", "count_indices"]

Array = NDArray[Any]
Counts = NDArray[Any]
Masks = ArrayLike | Sequence[ArrayLike]
# A stack of masks, a stack of predictions of the same shape, and its weights: (N,) or that shape.
Stacks = tuple[Array, Array, Array | None]

# Pixels counted at once: a megabyte or two with their codes, which stay in the cache. Of 2**16 to 2**18 the
# largest was the fastest, by a fifth, on bytes and on int64.
_BLOCK_PIXELS = 2**18
# Up to this many codes, one comparison per code is faster than np.bincount (vectorised on bytes).
_FEW_CODES = 9
# Labels that span up to _TIGHT_SPAN values make codes of one byte; wider ones are first tried as two labels far
# apart (0/255). Up to _NARROW_SPAN they index a table by themselves, up to _WIDE_SPAN by a look-up table.
_TIGHT_SPAN, _NARROW_SPAN, _WIDE_SPAN = 15, 2**8, 2**16
_MAX_TABLE = 2**20


def confusion_counts(
    y_true: Masks,
    y_pred: Masks,
    *,
    labels: ArrayLike | None = None,
    ignore_label: Any = None,
    sample_weight: Masks | None = None,
) -> Counts:
    """Count the pixels of every pair of true and predicted label.

    Parameters
    ----------
    y_true, y_pred : array of any shape, or list or 1-D object array of arrays of several sizes
        Masks of labels: bool, integers, whole floats or strings. The first axis is that of the images.
    labels : sequence of K labels, optional
        The order of rows and columns. By default the sorted labels of all counted pixels of either side.
    ignore_label : label, optional
        Pixels whose truth is this label count nowhere, whatever is predicted there.
    sample_weight : array (N,) or of the shape of `y_true`, or list of numbers or arrays, optional
        Non-negative weight of each image or of each pixel.

    Returns
    -------
    counts : ndarray (K, K), int64, or float64 with `sample_weight`
        Truth in rows, prediction in columns.

    Raises
    ------
    ValueError
        If shapes differ, or a counted pixel holds a label that is not in `labels`, or a prediction is
        `ignore_label` where the truth is not.

    Examples
    --------
    >>> confusion_counts([[0, 0, 255]], [[0, 255, 255]])
    array([[1, 1],
           [0, 1]])
    """
    stacks = _pair_up(y_true, y_pred, sample_weight)
    tallies = [_tally(*block) for stack in stacks for block in _blocks(*stack)]
    true, pred, amounts = _join(tallies, np.int64 if sample_weight is None else np.float64)
    if ignore_label is not None:
        is_counted = true != ignore_label
        true, pred, amounts = true[is_counted], pred[is_counted], amounts[is_counted]
    known = _check_labels(labels, true, pred, ignore_label)
    counts = np.zeros((len(known), len(known)), amounts.dtype)
    np.add.at(counts, (_find(true, known, "y_true"), _find(pred, known, "y_pred")), amounts)
    return counts


def count_indices(true_indices: Array, pred_indices: Array, n_classes: int, weight: Array | None = None) -> Counts:
    """Count the pixels of every pair of class indices: `confusion_counts` without the search for labels.

    Parameters
    ----------
    true_indices : ndarray of integers, -1 to n_classes - 1
        Class indices; -1 counts nowhere.
    pred_indices : ndarray of integers, 0 to n_classes - 1, of the same shape
        Predicted class indices.
    n_classes : int
        K, the number of classes.
    weight : ndarray (N,) or of the shape of `true_indices`, optional
        Non-negative weight of each image or of each pixel.

    Returns
    -------
    counts : ndarray (K, K), int64, or float64 with `weight`
        Truth in rows, prediction in columns.

    Examples
    --------
    >>> count_indices(np.array([0, 1, -1]), np.array([1, 1, 0]), n_classes=2)
    array([[0, 1],
           [0, 1]])
    """
    # One row more, at the top, takes the pixels of truth -1: cheaper than selecting the others.
    n_codes = (n_classes + 1) * n_classes
    counts = np.zeros(n_codes, np.int64 if weight is None else np.float64)
    for stack in _pair_up(true_indices, pred_indices, weight):
        for true_block, pred_block, block_weight in _blocks(*stack):
            true, pred = _to_integers(true_block), _to_integers(pred_block)
            _check_range(true, "true_indices", -1, n_classes)
            _check_range(pred, "pred_indices", 0, n_classes)
            codes = _pair_codes(true, pred, n_codes, n_classes)
            codes += codes.dtype.type(n_classes)  # -1 has wrapped round in unsigned types, and comes back
            counts += _count_codes(codes, n_codes, block_weight)
    return counts.reshape(n_classes + 1, n_classes)[1:]


def _pair_up(y_true: Masks, y_pred: Masks, sample_weight: Masks | None) -> list[Stacks]:
    """Return stacks of equal shape: one for two stacks, one per image where either side is a list."""
    true, pred = _to_arrays(y_true), _to_arrays(y_pred)
    weights = None if sample_weight is None else _to_arrays(sample_weight)
    for name, values in (("y_pred", pred), ("sample_weight", weights)):
        if values is not None and len(values) != len(true):
            raise ValueError(f"{name} must have one entry per image of y_true, {len(true)}; got {len(values)}.")
    if isinstance(true, np.ndarray) and isinstance(pred, np.ndarray) and not isinstance(weights, list):
        stacks = [(true, pred, weights)]
    else:
        each_weight = [None] * len(true) if weights is None else [weight[None] for weight in weights]
        stacks = [(t[None], p[None], w) for t, p, w in zip(true, pred, each_weight, strict=True)]
    for first_image, stack in enumerate(stacks):
        _check_shapes(*stack, first_image)
    return stacks


def _to_arrays(masks: Any) -> Array | list[Array]:
    """Return a stack as one array, and a list or object array of arrays as a list of arrays."""
    is_object = isinstance(masks, np.ndarray) and masks.dtype == object
    if not isinstance(masks, list | tuple) and not (is_object and masks.ndim == 1):
        # An object array of rank 2 or more holds labels: numpy finds their type anew.
        return np.atleast_1d(np.asarray(masks.tolist() if is_object else masks))
    if len(masks) == 0 or np.ndim(masks[0]) == 0:
        return np.asarray(list(masks))
    return [np.asarray(mask) for mask in masks]


def _check_shapes(true: Array, pred: Array, weight: Array | None, first_image: int) -> None:
    """Raise if images of one stack differ in shape, or if weights are of neither kind."""
    where, shape = f"[{first_image}]", true.shape[1:]
    if pred.shape[1:] != shape:
        raise ValueError(f"y_pred{where} must have the shape of y_true{where}, {shape}; got {pred.shape[1:]}.")
    if weight is not None and weight.shape not in (true.shape, true.shape[:1]):
        raise ValueError(
            f"sample_weight{where} must be one number or have the shape of y_true{where}, {shape}; "
            f"got shape {weight.shape[1:]}."
        )


def _blocks(true: Array, pred: Array, weight: Array | None) -> Iterator[Stacks]:
    """Cut a stack into flat blocks of about `_BLOCK_PIXELS`: parts of one image, or several small ones."""
    n_images = len(true)
    n_pixels = int(np.prod(true.shape[1:]))
    n_rows = max(1, _BLOCK_PIXELS // max(1, n_pixels))
    for row in range(0, n_images, n_rows):
        rows = slice(row, row + n_rows)
        true_rows, pred_rows = (mask[rows].reshape(-1, max(1, n_pixels)) for mask in (true, pred))
        for column in range(0, n_pixels, _BLOCK_PIXELS):
            block = (slice(None), slice(column, column + _BLOCK_PIXELS))
            true_block = true_rows[block]
            yield true_block.ravel(), pred_rows[block].ravel(), _weight_block(weight, rows, block, true_block)


def _weight_block(weight: Array | None, rows: slice, block: tuple[slice, slice], true_block: Array) -> Array | None:
    """Return the weights of a block's pixels, float64, repeated where they are given per image."""
    if weight is None:
        return None
    weight_rows = weight[rows].reshape(len(true_block), -1)
    values = np.asarray(weight_rows if weight_rows.shape[1] == 1 else weight_rows[block], np.float64)
    if not (values.min() >= 0 and values.max() < np.inf):  # written so that NaN fails
        raise ValueError("sample_weight must be finite and not negative; got others. Mask them with zeros.")
    return np.broadcast_to(values, true_block.shape).ravel()


def _tally(true: Array, pred: Array, weight: Array | None) -> tuple[Array, Array, Array]:
    """Return the distinct pairs of labels in a block: true labels, predicted labels, amounts."""
    true_labels, true_indices = _index_labels(true)
    pred_labels, pred_indices = _index_labels(pred)
    n_codes = len(true_labels) * len(pred_labels)
    codes = _pair_codes(true_indices, pred_indices, n_codes, len(pred_labels))
    if n_codes > _MAX_TABLE:
        found, codes = np.unique(codes, return_inverse=True)
        amounts = _count_codes(codes, len(found), weight)
    else:
        # Found by number, not by weight: a pixel of weight zero still shows that its label exists.
        numbers = _count_codes(codes, n_codes, None)
        found = np.flatnonzero(numbers)
        amounts = (numbers if weight is None else _count_codes(codes, n_codes, weight))[found]
    return true_labels[found // len(pred_labels)], pred_labels[found % len(pred_labels)], amounts


def _index_labels(block: Array) -> tuple[Array, Array]:
    """Return sorted candidates for a block's labels (all that occur, perhaps more) and indices into them."""
    if block.dtype.kind not in "biuf":
        if block.dtype == object:
            raise TypeError(f"Masks must hold numbers or strings; got {type(block[0]).__name__}.")
        return np.unique(block, return_inverse=True)
    integers = _to_integers(block)
    low, high = integers.min(), integers.max()
    span = int(high) - int(low) + 1
    if span > _WIDE_SPAN:
        return np.unique(integers.astype(np.int64), return_inverse=True)
    if span > _TIGHT_SPAN:
        is_high = integers == high
        if np.count_nonzero(is_high) + np.count_nonzero(integers == low) == integers.size:
            return np.array([low, high], np.int64), is_high.view(np.uint8)
    # The difference may wrap round in a signed type; read as unsigned, it is right again.
    offsets = (integers - low).view(f"u{integers.itemsize}")
    candidates = np.arange(int(low), int(high) + 1)
    if span <= _NARROW_SPAN:
        return candidates, offsets
    occurs = np.zeros(span, bool)
    occurs[offsets] = True
    return candidates[occurs], (np.cumsum(occurs) - 1)[offsets]


def _to_integers(block: Array) -> Array:
    """Return a block of numbers as integers of the same values."""
    if block.dtype.kind == "b":
        return block.view(np.uint8)
    if block.dtype.kind == "f":
        with np.errstate(invalid="ignore"):
            integers = block.astype(np.int64)
        is_odd = integers != block
        if is_odd.any():
            raise ValueError(
                f"Masks must hold labels, that is whole numbers; got {block[is_odd][0]}. "
                "Pass what predict returns, not what predict_proba returns."
            )
        return integers
    if block.dtype == np.uint64 and block.max() > np.iinfo(np.int64).max:
        raise ValueError(f"Labels must fit in int64; got {block.max()}.")
    return block


def _pair_codes(true_indices: Array, pred_indices: Array, n_codes: int, n_columns: int) -> Array:
    """Return true * n_columns + pred, in bytes if they suffice: numpy then works on 32 pixels at once."""
    dtype: Any = np.uint8 if n_codes < 2**8 else np.uint16 if n_codes < 2**16 else np.int64
    codes: Array = true_indices.astype(dtype, copy=False) * dtype(n_columns)
    codes += pred_indices.astype(dtype, copy=False)
    return codes


def _count_codes(codes: Array, n_codes: int, weight: Array | None) -> Array:
    """Return how often, or with what total weight, each code 0 .. n_codes - 1 occurs."""
    if weight is None and n_codes <= _FEW_CODES:
        return np.array([np.count_nonzero(codes == code) for code in range(n_codes)])
    if weight is None and codes.dtype == np.uint8 and codes.size % 2 == 0 and codes.size >= 2**8 * n_codes:
        # Two neighbours are counted as one 16-bit code: half the steps, and runs of one label, which make
        # np.bincount wait for its own last write, are half as long.
        pairs = np.bincount(codes.view(np.uint16).astype(np.int64), minlength=2**8 * n_codes)
        pairs = pairs.reshape(n_codes, 2**8)
        counts: Array = pairs.sum(axis=1) + pairs.sum(axis=0)[:n_codes]
        return counts
    # The cast is np.bincount's own, done faster.
    return np.bincount(codes.astype(np.int64, copy=False), weight, minlength=n_codes)


def _join(tallies: list[tuple[Array, Array, Array]], dtype: type) -> tuple[Array, Array, Array]:
    """Return the tallies of all blocks, one after the other."""
    if not tallies:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, dtype)
    true, pred, amounts = (list(column) for column in zip(*tallies, strict=True))
    _check_kind([*true, *pred])
    return np.concatenate(true), np.concatenate(pred), np.concatenate(amounts)


def _check_kind(groups: list[Array]) -> None:
    """Raise if some labels are numbers and others are strings."""
    if len({labels.dtype.kind in "biuf" for labels in groups}) > 1:
        raise ValueError(
            "y_true, y_pred and labels must hold labels of one kind; got numbers and strings. "
            "Convert one of them with astype."
        )


def _check_labels(labels: ArrayLike | None, true: Array, pred: Array, ignore_label: Any) -> Array:
    """Return the labels of rows and columns, in the order asked for."""
    if labels is None:
        union = np.union1d(true, pred)
        return union if ignore_label is None else union[union != ignore_label]
    known = np.asarray(labels)
    if known.ndim != 1 or known.size == 0 or len(np.unique(known)) < known.size:
        raise ValueError(f"labels must be a non-empty list of distinct labels; got {labels!r}.")
    if true.size:
        _check_kind([known, true])
    return known


def _find(values: Array, labels: Array, name: str) -> Array:
    """Return the index of each value in `labels`, or raise."""
    if values.size == 0:  # then `labels` may be empty too
        return np.zeros(0, np.int64)
    order = np.argsort(labels)
    position = np.searchsorted(labels, values, sorter=order)
    index: Array = order[np.minimum(position, len(labels) - 1)]
    is_unknown = labels[index] != values
    if is_unknown.any():
        unknown = values[is_unknown][0].item()
        raise ValueError(f"{name} must hold only the labels {labels}; got {unknown!r}. Add it to labels.")
    return index


def _check_range(indices: Array, name: str, low: int, n_classes: int) -> None:
    """Raise if a class index is out of range: it would be counted as another pair of classes."""
    if indices.size and not (low <= indices.min() and indices.max() < n_classes):
        raise ValueError(f"{name} must be from {low} to {n_classes - 1}; got {indices.min()} to {indices.max()}.")
