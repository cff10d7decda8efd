"""Which images the patches of an epoch come from, how many there are, and which pixels they hold."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from torch.utils.data import Sampler

from skunet.randomness import make_generator

__all__ = ["BatchPlan", "ClassPixels", "PatchSampler", "choose_batches", "count_patches"]

# Pixels kept of each class in each image, and of all together (16 bytes each).
MOST_PER_IMAGE, MOST_IN_ALL = 1000, 2**22
# Batches of an epoch of few images; with one to three, 100 epochs end before the masks are good. IoU of other images or
# rows after 100 epochs of each pixel once : of more steps, each with the steps taken: nuclei, one volume, .725 (100) :
# .771 (800); microtubules, one volume, .906 (200) : .936 (800); cars, 11 images, .958 (300) : .977 (1600); CamVid, 20
# images, .328 (400) : .359 (1600); but ISBI, 4 images, .775 (400) : .770
# (800) : .763 (1600).
FEW_BATCHES = 8


@dataclass(frozen=True)
class BatchPlan:
    """One training batch: its place in the fit, which seeds its draws, its images, and pixels that patches must hold.

    Attributes
    ----------
    epoch, batch : int
    indices : ndarray of shape (B,)
        Of the images.
    pixels : list of B ndarrays of shape (spatial_ndim,), or None
        None where a patch may lie anywhere.
    """

    epoch: int
    batch: int
    indices: np.ndarray
    pixels: list[np.ndarray | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.pixels:
            self.pixels.extend([None] * len(self.indices))


@dataclass(frozen=True)
class ClassPixels:
    """Where some pixels of each class lie.

    Attributes
    ----------
    images : list of ndarrays of shape (n,)
        For each class that occurs, the images of its pixels.
    positions : list of ndarrays of shape (n, spatial_ndim)
    """

    images: list[np.ndarray]
    positions: list[np.ndarray]

    @classmethod
    def find(cls, data: Any, *, seed: int) -> Self:
        """Return pixels of a training set, by one pass over its masks; those without weight are passed over.

        Parameters
        ----------
        data : TrainingSet
        seed : int

        Raises
        ------
        ValueError
            If there are none.
        """
        n_classes, generator = len(data.codec.classes), make_generator(seed, 0, 0, 0)
        most = int(np.clip(MOST_IN_ALL // (len(data) * n_classes), 1, MOST_PER_IMAGE))
        images: list[list[int]] = [[] for _ in range(n_classes)]
        positions: list[list[np.ndarray]] = [[] for _ in range(n_classes)]
        for index in range(len(data)):
            mask = data.codec.encode(data.masks[index])  # (*S)
            if isinstance(data.weights, list):
                mask = np.where(data.weights[index] > 0, mask, -1)
            flat = mask.ravel()
            for k in np.unique(flat[flat >= 0]):
                found = np.flatnonzero(flat == k)
                found = generator.choice(found, most, replace=False) if len(found) > most else found
                images[k] += [index] * len(found)
                positions[k].append(np.stack(np.unravel_index(found, mask.shape), axis=1))
        if not any(images):
            raise ValueError(
                "balanced_share must be 0 where no pixel of the training images counts; all are ignore_label or "
                "without weight. Label more images, or hold others out for validation."
            )
        return cls(
            [np.array(of_class) for of_class in images if of_class],
            [np.concatenate(of_class) for of_class in positions if of_class],
        )

    def draw(self, generator: np.random.Generator) -> tuple[int, np.ndarray]:
        """Return an image and a pixel of it: first each class, then each of its pixels is as likely as the others."""
        k = int(generator.integers(len(self.images)))
        pixel = int(generator.integers(len(self.images[k])))
        return int(self.images[k][pixel]), self.positions[k][pixel]


class PatchSampler(Sampler[BatchPlan]):
    """The batches of an epoch, in the seeded order of that epoch; each pass is one epoch further.

    Parameters
    ----------
    n_patches : ndarray of shape (N,)
        How many patches an epoch takes from each image, or in what ratio where `n_batches` is given.
    batch_size : int
    seed : int
    first_epoch : int
        Number of epochs trained before.
    shuffle, drop_last : bool
        As in `torch.utils.data.DataLoader`.
    n_batches : int, optional
        How many an epoch has, all full.
    class_pixels : ClassPixels, optional
    balanced_share : float
        Share of the patches that hold a pixel drawn from `class_pixels`.
    """

    def __init__(
        self,
        n_patches: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        first_epoch: int,
        shuffle: bool = True,
        drop_last: bool = False,
        n_batches: int | None = None,
        class_pixels: ClassPixels | None = None,
        balanced_share: float = 0.0,
    ) -> None:
        self.indices = np.repeat(np.arange(len(n_patches)), n_patches)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = first_epoch
        self.shuffle = shuffle
        # An epoch without any batch would train nothing.
        self.drop_last = drop_last and len(self.indices) >= batch_size
        self.n_batches = n_batches
        self.class_pixels = class_pixels
        self.balanced_share = balanced_share

    @property
    def n_patches(self) -> int:
        """Patches of an epoch."""
        n_full = len(self) * self.batch_size
        return n_full if self.n_batches is not None else min(n_full, len(self.indices))

    @property
    def batches_per_pass(self) -> int:
        """Batches that take about each pixel once, however many an epoch has."""
        return -(-len(self.indices) // self.batch_size)

    def __len__(self) -> int:
        if self.n_batches is not None:
            return self.n_batches
        return len(self.indices) // self.batch_size if self.drop_last else self.batches_per_pass

    def __iter__(self) -> Iterator[BatchPlan]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        generator = make_generator(self.seed, epoch)
        n_rounds = -(-self.n_patches // len(self.indices))
        rounds = [generator.permutation(self.indices) if self.shuffle else self.indices for _ in range(n_rounds)]
        order = np.concatenate(rounds)[: self.n_patches]
        pixels: list[np.ndarray | None] = [None] * len(order)
        if self.class_pixels is not None:
            for at in np.flatnonzero(generator.random(len(order)) < self.balanced_share):
                order[at], pixels[at] = self.class_pixels.draw(generator)
        for batch in range(len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield BatchPlan(epoch, batch, order[part], pixels[part])


def count_patches(sizes: np.ndarray, patch_size: tuple[int, ...]) -> np.ndarray:
    """Return how many patches an epoch takes of each image: about as many pixels as it has, at least one."""
    shares: np.ndarray = sizes.prod(axis=1) / np.prod(patch_size)
    return np.maximum(shares.round().astype(np.int64), 1)


def choose_batches(batches_per_epoch: int | str | None, n_patches: np.ndarray, batch_size: int) -> int | None:
    """Return how many batches an epoch has, or None for as many as take its patches once."""
    if isinstance(batches_per_epoch, str):
        return FEW_BATCHES if n_patches.sum() < FEW_BATCHES * batch_size else None
    return batches_per_epoch
