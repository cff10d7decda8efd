"""The real data sets of bench_accuracy: what is trained on, what is tested on, and by which score.

Each loader reads a set of `../shared/data`, whose README says what is expected there. Masks become class indices.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from accuracy_scores import VOID, Array, score_classes, score_membranes, score_objects, score_scenes
from PIL import Image
from sklearn.model_selection import GroupKFold

from skunet.files import pair_files

SECTIONS = 20  # of ISBI 2012 to train on; neighbours are alike, so that those to test on are the last ones
CARS, SCENES = (160, 240), (180, 240)  # sizes to shrink the photos to, in pixels


@dataclass(frozen=True)
class TrainingData:
    """All that a system may know.

    `X` is (N, *S) or (N, *S, C) uint8, `y` (N, *S) class indices. `flip_axes` are the axes of S along which a mirrored
    image could have been taken too: all under a microscope, the last of photos.
    """

    X: Array
    y: Array
    n_classes: int
    flip_axes: tuple[int, ...]
    ignore_label: int | None = None

    @property
    def spatial_ndim(self) -> int:
        """2 for images, 3 for volumes."""
        return self.y.ndim - 1


@dataclass(frozen=True)
class Fold:
    """One training, and the parts that it is tested on, by a prefix for the names of the scores."""

    train: TrainingData
    tests: dict[str, tuple[Array, Array]]


@dataclass(frozen=True)
class AccuracySet:
    """Folds over which scores are averaged, the score function, and the name of the score to draw."""

    folds: list[Fold]
    score: Callable[[Array, Array], dict[str, float]]
    main: str


def load_isbi2012(folder: Path) -> AccuracySet:
    """Membranes (0) and cells (1) in 30 sections of a stack."""
    X, masks, _ = _read_pairs(folder / "image", folder / "label")
    y = (masks > 0).astype(np.uint8)
    train = TrainingData(X[:SECTIONS], y[:SECTIONS], n_classes=2, flip_axes=(0, 1))
    return AccuracySet([Fold(train, {"": (X[SECTIONS:], y[SECTIONS:])})], score_membranes, "best_v_rand_thin")


def load_carvana96(folder: Path, size: tuple[int, int] = CARS) -> AccuracySet:
    """Cars (1), each time some that were not trained on."""
    X, masks, paths = _read_pairs(folder / "images", folder / "masks", size)
    y = (masks > 0).astype(np.uint8)
    cars = [path.name.split("_")[0] for path in paths]
    folds = []
    for train, test in GroupKFold(3).split(X, groups=cars):
        data = TrainingData(X[train], y[train], n_classes=2, flip_axes=(1,))
        folds.append(Fold(data, {"": (X[test], y[test])}))
    return AccuracySet(folds, score_objects, "dice")


def load_camvid(folder: Path, size: tuple[int, int] = SCENES) -> AccuracySet:
    """Road scenes of 11 classes, and void; "val" is a drive that is trained on too, "test" is not."""
    parts = {part: _read_pairs(folder / part, folder / f"{part}annot", size)[:2] for part in ("train", "val", "test")}
    data = TrainingData(*parts.pop("train"), n_classes=VOID, flip_axes=(1,), ignore_label=VOID)
    return AccuracySet([Fold(data, {f"{part}_": pair for part, pair in parts.items()})], score_scenes, "test_miou")


def load_microtubules3d(path: Path) -> AccuracySet:
    """Two tomograms with classes 0, 1 and 2, from each to the other."""
    return AccuracySet(_both_ways(path, n_classes=3), score_classes, "dice")


def load_nuclei3d(path: Path) -> AccuracySet:
    """Two volumes with nuclei (1), from each to the other."""
    return AccuracySet(_both_ways(path, n_classes=2), score_objects, "dice")


LOADERS: dict[str, Callable[[Path], AccuracySet]] = {
    "isbi2012": load_isbi2012,
    "carvana96": load_carvana96,
    "camvid": load_camvid,
    "microtubules3d": load_microtubules3d,
    "nuclei3d": load_nuclei3d,
}
VOLUMES = ("microtubules3d", "nuclei3d")


def find_set(data: Path, name: str) -> Path | None:
    """Return the folder or file of a set in the folder `data`, or None where it is missing."""
    return next((path for path in (data / name, data / f"{name}.npz") if path.exists()), None)


def _both_ways(path: Path, n_classes: int) -> list[Fold]:
    volumes = np.load(path)
    # Where two classes are asked for, labels count objects.
    pairs = [(volumes[f"x_{i}"][None], np.minimum(volumes[f"y_{i}"], n_classes - 1)[None]) for i in (0, 1)]
    pairs = [(X, y.astype(np.uint8)) for X, y in pairs]
    return [
        Fold(TrainingData(*train, n_classes=n_classes, flip_axes=(0, 1, 2)), {"": test})
        for train, test in (pairs, pairs[::-1])
    ]


def _read_pairs(images: Path, masks: Path, size: tuple[int, int] | None = None) -> tuple[Array, Array, list[Path]]:
    """Return images, masks and the paths of the images, in natural order."""
    paired = pair_files(images, masks)
    X = np.stack([_resize(iio.imread(path), size, Image.Resampling.BILINEAR) for path in paired.images])
    y = np.stack([_resize(_one_channel(iio.imread(path)), size, Image.Resampling.NEAREST) for path in paired.masks])
    return X, y, paired.images


def _one_channel(mask: Array) -> Array:
    return mask if mask.ndim == 2 else mask[..., 0]


def _resize(image: Array, size: tuple[int, int] | None, how: Image.Resampling) -> Array:
    """Pillow's bilinear filter grows as the image shrinks, which is what keeps it from aliasing."""
    return image if size is None else np.asarray(Image.fromarray(image).resize(size[::-1], how))
