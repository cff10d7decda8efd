"""What is written of a prediction, noted in a file beside it, so that one that was killed goes on where it ended."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skunet.fingerprint import checksum, differences
from skunet.images import Results
from skunet.pixels import Window

__all__ = ["Journal", "file_of"]


def file_of(array: Any) -> Path | None:
    """Return the path of the file that holds an array, with its name inside; None where it is in memory, or unknown.

    Examples
    --------
    >>> file_of(np.zeros(3)) is None
    True
    """
    if isinstance(array, np.memmap):
        return None if array.filename is None else Path(str(array.filename))
    if hasattr(array, "file") and hasattr(array.file, "filename"):  # h5py
        return _within(Path(array.file.filename), array.name)
    root = getattr(getattr(array, "store", None), "root", None)  # zarr, in a folder
    return None if root is None else _within(Path(root), array.path)


def _within(path: Path, name: str) -> Path:
    parts = [part for part in name.split("/") if part]
    return path.with_name("-".join([path.name, *parts]))


class Journal:
    """The parts of images that are written, and what the values there add up to.

    A file of lines: what was predicted, then an image, a window and a checksum for each part. It is there from the
    first part on until all are written.

    Parameters
    ----------
    results : Results
    describe : callable
        Returns what JSON can hold of all that decides the values; asked only where there is a file.
    resume : bool
        Whether parts that an earlier journal names, and that still hold their values, count as written.

    Raises
    ------
    ValueError
        To resume, if the arrays are in no file, or were begun by something else.
    """

    def __init__(self, results: Results, describe: Callable[[], dict[str, Any]], *, resume: bool) -> None:
        self.results = results
        file = None if results.out is None else file_of(results.array(0))
        if file is None and resume:
            raise ValueError(
                "To resume, out must be in a file: a numpy.memmap, or a data set of zarr or HDF5; got "
                f"{'None' if results.out is None else type(results.array(0)).__name__}. "
                "Give such an out, or leave out resume=True."
            )
        self.path = None if file is None else file.with_name(f"{file.name}.progress")
        self.done: dict[tuple[int, Any], int] = {}
        self.header = ""
        if self.path is None:
            return
        description = describe()
        if resume:
            self._read(self.path, description)
        else:
            self.path.unlink(missing_ok=True)
        if not self.done:
            self.header = _line(description)

    def _read(self, path: Path, description: Mapping[str, Any]) -> None:
        if not path.exists():
            return
        rows = []
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the process was killed while it wrote this line
        if not rows:
            return
        changes = differences(rows[0], description)
        if changes:
            raise ValueError(
                f"out was begun by another prediction, as {path} says: {'; '.join(changes)}. "
                "Predict as then, or leave out resume=True to begin anew."
            )
        self.done = {(index, _frozen(spans)): total for index, spans, total in rows[1:]}
        path.write_text("".join(map(_line, rows if self.done else ())))  # without the broken one

    def is_done(self, index: int, window: Window) -> bool:
        """Return whether a window of an image is written, and holds what was written."""
        total = self.done.get((index, _frozen(_spans(window))))
        return total is not None and total == self._sum(index, window)

    def _sum(self, index: int, window: Window) -> int:
        return checksum(np.asarray(self.results.read(index, window)))

    def note(self, index: int, window: Window) -> None:
        """Note that a window of an image was written."""
        if self.path is None:
            return
        flush = getattr(getattr(self.results.array(index), "file", None), "flush", None)
        if flush is not None:
            flush()  # HDF5 keeps values in memory
        line = _line([index, _spans(window), self._sum(index, window)])
        with open(self.path, "a") as file:
            file.write(self.header + line)
        self.header = ""

    def close(self) -> None:
        """Remove the file: all is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _line(row: Any) -> str:
    return json.dumps(row) + "\n"


def _spans(window: Window) -> list[list[int]]:
    return [[int(span.start), int(span.stop)] for span in window]


def _frozen(spans: list[list[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(span) for span in spans)
