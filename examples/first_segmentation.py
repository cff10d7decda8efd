"""Train a U-Net on made cells, or on a folder of images and masks, and look at what it finds.

python examples/first_segmentation.py
python examples/first_segmentation.py --images photos --masks drawn --mask-suffix _mask
python examples/first_segmentation.py --predict new_photos --out found
"""

import argparse
import os
import sys
from pathlib import Path

# Read when torch is loaded: threads that spin while they wait take the cores that other programs keep them waiting
# for. On 2 busy cores, 3 epochs took 62 s with spinning and 5 s without.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
    X, y = find_pairs(options) if options.images else make_cells(30, size=96, random_state=options.seed)
    n_train = len(X) - max(1, len(X) // 5)
    if n_train < 1:
        raise ValueError("At least 2 images with masks are needed; got 1. Is it the --mask-suffix?")
    n_test = len(X) - n_train
    print(f"{len(X)} images: {n_train} for fit, which validates on a fifth of them; the last {n_test} to test on")

    segmenter = UNetSegmenter(
        depth=options.depth,
        filters=options.filters,
        max_epochs=options.epochs,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,  # 1 shows a progress bar and a line per epoch
    )
    segmenter.fit(X[:n_train], y[:n_train])
    predicted = segmenter.predict(X[n_train:])

    options.output.mkdir(parents=True, exist_ok=True)
    train, held_out = read_pairs(X[:n_train], y[:n_train]), read_pairs(X[n_train:], y[n_train:])
    print_scores(segmenter, predicted, train=train, held_out=held_out)
    save_overview(options.output / "overview.png", *held_out, predicted)
    save_and_reload(options.output / "segmenter.joblib", segmenter, X[n_train:], predicted)


def find_pairs(options):
    """Pair files by name; in natural order, so that the last fifth is one block."""
    paired = pair_files(options.images, options.masks, mask_suffix=options.mask_suffix)
    print(f"{len(paired)} images with masks. Neighbours are often alike, so one block is held out, no random choice.")
    return paired.images, paired.masks


def read_pairs(X, y):
    """Return images and masks as arrays: fit and predict read files themselves, what follows does not."""
    return ([read_image(p) for p in X], [read_mask(p) for p in y]) if isinstance(X[0], Path) else (X, y)


def print_scores(segmenter, predicted, *, train, held_out):
    """Print the mean IoU beside what takes no network: one class for all pixels, and a threshold."""
    images, masks = held_out
    labels = segmenter.classes_
    majority = labels[segmenter.class_counts_.argmax()]
    results = {"U-Net": predicted, "majority class": [np.full_like(mask, majority) for mask in masks]}
    if len(labels) == 2:
        is_bright = [above_otsu(image) for image in train[0]]
        pairs = labels, labels[::-1]  # (dark, bright): the better one on the images to train on
        pair = max(pairs, key=lambda pair: iou_score(train[1], [pair[bright] for bright in is_bright]))
        results["Otsu threshold"] = [pair[above_otsu(image)] for image in images]
    print("\nMean IoU on the images held out:")
    for name, result in results.items():
        print(f"  {name:15} {iou_score(masks, result):.3f}")


def above_otsu(image):
    """Return 1 above the threshold that parts the grey values best (Otsu 1979), else 0."""
    grey = to_grey(image)
    counts, edges = np.histogram(grey, bins=256)
    n_below, n_above = counts.cumsum(), counts.sum() - counts.cumsum()
    sums = (counts * edges[:-1]).cumsum()
    means = sums / np.maximum(n_below, 1), (sums[-1] - sums) / np.maximum(n_above, 1)
    return (grey >= edges[1 + np.argmax(n_below * n_above * (means[0] - means[1]) ** 2)]).astype(int)


def to_grey(image):
    return image[..., :3].mean(axis=-1) if image.ndim == 3 else image.astype(float)


def save_overview(path, images, masks, predicted, n_rows=4):
    """Write a picture with a row per image: image, truth, prediction."""
    labels = np.unique(np.concatenate([np.unique(mask) for mask in [*masks, *predicted]]))
    rows = []
    for image, *both in list(zip(images, masks, predicted, strict=True))[:n_rows]:
        grey = to_grey(image) - to_grey(image).min()
        tiles = [grey / max(grey.max(), 1e-9), *(np.searchsorted(labels, m) / max(len(labels) - 1, 1) for m in both)]
        rows.append(np.hstack([fit_into_square(tile) for tile in tiles]))
    iio.imwrite(path, (255 * np.vstack(rows)).astype(np.uint8))
    print(f"\nImage, truth, prediction: {path}")


def fit_into_square(tile, side=288, margin=4):
    """Enlarge or shrink a picture by taking the nearest pixels, on a grey square."""
    height, width = (max(1, round(side * pixels / max(tile.shape))) for pixels in tile.shape)
    rows, columns = (np.arange(n) * pixels // n for n, pixels in zip((height, width), tile.shape, strict=True))
    square = np.full((side + 2 * margin, side + 2 * margin), 0.5)
    square[margin : margin + height, margin : margin + width] = tile[np.ix_(rows, columns)]
    return square


def save_and_reload(path, segmenter, X, predicted):
    joblib.dump(segmenter, path)
    again = joblib.load(path).predict(X)
    is_equal = all(np.array_equal(one, other) for one, other in zip(predicted, again, strict=True))
    print(f"Segmenter: {path}; loaded again, it predicts {'the same' if is_equal else 'OTHER'} labels")


def predict_folder(options):
    """Write a mask for each image, in the labels of the masks it was trained on; one image at a time is in memory."""
    segmenter = joblib.load(options.model or options.output / "segmenter.joblib")
    paths, labels = find_images(options.predict), segmenter.classes_
    extension = ".png" if labels.min() >= 0 and labels.max() < 2**16 else ".tif"  # PNG has no other numbers
    masks = (segmenter.predict([path])[0] for path in paths)
    written = write_masks(options.out, paths, masks, extension=extension)
    print(f"{len(written)} masks with labels {labels.tolist()}: {options.out}")


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=Path, metavar="DIR", help="folder of images to train on (default: made cells)")
    add("--masks", type=Path, metavar="DIR", help="folder of their masks, paired by name")
    add("--mask-suffix", default="", metavar="TEXT", help="what the masks' names end with, e.g. _mask")
    add("--predict", type=Path, metavar="DIR", help="write masks for the images of this folder, without training")
    add("--out", type=Path, metavar="DIR", help="where --predict writes masks")
    add("--model", type=Path, metavar="FILE", help="what --predict loads, from a source you trust (default: the last)")
    add("--epochs", type=int, default=20, help="passes over the images (default: %(default)s)")
    add("--depth", type=int, default=3, help="how often the resolution is halved (default: %(default)s)")
    add("--filters", type=int, default=16, help="channels at full resolution (default: %(default)s)")
    add("--output", type=Path, default="first_segmentation", metavar="DIR", help="default: %(default)s")
    add("--seed", type=int, default=0, help="the same seed gives the same result (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    for folder in filter(None, (options.images, options.masks, options.predict)):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    if (options.images is None) != (options.masks is None):
        parser.error("--images and --masks go together")
    if bool(options.predict) != bool(options.out):
        parser.error("--predict and --out, the folder to write masks to, go together")
    return options


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:  # skunet's messages say what is wrong and what to do
        sys.exit(f"error: {error}")
