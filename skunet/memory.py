"""What memory a training step takes, and patches and batches that keep within a limit."""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["USEFUL_SIDE", "StepMemory", "fit_step", "measure_step"]

# Peaks were 1.2 to 1.75 times what the forward pass keeps for the backward pass: gradients of the largest maps and
# scratch of the convolutions come on top (2-D and 3-D, depth 2 to 4, 8 to 32 filters, float32 and bfloat16).
PEAK = 1.75
# Pixels per axis of patches that see enough: those taken where no patch_size is given; they are made smaller only where
# a batch of one is still too large. Held-out rows of volumes, as many pixels per step, 4 patches of 64 : 2 of 96 : 1 of
# 128 pixels per side: mean Dice of microtubules .375 : (one seed) .61 : .712, of nuclei .746 : - : .80. The lowest
# resolution has 4, 6 and 8 pixels per side then, and most of 4 lie beside the padding, but few in images to predict.
USEFUL_SIDE = {2: 256, 3: 128}


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a training step takes beside the data.

    Attributes
    ----------
    constant : float
        Weights, their gradients and what the optimizer keeps of them.
    per_pixel : float
        For each pixel of a batch that the network takes.
    input_size : callable
        Returns the pixels that the network takes along an axis, for those of a patch.
    """

    constant: float
    per_pixel: float
    input_size: Callable[[int], int] = int

    def bytes_for(self, batch_size: int, patch_size: Sequence[int]) -> float:
        """Return the bytes for a batch.

        Examples
        --------
        >>> StepMemory(constant=500, per_pixel=2).bytes_for(3, (10, 10))
        1100
        """
        return self.constant + self.per_pixel * batch_size * math.prod(map(self.input_size, patch_size))


def measure_step(
    run: Callable[[tuple[int, ...]], Tensor],
    *,
    size: tuple[int, ...],
    weights: int,
    input_size: Callable[[int], int] = int,
) -> StepMemory:
    """Measure on small patches what the forward pass keeps for the backward pass.

    Parameters
    ----------
    run : callable
        Takes the pixels per axis of patches, and returns the loss of two of them.
    size : tuple of int
        The smaller of two sizes that are tried.
    weights : int
        Bytes of the network's weights.
    input_size : callable
        See `StepMemory`.
    """
    sizes = (size, tuple(2 * n for n in size))
    kept = [_kept_bytes(run, tried) for tried in sizes]
    pixels = [2 * math.prod(map(input_size, tried)) for tried in sizes]
    # What does not grow with the patch, such as weights in half precision, is kept once.
    per_pixel = (kept[1] - kept[0]) / (pixels[1] - pixels[0])
    constant = kept[0] - per_pixel * pixels[0]
    return StepMemory(4 * weights + max(constant, 0.0), PEAK * per_pixel, input_size)


def _kept_bytes(run: Callable[[tuple[int, ...]], Tensor], size: tuple[int, ...]) -> int:
    kept: list[Tensor] = []  # which keeps their addresses apart

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(size)
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    return sum(storages.values())


def fit_step(
    memory: StepMemory,
    limit: float,
    *,
    batch_size: int,
    patch_size: tuple[int, ...],
    size_multiple: int,
    may_crop: bool,
) -> tuple[int, tuple[int, ...]]:
    """Return the batch size and the patch size of a training step within a limit.

    Patches are cropped first, as far as they stay useful; then batches are made smaller; then patches are cropped on.

    Parameters
    ----------
    memory : StepMemory
    limit : float
        In bytes.
    batch_size : int
    patch_size : tuple of int
    size_multiple : int
        Sides are cropped to multiples of it, and to 4 of them at least.
    may_crop : bool
        Whether patches may become smaller.

    Warns
    -----
    UserWarning
        If the least that is possible is more than the limit.

    Examples
    --------
    >>> fit_step(StepMemory(0, 1), 50_000, batch_size=2, patch_size=(300, 300), size_multiple=16, may_crop=True)
    (1, (208, 224))
    """
    patch = list(patch_size)
    useful, least = USEFUL_SIDE[len(patch)], 4 * size_multiple

    def crop(floor: int) -> bool:
        axis = max(range(len(patch)), key=patch.__getitem__)
        smaller = (patch[axis] - 1) // size_multiple * size_multiple
        is_possible = may_crop and smaller >= floor
        if is_possible:
            patch[axis] = smaller
        return is_possible

    while memory.bytes_for(batch_size, patch) > limit:
        if crop(max(useful, least)):
            continue
        if batch_size > 1:
            batch_size -= 1
        elif not crop(least):
            _warn_of_limit(memory.bytes_for(1, patch), limit, patch)
            break
    return batch_size, tuple(patch)


def _warn_of_limit(needed: float, limit: float, patch: Sequence[Any]) -> None:
    warnings.warn(
        f"memory_limit is {limit / 1e6:,.2g} MB, and a training step on 1 patch of {' x '.join(map(str, patch))} takes "
        f"about {needed / 1e6:,.2g} MB. Give a smaller patch_size, fewer filters, or a higher limit.",
        UserWarning,
        stacklevel=2,
    )
