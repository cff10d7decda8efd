"""The state of a training between two epochs: all that the next one depends on."""

import warnings
from collections import Counter
from typing import Any, TypeVar

import numpy as np
import skorch.callbacks as of_skorch
import torch
from torch import Tensor, nn

from skunet.building import NetworkBuilding
from skunet.callbacks import Checkpoint, LearningRateSchedule, ProgressBar, Resume, TimeLimit
from skunet.components import uncompiled
from skunet.fingerprint import checksum, describe
from skunet.interruption import is_in_search, is_raised_by_statement
from skunet.pretrained import open_pretrained
from skunet.state_values import is_storable

__all__ = ["ResumableTraining"]

# What may differ between the two parts of a training: how long, where, and what is shown.
FREE_PARAMETERS = {
    "max_epochs",
    "device",
    "verbose",
    "compile",
    "tile_size",
    "tta",
    "engine",
    "use_caching",
    "warm_start",
}
# Callbacks that show what happens: they begin anew with each process.
DISPLAYS: tuple[type, ...] = (ProgressBar, of_skorch.ProgressBar, of_skorch.PrintLog)
LOGGERS: tuple[type, ...] = (
    *(of_skorch.TensorBoard, of_skorch.WandbLogger, of_skorch.MlflowLogger),
    *(of_skorch.NeptuneLogger, of_skorch.SacredLogger),
)
FREE_CALLBACKS: tuple[type, ...] = (Checkpoint, Resume, of_skorch.EpochTimer, *DISPLAYS, *LOGGERS)
# Predictions that skorch's scoring callbacks keep until the next epoch begins.
CACHES = {"y_trues_", "y_preds_"}

CallbackOf = TypeVar("CallbackOf")


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
        has_horizon = bool(self.callbacks_of(LearningRateSchedule))
        # Candidates of a search may differ in their time; a schedule that runs by it acts on each step.
        free = FREE_CALLBACKS if has_horizon or is_in_search() else (*FREE_CALLBACKS, TimeLimit)
        fitted: dict[str, Any] = {
            "callbacks": {name: item for name, item in self.callbacks_ if not isinstance(item, free)},
            "precision": self.precision_,
        }
        if isinstance(self.random_state, np.random.RandomState):
            fitted["random_state"] = self.seed_
        if self.pretrained is not None:  # whatever the path or the object
            weights = open_pretrained(self.pretrained).weights.values()
            fitted["pretrained"] = checksum(*(weight.cpu().float().numpy() for weight in weights))
        if has_horizon:
            fitted["max_epochs"] = self.horizon_
        return {"parameters": describe(parameters | fitted), "data": self.data_description_}

    def callbacks_of(self, kind: type[CallbackOf]) -> list[CallbackOf]:
        """Return the callbacks of a class, in order."""
        return [item for _, item in self.callbacks_ if isinstance(item, kind)]

    def begin_training(self, n_epochs: int, *, is_fresh: bool) -> int:
        """Open the files of this training, where it has some, and return how many epochs it has still to train.

        With a `Resume` callback, training that starts from new weights (`is_fresh`) first goes to where the files of
        its last run end; `n_epochs` is the total then.
        """
        self.horizon_ = n_epochs
        checkpoints, resumes = self.callbacks_of(Checkpoint), self.callbacks_of(Resume)
        if not checkpoints:
            return n_epochs
        identity = self.describe_training() | {"start": "new weights" if is_fresh else "trained weights"}
        folders = resumes[0].runs(identity) if resumes and is_fresh else iter(())
        state = checkpoints[0].open_run(folders, identity, n_epochs=n_epochs)
        for other in checkpoints[1:]:  # with which there is no Resume
            other.open_run(iter(()), identity, n_epochs=n_epochs)
        if state is None:
            return n_epochs
        self.load_training_state(state)
        is_over = self.is_stopping_ or not all(limit.has_time() for limit in self.callbacks_of(TimeLimit))
        return 0 if is_over else n_epochs - self.n_iter_

    def end_training(self) -> None:
        """Close the files."""
        for checkpoint in self.callbacks_of(Checkpoint):
            checkpoint.close_run()

    def stop(self, error: KeyboardInterrupt) -> None:
        """End training: silently for a callback, with a word for Ctrl-C, and together with a search."""
        if is_raised_by_statement(error):
            return
        if is_in_search():
            raise error
        text = f"fit was interrupted in epoch {len(self.history)}; what was learned until then is kept."
        warnings.warn(f"{text} Call partial_fit to go on.", UserWarning, stacklevel=4)

    def fail(self, error: Exception) -> None:
        """Keep what was learned until an error that is not that of training itself, such as a full disk."""
        self.is_trained_ = self.n_iter_ > 0 and self._has_finite_weights()
        if self.is_trained_:
            error.add_note(
                f"The segmenter has the weights of epoch {self.n_iter_}, which need not be the best: predict, save and "
                "partial_fit work."
            )

    def training_state(self) -> dict[str, Any]:
        """Return what the next epoch depends on, but for parameters and data."""
        return {
            "seed": self.seed_,
            "is_stopping": self.is_stopping_,
            "module": uncompiled(self.module_).state_dict(),
            "frozen": [name for name, weight in self._own_parameters() if not weight.requires_grad],
            "criterion": self.criterion_.state_dict() if isinstance(self.criterion_, nn.Module) else {},
            "optimizer": self.optimizer_.state_dict(),
            "scaler": self.scaler_.state_dict(),
            "history": list(self.history_),
            "callbacks": {name: callback_state(callback) for name, callback in self.callbacks_},
        }

    def _own_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return list(uncompiled(self.module_).named_parameters())

    def load_training_state(self, state: dict[str, Any]) -> None:
        """Go back to what `training_state` returned, with the same parameters and data."""
        self.seed_ = state["seed"]
        self.is_stopping_ = state["is_stopping"]
        uncompiled(self.module_).load_state_dict(state["module"])
        for name, weight in self._own_parameters():  # skorch's Freezer acts in one epoch alone
            weight.requires_grad_(name not in state["frozen"])
        if isinstance(self.criterion_, nn.Module):
            self.criterion_.load_state_dict(state["criterion"])
        self.history_ = type(self.history_)(state["history"])
        for name, callback in self.callbacks_:
            if name in state["callbacks"] and not isinstance(callback, DISPLAYS):
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
