"""Train a U-Net on cells, or on a folder of images and masks, and look at what it finds.

python examples/first_segmentation.py
python examples/first_segmentation.py --images photos/ --masks drawn/ --mask-suffix _mask
python examples/first_segmentation.py --predict new_photos/ --out found/
"""

import argparse
from pathlib import Path

import imageio.v3 as iio
import joblib
import numpy as np

from skunet import UNetSegmenter
from skunet.containers import read_image, read_mask
from skunet.datasets import make_cells
from skunet.files import find_images, pair_files, write_masks
from skunet.metrics import iou_score


def main():
    options = read_options()
    if options.predict:
        predict_folder(options)
        return
    images, masks = load_folders(options) if options.images else load_cells(options)
    n_train = len(images) - max(1, len(images) // 5)
    print(f"{n_train} images to train on, {len(images) - n_train} held out (the last ones)")

    segmenter = UNetSegmenter(
        depth=options.depth,
        filters=options.filters,
        max_epochs=options.epochs,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    segmenter.fit(images[:n_train], masks[:n_train])
    predicted = segmenter.predict(images[n_train:])

    # Only the small parts of the story need arrays; fit and predict read files one by one.
    train, held_out = open_pairs(images[:n_train], masks[:n_train]), open_pairs(images[n_train:], masks[n_train:])
    print_scores(segmenter, train, held_out, predicted)
    options.output.mkdir(parents=True, exist_ok=True)
    save_overview(options.output / "overview.png", *held_out, predicted, segmenter.classes_)
    save_and_reload(options.output / "segmenter.joblib", segmenter, images[n_train:], predicted)


def load_cells(options):
    images, masks = make_cells(30, size=96, random_state=options.seed)
    return list(images), list(masks)


def load_folders(options):
    """Pair files by name; natural order keeps neighbours together, so that no neighbour of a test image trains."""
    paired = pair_files(options.images, options.masks, mask_suffix=options.mask_suffix)
    if len(paired) < 2:
        raise ValueError(f"There must be at least 2 images with masks; got {len(paired)}. Add files.")
    print(f"{len(paired)} pairs; the last fifth is held out as one block, since neighbouring images are often alike")
    return paired.images, paired.masks


def open_pairs(images, masks):
    if isinstance(images[0], Path):
        return [read_image(path) for path in images], [read_mask(path) for path in masks]
    return images, masks


def print_scores(segmenter, train, held_out, predicted):
    """Print the mean IoU beside what needs no learning: one class for all pixels, and a threshold."""
    images, masks = held_out
    majority = segmenter.classes_[segmenter.class_counts_.argmax()]
    rows = {"U-Net": predicted, "majority class": [np.full_like(mask, majority) for mask in masks]}
    if len(segmenter.classes_) == 2:
        labels = segmenter.classes_
        dark_first, bright_first = labels, labels[::-1]  # which polarity is right is learned on training images
        polarity = max(
            (dark_first, bright_first), key=lambda pair: iou_score(train[1], [pair[above_otsu(i)] for i in train[0]])
        )
        rows["Otsu threshold"] = [polarity[above_otsu(image)] for image in images]
    print("\nmean IoU on held-out images")
    for name, result in rows.items():
        print(f"  {name:15} {iou_score(masks, result):.3f}")


def above_otsu(image):
    """Say which pixels are above the threshold that parts the grey values best (Otsu 1979): 0 or 1."""
    grey = to_grey(image)
    counts, edges = np.histogram(grey, bins=256)
    below, total = counts.cumsum(), counts.sum()
    sums = (counts * edges[:-1]).cumsum()
    between = (sums[-1] * below / total - sums) ** 2 / np.maximum(below * (total - below), 1)
    return (grey >= edges[between.argmax() + 1]).astype(int)


def to_grey(image):
    return image.mean(axis=-1) if image.ndim == 3 else image.astype(float)


def save_overview(path, images, masks, predicted, classes, n_rows=4):
    """Write a picture with a row per image: image, truth, prediction."""
    shades = np.linspace(0, 255, len(classes))
    rows = []
    for image, *labels in list(zip(images, masks, predicted, strict=True))[:n_rows]:
        grey = to_grey(image)
        spread = max(np.ptp(grey), 1e-9)
        tiles = [(grey - grey.min()) / spread * 255, *(shades[np.searchsorted(classes, mask)] for mask in labels)]
        rows.append(np.hstack([fit_into_square(tile) for tile in tiles]))
    iio.imwrite(path, np.vstack(rows).astype(np.uint8))
    print(f"\nimage | truth | prediction: {path}")


def fit_into_square(tile, side=288, margin=4):
    """Enlarge or shrink by taking the nearest pixels, centred on a grey square."""
    height, width = (max(1, round(side * pixels / max(tile.shape))) for pixels in tile.shape)
    rows = np.arange(height) * tile.shape[0] // height
    columns = np.arange(width) * tile.shape[1] // width
    square = np.full((side + 2 * margin,) * 2, 128.0)
    top, left = margin + (side - height) // 2, margin + (side - width) // 2
    square[top : top + height, left : left + width] = tile[rows[:, None], columns]
    return square


def save_and_reload(path, segmenter, images, predicted):
    joblib.dump(segmenter, path)
    again = joblib.load(path).predict(images)
    is_equal = all(np.array_equal(one, other) for one, other in zip(predicted, again, strict=True))
    print(f"segmenter: {path}; reloaded, it predicts {'the same' if is_equal else 'OTHER'} labels")


def predict_folder(options):
    """Write a mask with the labels of the training masks for each image, one image in memory at a time."""
    segmenter = joblib.load(options.model or options.output / "segmenter.joblib").set_params(verbose=0)
    paths = find_images(options.predict)
    written = write_masks(options.out, paths, (segmenter.predict([path])[0] for path in paths))
    print(f"{len(written)} masks with the labels {segmenter.classes_.tolist()}: {options.out}")


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="folder of images to train on (default: made cells)")
    add("--masks", type=Path, metavar="DIR", help="folder of their masks, with the same names")
    add("--mask-suffix", default="", metavar="TEXT", help="what names of masks end with, e.g. _mask")
    add("--predict", type=Path, metavar="DIR", help="folder of images to write masks for, instead of training")
    add("--out", type=Path, metavar="DIR", help="where --predict writes the masks")
    add("--model", type=Path, metavar="FILE", help="what --predict loads (default: what was trained into --output)")
    add("--epochs", type=int, default=30, help="passes over the images (default: %(default)s)")
    add("--depth", type=int, default=3, help="how often the resolution is halved (default: %(default)s)")
    add("--filters", type=int, default=16, help="channels at full resolution (default: %(default)s)")
    add("--output", type=Path, default=Path("first_segmentation"), metavar="DIR", help="default: %(default)s")
    add("--seed", type=int, default=0, help="the same seed gives the same result (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    return options


if __name__ == "__main__":
    main()
