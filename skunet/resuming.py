"""The state of a training between two epochs: all that the next one depends on."""

from collections import Counter
from typing import Any

import torch
from skorch.callbacks import EpochTimer, PrintLog
from torch import Tensor, nn

from skunet.building import NetworkBuilding
from skunet.callbacks import Checkpoint, ProgressBar, Resume, TimeLimit
from skunet.components import uncompiled
from skunet.fingerprint import describe
from skunet.state_values import is_storable

__all__ = ["ResumableTraining"]

# What may differ between the two parts of a training: how long, where, and what is shown.
FREE_PARAMETERS = {"max_epochs", "device", "verbose", "compile", "tile_size", "use_caching", "warm_start"}
FREE_CALLBACKS = (Checkpoint, Resume, TimeLimit, ProgressBar, PrintLog, EpochTimer)
# Predictions that skorch's scoring callbacks keep until the next epoch begins.
CACHES = {"y_trues_", "y_preds_"}


class ResumableTraining(NetworkBuilding):
    """A training that can be described, taken apart and put together again."""

    history_: Any

    def describe_training(self) -> dict[str, Any]:
        """Return the parameters and the data that decide how training goes, as JSON can hold them."""
        parameters = {
            name: value
            for name, value in self.get_params(deep=False).items()
            if name not in FREE_PARAMETERS and not name.startswith("callbacks") and not name.endswith("__num_workers")
        }
        callbacks = [(name, item) for name, item in self.callbacks_ if not isinstance(item, FREE_CALLBACKS)]
        fitted = {"callbacks": dict(callbacks), "precision": self.precision_}
        return {"parameters": describe(parameters | fitted), "data": self.data_description_}

    def epochs_to_train(self, *, is_fresh: bool) -> int:
        """Return how many epochs this call has to train; a `Resume` callback first restores those done."""
        resume = next((item for _, item in self.callbacks_ if isinstance(item, Resume)), None)
        if resume is None or not is_fresh:
            return int(self.max_epochs)
        resume.resume(self)
        limits = [item for _, item in self.callbacks_ if isinstance(item, TimeLimit)]
        is_over = self.is_stopping_ or not all(limit.has_time() for limit in limits)
        return 0 if is_over else max(0, self.max_epochs - self.n_iter_)

    def training_state(self) -> dict[str, Any]:
        """Return what the next epoch depends on, but for parameters and data."""
        return {
            "seed": self.seed_,
            "is_stopping": self.is_stopping_,
            "module": uncompiled(self.module_).state_dict(),
            "criterion": self.criterion_.state_dict() if isinstance(self.criterion_, nn.Module) else {},
            "optimizer": self.optimizer_.state_dict(),
            "scaler": self.scaler_.state_dict(),
            "history": list(self.history_),
            "callbacks": {name: callback_state(callback) for name, callback in self.callbacks_},
        }

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go back to what `training_state` returned, with the same parameters and data."""
        self.seed_ = state["seed"]
        self.is_stopping_ = state["is_stopping"]
        uncompiled(self.module_).load_state_dict(state["module"])
        if isinstance(self.criterion_, nn.Module):
            self.criterion_.load_state_dict(state["criterion"])
        self.history_ = type(self.history_)(state["history"])
        for name, callback in self.callbacks_:
            if name in state["callbacks"]:
                load_callback_state(callback, state["callbacks"][name])
        self.optimizer_.load_state_dict(state["optimizer"])  # after schedulers, which set rates as they are made
        _lay_out(self.optimizer_)
        if self.scaler_.is_enabled():
            self.scaler_.load_state_dict(state["scaler"])


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give each tensor of the optimizer the layout of its parameter, without which steps are slower."""
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def callback_state(callback: Any) -> dict[str, Any]:
    """Return what a callback has gathered so far: its plain attributes that end in "_", and the state of its parts.

    A callback that has `state_dict` and `load_state_dict` answers for itself.
    """
    if hasattr(callback, "load_state_dict"):
        return {"own": callback.state_dict()}
    fitted = {name: value for name, value in vars(callback).items() if name.endswith("_") and name not in CACHES}
    return {
        "plain": {name: value for name, value in fitted.items() if is_storable(value)},
        "parts": {name: _part_state(value) for name, value in fitted.items() if _has_state(value)},
    }


def load_callback_state(callback: Any, state: dict[str, Any]) -> None:
    """Give a callback what `callback_state` returned of it."""
    if "own" in state:
        callback.load_state_dict(state["own"])
        return
    vars(callback).update(state["plain"])
    for name, part in state["parts"].items():
        own = getattr(callback, name)
        counters = [key for key in part if isinstance(vars(own).get(key), Counter)]
        own.load_state_dict(part | {key: Counter(part[key]) for key in counters})


def _part_state(part: Any) -> dict[str, Any]:
    state: dict[str, Any] = part.state_dict()
    return {key: dict(value) if isinstance(value, Counter) else value for key, value in state.items()}


def _has_state(value: Any) -> bool:
    return hasattr(value, "load_state_dict") and not isinstance(value, type)
