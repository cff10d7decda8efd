"""Values that files hold: turned into JSON and tensors, and back."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["as_bytes", "decode", "encode", "is_storable"]

# Other types of tensors are stored as their bytes.
DIRECT_TYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}
DTYPE_KINDS = "biufcSUmM"
KEY_TYPES = (str, int, float, bool, type(None), bytes, tuple, np.generic)


def encode(state: dict[Any, Any]) -> tuple[Any, dict[str, Tensor]]:
    """Return state as a JSON value and the tensors that it names.

    Parameters
    ----------
    state : dict
        Of what `write_state` takes.

    Raises
    ------
    TypeError
        If a value cannot be stored; names its place.
    ValueError
        If the state is nested too deep, or contains itself.

    Examples
    --------
    >>> encode({"depth": 4, "sides": (64, np.uint8(32)), "loss": float("inf")})[0]
    {'depth': 4, 'sides': {'$tuple': [64, {'$scalar': ['|u1', '20']}]}, 'loss': {'$float': 'inf'}}
    """
    encoder = _Encoder()
    try:
        return encoder.encode(state, "state"), encoder.tensors
    except RecursionError as error:
        raise ValueError("state must not be nested that deep, nor contain itself.") from error


def is_storable(value: Any) -> bool:
    """Return whether `write_state` takes a value.

    Examples
    --------
    >>> is_storable([1, "a", None]), is_storable([print])
    (True, False)
    """
    try:
        encode({"value": value})
    except (TypeError, ValueError):
        return False
    return True


class _Encoder:
    """Turns values into what JSON can hold, and collects tensors."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def encode(self, value: Any, place: str) -> Any:
        """Return a JSON value; `place` is what an error calls it."""
        kind = type(value)
        if value is None or kind in (bool, str):
            return value
        if kind is int:
            # Python turns no more than 4300 decimal digits into a number.
            return value if abs(value) < 1 << 63 else {"$int": hex(value)}
        if kind is float:
            return value if np.isfinite(value) else {"$float": repr(value)}
        if kind is list:
            return self._encode_items(value, place)
        if kind is tuple:
            return {"$tuple": self._encode_items(value, place)}
        if kind in (dict, OrderedDict):
            return self._encode_dict(value, place)
        return self._encode_array(value, place)

    def _encode_items(self, items: Any, place: str) -> list[Any]:
        return [self.encode(item, f"{place}[{index}]") for index, item in enumerate(items)]

    def _encode_dict(self, value: dict[Any, Any], place: str) -> Any:
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: self.encode(item, f"{place}[{key!r}]") for key, item in value.items()}
        pairs = []
        for key, item in value.items():
            if not isinstance(key, KEY_TYPES):
                raise TypeError(_not_storable(f"a key of {place}", key))
            pairs.append([self.encode(key, f"a key of {place}"), self.encode(item, f"{place}[{key!r}]")])
        return {"$dict": pairs}

    def _encode_array(self, value: Any, place: str) -> Any:
        if type(value) is bytes:
            return {"$bytes": self._add(as_bytes(value))}
        if isinstance(value, np.generic) and value.dtype.kind in DTYPE_KINDS:
            return {"$scalar": [value.dtype.str, value.tobytes().hex()]}
        if type(value) in (np.ndarray, np.memmap) and value.dtype.kind in DTYPE_KINDS:
            return {"$array": [self._add(as_bytes(value.tobytes())), value.dtype.str, list(value.shape)]}
        if isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_quantized or value.is_meta):
            tensor = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
            if tensor.dtype in DIRECT_TYPES:
                return {"$tensor": self._add(tensor)}
            name = self._add(tensor.reshape(-1).view(torch.uint8))
            return {"$tensor": name, "dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape)}
        raise TypeError(_not_storable(place, value))

    def _add(self, tensor: Tensor) -> str:
        name = str(len(self.tensors))
        self.tensors[name] = tensor
        return name


def _not_storable(place: str, value: Any) -> str:
    detail = f" of dtype {value.dtype}" if isinstance(value, np.ndarray | np.generic) else ""
    return (
        f"{place} is a {type(value).__name__}{detail}, which cannot be stored without pickle. "
        "Store numbers, text, arrays or tensors."
    )


def as_bytes(data: bytes) -> Tensor:
    """Return bytes as a tensor (n,) of uint8."""
    return torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy())


def decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return the value that a JSON value stands for."""
    if isinstance(value, list):
        return [decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    tag = next(iter(value), "")
    if tag.startswith("$"):
        return _decode_tagged(tag, value, tensors)
    return {key: decode(item, tensors) for key, item in value.items()}


def _decode_tagged(tag: str, value: dict[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    argument = value[tag]
    match tag:
        case "$int":
            return int(argument, 16)
        case "$float":
            return float(argument)
        case "$tuple":
            return tuple(decode(argument, tensors))
        case "$dict":
            return dict(decode(pair, tensors) for pair in argument)
        case "$bytes":
            return tensors[argument].cpu().numpy().tobytes()
        case "$scalar":
            return _array(bytes.fromhex(argument[1]), argument[0], ())[()]
        case "$array":
            return _array(tensors[argument[0]].cpu().numpy().tobytes(), argument[1], argument[2])
        case "$tensor":
            return _tensor(tensors[argument], value)
    raise ValueError(f"{tag} is unknown.")


def _array(data: bytes, dtype: str, shape: Any) -> np.ndarray:
    stored = np.dtype(dtype)
    if stored.kind not in DTYPE_KINDS:
        raise ValueError(f"{stored} is no dtype of stored arrays.")
    return np.ndarray(tuple(shape), stored, data).astype(stored.newbyteorder("="))


def _tensor(stored: Tensor, description: dict[str, Any]) -> Tensor:
    if "dtype" not in description:
        return stored
    dtype = getattr(torch, description["dtype"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{dtype} is no dtype of tensors.")
    return stored.view(dtype).reshape(description["shape"])
