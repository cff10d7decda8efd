"""Peak memory of `fit` against the number of images, and of `predict` against the side of an image.

Each figure is of a process of its own, as the operating system counts it (Linux, macOS): its peak, less the peak of the
same work on the least data, less the arrays that hold images, masks and results.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from paired import write_record

from skunet import UNetSegmenter
from skunet.datasets import make_cells

NUMBERS = (16, 250, 500, 1000, 2000)  # of images of 256 x 256; the first is what others are compared with
SIDES = (512, 1024, 2048, 4096)
UNIT = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, in bytes


def fit(n_images: int) -> int:
    """Fit to so many images, a fifth of them held out for validation; return the bytes of images and masks."""
    X, y = make_cells(16, size=256, random_state=0)
    X, y = (np.tile(array, (-(-n_images // 16), 1, 1))[:n_images] for array in (X, y))
    UNetSegmenter(2, 8, max_epochs=1, verbose=0, random_state=0).fit(X, y)
    return int(X.nbytes + y.nbytes)


def predict(side: int) -> int:
    """Predict an image of so many pixels per side with 32 filters; return the bytes of image and labels."""
    X, y = make_cells(4, size=64, random_state=0)
    segmenter = UNetSegmenter(filters=32, max_epochs=0, verbose=0, random_state=0).fit(X, y)
    image = np.tile(X[:1], (1, side // 64, side // 64))
    return int(image.nbytes + segmenter.predict(image).nbytes)


def measure(work: str, amount: int) -> dict[str, float]:
    """Run one piece of work in a process of its own; return megabytes."""
    command = [sys.executable, __file__, "--work", work, "--amount", str(amount)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    figures: dict[str, float] = json.loads(run.stdout.splitlines()[-1])
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write; none by default")
    parser.add_argument("--work", choices=("fit", "predict"), help=argparse.SUPPRESS)
    parser.add_argument("--amount", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        data = {"fit": fit, "predict": predict}[arguments.work](arguments.amount)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * UNIT
        print(json.dumps({"data": data / 1e6, "peak": peak / 1e6}))
        return
    results: dict[str, Any] = {}
    for work, amounts, unit in (("fit", NUMBERS, "images of 256 x 256"), ("predict", SIDES, "pixels per side")):
        print(f"\n{work:<30} {'peak':>10} {'data':>10} {'beyond data and the first row':>32}")
        least: float | None = None
        for amount in amounts:
            figures = measure(work, amount)
            rest = figures["peak"] - figures["data"]
            least = rest if least is None else least
            results[f"{work}, {amount} {unit}"] = figures | {"beyond": rest - least}
            row = (f"{amount} {unit}", f"{figures['peak']:,.0f} MB", f"{figures['data']:,.0f} MB")
            print(f"{row[0]:<30} {row[1]:>10} {row[2]:>10} {rest - least:>29,.0f} MB")
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
