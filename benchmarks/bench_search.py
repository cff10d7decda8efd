"""Time and memory of a grid search on the ISBI sections, with 1 and with 2 workers.

Each search runs in a process of its own, in turns. Memory is the largest sum over that process and its workers of
proportional set sizes, in which shared pages count once; it is read from /proc once per second (Linux).
"""

import os
import subprocess
import sys
import time
from contextlib import suppress
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
INTERVAL = 1.0  # seconds; adding up the pages of a process halts it for a while


def search(n_jobs: int) -> None:
    """Search over 4 candidates, 2 folds and 2 epochs, and fit the best once more: 9 fits."""
    paired = pair_files(DATA / "image", DATA / "label")
    X, y = (np.stack([iio.imread(path) for path in paths]) for paths in (paired.images, paired.masks))
    segmenter = UNetSegmenter(max_epochs=2, verbose=0, random_state=0)
    GridSearchCV(segmenter, GRID, cv=2, n_jobs=n_jobs, error_score="raise").fit(X, y)


def measure(n_jobs: int) -> dict[str, float]:
    """Run one search; return its seconds and megabytes."""
    peak = 0.0
    start = time.perf_counter()
    # Workers end with a process of its own; those of a multiprocessing child it would wait for, idle.
    process = subprocess.Popen(
        [sys.executable, "-c", f"import bench_search; bench_search.search({n_jobs})"], cwd=Path(__file__).parent
    )
    while process.poll() is None:
        peak = max(peak, sum(_megabytes(pid) for pid in _family(process.pid)))
        with suppress(subprocess.TimeoutExpired):
            process.wait(INTERVAL)
    if process.returncode != 0:
        raise RuntimeError(f"The search with n_jobs={n_jobs} ended with exit code {process.returncode}.")
    return {"seconds": time.perf_counter() - start, "megabytes": peak}


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
