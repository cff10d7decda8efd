"""What bench_accuracy compares: systems that fit within a time, from arrays in memory to a model that predicts.

Each fit is a function of `TrainingData`, seconds and a seed, and returns a function from images (N, *S) or (N, *S, C)
to probabilities (N, K, *S), and what it did in the time: steps, epochs or trees.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from accuracy_loops import Clock, Predict, fit_monai, fit_plain_unet, fit_smp
from accuracy_scores import Array
from accuracy_sets import TrainingData
from sklearn.ensemble import RandomForestClassifier

from skunet import UNetSegmenter
from skunet.callbacks import TimeLimit

# Of the forest: the trees to aim at and those that are enough, pixels to probe with, pixels to keep of all images and
# at least of each, and the share of the time for features.
TREES, ENOUGH_TREES, PROBE = 50, 200, 5_000
PIXELS, PIXELS_PER_IMAGE, FEATURE_SHARE = 200_000, 4_000, 0.4

Fit = Callable[[TrainingData, float, int], tuple[Predict, dict[str, float]]]


@dataclass(frozen=True)
class System:
    """A fit, the modules that it imports, which is no part of its time, and the spatial ranks that it takes."""

    fit: Fit
    modules: tuple[str, ...] = ()
    spatial_ndims: tuple[int, ...] = (2, 3)

    def missing_package(self) -> str | None:
        """Return the package that is not installed, if any."""
        packages = {module.partition(".")[0] for module in self.modules}
        return next((name for name in sorted(packages) if find_spec(name) is None), None)

    def import_modules(self) -> None:
        """Import what the fit needs."""
        for module in self.modules:
            import_module(module)


def fit_skunet(data: TrainingData, seconds: float, seed: int) -> tuple[Predict, dict[str, float]]:
    """Fit a segmenter as it comes, with what the set demands, until the time is over or it stops by itself."""
    demands: dict[str, Any] = {} if data.ignore_label is None else {"ignore_label": data.ignore_label}
    segmenter = UNetSegmenter(
        max_epochs=10**6, callbacks=[TimeLimit(seconds)], random_state=seed, verbose=0, **demands
    ).fit(data.X, data.y)

    def predict(X: Array) -> Array:
        return with_all_classes(segmenter.predict_proba(X), segmenter.classes_, data.n_classes)

    steps = sum(segmenter.history[:, "train_batch_count"])
    return predict, {"steps": steps, "epochs": segmenter.n_iter_}


def with_all_classes(probabilities: Array, classes: Array, n_classes: int) -> Array:
    """Return probabilities (N, K, *S) with a place for classes that were not met in training."""
    if len(classes) == n_classes:
        return probabilities
    placed = np.zeros((len(probabilities), n_classes, *probabilities.shape[2:]), np.float32)
    placed[:, classes] = probabilities
    return placed


def fit_forest(data: TrainingData, seconds: float, seed: int) -> tuple[Predict, dict[str, float]]:
    """Grow a random forest on filters at several scales: as many images, pixels and trees as there is time for."""
    clock, generator, n_threads = Clock(seconds), np.random.default_rng(seed), torch.get_num_threads()
    samples = []
    for index in generator.permutation(len(data.X)):
        samples.append(_sample_pixels(data, index, generator))
        if clock.elapsed() > FEATURE_SHARE * seconds:
            break
    features, labels = (np.concatenate(parts) for parts in zip(*samples, strict=True))
    shuffled = generator.permutation(len(labels))
    n_pixels = _affordable_pixels(features[shuffled[:PROBE]], labels[shuffled[:PROBE]], clock, n_threads)
    features, labels = features[shuffled[:n_pixels]], labels[shuffled[:n_pixels]]
    forest = RandomForestClassifier(0, warm_start=True, n_jobs=n_threads, random_state=seed)

    def grow() -> None:
        forest.set_params(n_estimators=forest.n_estimators + n_threads).fit(features, labels)

    clock.repeat(grow, at_most=ENOUGH_TREES // n_threads)

    def predict(X: Array) -> Array:
        scores = np.stack([_predict_image(forest, image, data.spatial_ndim) for image in X])
        return with_all_classes(scores, forest.classes_, data.n_classes)

    return predict, {"trees": forest.n_estimators, "pixels": len(labels), "images": len(samples)}


def _affordable_pixels(features: Array, labels: Array, clock: Clock, n_threads: int) -> int:
    """Return how many pixels `TREES` trees can be grown on in the time that is left, by that of one on a few."""
    probe = Clock(0)
    RandomForestClassifier(1, random_state=0).fit(features, labels)
    n_times = n_threads * (clock.seconds - clock.elapsed()) / (TREES * probe.elapsed())
    return max(len(labels), int(n_times * len(labels)))


def _sample_pixels(data: TrainingData, index: int, generator: np.random.Generator) -> tuple[Array, Array]:
    """Return features (n, F) and labels (n,) of pixels of an image that have a label."""
    labels = data.y[index].ravel()
    counted = np.flatnonzero(labels != data.ignore_label) if data.ignore_label is not None else np.arange(len(labels))
    n_pixels = min(len(counted), max(PIXELS_PER_IMAGE, PIXELS // len(data.X)))
    chosen = generator.choice(counted, n_pixels, replace=False)
    return _pixel_features(data.X[index], data.spatial_ndim)[chosen], labels[chosen]


def _pixel_features(image: Array, spatial_ndim: int) -> Array:
    """Return features (pixels, F) float32 of an image (*S) or (*S, C)."""
    from skimage.feature import multiscale_basic_features

    channel_axis = -1 if image.ndim > spatial_ndim else None
    features = multiscale_basic_features(image, channel_axis=channel_axis)
    return features.reshape(-1, features.shape[-1])


def _predict_image(forest: RandomForestClassifier, image: Array, spatial_ndim: int) -> Array:
    """Return probabilities (K, *S) float32."""
    probabilities = forest.predict_proba(_pixel_features(image, spatial_ndim)).astype(np.float32)
    return probabilities.T.reshape(-1, *image.shape[:spatial_ndim])


SYSTEMS = {
    "skunet": System(fit_skunet),
    "loop": System(fit_plain_unet),
    "monai": System(
        fit_monai, ("monai.data", "monai.inferers", "monai.losses", "monai.networks.nets", "monai.transforms")
    ),
    "smp": System(fit_smp, ("segmentation_models_pytorch",), spatial_ndims=(2,)),
    "forest": System(fit_forest, ("skimage.feature",)),
}
