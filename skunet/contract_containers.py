"""Checks of what images come in: stacks, lists, several sizes, dtypes, memory layouts, files mapped into memory."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from skunet.contract import (
    TOLERANCE,
    ContractData,
    expect,
    expect_same_outputs,
    fit_fresh,
    predict_all,
)

DTYPES = ("int16", "uint16", ">u2", "int32", "int64", "float32", "float64")


def check_fit_containers(estimator: Any, data: ContractData) -> None:
    """Images of one size may come as a stack, a list or an object array: fit must learn the same from each."""
    stack = predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    for X, y in ((list(data.X), list(data.y)), (_as_objects(data.X), _as_objects(data.y)), (list(data.X), data.y)):
        fitted = fit_fresh(estimator, X, y)
        names = f"{type(X).__name__} and {type(y).__name__}"
        expect_same_outputs(stack, predict_all(fitted, data.X), f"fit must learn the same from {names} as from stacks")


def check_fit_several_sizes(estimator: Any, data: ContractData) -> None:
    """Images are rarely all of one size: fit must take a list of several, and predict return each in its own."""
    sizes = data.sizes()[:-1] + [data.X.shape[1:]] * 2
    pairs = [(data.crop(data.X, size)[i], data.crop(data.y, size)[i]) for i, size in enumerate(sizes)]
    X, y = [image for image, _ in pairs], [mask for _, mask in pairs]
    labels = fit_fresh(estimator, X, y).predict(X)
    shapes = [np.shape(mask) for mask in labels]
    expect(shapes == [mask.shape for mask in y], f"predict must return sizes {sizes}; got {shapes}.")


def check_predict_containers(estimator: Any, data: ContractData) -> None:
    """The container comes back as it was given, with the same in it: stack for stack, list for list."""
    fitted = fit_fresh(estimator, data.X, data.y)
    stack = predict_all(fitted, data.X)
    methods = [name for name in ("predict", "predict_proba") if hasattr(fitted, name)]
    for X, kind in ((data.X, "stack"), (list(data.X), "list"), (_as_objects(data.X), "object array")):
        for method in methods:
            result = getattr(fitted, method)(X)
            expect(_kind(result) == kind, f"{method} of a {kind} must return a {kind}; got a {_kind(result)}.")
        expect_same_outputs(
            stack, predict_all(fitted, X), f"A {kind} must give the same as a stack", tolerance=TOLERANCE
        )


def _as_objects(arrays: np.ndarray) -> np.ndarray:
    objects = np.empty(len(arrays), dtype=object)
    for index, array in enumerate(arrays):
        objects[index] = array
    return objects


def _kind(result: Any) -> str:
    if isinstance(result, np.ndarray):
        return "object array" if result.dtype == object and result.ndim == 1 else "stack"
    return type(result).__name__


def check_predict_sizes(estimator: Any, data: ContractData) -> None:
    """A mask has the size of its image, also where no network divides it evenly, and down to one pixel."""
    fitted = fit_fresh(estimator, data.X, data.y)
    for size in data.sizes():
        labels = fitted.predict(data.crop(data.X, size))
        expect(np.shape(labels) == (len(data.X), *size), f"predict of {size} pixels must keep it; got {labels.shape}.")
        if hasattr(fitted, "predict_proba"):
            shape = np.shape(fitted.predict_proba(data.crop(data.X, size)))
            expect(shape[2:] == size, f"predict_proba of {size} pixels must keep it; got {shape}.")


def check_predict_several_sizes(estimator: Any, data: ContractData) -> None:
    """Images of several sizes in one list must not influence each other."""
    fitted = fit_fresh(estimator, data.X, data.y)
    X = [data.crop(data.X, size)[index] for index, size in enumerate(data.sizes())]
    together = predict_all(fitted, X)
    for index, image in enumerate(X):
        alone = predict_all(fitted, [image])
        promise = f"An image of {image.shape} pixels in a list must be predicted as alone"
        expect_same_outputs(alone, together.select([index]), promise, tolerance=TOLERANCE)


def check_dtypes(estimator: Any, data: ContractData) -> None:
    """The same pixels are the same image in any dtype, at fit as at predict."""
    fitted = fit_fresh(estimator, data.X, data.y)
    expected = predict_all(fitted, data.X)
    for dtype in DTYPES:
        X = data.X.astype(dtype)
        promise = f"Images as {dtype} must be predicted as those as uint8"
        expect_same_outputs(expected, predict_all(fitted, X), promise, tolerance=TOLERANCE)
    for dtype in (">u2", "float32"):
        refitted = fit_fresh(estimator, data.X.astype(dtype), data.y)
        promise = f"fit must learn the same from images as {dtype} as from those as uint8"
        expect_same_outputs(expected, predict_all(refitted, data.X), promise, tolerance=TOLERANCE)


def check_memory_layouts(estimator: Any, data: ContractData) -> None:
    """Views, reversed, strided, read-only or in Fortran order, hold the same images as a plain array."""
    fitted = fit_fresh(estimator, data.X, data.y)
    expected = predict_all(fitted, data.X)
    for name, X in _layouts(data.X).items():
        promise = f"A {name} array must be predicted as a plain one"
        expect_same_outputs(expected, predict_all(fitted, X), promise, tolerance=TOLERANCE)
    masks = _layouts(data.y)
    for name, X in _layouts(data.X).items():
        refitted = fit_fresh(estimator, X, masks[name])
        expect_same_outputs(expected, predict_all(refitted, data.X), f"fit must learn the same from a {name} array")


def _layouts(array: np.ndarray) -> dict[str, np.ndarray]:
    read_only = array.copy()
    read_only.flags.writeable = False
    wide = np.repeat(array, 2, axis=-1)
    return {
        "Fortran-ordered": np.asfortranarray(array),
        "strided": wide[..., ::2],
        "reversed": np.ascontiguousarray(array[::-1, ..., ::-1])[::-1, ..., ::-1],
        "read-only": read_only,
    }


def check_memory_maps(estimator: Any, data: ContractData) -> None:
    """Workers of a search get large stacks as read-only files mapped into memory."""
    expected = predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        X, y = (_map_file(array, Path(folder) / name) for name, array in (("X", data.X), ("y", data.y)))
        mapped = predict_all(fit_fresh(estimator, X, y), X)
    expect_same_outputs(expected, mapped, "Memory-mapped stacks must give the same as those in memory")


def _map_file(array: np.ndarray, path: Path) -> np.ndarray:
    array.tofile(path)
    return np.memmap(path, dtype=array.dtype, mode="r", shape=array.shape)


def check_channel_axis(estimator: Any, data: ContractData) -> None:
    """Images without a channel axis are images of one channel, and must be treated as such."""
    expected = predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    fitted = fit_fresh(estimator, data.X[..., None], data.y)
    for X in (data.X, data.X[..., None]):
        promise = f"Fitted on (..., 1), X of shape {X.shape} must give the same as without that axis throughout"
        expect_same_outputs(expected, predict_all(fitted, X), promise, tolerance=TOLERANCE)


def check_colour(estimator: Any, data: ContractData) -> None:
    """Every channel is there to be learned from: a change of any one must be able to change the prediction."""
    fitted = fit_fresh(estimator, data.X_colour, data.y)
    expected = predict_all(fitted, data.X_colour)
    expect(expected.labels[0].shape == data.y.shape[1:], f"predict must drop channels; got {expected.labels[0].shape}.")
    for channel in range(data.X_colour.shape[-1]):
        X = data.X_colour.copy()
        X[..., channel] = 255 - X[..., channel]
        changed = predict_all(fitted, X)
        parts = [
            (one, other)
            for one, other in ((expected.probabilities, changed.probabilities), (expected.labels, changed.labels))
            if one is not None and other is not None
        ]
        differs = any(not np.array_equal(*pair) for part in parts for pair in zip(*part, strict=True))
        expect(differs, f"Channel {channel} must have an influence; turned upside down it had none.")
