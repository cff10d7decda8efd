"""How the time of training and prediction grows with images, pixels, filters and depth: exponents of power laws.

An exponent of 1 means that twice as much takes twice as long. All sizes of a row are run in turns, and the power law is
fitted to the medians. For the depth it is the ratio from one level to the next.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
from paired import benchmark_arguments, write_record

from skunet import UNetSegmenter
from skunet.datasets import make_cells

USUAL = {"images": 8, "side": 128, "filters": 16, "depth": 3}
SIZES = {
    "images": (4, 8, 16, 32),
    "side": (64, 128, 256, 512),
    "filters": (8, 16, 32, 64),
    "depth": (1, 2, 3, 4, 5),
}


def prepare(images: int, side: int, filters: int, depth: int) -> dict[str, Callable[[], Any]]:
    """Return an epoch of training and a prediction of all images."""
    X, y = make_cells(images, size=side, random_state=0)
    segmenter = UNetSegmenter(depth, filters, max_epochs=1, train_split=None, verbose=0, random_state=0).fit(X, y)
    return {"fit": lambda: segmenter.partial_fit(X, y), "predict": lambda: segmenter.predict(X)}


def medians(works: list[Callable[[], Any]], repeats: int) -> list[float]:
    """Run the works in turns; return the median seconds of each, a first round not counted."""
    rounds = [[_seconds(work) for work in works] for _ in range(repeats + 1)][1:]
    return [median(times) for times in zip(*rounds, strict=True)]


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    arguments = benchmark_arguments(__doc__.splitlines()[0], default_repeats=3)
    results: dict[str, Any] = {}
    print(f"{'':<18} {'seconds':<44} growth")
    for name, sizes in SIZES.items():
        prepared = [prepare(**USUAL | {name: size}) for size in sizes]
        for work in ("fit", "predict"):
            seconds = medians([works[work] for works in prepared], arguments.repeats)
            # Pixels are the square of the side.
            amounts = {"side": np.log(np.square(sizes)), "depth": np.array(sizes)}.get(name, np.log(sizes))
            slope = float(np.polyfit(amounts, np.log(seconds), 1)[0])
            growth = float(np.exp(slope)) if name == "depth" else slope
            results[f"{work}, {name}"] = {"sizes": sizes, "seconds": seconds, "growth": growth}
            law = (
                f"x {growth:.2f} per level" if name == "depth" else f"^ {growth:.2f}" + " of pixels" * (name == "side")
            )
            print(f"{work + ', ' + name:<18} {', '.join(f'{second:.3f}' for second in seconds):<44} {law}")
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
