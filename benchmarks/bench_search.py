"""Time and memory of a grid search on the ISBI sections, with 1 and with 2 workers.

Each search runs in a process of its own, in turns. Memory is the largest sum over that process and its workers of
proportional set sizes, in which shared pages count once; it is read from /proc several times per second (Linux).
"""

import multiprocessing
import os
import threading
import time
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from paired import benchmark_arguments, summary, write_record

from skunet import UNetSegmenter
from skunet.files import pair_files
from skunet.model_selection import GridSearchCV

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "isbi2012"
GRID = {"depth": [2, 3], "filters": [4, 8]}
INTERVAL = 0.1  # seconds


def search(n_jobs: int) -> None:
    """Search over 4 candidates, 2 folds and 2 epochs, and fit the best once more: 9 fits."""
    paired = pair_files(DATA / "image", DATA / "label")
    X, y = (np.stack([iio.imread(path) for path in paths]) for paths in (paired.images, paired.masks))
    segmenter = UNetSegmenter(max_epochs=2, verbose=0, random_state=0)
    GridSearchCV(segmenter, GRID, cv=2, n_jobs=n_jobs, error_score="raise").fit(X, y)


def measure(n_jobs: int) -> dict[str, float]:
    """Run one search; return its seconds and megabytes."""
    process = multiprocessing.get_context("spawn").Process(target=search, args=(n_jobs,))
    peak = [0.0]
    start = time.perf_counter()
    process.start()
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    process.join()
    watcher.join()
    if process.exitcode != 0:
        raise RuntimeError(f"The search with n_jobs={n_jobs} ended with exit code {process.exitcode}.")
    return {"seconds": time.perf_counter() - start, "megabytes": peak[0]}


def _watch(process: Any, peak: list[float]) -> None:
    while process.is_alive():
        peak[0] = max(peak[0], sum(_megabytes(pid) for pid in _family(process.pid)))
        time.sleep(INTERVAL)


def _family(pid: int) -> set[int]:
    """Return a process and all that descend from it."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:  # it has ended
            continue
    family = {pid}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return family


def _megabytes(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def main() -> None:
    arguments = benchmark_arguments(__doc__.splitlines()[0], default_repeats=3)
    runs = [{n_jobs: measure(n_jobs) for n_jobs in (1, 2)} for _ in range(arguments.repeats)]
    results: dict[str, Any] = {"cores": os.cpu_count()}
    for unit in ("seconds", "megabytes"):
        one, two = ([run[n_jobs][unit] for run in runs] for n_jobs in (1, 2))
        ratios = [b / a for a, b in zip(one, two, strict=True)]
        results[unit] = {"n_jobs=1": summary(one), "n_jobs=2": summary(two), "ratio": summary(ratios)}
        medians = [results[unit][name]["median"] for name in ("n_jobs=1", "n_jobs=2", "ratio")]
        print(f"{unit:<10} n_jobs=1 {medians[0]:>8.1f}   n_jobs=2 {medians[1]:>8.1f}   ratio {medians[2]:.2f}", end="")
        print(f" ({min(ratios):.2f} to {max(ratios):.2f})")
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
