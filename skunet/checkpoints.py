"""Files of a training that goes on: the state to resume from, and the best segmenter so far."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skorch.callbacks import Callback

from skunet.fingerprint import differences
from skunet.interruption import is_in_search
from skunet.state_file import read_state, write_state

__all__ = ["Checkpoint", "Resume"]

IDENTITY, TRAINING, BEST = "run.json", "training.safetensors", "best.safetensors"


class Checkpoint(Callback):  # type: ignore[misc]  # skorch is not typed
    """Write training to files after every epoch, to go on after a crash, and the best segmenter so far.

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
        A record of the history that says whether an epoch is the best so far; with None, or where there is no such
        record as there are no validation images, the last epoch is.

    Attributes
    ----------
    folder_ : Path
        Where this fit writes `training.safetensors`, from which `Resume` goes on; `best.safetensors`, to be read by
        `UNetSegmenter.load`; and `run.json`, the parameters and what the data are known by.

    See Also
    --------
    Resume : Goes on from these files.
    """

    def __init__(
        self, dirname: str | Path = "runs", *, run: str | None = None, monitor: str | None = "valid_iou_best"
    ) -> None:
        self.dirname = dirname
        self.run = run
        self.monitor = monitor

    def initialize(self) -> "Checkpoint":
        """Forget the folder of an earlier fit."""
        if hasattr(self, "folder_"):
            del self.folder_
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Make the folder of this fit, unless one is resumed."""
        if self.run is not None and is_in_search():
            raise ValueError(
                f"Checkpoint(run=...) must be None in a search, as its fits would share one folder; got {self.run!r}."
            )
        if not hasattr(self, "folder_") and _find(net, Resume) is None:
            self.write_to(None, net)

    def write_to(self, folder: Path | None, net: Any) -> None:
        """Write to the folder of an earlier run from now on; None makes a new one."""
        self.folder_ = folder or _make_folder(Path(self.dirname), self.run)
        for leftover in self.folder_.glob(".*.unfinished"):  # of a process that was killed as it wrote
            leftover.unlink(missing_ok=True)
        if folder is None:
            (self.folder_ / TRAINING).unlink(missing_ok=True)  # of an older run of that name
        _write_identity(self.folder_ / IDENTITY, net.describe_training())

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write the state, and the segmenter where this epoch is the best so far."""
        if net.history[-1].get(self.monitor, True):
            net.save(self.folder_ / BEST)
        write_state(self.folder_ / TRAINING, net.training_state(), kind="training")


class Resume(Callback):  # type: ignore[misc]  # skorch is not typed
    """Go on where the files of a `Checkpoint` end.

    The same call of `fit`, with both callbacks, takes up its own last run in `dirname` and trains until `max_epochs`
    epochs are done in all, to the same weights, bit for bit, as if it had never ended. Where there is no run yet, it
    starts one; where the run was complete, its result is restored and nothing is trained. In a search each fit finds
    its own run; the fits that have none begin.

    Parameters
    ----------
    dirname : str or Path
        That of the `Checkpoint`.

    Raises
    ------
    ValueError
        At fit, if all runs in `dirname` are of other parameters or data (`max_epochs`, `verbose`, `device` and
        what only shows or limits training may differ), or if a file was cut short or altered.

    Examples
    --------
    >>> from tempfile import mkdtemp
    >>> from skunet import UNetSegmenter
    >>> from skunet.callbacks import Checkpoint, Resume
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(6, size=32, random_state=0)
    >>> folder = mkdtemp()
    >>> segmenter = UNetSegmenter(depth=1, filters=4, max_epochs=1, verbose=0, random_state=0)
    >>> segmenter.set_params(callbacks=[Checkpoint(folder), Resume(folder)]).fit(X, y).n_iter_
    1
    >>> segmenter.set_params(max_epochs=3).fit(X, y).n_iter_  # of which two are new
    3
    """

    def __init__(self, dirname: str | Path = "runs") -> None:
        self.dirname = dirname

    def resume(self, net: Any) -> None:
        """Bring a net that is about to train to where its last run ended, if there is one."""
        folder = self._find_run(net.describe_training())
        checkpoint = _find(net, Checkpoint)
        if checkpoint is not None:
            checkpoint.write_to(folder, net)
        if folder is not None and (folder / TRAINING).exists():
            net.load_training_state(read_state(folder / TRAINING, kind="training"))

    def _find_run(self, identity: dict[str, Any]) -> Path | None:
        """Return the folder of the newest run of the same parameters and data."""
        differing: list[str] = []
        for folder in _runs(Path(self.dirname)):
            other = _read_identity(folder / IDENTITY)
            changed = differences(other["parameters"], identity["parameters"])
            changed += [f"data: {text}" for text in differences(other["data"], identity["data"])]
            if not changed:
                return folder
            differing = differing or [f"{folder}: {'; '.join(changed)}"]
        if differing and not is_in_search():
            raise ValueError(
                f"Resume must find a run of the same parameters and data; got {differing[0]}. "
                "Fit with those of the run, or give another dirname to Checkpoint and Resume."
            )
        return None


def _find(net: Any, kind: type) -> Any:
    return next((callback for _, callback in net.callbacks_ if isinstance(callback, kind)), None)


def _runs(parent: Path) -> Iterator[Path]:
    """Yield the folders of runs, the newest first."""
    yield from (path.parent for path in sorted(parent.glob(f"*/{IDENTITY}"), key=_age))


def _age(path: Path) -> tuple[float, str]:
    state = path.parent / TRAINING
    return -(state if state.exists() else path).stat().st_mtime_ns, str(path)


def _write_identity(path: Path, identity: dict[str, Any]) -> None:
    unfinished = path.with_suffix(".unfinished")
    with open(unfinished, "w") as file:
        json.dump(identity, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _read_identity(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} must hold what a run is known by; got text that is no JSON: {error}.") from error


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
