"""Segmentation quality after equal wall time, on real data: skunet against loops, libraries and a random forest.

- skunet: `UNetSegmenter()` as it comes, with a `TimeLimit`.
- loop: a plain PyTorch U-Net in float32, random crops of 256 x 256 (32 x 64 x 64), flips, Adam, cross entropy.
- monai: BasicUNet with MONAI's transforms, DiceCELoss and sliding window.
- smp: segmentation_models_pytorch's U-Net on a ResNet-18 without pretrained weights, in the same loop; 2-D.
- forest: a random forest on scikit-image's multiscale features.

The time is that from arrays in memory to the fitted model; files are read before, test parts are predicted after it and
are used for nothing but the scores. Each cell (set, system, minutes, seed) has a process and a file of its own in
`--out`, written when it is done; those that are there are not run again. Sets and their splits: `accuracy_sets.py`;
scores: `accuracy_scores.py`.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accuracy_loops import DEVICE
from accuracy_sets import LOADERS, VOLUMES, AccuracySet, Fold, find_set
from accuracy_systems import SYSTEMS, System
from paired import PACKAGES, environment

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
RECORDS = Path(__file__).resolve().parent / "accuracy"
OTHER_PACKAGES = ("monai", "segmentation-models-pytorch", "scikit-image")

Record = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One figure to find: a system on a set, in so many minutes per fold."""

    set: str
    system: str
    minutes: float
    seed: int

    def __str__(self) -> str:
        return f"{self.set}, {self.system}, {self.minutes:g} minutes, seed {self.seed}"

    def path(self, out: Path) -> Path:
        """Return the file of its record."""
        return out / f"{self.set}-{self.system}-{self.minutes:g}min-seed{self.seed}.json"


def run_cell(cell: Cell, data: Path, out: Path) -> None:
    """Fit, score, and write the record."""
    path = find_set(data, cell.set)
    if path is None:
        raise FileNotFoundError(f"There is no set {cell.set} in {data}.")
    write_in_one_step(cell.path(out), measure(cell, LOADERS[cell.set](path), SYSTEMS[cell.system]))


def measure(cell: Cell, accuracy_set: AccuracySet, system: System) -> Record:
    """Return the record of a cell: scores and times as means over the folds, and those of each fold."""
    system.import_modules()
    folds = [_measure_fold(fold, accuracy_set, system, 60 * cell.minutes, cell.seed) for fold in accuracy_set.folds]
    means = {name: float(np.mean([fold[name] for fold in folds])) for name in ("fit_seconds", "predict_seconds")}
    names = folds[0]["scores"]
    return {
        **asdict(cell),
        "main": accuracy_set.main,
        "scores": {name: float(np.mean([fold["scores"][name] for fold in folds])) for name in names},
        **means,
        "folds": folds,
        "device": torch.cuda.get_device_name() if DEVICE == "cuda" else DEVICE,
        "threads": torch.get_num_threads(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment((*PACKAGES, *OTHER_PACKAGES)),
    }


def _measure_fold(fold: Fold, accuracy_set: AccuracySet, system: System, seconds: float, seed: int) -> Record:
    start = time.perf_counter()
    predict, done = system.fit(fold.train, seconds, seed)
    record = {"fit_seconds": time.perf_counter() - start, "predict_seconds": 0.0, **done, "scores": {}}
    for prefix, (X, y) in fold.tests.items():
        start = time.perf_counter()
        probabilities = predict(X)
        record["predict_seconds"] += time.perf_counter() - start
        record["scores"] |= {f"{prefix}{name}": score for name, score in accuracy_set.score(y, probabilities).items()}
    return record


def write_in_one_step(path: Path, record: Record) -> None:
    """Write beside the path, then rename, so that a record is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        unfinished.write_text(json.dumps(record, indent=2) + "\n")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_records(out: Path) -> list[Record]:
    """Return the records of a folder, in the order of their names."""
    return [json.loads(path.read_text()) for path in sorted(out.glob("*min-seed*.json"))]


def find_cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    """Yield the cells that can be run, and say which are left out."""
    missing = {name: SYSTEMS[name].missing_package() for name in arguments.systems}
    for name, package in missing.items():
        if package is not None:
            print(f"{name} is left out: the package {package} is not installed")
    systems = [name for name in arguments.systems if missing[name] is None]
    for name in arguments.sets:
        if find_set(arguments.data, name) is None:
            print(f"{name} is left out: it is not in {arguments.data}")
            continue
        spatial_ndim = 3 if name in VOLUMES else 2
        able = [system for system in systems if spatial_ndim in SYSTEMS[system].spatial_ndims]
        for minutes, seed, system in product(arguments.minutes, arguments.seeds, able):
            yield Cell(name, system, minutes, seed)


def run(cells: Sequence[Cell], data: Path, out: Path, is_again: bool) -> list[Cell]:
    """Run the cells one after the other, each in a process of its own; return those that failed."""
    failed = []
    for number, cell in enumerate(cells, start=1):
        if cell.path(out).exists() and not is_again:
            continue
        print(f"{number} of {len(cells)}: {cell}", flush=True)
        process = get_context("spawn").Process(target=run_cell, args=(cell, data, out))
        process.start()
        process.join()
        if process.exitcode != 0:
            print(f"failed with exit code {process.exitcode}: {cell}", file=sys.stderr)
            failed.append(cell)
    return failed


def format_table(records: Sequence[Record]) -> str:
    """Return a table per set and minutes: systems in rows, mean scores over the seeds with least and largest."""
    lines = []
    for (name, minutes), group in _grouped(records, "set", "minutes"):
        scores = list(group[0]["scores"])
        lines += ["", f"{name}, {minutes:g} minutes"]
        lines += ["".join([f"{'':<8}{'seeds':>6}{'fit s':>8}{'predict s':>11}", *(f"{score:>25}" for score in scores)])]
        for (system,), rows in _grouped(group, "system"):
            fit, predict = (np.mean([row[name] for row in rows]) for name in ("fit_seconds", "predict_seconds"))
            spreads = [_spread([row["scores"][score] for row in rows]) for score in scores]
            lines += [
                "".join([f"{system:<8}{len(rows):>6}{fit:>8.1f}{predict:>11.1f}", *(f"{s:>25}" for s in spreads)])
            ]
    return "\n".join(lines[1:])


def _grouped(records: Sequence[Record], *keys: str) -> Iterator[tuple[tuple[Any, ...], list[Record]]]:
    """Yield the values of the keys and the records that have them; sets and systems in the order of their lists."""
    ranks = {name: rank for rank, name in enumerate([*LOADERS, *SYSTEMS])}
    found = {tuple(record[key] for key in keys) for record in records}
    for values in sorted(found, key=lambda values: [ranks.get(value, value) for value in values]):
        yield values, [record for record in records if tuple(record[key] for key in keys) == values]


def _spread(values: list[float]) -> str:
    mean = f"{np.mean(values):.4f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.4f}-{max(values):.4f})"


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the main score of each set over the minutes, mean and extremes over the seeds."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sets = list(_grouped(records, "set"))
    figure = Figure(figsize=(4 * len(sets), 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for panel, ((name,), group) in zip(figure.subplots(1, len(sets), squeeze=False)[0], sets, strict=True):
        main = group[0]["main"]
        for (system,), rows in _grouped(group, "system"):
            points = [(minutes, [r["scores"][main] for r in each]) for (minutes,), each in _grouped(rows, "minutes")]
            means = np.array([np.mean(values) for _, values in points])
            ends = np.array([[min(values), max(values)] for _, values in points]).T
            panel.errorbar(
                [m for m, _ in points],
                means,
                abs(ends - means),
                marker="o",
                capsize=3,
                label=system,
                color=f"C{list(SYSTEMS).index(system)}",
            )
        panel.set(title=name, xlabel="minutes", ylabel=main, xscale="log")
        panel.legend()
    figure.savefig(path)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the sets; %(default)s by default")
    parser.add_argument("--sets", nargs="+", choices=list(LOADERS), default=list(LOADERS), help="all by default")
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS), default=list(SYSTEMS), help="all by default")
    parser.add_argument("--minutes", nargs="+", type=float, default=[3.0], help="time of a fit; 3 by default")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="0 by default")
    parser.add_argument(
        "--out", type=Path, default=RECORDS, help="folder of the records; by default `accuracy` beside this script"
    )
    parser.add_argument("--again", action="store_true", help="run cells again that have a record")
    parser.add_argument("--table", action="store_true", help="run nothing, print what is there")
    parser.add_argument("--plot", type=Path, help="picture to draw of all records; none by default")
    parsed = parser.parse_args(arguments)
    if min(parsed.minutes) <= 0:
        parser.error("--minutes must be more than 0")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = parse_arguments(arguments)
    failed = [] if parsed.table else run(list(find_cells(parsed)), parsed.data, parsed.out, parsed.again)
    records = read_records(parsed.out)
    print(format_table(records))
    if parsed.plot is not None and records:
        draw(records, parsed.plot)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
