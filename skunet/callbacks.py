"""What happens beside the training steps: scoring, early stopping, checkpoints, progress."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import skorch.callbacks
from skorch.callbacks import Callback
from tqdm.auto import tqdm

from skunet.confusion import count_indices
from skunet.interruption import is_in_search
from skunet.metrics import iou_from_counts
from skunet.patches import unpack_inputs

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "EpochLog",
    "EpochLoss",
    "IoUScoring",
    "ProgressBar",
    "default_callbacks",
]


def _past(net: Any, name: str) -> list[float]:
    """Return what earlier epochs recorded under `name`, those loaded from a checkpoint included."""
    return [row[name] for row in net.history[:-1] if name in row]


class IoUScoring(Callback):  # type: ignore[misc]  # skorch is not typed
    """Record the mean IoU over all pixels of the validation images, from one confusion matrix.

    Counts are summed as batches pass, so that its memory does not depend on the number of images. What is best
    is judged against the history: a run that goes on from a checkpoint does not take its first epoch for the best.

    Parameters
    ----------
    name : str
        Of the record; `name + "_best"` says whether the epoch is the best so far.

    Attributes
    ----------
    counts_ : ndarray of shape (K, K)
        Of the epoch that ended last; rows truth, columns prediction.
    """

    def __init__(self, name: str = "valid_iou") -> None:
        self.name = name

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the counts of the epoch before."""
        self.counts_ = np.zeros((len(net.classes_), len(net.classes_)))

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count the pixels of a validation batch."""
        if training:
            return
        inputs, labels = batch
        truth = net.codec_.encode_tensor(labels).cpu().numpy()  # (B, *S)
        predicted = kwargs["y_pred"].argmax(1).cpu().numpy()  # (B, *S)
        self.counts_ += count_indices(truth, predicted, len(self.counts_), _pixel_weights(inputs, truth.shape))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Record the score, where there are validation images."""
        if not self.counts_.any():
            return
        score = float(np.nanmean(iou_from_counts(self.counts_)))
        net.history.record(self.name, score)
        net.history.record(f"{self.name}_best", score > max(_past(net, self.name), default=-np.inf))


def _pixel_weights(inputs: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    _, _, weights = unpack_inputs(inputs)
    if weights is None:
        return None
    array = weights.cpu().numpy()
    return np.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)


class EpochLoss(skorch.callbacks.PassthroughScoring):  # type: ignore[misc]  # skorch is not typed
    """Record the mean loss of an epoch; what is best is judged against the history.

    A training loss that is not finite raises RuntimeError, as nothing can be learned from there on.
    """

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record the loss."""
        self.best_score_ = min(_past(net, self.name), default=np.inf)
        super().on_epoch_end(net, **kwargs)
        if self.on_train and not np.isfinite(net.history[-1, self.name]):
            raise RuntimeError(
                f"Training diverged: the loss is {net.history[-1, self.name]} in epoch {len(net.history)}. "
                f"Lower lr (now {net.lr:g}), or clip gradients with skorch's GradientNormClipping."
            )


class EarlyStopping(skorch.callbacks.EarlyStopping):  # type: ignore[misc]  # skorch is not typed
    """Stop when the validation score no longer improves, and restore the best weights.

    The best weights are kept in memory. Without validation images it does nothing.

    Parameters
    ----------
    monitor : str
    patience : int
        Epochs without improvement.
    lower_is_better : bool
    load_best : bool
    **kwargs
        As in `skorch.callbacks.EarlyStopping`.
    """

    def __init__(
        self,
        monitor: str = "valid_iou",
        patience: int = 15,
        lower_is_better: bool = False,
        load_best: bool = True,
        threshold: float = 0.0,
        threshold_mode: str = "abs",
        sink: Callable[[str], None] = tqdm.write,
    ) -> None:
        super().__init__(
            monitor=monitor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            lower_is_better=lower_is_better,
            sink=sink,
            load_best=load_best,
        )

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Compare the score with the best so far."""
        if self.monitor in net.history[-1]:
            super().on_epoch_end(net, **kwargs)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Restore the best weights."""
        if net.history:
            super().on_train_end(net, **kwargs)
        self.best_model_weights_ = None

    def _sink(self, text: str, verbose: int) -> None:
        if verbose:
            self.sink(text)


class Checkpoint(skorch.callbacks.Checkpoint):  # type: ignore[misc]  # skorch is not typed
    """Write the best weights to files whenever the validation score improves.

    Each fit writes to a folder of its own, so that fits in a grid search, also in parallel, never share files.
    A file is replaced in one step: a run that is killed leaves the old or the new one, whole. What cannot be
    written raises.

    Parameters
    ----------
    dirname : str or Path
        The folder for all runs; made where it is missing.
    run : str or None
        Folder of this run in `dirname`; None takes the next free of run-0001, run-0002, ...
    monitor : str or None
        A record of the history that says whether to write; None writes after every epoch.
    load_best : bool
        Load the last files written when training ends.
    event_name : str
        Of the record that says that files were written.

    Notes
    -----
    The files hold weights and their history, to go back to with `segmenter.load_params(f_params=...)` on the same
    segmenter, or one fitted on the same data with `max_epochs=0`. They do not hold labels and scaling: a segmenter to
    take along is `joblib.dump(segmenter, path)`.

    Attributes
    ----------
    folder_ : Path
        Where this fit writes `params.pt`, `optimizer.pt` and `history.json`.
    """

    def __init__(
        self,
        dirname: str | Path = "runs",
        *,
        run: str | None = None,
        monitor: str | None = "valid_iou_best",
        load_best: bool = False,
        event_name: str = "event_cp",
    ) -> None:
        super().__init__(monitor=monitor, dirname=dirname, load_best=load_best, event_name=event_name, f_criterion=None)
        self.run = run

    def _get_param_names(self) -> list[str]:
        return ["dirname", "run", "monitor", "load_best", "event_name"]  # what __init__ takes, so that clone works

    def initialize(self) -> "Checkpoint":
        """Forget the folder of an earlier fit."""
        if hasattr(self, "folder_"):
            del self.folder_
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Make the folder of this fit."""
        if hasattr(self, "folder_"):
            return
        if self.run is not None and is_in_search():
            raise ValueError(
                f"Checkpoint(run=...) must be None in a search, as its fits would share one folder; got {self.run!r}."
            )
        self.folder_ = _make_folder(Path(self.dirname), self.run)

    @property
    def f_history_(self) -> str:
        """Where the history is."""
        return str(self._folder() / self.f_history)

    def _folder(self) -> Path:
        return getattr(self, "folder_", Path(self.dirname) / (self.run or ""))

    def _format_target(self, net: Any, f: str | None, idx: int) -> str | None:
        name = super()._format_target(net, f, idx)
        return None if name is None else str(self._folder() / Path(name).name)

    def _save_params(self, f: str, net: Any, f_name: str, log_name: str) -> None:  # noqa: ARG002
        unfinished = f"{f}.unfinished"
        net.save_params(**{f_name: unfinished})
        with open(unfinished, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, f)


def _make_folder(parent: Path, run: str | None) -> Path:
    if run is not None:
        (parent / run).mkdir(parents=True, exist_ok=True)
        return parent / run
    number = 1
    while True:
        try:  # making the folder is what claims it, also against other processes
            (parent / f"run-{number:04}").mkdir(parents=True)
            return parent / f"run-{number:04}"
        except FileExistsError:
            number += 1


class ProgressBar(Callback):  # type: ignore[misc]  # skorch is not typed
    """Show patches done and left, patches per second, time left, training loss and validation IoU.

    On standard error where that is a terminal, or in a notebook; nowhere with `verbose=0`.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the bar of an earlier fit."""
        self.bar_: Any = None

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open the bar at the first epoch, when the number of patches is known."""
        if self.bar_ is None and net.verbose and (_is_notebook() or sys.stderr.isatty()):
            self.bar_ = tqdm(total=net.max_epochs * net.patches_per_epoch_, unit="patch", leave=False)
            self.shown_: dict[str, str] = {}

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:  # noqa: ARG002
        """Move the bar by a training batch."""
        if self.bar_ is None or not training:
            return
        self.shown_["loss"] = f"{net.history[-1, 'batches', -1, 'train_loss']:.3f}"
        self.bar_.set_postfix(self.shown_, refresh=False)
        self.bar_.update(len(batch[1]))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Show the validation score."""
        if self.bar_ is None:
            return
        if "valid_iou" in net.history[-1]:
            self.shown_["IoU"] = f"{net.history[-1, 'valid_iou']:.3f}"
        self.bar_.set_postfix(self.shown_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the bar away."""
        if self.bar_ is not None:
            self.bar_.close()
        self.bar_ = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"bar_": None}  # a bar belongs to a terminal


def _is_notebook() -> bool:
    return any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)


class EpochLog(skorch.callbacks.PrintLog):  # type: ignore[misc]  # skorch is not typed
    """Print a line per epoch, above the progress bar; nothing with `verbose=0`."""

    def __init__(
        self,
        keys_ignored: Any = None,
        sink: Callable[[str], None] = tqdm.write,
        tablefmt: str = "simple",
        floatfmt: str = ".4f",
        stralign: str = "right",
    ) -> None:
        super().__init__(keys_ignored=keys_ignored, sink=sink, tablefmt=tablefmt, floatfmt=floatfmt, stralign=stralign)

    def format_row(self, row: Any, key: str, color: str) -> Any:
        """Format one number; in colour where it is the best so far and a terminal shows it."""
        return super().format_row(row if sys.stdout.isatty() else {key: row[key]}, key, color)

    def _sink(self, text: str, verbose: int) -> None:
        if verbose:
            self.sink(text)


def default_callbacks() -> list[tuple[str, Callback]]:
    """Return the callbacks of every fit, by name."""
    return [
        ("epoch_timer", skorch.callbacks.EpochTimer()),
        ("train_loss", EpochLoss("train_loss", on_train=True)),
        ("valid_loss", EpochLoss("valid_loss")),
        ("iou", IoUScoring()),
        ("early_stopping", EarlyStopping()),
        ("progress", ProgressBar()),
        ("print_log", EpochLog()),
    ]
