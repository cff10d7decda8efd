"""Random transforms of training batches: image, mask and weight together, each sample its own."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

__all__ = ["augment_batch", "flip_and_turn"]

Augmentation = Callable[[Tensor, Tensor, Tensor | None, np.random.Generator], tuple[Tensor, Tensor, Tensor | None]]


def augment_batch(
    augment: str | Augmentation | None,
    images: Tensor,
    masks: Tensor,
    weights: Tensor | None,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply the augmentation that the user named.

    Parameters
    ----------
    augment : "default", None or callable
        "default" flips and turns. A callable gets `(images, masks, weights, generator)` and returns the
        first three.
    images : Tensor of shape (B, C, *S), float32
    masks : Tensor of shape (B, *S)
    weights : Tensor of shape (B, *S) or None
    generator : numpy.random.Generator

    Returns
    -------
    images, masks, weights
        As given in, transformed.
    """
    if augment is None:
        return images, masks, weights
    transform: Augmentation = flip_and_turn if augment == "default" else augment  # type: ignore[assignment]
    return transform(images, masks, weights, generator)


def flip_and_turn(
    images: Tensor, masks: Tensor, weights: Tensor | None, generator: np.random.Generator
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mirror along each axis and swap rows with columns, each with probability 1/2, sample by sample.

    Together these are all 8 flips and right-angle turns of a square. Rows and columns are swapped only
    where they are equally many.

    Parameters
    ----------
    images : Tensor of shape (B, C, *S)
    masks : Tensor of shape (B, *S)
    weights : Tensor of shape (B, *S) or None
    generator : numpy.random.Generator

    Returns
    -------
    images, masks, weights

    Examples
    --------
    >>> image = torch.tensor([[[[1, 2], [3, 4]]]])
    >>> images, masks, _ = flip_and_turn(image, image[:, 0], None, np.random.default_rng(0))
    >>> bool((images[:, 0] == masks).all())
    True
    """
    spatial_ndim = masks.ndim - 1
    operations: list[Callable[[Tensor], Tensor]] = [
        lambda tensor, axis=axis: tensor.flip(axis)  # type: ignore[misc]
        for axis in range(-spatial_ndim, 0)
    ]
    if masks.shape[-1] == masks.shape[-2]:
        operations.append(lambda tensor: tensor.transpose(-1, -2))
    for operation in operations:
        chosen = torch.from_numpy(np.flatnonzero(generator.random(len(images)) < 0.5)).to(images.device)
        images, masks = _at(images, chosen, operation), _at(masks, chosen, operation)
        weights = None if weights is None else _at(weights, chosen, operation)
    return images, masks, weights


def _at(tensor: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the tensor with the operation applied to the chosen samples."""
    return tensor.index_copy(0, chosen, operation(tensor.index_select(0, chosen)))
