"""Batches of patches and of whole images, assembled at once and ready for the network."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from skunet.augmentation import Augmentation, augment_batch
from skunet.geometry import ENOUGH, Geometry, uncut_size
from skunet.images import as_tensor
from skunet.memory import USEFUL_SIDE
from skunet.mirroring import reflect
from skunet.randomness import make_generator
from skunet.sampling import BatchPlan
from skunet.scaling import image_scaling, scale
from skunet.training_set import TrainingSet, pick

__all__ = [
    "EvaluationBatches",
    "PatchBatches",
    "choose_batch_size",
    "choose_patch_size",
    "group_equal_sizes",
    "unpack_inputs",
]

# Pixels of a patch above which one makes a batch.
LARGE = 2**18


class PatchBatches(Dataset[Any]):
    """Training batches of a training set, by plan: scaled, augmented windows.

    Parameters
    ----------
    data : TrainingSet
    patch_size : tuple of int
        Pixels per axis of the windows.
    scaling : str or other
        As in `UNetSegmenter`.
    constants : ndarray of shape (2, C) or None
        By `fit_scaling`.
    augment, flip_axes : see `augment_batch`
    seed : int
    device : str or torch.device
        Where batches are scaled and augmented.
    """

    def __init__(
        self,
        data: TrainingSet,
        *,
        patch_size: tuple[int, ...],
        scaling: Any,
        constants: np.ndarray | None,
        augment: float | Augmentation | None,
        flip_axes: tuple[int, ...] | None = None,
        seed: int,
        device: str | torch.device = "cpu",
    ) -> None:
        self.data = data
        self.patch_size = patch_size
        self.constants = image_scaling(scaling, data.statistics) if constants is None else constants
        self.augment = augment
        self.flip_axes = flip_axes
        self.seed = seed
        self.device = device

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, plan: BatchPlan) -> tuple[dict[str, Tensor], Tensor]:
        """Return the patches (B, C, *S) with their weights, and their labels (B, *S)."""
        generator = make_generator(self.seed, plan.epoch, plan.batch)
        windows = [
            draw_window(self.data.sizes[index], self.patch_size, generator, around=pixel)
            for index, pixel in zip(plan.indices, plan.pixels, strict=True)
        ]
        picked = list(zip(plan.indices, windows, strict=True))
        # Each image with its mask: a Dataset with random transforms gives both of one draw only one after the other.
        pairs = [(_cut(self.data.images[at], window), _cut(self.data.masks[at], window)) for at, window in picked]
        raw, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))  # (B, C, *S), (B, *S)
        constants = self.constants if self.constants.ndim == 2 else self.constants[plan.indices]
        patches = scale(as_tensor(raw), torch.from_numpy(np.ascontiguousarray(constants)), device=self.device)
        masks = self.data.codec.to_tensor(labels).to(self.device)
        image_weights, pixel_weights = self._weights(picked)
        patches, masks, pixel_weights = augment_batch(
            self.augment, patches, masks, pixel_weights, generator, flip_axes=self.flip_axes
        )
        weights = image_weights if pixel_weights is None else pixel_weights
        if image_weights is not None and pixel_weights is not None:  # those of pixels that the augmentation made up
            weights = pixel_weights * image_weights.reshape(-1, *[1] * (pixel_weights.ndim - 1))
        inputs = {"patches": patches} | ({} if weights is None else {"sample_weight": weights})
        return inputs, masks

    def _weights(self, picked: Sequence[tuple[Any, Any]]) -> tuple[Tensor | None, Tensor | None]:
        weights = self.data.weights
        if weights is None:
            return None, None
        if isinstance(weights, np.ndarray):
            return torch.from_numpy(weights[[index for index, _ in picked]]).to(self.device), None
        cut = np.stack([_cut(weights[index], window) for index, window in picked])  # (B, *S)
        return None, torch.from_numpy(cut).to(self.device)


def draw_window(
    size: np.ndarray,
    patch_size: tuple[int, ...],
    generator: np.random.Generator,
    around: np.ndarray | None = None,
) -> tuple[np.ndarray, ...]:
    """Return the positions that a random window reads along each axis; it holds the pixel `around`.

    Where the image is smaller than the window, positions run over the image and back, mirrored at its ends.
    """
    first, last = np.zeros(len(patch_size), dtype=np.int64), np.maximum(size - patch_size, 0)
    if around is not None:
        first, last = np.clip(around - patch_size + 1, 0, last), np.minimum(around, last)
    starts = [int(generator.integers(low, high + 1)) for low, high in zip(first, last, strict=True)]
    return tuple(
        reflect(np.arange(start, start + patch), int(n))
        for start, patch, n in zip(starts, patch_size, size, strict=True)
    )


def _cut(array: np.ndarray, window: tuple[np.ndarray, ...]) -> np.ndarray:
    """Return the window of the last axes; a plain slice where the positions are contiguous."""
    is_plain = all(positions[-1] - positions[0] == len(positions) - 1 for positions in window)
    axes: Any = [slice(at[0], at[-1] + 1) for at in window] if is_plain else np.ix_(*window)
    index: tuple[Any, ...] = (..., *axes)
    cut: np.ndarray = array[index]
    return cut


def choose_patch_size(patch_size: int | Sequence[int] | None, sizes: np.ndarray, geometry: Geometry) -> tuple[int, ...]:
    """Return the pixels per axis of the training windows: a size that the network gives when nothing is cut off.

    Pixels that it computed for a legal size and that were then cut off would never be trained, though larger images
    have pixels at these places, as far from the padding of the convolutions.

    Parameters
    ----------
    patch_size : int, sequence of int, or None
        None takes the median of the sizes, and at most 256 (2-D) or 128 (3-D) per axis.
    sizes : ndarray of shape (N, spatial_ndim)
    geometry : Geometry
        Of the network.

    Returns
    -------
    tuple of int
        The next such size, no larger than that of the largest image; for None the one before, where the lowest
        resolution then has `ENOUGH` pixels. It always has two or more: batch normalization cannot train on one.

    Raises
    ------
    ValueError
        If there is a number per axis of images with more or fewer axes.
    """
    spatial_ndim, multiple = sizes.shape[1], geometry.size_multiple
    if patch_size is not None and np.shape(patch_size) not in ((), (spatial_ndim,)):
        raise ValueError(
            f"patch_size must be a number of pixels, or one per axis, {spatial_ndim} here; got {patch_size!r}."
        )
    if patch_size is not None:
        patch = np.minimum(np.broadcast_to(np.asarray(patch_size), spatial_ndim), sizes.max(axis=0))
    else:
        patch = np.minimum(np.median(sizes, axis=0).astype(int), USEFUL_SIDE[spatial_ndim])
        patch = np.where(patch < ENOUGH * multiple, patch, patch // multiple * multiple)
    if (patch <= multiple).all():
        patch = np.append(patch[:-1], 2 * multiple)
    return tuple(uncut_size(geometry, int(n)) for n in patch)


def choose_batch_size(batch_size: int | str, patch_size: tuple[int, ...] = ()) -> int:
    """Return what "auto" stands for with patches of that size, a number as it is.

    Examples
    --------
    >>> choose_batch_size("auto", (256, 256)), choose_batch_size("auto", (32, 128, 128)), choose_batch_size(8)
    (4, 1, 8)
    """
    if isinstance(batch_size, str):
        return 1 if math.prod(patch_size) > LARGE else 4
    return batch_size


class EvaluationBatches(Dataset[Any]):
    """Whole images as they came, in batches of equal size, with their labels where there are any.

    Parameters
    ----------
    data : TrainingSet or Images
    """

    def __init__(self, data: Any) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor | dict[str, Tensor], Tensor]:
        """Return images (B, C, *S), with weights where given, and labels (B, *S)."""
        if not isinstance(self.data, TrainingSet):
            return as_tensor(np.stack([self.data[index] for index in indices])), torch.zeros(len(indices))
        pairs = [(self.data.images[index], self.data.masks[index]) for index in indices]
        raw, labels = (np.stack(arrays) for arrays in zip(*pairs, strict=True))
        images, masks = as_tensor(raw), self.data.codec.to_tensor(labels)  # (B, C, *S), (B, *S)
        if self.data.weights is None:
            return images, masks
        weights = np.stack(pick(self.data.weights, np.asarray(indices)))
        return {"images": images, "sample_weight": torch.from_numpy(weights)}, masks


def group_equal_sizes(sizes: Sequence[tuple[int, ...]], *, batch_size: int, largest: int) -> list[list[int]]:
    """Return batches of neighbouring images of equal size; images of more than `largest` pixels go alone.

    Examples
    --------
    >>> group_equal_sizes([(8, 8), (8, 8), (8, 8), (4, 8)], batch_size=2, largest=100)
    [[0, 1], [2], [3]]
    """
    batches: list[list[int]] = []
    for index, size in enumerate(sizes):
        joins = batches and len(batches[-1]) < batch_size and tuple(sizes[batches[-1][0]]) == tuple(size)
        if joins and np.prod(size) <= largest:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def unpack_inputs(inputs: Any) -> tuple[Tensor, bool, Tensor | None]:
    """Return what a batch holds for the network.

    Returns
    -------
    images : Tensor of shape (B, C, *S)
    is_scaled : bool
        True for training patches, False for whole images as they came.
    sample_weight : Tensor or None
    """
    if not isinstance(inputs, Mapping):
        return torch.as_tensor(inputs), False, None
    is_scaled = "patches" in inputs
    return inputs["patches" if is_scaled else "images"], is_scaled, inputs.get("sample_weight")
