"""Hyperparameters: their ranges, checked once at the start of fit, and those of estimators inside others."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import nn

__all__ = ["check_hyperparameters", "check_keywords", "check_spacing", "find_setting"]

Check = Callable[[Any], bool]

# Losses whose target is a map like the prediction, which masks of labels are not.
OF_MAPS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.HuberLoss, nn.KLDivLoss, nn.L1Loss, nn.MSELoss, nn.SmoothL1Loss)


def check_hyperparameters(parameters: Mapping[str, Any]) -> None:
    """Raise ValueError if a hyperparameter is out of its range.

    Parameters
    ----------
    parameters : mapping of str to value
        As from `UNetSegmenter.get_params(deep=False)`.

    Raises
    ------
    ValueError
        Names the parameter, its range and the value.

    Examples
    --------
    >>> check_hyperparameters({"depth": -1})
    Traceback (most recent call last):
    ValueError: depth must be a whole number from 0 to 6; got -1.
    """
    for name, (is_valid, rule) in RULES.items():
        if name in parameters and not is_valid(parameters[name]):
            raise ValueError(f"{name} must be {rule}; got {parameters[name]!r}.")


def check_keywords(estimator: type, keywords: Iterable[str]) -> None:
    """Raise TypeError for keyword arguments that are neither parameters nor `component__parameter`.

    Examples
    --------
    >>> check_keywords(dict, ["dept", "module__dropout"])
    Traceback (most recent call last):
    TypeError: dict got unexpected keyword arguments: 'dept' (did you mean 'depth'?).
    """
    # skorch hands over its own state under names that end in "_" and as "history"; scikit-learn's checks take the
    # name of **kwargs for a parameter, which must not raise before fit.
    taken = ("history", "kwargs")
    unknown = [name for name in keywords if "__" not in name and not name.endswith("_") and name not in taken]
    if unknown:
        texts = ", ".join(repr(name) + _suggestion(name) for name in sorted(unknown))
        raise TypeError(f"{estimator.__name__} got unexpected keyword arguments: {texts}.")


def check_spacing(spacing: float | Sequence[float] | None, ndim: int | None = None) -> None:
    """Raise ValueError unless these are distances between pixels, one or as many as axes where `ndim` says, or None."""
    if spacing is not None and not (np.isfinite(spacing).all() and np.all(np.asarray(spacing) > 0)):
        raise ValueError(f"spacing must be above 0; got {spacing!r}.")
    if ndim is not None and np.asarray(spacing).shape not in ((), (ndim,)):
        raise ValueError(f"spacing must be one number, or one per axis, {ndim} here; got {spacing!r}.")


def _suggestion(name: str) -> str:
    similar = get_close_matches(name, list(RULES), n=1) or [rule for rule in RULES if rule in name]
    return f" (did you mean {similar[0]!r}?)" if similar else ""


def _is_whole(value: Any, least: int, most: float = float("inf")) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral) and least <= int(value) <= most


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and bool(np.isfinite(float(value)))


def _is_size(value: Any) -> bool:
    """Whether this is a number of pixels, or one per axis."""
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str):
        return len(value) in (2, 3) and all(_is_whole(side, 1) for side in value)
    return _is_whole(value, 1)


def _is_auto(value: Any) -> bool:
    return isinstance(value, str) and value == "auto"  # an array would be compared number by number


def _is_criterion(value: Any) -> bool:
    kind = value if isinstance(value, type) else type(value)
    return callable(value) and not issubclass(kind, OF_MAPS)


def _is_scaling(value: Any) -> bool:
    if value is None or isinstance(value, str):
        return value in (None, "auto", "dataset", "image", "minmax")
    try:
        mean, std = (np.asarray(part, dtype=float) for part in value)
    except (TypeError, ValueError):
        return False
    return bool(np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all())


def _is_classes(value: Any) -> bool:
    if value is None:
        return True
    return not isinstance(value, str) and hasattr(value, "__iter__") and len(set(value)) >= 2


def _is_class_weight(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(_is_number(weight) and weight >= 0 for weight in value.values())
    return value is None or (isinstance(value, str) and value == "balanced")


def _is_split(value: Any) -> bool:
    return value is None or callable(value) or (_is_number(value) and 0 <= value < 1)


def _is_callbacks(value: Any) -> bool:
    if not isinstance(value, list):
        return value is None or (isinstance(value, str) and value == "disable")
    pairs = [item if isinstance(item, tuple) else ("", item) for item in value]
    return all(
        len(pair) == 2 and isinstance(pair[0], str) and (pair[1] is None or hasattr(pair[1], "on_train_begin"))
        for pair in pairs
    )


def _is_tta(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return True
    return isinstance(value, list | tuple) and all(isinstance(name, str) for name in value)


def _is_augment(value: Any) -> bool:
    if isinstance(value, str):
        return value == "default"
    is_function = callable(value) and not isinstance(value, type)
    return value is None or is_function or (_is_number(value) and value >= 0)


def _is_postprocess(value: Any) -> bool:
    steps = value if isinstance(value, list | tuple) else [value]
    return all(step is None or (not isinstance(step, type) and _acts(step)) for step in steps)


def _acts(step: Any) -> bool:
    return callable(step) or hasattr(step, "transform")


def _is_pretrained(value: Any) -> bool:
    if isinstance(value, Mapping):
        return len(value) > 0 and all(isinstance(name, str) for name in value)
    # A segmenter that was built, but not trained, has random weights.
    is_fitted = hasattr(value, "module_") and getattr(value, "is_trained_", True)
    return value is None or isinstance(value, str | PathLike) or is_fitted


def _is_random_state(value: Any) -> bool:
    return value is None or isinstance(value, np.random.RandomState) or _is_whole(value, 0, 2**32 - 1)


def _is_device(value: Any) -> bool:
    if value == "auto":
        return True
    try:
        kind = torch.device(value).type
    except (RuntimeError, TypeError):
        return False
    return kind != "cuda" or torch.cuda.is_available()


RULES: dict[str, tuple[Check, str]] = {
    "depth": (lambda value: _is_whole(value, 0, 6), "a whole number from 0 to 6"),
    "filters": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "module": (callable, "a class or function that makes a torch.nn.Module, or an instance of one"),
    "criterion": (
        _is_criterion,
        "a class of losses of logits and class indices, such as torch.nn.CrossEntropyLoss, or an instance of one",
    ),
    "optimizer": (callable, "a class of optimizers such as torch.optim.Adam"),
    "callbacks": (
        _is_callbacks,
        'None, "disable", or a list of callbacks such as skunet.callbacks.TimeLimit(60), or of pairs (name, callback)',
    ),
    "classes": (_is_classes, "None or a list of at least 2 distinct labels"),
    "scaling": (_is_scaling, '"auto", "dataset", "image", "minmax", a pair (mean, std) with std > 0, or None'),
    "patch_size": (
        lambda value: value is None or _is_size(value),
        "None, a number of pixels of at least 1, or one such number per axis",
    ),
    "batches_per_epoch": (
        lambda value: value is None or _is_auto(value) or _is_whole(value, 1),
        '"auto", None or a whole number of at least 1',
    ),
    "balanced_share": (lambda value: _is_number(value) and 0 <= value <= 1, "a number in 0..1"),
    "augment": (
        _is_augment,
        '"default", None, a strength of at least 0, skunet.augmentation.Augment(...) or another callable',
    ),
    "class_weight": (_is_class_weight, 'None, "balanced", or a dict from labels to weights of at least 0'),
    "ignore_label": (lambda value: np.ndim(value) == 0, "None or one label"),
    "precision": (
        lambda value: isinstance(value, str) and value in ("auto", "float32", "bfloat16", "float16"),
        '"auto", "float32", "bfloat16" or "float16"',
    ),
    "tile_size": (
        lambda value: value is None or _is_auto(value) or _is_size(value),
        '"auto", None, a number of pixels of at least 1, or one such number per axis',
    ),
    "tta": (_is_tta, 'True, False, or a list of names such as "flip_horizontal"'),
    "postprocess": (
        _is_postprocess,
        "None, a function of labels, a step such as skunet.postprocessing.RemoveSmall(20), or a list of these",
    ),
    "engine": (
        lambda value: isinstance(value, str) and value in ("torch", "openvino", "onnxruntime"),
        '"torch", "openvino" or "onnxruntime"',
    ),
    "memory_limit": (lambda value: value is None or (_is_number(value) and value > 0), "None or a number of bytes"),
    "norm_adaptation": (
        lambda value: _is_auto(value) or (_is_number(value) and 0 <= value <= 1),
        '"auto" or a number in 0..1',
    ),
    "pretrained": (
        _is_pretrained,
        "None, the path of a file of weights, a state dict, or a fitted segmenter (a search clones those in its grid: "
        "put a FrozenEstimator round them there)",
    ),
    "random_state": (_is_random_state, "None, a whole number from 0 to 2**32 - 1, or a RandomState"),
    "lr": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    "max_epochs": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    "batch_size": (
        lambda value: _is_auto(value) or _is_whole(value, 1) or value == -1,
        '"auto", a whole number of at least 1, or -1 for all images at once',
    ),
    "micro_batch_size": (lambda value: value is None or _is_whole(value, 1), "None or a whole number of at least 1"),
    "train_split": (
        _is_split,
        "a share of the images in (0, 1), None, or a callable such as skorch.dataset.ValidSplit(5)",
    ),
    "device": (_is_device, '"auto" or a device that this machine has, such as "cpu" or, with a GPU, "cuda:0"'),
}


def find_setting(estimator: Any, name: str) -> Any:
    """Return a parameter of an estimator, or of the first one inside it that has a value for it; else None.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from skunet import UNetSegmenter
    >>> find_setting(make_pipeline(UNetSegmenter(ignore_label=255)), "ignore_label")
    255
    """
    parameters = estimator.get_params()
    if name in parameters:
        return parameters[name]
    value = getattr(estimator, name, None)
    for part in parameters.values():
        if value is None and hasattr(part, "fit") and hasattr(part, "get_params") and not isinstance(part, type):
            value = find_setting(part, name)
    return value
