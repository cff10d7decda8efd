"""What a training is known by: its parameters and its data, described so that a file can hold and compare them."""

import json
import zlib
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

__all__ = ["checksum", "describe", "differences"]


def checksum(*arrays: np.ndarray, start: int = 0) -> int:
    """Return the CRC-32 of the bytes of arrays, after a checksum `start`.

    Examples
    --------
    >>> checksum(np.arange(3, dtype=np.uint8)) == checksum(np.array([0, 1, 2], dtype=np.uint8))
    True
    """
    for array in arrays:
        start = zlib.crc32(np.ascontiguousarray(array).data if array.dtype.kind != "O" else repr(array).encode(), start)
    return start


def describe(value: Any) -> Any:
    """Return what JSON can hold of a parameter: enough to tell whether another one acts the same.

    Numbers, strings and collections of them describe themselves; classes and functions are described by their
    import path, objects by class and parameters, modules by class and weights.

    Examples
    --------
    >>> describe({"lr": np.float32(0.5), "optimizer": nn.Linear})
    {'lr': 0.5, 'optimizer': 'torch.nn.modules.linear.Linear'}
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [describe(item) for item in (sorted(value, key=repr) if isinstance(value, set | frozenset) else value)]
    if isinstance(value, np.ndarray | Tensor):
        return describe(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value).tolist())
    if isinstance(value, nn.Module):
        weights = [tensor.detach().cpu().float().numpy() for tensor in value.state_dict().values()]
        return [_path_of(type(value)), checksum(*weights)]
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return _path_of(value)
    if isinstance(value, partial):
        return [describe(value.func), describe(value.args), describe(value.keywords)]
    return [_path_of(type(value)), describe(_parameters_of(value))]


def _parameters_of(value: Any) -> dict[str, Any]:
    if hasattr(value, "get_params"):
        return dict(value.get_params(deep=False))
    return {name: item for name, item in vars(value).items() if item is None or isinstance(item, str | int | float)}


def _path_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return a text for each entry in which two descriptions differ.

    Examples
    --------
    >>> differences({"lr": 0.1, "depth": 2}, {"lr": 0.2, "depth": 2})
    ['lr was 0.1, is 0.2']
    """
    before, now = (json.loads(json.dumps(description)) for description in (before, now))
    return [
        f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
