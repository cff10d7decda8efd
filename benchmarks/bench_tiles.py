"""Time and memory of one prediction against the side of the image: both per pixel, and against the image in one piece.

Each row is a process of its own. Memory is the peak of the process, less that before the prediction, less what holds
the labels. The image in one piece is the same segmenter with `tile_size=None`, where the memory holds it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from paired import write_record

from skunet import UNetSegmenter
from skunet.datasets import make_cells

SIDES = (1024, 2048, 4096, 8192)
SLOW = (16384,)
LARGEST_WHOLE = 4096  # pixels per side that are also predicted in one piece, in pairs with the tiles: some 6 GB


def peak() -> float:
    """Return the largest memory of this process so far, in bytes (Linux)."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024.0 * int(line.split()[1])


def predict(side: int, repeats: int) -> dict[str, float]:
    """Return seconds, bytes beyond the labels, and the time of tiles over that of the whole."""
    X, y = make_cells(4, size=64, random_state=0)
    segmenter = UNetSegmenter(filters=32, max_epochs=0, verbose=0, random_state=0).fit(X, y)
    image = np.tile(X[:1], (1, side // 64, side // 64))
    segmenter.predict(image[:, :64, :64])
    before = peak()
    seconds, ratios = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        labels = segmenter.predict(image)
        seconds.append(time.perf_counter() - start)
    beyond = peak() - before - labels.nbytes
    if side <= LARGEST_WHOLE:
        for _ in range(repeats):
            times = []
            for tile_size in (None, "auto"):
                segmenter.set_params(tile_size=tile_size)
                start = time.perf_counter()
                same = np.array_equal(segmenter.predict(image), labels)
                times.append(time.perf_counter() - start)
                assert same or segmenter.precision_ != "float32"
            ratios.append(times[1] / times[0])
    figures = {"seconds": float(np.median(seconds)), "beyond": beyond}
    return figures | ({"tiles over whole": float(np.median(ratios))} if ratios else {})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file to write; none by default")
    parser.add_argument("--slow", action="store_true", help=f"also images of {SLOW[0]} pixels per side")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(predict(arguments.side, arguments.repeats)))
        return
    results = {}
    print(f"{'pixels per side':<18} {'seconds':>9} {'us per pixel':>13} {'MB beyond labels':>18} {'tiles / whole':>14}")
    for side in SIDES + (SLOW if arguments.slow else ()):
        repeats = arguments.repeats if side < LARGEST_WHOLE else 1
        command = [sys.executable, __file__, "--side", str(side), "--repeats", str(repeats)]
        run = subprocess.run(command, capture_output=True, text=True, check=True)
        figures = results[str(side)] = json.loads(run.stdout.splitlines()[-1])
        ratio = figures.get("tiles over whole")
        print(
            f"{side:<18} {figures['seconds']:>9.2f} {figures['seconds'] / side**2 * 1e6:>13.3f} "
            f"{figures['beyond'] / 1e6:>18,.0f} {'' if ratio is None else f'{ratio:.2f}':>14}",
            flush=True,
        )
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
