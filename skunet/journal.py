"""What is written of a prediction, noted in a file beside it, so that one that was killed goes on where it ended."""

import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from skunet.fingerprint import checksum, differences
from skunet.images import Results
from skunet.pixels import Pixels, Window

__all__ = ["Journal", "file_of"]

# Of each image so many windows, along its diagonal, of so many pixels per side tell it from others.
N_SAMPLES, SAMPLE_SIDE = 5, 64

Spans = tuple[tuple[int, int], ...]


def file_of(array: Any) -> Path | None:
    """Return the path of the file that holds an array, with its place inside; None where it is in none.

    Examples
    --------
    >>> file_of(np.zeros(3)) is None
    True
    """
    if isinstance(array, np.memmap):
        if array.filename is None:
            return None
        # Parts of one map are results of their own.
        first = np.frombuffer(array._mmap, dtype=np.uint8).ctypes.data  # type: ignore[attr-defined]
        place = str(array.ctypes.data - first) if isinstance(array.base, np.memmap) else ""
        return _within(Path(str(array.filename)), place)
    if hasattr(array, "file") and hasattr(array.file, "filename"):  # h5py
        return _within(Path(str(array.file.filename)), array.name)
    root = getattr(getattr(array, "store", None), "root", None)  # zarr, in a folder
    return None if root is None else _within(Path(root), array.path)


def _within(path: Path, name: str) -> Path | None:
    parts = [part for part in name.split("/") if part]
    return path.with_name("-".join([path.name, *parts])) if path.exists() else None


class Journal:
    """The parts of images that are written, and what the values there add up to.

    A file of lines: what was predicted; an image and what some of its pixels add up to; and an image, a window and a
    checksum for each part that is written. It is there from the first part on until all are written.

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
        self.resume = resume
        file = None if results.out is None else file_of(results.array(0))
        if file is None and resume:
            raise ValueError(
                "To resume, out must be in a file: a numpy.memmap, or a data set of zarr or HDF5; got "
                f"{'None' if results.out is None else type(results.array(0)).__name__}. "
                "Give such an out, or leave out resume=True."
            )
        self.path = None if file is None else file.with_name(f"{file.name}.progress")
        self.samples: dict[int, int] = {}
        self.done: dict[int, dict[Spans, int]] = {}
        self.pending = ""  # lines to write with the next part
        if self.path is None:
            return
        description = describe()
        if not (resume and self._read(self.path, description)):
            self.pending = _line(description)
            if not resume:
                self.path.unlink(missing_ok=True)

    def _read(self, path: Path, description: Mapping[str, Any]) -> bool:
        """Take over what an earlier journal says; return whether there is one."""
        rows: list[Any] = []
        for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break  # the process was killed while it wrote this line
        if not rows:
            path.unlink(missing_ok=True)
            return False
        changes = differences(rows[0], description)
        if changes:
            raise ValueError(
                f"out was begun by another prediction, as {path} says: {'; '.join(changes)}. "
                "Predict as then, or leave out resume=True to begin anew."
            )
        for row in rows[1:]:
            if len(row) == 2:
                self.samples[row[0]] = row[1]
            else:
                self.done.setdefault(row[0], {})[_frozen(row[1])] = row[2]
        path.write_text("".join(map(_line, rows)))  # without the broken one
        return True

    def begin(self, index: int, pixels: Pixels) -> None:
        """Take note of an image, or check that it is the one of an earlier call.

        Raises
        ------
        ValueError
            If some pixels, or the size, are others.
        """
        if self.path is None:
            return
        windows = [
            tuple(slice(at := (n - 1) * i // (N_SAMPLES - 1), min(at + SAMPLE_SIDE, n)) for n in pixels.size)
            for i in range(N_SAMPLES)
        ]
        found = checksum(np.array(pixels.size), *(pixels.read(window).numpy() for window in windows))
        if self.samples.get(index, found) != found:
            raise ValueError(
                f"Image {index} is another than the one that out was begun with, as {self.path} says. Predict the same "
                "images, or leave out resume=True to begin anew."
            )
        if index not in self.samples:
            self.pending += _line([index, found])
        # Only those that still hold what was written: a file may have been made anew.
        self.done[index] = {
            spans: total for spans, total in self.done.get(index, {}).items() if total == self._sum(index, spans)
        }

    def is_done(self, index: int, window: Window) -> bool:
        """Return whether all of a window of an image is written."""
        done = [
            [(max(first, span.start), min(last, span.stop)) for (first, last), span in zip(spans, window, strict=True)]
            for spans in self.done.get(index, ())
        ]
        done = [spans for spans in done if all(first < last for first, last in spans)]
        # On the grid of where parts begin and end, as the whole of a large image has too many pixels to ask one by one.
        edges = [
            np.unique([span.start, span.stop, *(n for spans in done for n in spans[axis])])
            for axis, span in enumerate(window)
        ]
        is_missing = np.ones([len(places) - 1 for places in edges], dtype=bool)
        for spans in done:
            cells = (np.searchsorted(places, span) for places, span in zip(edges, spans, strict=True))
            is_missing[tuple(slice(*cell) for cell in cells)] = False
        return not is_missing.any()

    def _sum(self, index: int, spans: Spans) -> int:
        return checksum(np.asarray(self.results.read(index, tuple(slice(*span) for span in spans))))

    def note(self, index: int, window: Window) -> None:
        """Note that a window of an image was written."""
        if self.path is None:
            return
        flush = getattr(getattr(self.results.array(index), "file", None), "flush", None)
        if flush is not None:
            flush()  # HDF5 keeps values in memory
        spans = _frozen((span.start, span.stop) for span in window)
        line = _line([index, spans, self._sum(index, spans)])
        try:
            with open(self.path, "a") as file:
                file.write(self.pending + line)
        except OSError as error:
            if self.resume:
                raise
            warnings.warn(
                f"{self.path} cannot be written ({error}): should this prediction be interrupted, it must begin anew.",
                UserWarning,
                stacklevel=2,
            )
            self.path = None
        self.pending = ""

    def close(self) -> None:
        """Remove the file: all is written."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


def _line(row: Any) -> str:
    return json.dumps(row) + "\n"


def _frozen(spans: Any) -> Spans:
    return tuple((int(start), int(stop)) for start, stop in spans)
