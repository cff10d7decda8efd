"""Weights of another training to start from: what fits is taken over, what nearly fits is adapted."""

import os
import pickle
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from skunet.components import plain_name, uncompiled
from skunet.state_file import FORMAT, read_state

__all__ = ["Pretrained", "open_pretrained", "take_over"]

# Layers of `UNet` with a map per class; of other modules it is the last layer.
HEADS = ("head", "coarse_heads")
# What others call the weights in a file that holds more than these.
NESTED = ("state_dict", "model_state_dict", "model")

SAME_NETWORK = "Build the network with the same parameters, or pass other weights."


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what is known of them.

    Attributes
    ----------
    weights : dict of str to Tensor
        By the names of a `state_dict`.
    classes : list of labels or None
        In the order of the head's maps; None if not known.
    built_with : dict of str to value
        Arguments of the network, as far as they are known.
    """

    weights: dict[str, Tensor]
    classes: list[Any] | None = None
    built_with: dict[str, Any] = field(default_factory=dict)


def open_pretrained(source: Any) -> Pretrained:
    """Return the weights that `UNetSegmenter(pretrained=source)` starts from.

    Parameters
    ----------
    source : path, fitted segmenter or mapping of str to Tensor
        A path is that of `UNetSegmenter.save`, or of a state dict in safetensors format or written by `torch.save`,
        alone or as "state_dict", "model_state_dict" or "model". Nothing in a file is executed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the path is a folder, or a file holds something else.
    """
    if isinstance(source, Mapping):
        return Pretrained(_named_tensors(source))
    if isinstance(source, str | os.PathLike):
        return _read(Path(source).expanduser())
    classes = getattr(source, "classes_", None)
    return Pretrained(
        _named_tensors(uncompiled(source.module_).state_dict()),
        None if classes is None else classes.tolist(),
        dict(getattr(source, "built_with_", {})),
    )


def _named_tensors(state: Mapping[str, Any]) -> dict[str, Tensor]:
    if not any(isinstance(value, Tensor) for value in state.values()):
        state = next((state[name] for name in NESTED if isinstance(state.get(name), Mapping)), state)
    # Compiled modules put a prefix before each name; what is no tensor is no weight.
    return {plain_name(str(name)): value.detach() for name, value in state.items() if isinstance(value, Tensor)}


def _read(path: Path) -> Pretrained:
    if path.is_dir():
        raise ValueError(
            f"pretrained must be a file; got the folder {path}. Name one inside, as best.safetensors of a Checkpoint."
        )
    with open(path, "rb") as file:
        is_safetensors = file.read(10)[8:] == b'{"'
    try:
        if not is_safetensors:
            with warnings.catch_warnings(action="ignore"):  # of how others pickle
                state = torch.load(path, map_location="cpu", weights_only=True)
            if not isinstance(state, Mapping) or not _named_tensors(state):
                raise ValueError(f"{type(state).__name__} without tensors")
            return Pretrained(_named_tensors(state))
        with safetensors.safe_open(path, "pt") as opened:
            is_ours = (opened.metadata() or {}).get("format") == FORMAT
        if not is_ours:
            return Pretrained(safetensors.torch.load_file(path))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"pretrained must be a file that UNetSegmenter.save wrote, or a state dict in safetensors format or of "
            f"torch.save; got {path}, which is damaged or holds other things. Load what you trust yourself, and pass "
            "the segmenter or the state dict."
        ) from error
    state = read_state(path, kind="segmenter")
    fitted = state["fitted"]
    known = {"in_channels": fitted["n_channels_in_"], "spatial_ndim": fitted["spatial_ndim_"]}
    return Pretrained(_named_tensors(state["weights"]), fitted["classes_"].tolist(), state["built_with"] | known)


def take_over(
    module: nn.Module, pretrained: Pretrained, *, classes: Sequence[Any], built_with: Mapping[str, Any]
) -> str:
    """Write weights of another network into a network, layer by layer, and return how many in words.

    A layer whose names and shapes agree is taken over. A first convolution of an image with other channels gets the
    mean over the old ones in each of the new, scaled so that their sum stays. Of a head with other labels the maps of
    labels that both know are taken over. All other layers keep the weights they have.

    Parameters
    ----------
    module : torch.nn.Module
    pretrained : Pretrained
    classes : sequence of labels
        In the order of the head's maps.
    built_with : mapping of str to value
        Arguments of the network, for messages.

    Raises
    ------
    ValueError
        If no layer fits; says what differs.

    Warns
    -----
    UserWarning
        If less than half of the network's weights are taken over or adapted; says what differs.
    """
    own = _named_tensors(uncompiled(module).state_dict())
    pretrained = replace(pretrained, weights=_without_wrappers(pretrained.weights, own))
    fitting = _Fitting(own, pretrained, list(classes))
    taken: dict[str, Tensor] = {}
    for layer, names in fitting.layers.items():
        fitted = {name: tensor for name in names if (tensor := fitting.fit(name, layer)) is not None}
        if all(name in fitted or own[name].ndim == 0 for name in names):  # counters of steps do not matter
            taken |= fitted
    if not any(tensor.ndim > 1 for tensor in taken.values()):
        raise ValueError(
            f"pretrained must hold weights that fit the network; none of {len(pretrained.weights)} does: "
            f"{_differences(own, pretrained, built_with)}. {SAME_NETWORK}"
        )
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    weights = [name for name, _ in uncompiled(module).named_parameters()]
    as_they_are = [name for name in weights if name in taken and taken[name] is pretrained.weights[name]]
    new = [name for name in weights if name not in taken]
    n_adapted = len(weights) - len(as_they_are) - len(new)
    text = f"Pretrained weights: {len(as_they_are)} of {len(weights)} taken over, {n_adapted} adapted, {len(new)} new"
    text = f"{text} ({', '.join(new[:3])}{', ...' if len(new) > 3 else ''})." if new else f"{text}."
    if len(new) > len(weights) / 2:
        warnings.warn(
            f"{text} New ones are random. What differs: {_differences(own, pretrained, built_with)}. {SAME_NETWORK}",
            UserWarning,
            stacklevel=5,
        )
    return text


def _without_wrappers(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by known names: what wrappers put before all of them, as "module.", is left out."""
    names = list(weights)
    while names and not own.keys() & set(names):
        wrapper = names[0].partition(".")[0] + "."
        if not all(name.startswith(wrapper) for name in names):
            return weights
        names = [name.removeprefix(wrapper) for name in names]
    return dict(zip(names, weights.values(), strict=True))


class _Fitting:
    """Which weights fit into a network, and how."""

    def __init__(self, own: dict[str, Tensor], pretrained: Pretrained, classes: list[Any]) -> None:
        self.own, self.theirs = own, pretrained.weights
        self.layers: dict[str, list[str]] = {}
        for name in own:
            self.layers.setdefault(name.rpartition(".")[0], []).append(name)
        self.heads = [layer for layer in self.layers if layer.partition(".")[0] in HEADS] or list(self.layers)[-1:]
        self.labels = None if pretrained.classes is None else (pretrained.classes, classes)
        first = next((name for name, tensor in own.items() if tensor.ndim > 2), None)
        self.channels = self._other_channels(first)

    def fit(self, name: str, layer: str) -> Tensor | None:
        """Return what to write into a weight; None if nothing fits."""
        own, theirs = self.own[name], self.theirs.get(name)
        if theirs is None:
            return None
        if layer in self.heads and self.labels is not None and self.labels[0] != self.labels[1]:
            return _rows_by_label(own, theirs, *self.labels)
        if own.shape == theirs.shape:
            return theirs
        if self.channels is not None and self._other_channels(name) == self.channels:
            there, here = self.channels
            return (theirs.mean(dim=1, keepdim=True) * (there / here)).expand_as(own)
        return None

    def _other_channels(self, name: str | None) -> tuple[int, int] | None:
        """Return how many channels a convolution takes there and here, if that is all that differs."""
        own, theirs = self.own.get(name or ""), self.theirs.get(name or "")
        if own is None or theirs is None or own.ndim != theirs.ndim or own.ndim < 3 or own.shape == theirs.shape:
            return None
        is_all = own.shape[0] == theirs.shape[0] and own.shape[2:] == theirs.shape[2:]
        return (theirs.shape[1], own.shape[1]) if is_all else None


def _rows_by_label(own: Tensor, theirs: Tensor, labels: list[Any], own_labels: list[Any]) -> Tensor | None:
    """Return a weight of the head with the maps of the labels that both know; None if it has none."""
    has_maps = len(theirs) == len(labels) and len(own) == len(own_labels) if own.ndim and theirs.ndim else False
    common = [label for label in own_labels if label in labels]
    if not has_maps or own.shape[1:] != theirs.shape[1:] or not common:
        return None
    rows = own.clone()
    for label in common:
        rows[own_labels.index(label)] = theirs[labels.index(label)]
    return rows


def _differences(own: Mapping[str, Tensor], pretrained: Pretrained, built_with: Mapping[str, Any]) -> str:
    there, here = pretrained.built_with, built_with
    names = [name for name in there if name in here and there[name] != here[name] and name != "n_classes"]
    texts = [f"{name}={there[name]!r} there and {here[name]!r} here" for name in names]
    theirs = pretrained.weights
    common = next((name for name in own if name in theirs and own[name].shape != theirs[name].shape), None)
    if common is not None:
        texts.append(f"{common} is {tuple(theirs[common].shape)} there and {tuple(own[common].shape)} here")
    elif not texts and own.keys() & theirs.keys():
        texts.append("the others are not there")
    elif not texts:
        texts.append(f"weights are named {next(iter(theirs), '')!r}, ... there and {next(iter(own), '')!r}, ... here")
    return "; ".join(texts)
