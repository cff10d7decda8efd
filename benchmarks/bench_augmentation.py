"""Elastic deformation of a batch, image and mask, against the same smoothness by scipy, sample by sample.

scipy's is the usual script: a coarse grid of displacements, interpolated to all pixels by a cubic `zoom`, then
`map_coordinates` for the image (linear) and the mask (nearest).
"""

from collections.abc import Callable

import numpy as np
import torch
from paired import benchmark_arguments, paired_ratio, print_row, write_record
from scipy import ndimage

from skunet.augmentation import Augment
from skunet.datasets import make_cells

SIGMA = 5.0  # pixels
CASES = {"256": (4, (256, 256)), "512": (4, (512, 512)), "64-volume": (2, (64, 64, 64))}


def by_scipy(images: np.ndarray, masks: np.ndarray, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    size = masks.shape[1:]
    places = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij")).astype(np.float32)
    out_images, out_masks = np.empty_like(images), np.empty_like(masks)
    for i, (image, mask) in enumerate(zip(images, masks, strict=True)):
        coarse = generator.normal(scale=SIGMA, size=(len(size), *(3,) * len(size)))
        moved = places + [ndimage.zoom(part, np.array(size) / 3, order=3) for part in coarse]
        out_images[i, 0] = ndimage.map_coordinates(image[0], moved, order=1, mode="mirror")
        out_masks[i] = ndimage.map_coordinates(mask, moved, order=0, mode="mirror")
    return out_images, out_masks


def on_the_batch(images: np.ndarray, masks: np.ndarray) -> Callable[[], object]:
    augment = Augment(flip=False, turn=False, elastic=SIGMA, probability=1.0)
    tensors = torch.from_numpy(images), torch.from_numpy(masks)
    return lambda: augment(*tensors, None, np.random.default_rng(0))


def main() -> None:
    arguments = benchmark_arguments(__doc__.splitlines()[0], cases=CASES)
    results = {}
    print(f"{'':<34} {'scipy':>13} {'skunet':>13} {'ratio':>10}")
    for case in arguments.cases:
        n_images, size = CASES[case]
        X, y = make_cells(n_images, size=size, spatial_ndim=len(size), random_state=0)
        images, masks = X[:, None].astype(np.float32), y
        results[case] = paired_ratio(
            lambda images=images, masks=masks: by_scipy(images, masks, np.random.default_rng(0)),
            on_the_batch(images, masks),
            repeats=arguments.repeats,
        )
        print_row(f"elastic, {n_images} of {' x '.join(map(str, size))}", results[case])
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
