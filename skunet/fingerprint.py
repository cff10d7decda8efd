"""What a training is known by: its parameters and its data, described so that a file can hold and compare them."""

import json
import zlib
from collections.abc import Mapping
from functools import partial
from inspect import signature
from math import isfinite
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["checksum", "describe", "differences"]

# Entries of an array that is described by its values; of larger ones by a checksum.
LARGEST_IN_FULL = 1000
# Characters of a value in a message.
LONGEST_TEXT = 100


def checksum(*arrays: np.ndarray, start: int = 0) -> int:
    """Return the CRC-32 of the values and shapes of arrays, after a checksum `start`.

    Examples
    --------
    >>> checksum(np.arange(3, dtype=np.uint8)) == checksum(np.array([0, 1, 2], dtype=np.uint8))
    True
    """
    for array in arrays:
        is_text = array.dtype.kind in "OU"  # of any width
        start = zlib.crc32(f"{'U' if is_text else array.dtype.kind}{array.shape}".encode(), start)
        if is_text:
            start = zlib.crc32("\0".join(map(str, array.ravel().tolist())).encode(), start)
            continue
        if array.dtype.char == "g":  # padded with bytes of no meaning
            array = array.astype(np.float64)
        start = zlib.crc32(np.ascontiguousarray(array).data, start)
    return start


def describe(value: Any) -> Any:
    """Return what JSON can hold of a parameter: enough to tell whether another one acts the same.

    Numbers, strings and collections of them describe themselves; classes and functions are described by their
    import path, those without one by their code too; objects by class and parameters or public attributes; modules
    by those and their weights.

    Examples
    --------
    >>> describe({"lr": np.float32(0.5), "optimizer": nn.Linear})
    {'lr': 0.5, 'optimizer': 'torch.nn.modules.linear.Linear'}
    """
    return _describe(value, ())


def _describe(value: Any, above: tuple[Any, ...]) -> Any:
    """Return a description, given the objects that the value is a part of."""
    if any(value is item for item in above):
        return "itself"
    inner = partial(_describe, above=(*above, value))
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not isfinite(value):
        return repr(value)  # NaN would differ from itself
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): inner(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [inner(item) for item in value]
    if isinstance(value, set | frozenset):
        return [inner(item) for item in sorted(value, key=repr)]
    if isinstance(value, np.ndarray | Tensor):
        return _describe_array(_to_array(value) if isinstance(value, Tensor) else value)
    parts = [inner(part) for part in _parts_of(value)]
    return [_path_of(value), *parts] if parts else _path_of(value)


def _describe_array(array: np.ndarray) -> Any:
    if array.size <= LARGEST_IN_FULL:
        return describe(array.tolist())
    return [array.dtype.str, list(array.shape), checksum(array)]


def _to_array(tensor: Tensor) -> np.ndarray:
    tensor = tensor.detach().cpu()
    array: np.ndarray = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def _parts_of(value: Any) -> list[Any]:
    """Return what tells a value from others of its import path."""
    if isinstance(value, nn.Module):
        weights = [_to_array(tensor) for tensor in value.state_dict().values() if isinstance(tensor, Tensor)]
        settings = {name: _public(module) for name, module in value.named_modules()}
        return [checksum(*weights), {name: of for name, of in settings.items() if of}]
    if isinstance(value, partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, FunctionType) and "<" in value.__qualname__:  # a lambda, or made inside another function
        code, cells = value.__code__, value.__closure__ or ()
        constants = [item for item in code.co_consts if not isinstance(item, CodeType)]
        return [code.co_code.hex(), code.co_names, constants, [cell.cell_contents for cell in cells]]
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        return []
    if hasattr(value, "fingerprint_parts"):
        return list(value.fingerprint_parts())
    if hasattr(value, "get_params") and "deep" in signature(value.get_params).parameters:
        return [dict(value.get_params(deep=False))]
    if hasattr(value, "__dict__"):
        return [_public(value)]
    # An address is another one each time.
    return [] if " at 0x" in repr(value) else [repr(value)]


def _public(value: Any) -> dict[str, Any]:
    """Return the attributes that are settings by their names: neither private nor learned."""
    is_noise = {"training"} if isinstance(value, nn.Module) else set()
    return {name: of for name, of in vars(value).items() if not (name[0] == "_" or name[-1] == "_" or name in is_noise)}


def _path_of(value: Any) -> str:
    named = value if hasattr(value, "__qualname__") else type(value)
    return f"{named.__module__}.{named.__qualname__}"


def differences(before: Any, now: Any, name: str = "") -> list[str]:
    """Return a text for each entry in which two descriptions differ, however deep it lies.

    Examples
    --------
    >>> differences({"lr": 0.1, "module": {"depth": 2}}, {"lr": 0.1, "module": {"depth": 3}})
    ['module.depth was 2, is 3']
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        parts = [(f"{name}.{key}".lstrip("."), before.get(key), now.get(key)) for key in sorted({*before, *now})]
    elif _is_nested(before) and _is_nested(now) and len(before) == len(now):
        parts = [(name, one, other) for one, other in zip(before, now, strict=True)]
    else:
        return [] if _plain(before) == _plain(now) else [f"{name} was {_short(before)}, is {_short(now)}"]
    return [text for key, one, other in parts for text in differences(one, other, key)]


def _is_nested(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(item, list | Mapping) for item in value)


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]}..."
