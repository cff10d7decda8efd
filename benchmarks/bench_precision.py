"""Whether bfloat16 costs accuracy: real sets trained in both precisions from the same seeds.

Agreement is the share of test pixels that get the same label in bfloat16 as in float32, from the same weights.
Scores are the mean IoU on the test part; losses those of the last training epoch.
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from paired import summary, write_record

from skunet import UNetSegmenter
from skunet.files import pair_files

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
PRECISIONS = ("float32", "bfloat16")

Split = tuple[Any, Any, Any, Any]  # X and y of training, X and y of the test
Set = tuple[Callable[[], Split], dict[str, Any]]


def _read(images: Path, masks: Path, step: int = 1) -> tuple[list[Path], np.ndarray, np.ndarray]:
    paired = pair_files(images, masks)
    X, y = (np.stack([iio.imread(path)[::step, ::step] for path in paths]) for paths in (paired.images, paired.masks))
    return list(paired.images), X, y


def membranes() -> Split:
    """Quarters of the ISBI 2012 sections."""
    _, X, y = _read(DATA / "isbi2012" / "image", DATA / "isbi2012" / "label")
    return X[:20, :256, :256], y[:20, :256, :256], X[20:, 256:, 256:], y[20:, 256:, 256:]


def cars() -> Split:
    """Four cars of Carvana against the two others, at 160 x 240."""
    paths, X, y = _read(DATA / "carvana96" / "images", DATA / "carvana96" / "masks", step=4)
    names = np.array([path.name.split("_")[0] for path in paths])
    is_test = np.isin(names, np.unique(names)[:2])
    return X[~is_test], y[~is_test], X[is_test], y[is_test]


def roads() -> Split:
    """Every fourth road scene of CamVid, at 180 x 240."""
    parts = [_read(DATA / "camvid" / part, DATA / "camvid" / f"{part}annot", step=2)[1:] for part in ("train", "val")]
    return *(array[::4] for array in parts[0]), *(array[::2] for array in parts[1])


def volumes(name: str, *, is_binary: bool = False) -> Callable[[], Split]:
    def read() -> Split:
        arrays = np.load(DATA / name)
        X, y = ([arrays[f"{axis}_{i}"] for i in (0, 1)] for axis in "xy")
        if is_binary:
            y = [mask > 0 for mask in y]
        return X[:1], y[:1], X[1:], y[1:]

    return read


FLAT = {"filters": 16, "scaling": "image", "max_epochs": 12}
DEEP = {"depth": 3, "filters": 8, "patch_size": (24, 64, 64), "batch_size": 2, "max_epochs": 20}
SETS: dict[str, Set] = {
    "membranes": (membranes, FLAT),
    "cars": (cars, FLAT),
    "roads": (roads, FLAT | {"ignore_label": 11}),
    "microtubules": (volumes("microtubules3d.npz"), DEEP),
    "nuclei": (volumes("nuclei3d.npz", is_binary=True), DEEP | {"patch_size": 48}),
}


def compare(split: Split, parameters: dict[str, Any], seed: int) -> Iterator[tuple[str, float]]:
    """Train in both precisions; yield named figures."""
    X, y, X_test, y_test = split
    for precision in PRECISIONS:
        segmenter = UNetSegmenter(**parameters, precision=precision, train_split=None, verbose=0, random_state=seed)
        segmenter.fit(X, y)
        yield f"loss {precision}", segmenter.history_[-1, "train_loss"]
        yield f"score {precision}", segmenter.score(X_test, y_test)
        labels = [segmenter.set_params(precision=other).predict(X_test) for other in PRECISIONS]
        same = [np.mean(one == two) for one, two in zip(*labels, strict=True)]
        yield f"agreement {precision}", float(np.mean(same))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--out", type=Path, help="JSON file to write; none by default")
    arguments = parser.parse_args()
    results: dict[str, Any] = {}
    for name in arguments.sets:
        read, parameters = SETS[name]
        split, rows = read(), []
        for seed in range(arguments.seeds):
            rows.append(dict(compare(split, parameters, seed)))
            print(f"{name}, seed {seed}: " + ", ".join(f"{key} {value:.4f}" for key, value in rows[-1].items()))
        results[name] = {key: summary([row[key] for row in rows]) for key in rows[0]}
        results[name]["runs"] = rows
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
