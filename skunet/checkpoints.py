"""Files of a training that goes on: written whole or not at all."""

import os
from pathlib import Path
from typing import Any

import skorch.callbacks

from skunet.interruption import is_in_search

__all__ = ["Checkpoint"]


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
