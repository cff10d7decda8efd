"""Files of a training that goes on: the state to resume from, and the best segmenter so far."""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from skorch.callbacks import Callback

from skunet.fingerprint import differences
from skunet.interruption import is_in_search
from skunet.state_file import read_state, replace_file, write_state

__all__ = ["Checkpoint", "Resume"]

IDENTITY, TRAINING, BEST, LOCK = "run.json", "training.safetensors", "best.safetensors", "run.lock"
# What tells runs apart, and what a message calls it.
PARTS = (("parameters", ""), ("data", "data"))


class Checkpoint(Callback):  # type: ignore[misc]  # skorch is not typed
    """Write training to files after every epoch, to go on after a crash, and the best segmenter so far.

    Each call of `fit` or `partial_fit` writes to a folder of its own, so that the fits of a grid search, also in
    parallel, never share files. A file is replaced in one step: a run that is killed leaves the old or the new one,
    whole. What cannot be written raises; the segmenter then keeps the weights it has.

    Parameters
    ----------
    dirname : str or Path
        The folder for all runs; made where it is missing. "~" is the user's home.
    run : str or None
        Folder of this run in `dirname`; None takes the next free of run-0001, run-0002, ...
    monitor : str or None
        A record of the history, made by a callback that records `monitor + "_best"` too, as all scoring callbacks do:
        whether the epoch is the best so far. With None, and where no images are held out, the last epoch is.

    Attributes
    ----------
    folder_ : Path
        Where this fit writes `training.safetensors`, from which `Resume` goes on; `best.safetensors`, to be read by
        `UNetSegmenter.load`; and `run.json`, the parameters and what the data are known by.

    See Also
    --------
    Resume : Goes on from these files.
    """

    lock_: FileLock | None = None

    def __init__(
        self, dirname: str | Path = "runs", *, run: str | None = None, monitor: str | None = "valid_iou"
    ) -> None:
        self.dirname = dirname
        self.run = run
        self.monitor = monitor

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "lock_"}

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check the parameters, and note where this call of fit begins.

        Raises
        ------
        TypeError
            If `dirname` is no path.
        ValueError
            If `run` is more than the name of a folder, or given in a search.
        NotADirectoryError
            If `dirname` is a file.
        """
        self.first_epoch_ = len(net.history)
        parent = _folder_of_runs(self.dirname)
        if parent.exists() and not parent.is_dir():
            raise NotADirectoryError(f"Checkpoint.dirname must be a folder or not be there yet; got a file, {parent}.")
        if self.run is not None and Path(self.run).name != self.run:
            raise ValueError(f"Checkpoint.run must be the name of a folder in dirname; got {self.run!r}.")
        if self.run is not None and is_in_search():
            raise ValueError(
                f"Checkpoint(run=...) must be None in a search, as its fits would share one folder; got {self.run!r}."
            )

    def open_run(self, folders: Iterable[Path], identity: dict[str, Any], *, n_epochs: int) -> dict[str, Any] | None:
        """Write to the first of the folders that no other fit writes to, or to a new one, until `close_run`.

        Parameters
        ----------
        folders : iterable of Path
            Of earlier runs to go on from.
        identity : dict
            What a new run is known by.
        n_epochs : int
            Epochs to train in all: a run that has more is not gone on with.

        Returns
        -------
        dict or None
            What the folder has of the training; None if nothing yet.
        """
        self.close_run()
        for folder in folders:
            self.lock_ = _lock(folder)
            if self.lock_ is None:
                continue
            state = _read_training(folder)
            if _is_within(state, n_epochs, folder):
                self.folder_ = folder
                return state
            self.close_run()
        self.folder_ = _make_folder(_folder_of_runs(self.dirname), self.run)
        self.lock_ = _lock(self.folder_)
        if self.lock_ is None:
            raise RuntimeError(f"{self.folder_} is being written to by another fit. Give Checkpoint another run.")
        for name in (TRAINING, BEST):  # of an older run of that name
            (self.folder_ / name).unlink(missing_ok=True)
        replace_file(self.folder_ / IDENTITY, json.dumps(identity, indent=1).encode())
        return None

    def close_run(self) -> None:
        """Let others go on from the files."""
        if self.lock_ is not None:
            self.lock_.release()
        self.lock_ = None

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Write the state, and the segmenter where this epoch is the best so far."""
        if self._is_best(net.history[self.first_epoch_ :]):
            net.save(self.folder_ / BEST)
        write_state(self.folder_ / TRAINING, net.training_state(), kind="training")

    def _is_best(self, records: list[dict[str, Any]]) -> bool:
        """Return whether the last epoch is the best of this call of fit, or of all."""
        if self.monitor is None:
            return True
        monitor, record = self.monitor.removesuffix("_best"), records[-1]
        name = f"{monitor}_best"
        if name not in record and "valid_batch_count" in record:
            known = sorted(key.removesuffix("_best") for key in record if key.endswith("_best"))
            raise ValueError(f"Checkpoint.monitor must be one of {known} or None; got {self.monitor!r}.")
        if any(row.get(name, True) for row in records):
            return bool(record.get(name, True))
        # The best of all was before this call.
        sign = -1 if monitor.endswith("loss") else 1
        return bool(sign * record[monitor] >= max(sign * row[monitor] for row in records))


def _read_training(folder: Path) -> dict[str, Any] | None:
    """Return the state in a folder that is locked, if there is one."""
    for leftover in folder.glob(".*.unfinished"):  # of a process that was killed as it wrote
        leftover.unlink(missing_ok=True)
    if not (folder / TRAINING).exists():
        return None
    try:
        return read_state(folder / TRAINING, kind="training")
    except ValueError as error:
        raise ValueError(f"{error} Or delete {folder}, to begin anew.") from error


def _is_within(state: dict[str, Any] | None, n_epochs: int, folder: Path) -> bool:
    """Return whether a run has no more than `n_epochs`; outside a search raise ValueError if it has."""
    n_done = 0 if state is None else len(state["history"])
    if n_done > n_epochs and not is_in_search():
        raise ValueError(
            f"max_epochs must be at least the {n_done} epochs of the run to resume, {folder}; got {n_epochs}. "
            "Train longer, or give another dirname to Checkpoint and Resume."
        )
    return n_done <= n_epochs


class Resume(Callback):  # type: ignore[misc]  # skorch is not typed
    """Go on where the files of a `Checkpoint` end.

    The same call of `fit`, with both callbacks, takes up its own last run in `dirname` and trains until `max_epochs`
    epochs are done in all, to the same weights, bit for bit, as if it had never ended. Where there is no run yet, it
    starts one; where the run was complete, its result is restored and nothing is trained. In a search each fit finds
    its own run; the fits that have none begin. Runs that another process is writing, and those of `partial_fit` and of
    warm starts, are passed over.

    A `LearningRateSchedule` depends on `max_epochs` and on the seconds of a `TimeLimit`, which must then be the same
    too. What a `TimeLimit` cuts short is not the same to the bit. Not known are the pixels of a torch Dataset, and
    gradients that a `train_step` of your own keeps from one epoch to the next.

    Parameters
    ----------
    dirname : str or Path
        That of the `Checkpoint`.

    Raises
    ------
    ValueError
        At fit, if all runs in `dirname` are of other parameters or data (`max_epochs`, `verbose`, `device` and
        what only shows or limits training may differ), if the run has more than `max_epochs` epochs, if there is no
        Checkpoint with the same `dirname`, or if a file was cut short or altered.

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

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check that there is a `Checkpoint` to go on from.

        Raises
        ------
        ValueError
            If there is none, or one with another folder.
        """
        folders = [_folder_of_runs(checkpoint.dirname) for checkpoint in net.callbacks_of(Checkpoint)]
        own = _folder_of_runs(self.dirname)
        if [own] != folders:
            others = ", ".join(map(str, folders)) or "no Checkpoint"
            raise ValueError(
                f"Resume.dirname must be that of the one Checkpoint among the callbacks; got {str(own)!r} beside "
                f"{others}. Pass callbacks=[Checkpoint({self.dirname!r}), Resume({self.dirname!r})]."
            )

    def runs(self, identity: dict[str, Any]) -> Iterator[Path]:
        """Yield the folders of runs of the same parameters and data, the newest first."""
        differing: list[str] = []
        is_found = False
        for folder in _folders(_folder_of_runs(self.dirname)):
            changed = _compare(folder / IDENTITY, identity)
            if changed:
                differing.append(f"{folder}: {'; '.join(changed)}")
            elif changed is not None:
                is_found = True
                yield folder
        if differing and not is_found and not is_in_search():
            raise ValueError(
                f"Resume must find a run of the same parameters and data; got {differing[0]}. "
                "Fit with those of the run, or give another dirname to Checkpoint and Resume."
            )


def _folder_of_runs(dirname: Any) -> Path:
    if not isinstance(dirname, str | os.PathLike):
        raise TypeError(f"Checkpoint.dirname must be a path; got {dirname!r}.")
    return Path(dirname).expanduser()


def _folders(parent: Path) -> Iterator[Path]:
    """Yield the folders of runs, the newest first."""
    yield from (path.parent for path in sorted(parent.glob(f"*/{IDENTITY}"), key=_age))


def _age(path: Path) -> tuple[float, str]:
    state = path.parent / TRAINING
    return -(state if state.exists() else path).stat().st_mtime_ns, str(path)


def _compare(path: Path, identity: dict[str, Any]) -> list[str] | None:
    """Return in what a run differs from `identity`; None if it is no run of ours, or started from trained weights."""
    try:
        other = json.loads(path.read_text())
    except ValueError:
        return [f"{path.name} does not hold what a run is known by, but text that is no JSON"]
    if not isinstance(other, dict) or other.get("start") != identity["start"] or not {*identity} <= {*other}:
        return None
    return [text for part, name in PARTS for text in differences(other[part], identity[part], name)]


def _lock(folder: Path) -> FileLock | None:
    """Return a lock on the folder that ends with the process, or None if somebody else has it."""
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return None
    except NotImplementedError:  # a file system without locks
        pass
    return lock


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
