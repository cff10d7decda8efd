"""Hyperparameters in a file: values as they are, classes by name, and what a file cannot hold."""

import os
import warnings
from collections.abc import Collection, Iterable, Mapping
from importlib import import_module
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import nn
from torch.utils.data import DataLoader, Dataset

from skunet.state_values import is_storable

__all__ = ["choose_parameters", "describe_parameters"]

# Without these there is no prediction; whatever else a file cannot hold matters for training only.
NEEDED = ("module", "predict_nonlinearity", "postprocess")
# Of these rooms objects are stored, by class and parameters, as these parameters.
OBJECTS = {"skunet.postprocessing": "postprocess", "skunet.augmentation": "augment"}
# Where classes and functions are named and looked up, in this order. A name in a file leads nowhere else.
ROOTS = (
    *("skunet", "skunet.losses", "skunet.image_dataset", *OBJECTS),
    *("torch.nn", "torch.nn.functional", "torch.optim", "torch.utils.data", "skorch.dataset"),
)
COMPONENTS: dict[str, type] = {
    "module": nn.Module,
    "criterion": nn.Module,
    "optimizer": torch.optim.Optimizer,
    "dataset": Dataset,
    "iterator_train": DataLoader,
    "iterator_valid": DataLoader,
}


def describe_parameters(parameters: Mapping[str, Any], *, seed: int) -> dict[str, Any]:
    """Return what a file can hold of parameters.

    Parameters
    ----------
    parameters : mapping of str to value
        As from `get_params(deep=False)`.
    seed : int
        What a RandomState stands for.

    Returns
    -------
    dict of str to dict
        Of each parameter its "value"; or, of a class or function of skunet, torch or skorch, its "name"; of a step of
        `skunet.postprocessing` the name of its class and its "parameters", of a list with such a step its "items"; or,
        of anything else, as "missing" what it was.

    Examples
    --------
    >>> describe_parameters({"depth": 4, "module": nn.Conv2d, "augment": print}, seed=0)
    {'depth': {'value': 4}, 'module': {'name': 'torch.nn.Conv2d'}, 'augment': {'missing': 'builtins.print'}}
    """
    return {name: _describe(name, value, seed) for name, value in parameters.items()}


def _describe(parameter: str, value: Any, seed: int) -> dict[str, Any]:
    if isinstance(value, np.random.RandomState):
        return {"value": seed}
    if isinstance(value, os.PathLike):
        return {"value": os.fspath(value)}
    if parameter == "pretrained" and not isinstance(value, str):
        return {"value": None}  # the weights of the file have all that was learned there
    if isinstance(value, torch.device):
        return {"value": str(value)}
    if is_storable(value):
        return {"value": value}
    if isinstance(value, list | tuple):
        items = [_describe(parameter, item, seed) for item in value]
        return _missing(items) or {"items": items}
    if type(value).__module__ in OBJECTS and isinstance(value, BaseEstimator):
        described = describe_parameters(value.get_params(deep=False), seed=seed)
        return _missing(described.values()) or {
            "name": f"{type(value).__module__}.{type(value).__name__}",
            "parameters": described,
        }
    name = getattr(value, "__name__", "")
    for root in ROOTS:
        if name and _look_up(f"{root}.{name}", parameter) is value:
            return {"name": f"{root}.{name}"}
    if isinstance(value, type | FunctionType | BuiltinFunctionType):
        # Functions of torch that are written in C know no module.
        return {"missing": f"{value.__module__}.{value.__qualname__}" if value.__module__ else f"torch.{name}"}
    return {"missing": f"an instance of {type(value).__module__}.{type(value).__qualname__}"}


def _missing(described: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the first of several descriptions that says what a file cannot hold."""
    return next((item for item in described if "missing" in item), None)


def _look_up(name: str, parameter: str) -> Any:
    """Return the class or function of that name if it can be the parameter, else None."""
    root, _, attribute = name.rpartition(".")
    if root not in ROOTS or attribute.startswith("_"):
        return None
    found = getattr(import_module(root), attribute, None)
    if isinstance(found, type):
        expected = COMPONENTS.get(parameter, nn.Module if "__" in parameter else ())
        if root in OBJECTS:
            expected = BaseEstimator if parameter == OBJECTS[root] else ()
        return found if issubclass(found, expected) else None
    is_function = root == "torch.nn.functional" and isinstance(found, FunctionType | BuiltinFunctionType)
    return found if is_function and (_is_needed(parameter) and parameter != "module") else None


def _is_needed(parameter: str) -> bool:
    return parameter in NEEDED or parameter.startswith("module__")


def choose_parameters(
    described: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any],
    *,
    path: Any,
    stacklevel: int,
    default_callbacks: Collection[str] = (),
) -> dict[str, Any]:
    """Return parameters from their description, those that are given instead of those described.

    Parameters
    ----------
    described : mapping of str to dict
        By `describe_parameters`.
    given : mapping of str to value
    path : str or path
        What a message calls the file.
    stacklevel : int
        Of the warning.
    default_callbacks : collection of str
        Names of the callbacks that are there without a list of callbacks: what is set of them is kept.

    Returns
    -------
    dict of str to value
        Without those that have their default.

    Raises
    ------
    ValueError
        If a parameter without which there is no prediction is missing and not given, or a name is not known.

    Warns
    -----
    UserWarning
        If other parameters, callbacks excepted, are missing and not given.
    """
    missing = {name: item["missing"] for name, item in described.items() if "missing" in item and name not in given}
    if any(name.startswith("criterion__") for name in missing) and "criterion" not in given:
        missing.setdefault("criterion", "a loss of these parameters")  # it may not be made without them
    _check_needed({name: text for name, text in missing.items() if _is_needed(name)}, path)
    kept = {f"callbacks__{callback}" for callback in default_callbacks}
    # Parameters of a component that is not there have nowhere to go.
    left_out = [
        name
        for name in described
        if name in missing or (name not in given and _is_within(name, missing) and not _is_within(name, kept))
    ]
    # Callbacks have seen the training that the file is the result of: nobody expects them to come back.
    unexpected = sorted(name for name in left_out if name.partition("__")[0] != "callbacks")
    if unexpected:
        warnings.warn(
            f"{path} does not hold all that mattered in training; these parameters have their defaults: "
            f"{', '.join(unexpected)}. To train on, pass them to load.",
            UserWarning,
            stacklevel=stacklevel + 1,
        )
    rest = {name: item for name, item in described.items() if name not in left_out and name not in given}
    return {name: _value(name, item, path) for name, item in rest.items()} | dict(given)


def _is_within(parameter: str, others: Collection[str]) -> bool:
    """Return whether a parameter is one of others, or of a component that is one of them."""
    return any(parameter == other or parameter.startswith(f"{other}__") for other in others)


def _check_needed(missing: Mapping[str, str], path: Any) -> None:
    if missing:
        needs = " and ".join(f"{name}={text!r}" for name, text in missing.items())
        examples = ", ".join(
            f"{name}={text.rpartition('.')[2]}{'(...)' if text.startswith('an instance') else ''}"
            for name, text in missing.items()
        )
        raise ValueError(f"{path} needs {needs}, which a file cannot hold; pass {examples} to load.")


def _value(parameter: str, item: Mapping[str, Any], path: Any) -> Any:
    if "value" in item:
        return _available(item["value"]) if parameter == "device" else item["value"]
    if "items" in item:
        return [_value(parameter, part, path) for part in item["items"]]
    found = _look_up(str(item["name"]), parameter)
    if found is None:
        raise ValueError(
            f"{path} names {item['name']!r} as its {parameter}, which is not known here. Pass {parameter} to load."
        )
    if "parameters" in item:
        return found(**{name: _value(name, part, path) for name, part in item["parameters"].items()})
    return found


def _available(device: str) -> str:
    """Return the device if this machine has it, else "auto"."""
    try:
        torch.empty(0, device=None if device == "auto" else device)
    except (RuntimeError, AssertionError, NotImplementedError):
        return "auto"
    return device
