"""The main job on real images: `../shared/data` beside the checkout, with a README of its own; skipped where absent."""

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import real_data
from sklearn.model_selection import GroupKFold, cross_val_score
from skorch.callbacks import LRScheduler
from torch.optim.lr_scheduler import CosineAnnealingLR

from skunet import UNetSegmenter
from skunet.files import pair_files
from skunet.metrics import dice_score, iou_score, per_image, pixel_accuracy

pytestmark = pytest.mark.slow


def read_all(paths):
    return np.stack([iio.imread(path) for path in paths])


def test_membranes_of_isbi_2012():
    paired = pair_files(real_data("isbi2012", "image"), real_data("isbi2012", "label"))
    X, y = read_all(paired.images), read_all(paired.masks)  # natural order is the order of the sections
    segmenter = UNetSegmenter(max_epochs=22, random_state=0).fit(X[:20], y[:20])
    predicted = segmenter.predict(X[20:])
    assert 1 - pixel_accuracy(y[20:], predicted) <= 0.10
    assert segmenter.score(X[20:], y[20:]) >= 0.72
    assert set(np.unique(predicted)) == {0, 255}


def dice_per_image(segmenter, X, y):
    return per_image(dice_score, y, segmenter.predict(X), labels=[0, 255], average=None)[:, 1].mean()


def test_cars_unseen_in_training():
    paired = pair_files(real_data("carvana96", "images"), real_data("carvana96", "masks"))
    X, y = read_all(paired.images)[:, ::4, ::4], read_all(paired.masks)[:, ::4, ::4]  # 160 x 240
    cars = [path.name.split("_")[0] for path in paired.images]
    segmenter = UNetSegmenter(filters=16, scaling="image", max_epochs=20, random_state=0)
    scores = cross_val_score(
        segmenter, X, y, groups=cars, cv=GroupKFold(3), scoring=dice_per_image, error_score="raise"
    )
    assert scores.mean() >= 0.93


def test_microtubules_from_one_volume_to_the_other():
    volumes = np.load(real_data("microtubules3d.npz"))
    X, y = [[volumes[f"{name}_{i}"] for i in (0, 1)] for name in "xy"]  # 32 and 24 planes
    for train, test in [(0, 1), (1, 0)]:
        # One volume leaves none to validate on: a learning rate that ends at 0 settles the last weights instead.
        segmenter = UNetSegmenter(
            depth=3,
            filters=16,
            patch_size=(24, 64, 64),
            batch_size=2,
            max_epochs=50,
            callbacks=[LRScheduler(policy=CosineAnnealingLR, T_max=50)],
            random_state=0,
        )
        segmenter.fit([X[train]], [y[train]])
        (predicted,) = segmenter.predict([X[test]])
        assert predicted.shape == y[test].shape
        assert dice_score(y[test], predicted, average=None)[1] > 0.55  # 0 if none is found


def test_slices_beyond_those_of_the_volume_that_trained():
    volumes = np.load(real_data("microtubules3d.npz"))
    X, y = volumes["x_0"], volumes["y_0"]  # 32 planes, as many as the network computes for 24
    segmenter = UNetSegmenter(max_epochs=15, random_state=0).fit([X[:24, :140]], [y[:24, :140]])
    (predicted,) = segmenter.predict([X[:, 140:]])
    assert dice_score(y[24:, 140:], predicted[24:], average=None)[1] > 0.6  # 0.1 where pixels beside them never train


def test_the_whole_of_a_volume_that_trained_in_part():
    volumes = np.load(real_data("microtubules3d.npz"))
    X, y = volumes["x_1"], volumes["y_1"]
    segmenter = UNetSegmenter(max_epochs=15, random_state=0).fit([X[:, :140]], [y[:, :140]])
    (predicted,) = segmenter.predict([X])
    # .22 where norms keep the statistics of training, which are those of smaller patches
    assert dice_score(y[:, 140:], predicted[:, 140:], average=None)[1] > 0.6


def test_road_scenes_with_void_ignored():
    def read(part):
        paired = pair_files(real_data("camvid", part), real_data("camvid", f"{part}annot"))
        return read_all(paired.images)[:, ::4, ::4], read_all(paired.masks)[:, ::4, ::4]  # 90 x 120

    X, y = read("train")
    segmenter = UNetSegmenter(filters=16, max_epochs=12, ignore_label=11, random_state=0).fit(X, y)
    X_test, y_test = read("test")
    predicted = segmenter.predict(X_test)
    assert segmenter.classes_.tolist() == list(range(11))
    assert set(np.unique(predicted)) <= set(range(11))
    majority = np.full_like(predicted, segmenter.classes_[segmenter.class_counts_.argmax()])
    assert segmenter.score(X_test, y_test) > 3 * iou_score(y_test, majority, ignore_label=11)


def test_nuclei_from_one_volume_to_the_other():
    volumes = np.load(real_data("nuclei3d.npz"))
    X, y = [volumes["x_0"][:, :64, :64]], [volumes["y_0"][:, :64, :64] > 0]
    segmenter = UNetSegmenter(
        depth=2, filters=8, patch_size=32, batch_size=2, max_epochs=6, random_state=0, train_split=None
    ).fit(X, y)
    predicted = segmenter.predict([volumes["x_1"]])
    assert predicted[0].dtype == bool
    assert dice_score([volumes["y_1"] > 0], predicted) > 0.6


def test_a_mosaic_of_sections_has_no_seams():
    """5120 x 5120 pixels of tissue: tiles equal the whole, and the middle of each section what it is by itself."""
    paired = pair_files(real_data("isbi2012", "image"), real_data("isbi2012", "label"))
    X, y = read_all(paired.images), read_all(paired.masks)
    # Scaled by constants of the training images: by itself, a section has another mean than the mosaic.
    segmenter = UNetSegmenter(
        filters=8, max_epochs=6, patch_size=256, random_state=0, precision="float32", scaling="dataset"
    )
    segmenter.fit(X[:20], y[:20])
    order = np.arange(100).reshape(10, 10) % 30
    mosaic = np.block([[X[index] for index in row] for row in order])[None]  # (1, 5120, 5120)
    whole = segmenter.set_params(tile_size=None).predict_proba(mosaic)[0, 1]
    for tile_size in ("auto", (1300, 700)):
        tiled = segmenter.set_params(tile_size=tile_size).predict_proba(mosaic)[0, 1]
        np.testing.assert_allclose(tiled, whole, atol=1e-5)
    alone = segmenter.predict_proba(X[:30])[:, 1]
    reach = 128  # more than the network sees, and a multiple of its grid
    middle = slice(reach, 512 - reach)
    for row, indices in enumerate(order):
        for column, index in enumerate(indices):
            part = whole[512 * row :, 512 * column :][middle, middle]
            np.testing.assert_allclose(part, alone[index][middle, middle], atol=1e-5)
