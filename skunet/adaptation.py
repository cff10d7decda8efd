"""Batch norms with statistics of the image that is predicted, measured whole or in parts of it."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from skunet.folding import folded_norms
from skunet.geometry import ENOUGH
from skunet.pixels import Window
from skunet.randomness import make_generator

__all__ = ["NormAdaptation", "NormStatistics", "adaptation_of", "choose_share"]

# By the names of the norms: mean and variance of each channel, (2, C).
NormStatistics = dict[str, Tensor]

# An image of no more pixels than `WHOLE` patches is measured whole, of larger ones parts of as many as `PATCHES`, all
# at once, and at least so many parts; the memory for it is 1.2 and 1.1 times that of training on one patch. Mean Dice,
# as in `choose_share`, of nuclei measured whole .835 and .806, in parts of half a patch's sides .836 and .776. With all
# of two tomograms, which are 2.4 and 1.8 patches: measured whole .69 and .66; in 2 of 4 parts, as large as patches, .69
# and .57; in 8 of 16 with half the sides .70 and .67, in 4 of these .56 (the second). Parts that are measured one by
# one say less: .65, not .96.
WHOLE, PATCHES, LEAST = 2.5, 2, 4


def choose_share(norm_adaptation: float | str, batch_size: int) -> float:
    """Return what "auto" stands for, anything else as it is.

    A batch of one patch is normalized by that patch. Where the network then predicts with the mean statistics of
    training alone, all that it looks at in another composition is normalized otherwise.

    Examples
    --------
    >>> choose_share("auto", 1), choose_share("auto", 4), choose_share(0.25, 4)
    (0.5, 0.0, 0.25)
    """
    if not isinstance(norm_adaptation, str):
        return float(norm_adaptation)
    # Each time trained on some rows of one volume, mean Dice of both classes in its other rows: alone, cut at the
    # sides, with the rows before, and in other contrasts. Share 0 : .25 : .5 : .75 : 1 after 320 steps: two tomograms
    # of microtubules .741 : .783 : .785 : .779 : .773 and .287 : .630 : .723 : .737 : .735; of these, alone
    # and not cut, .94 : .92 : .90 : .88 : .87 and .86 : .83 : .75 : .70 : .69. Two volumes of nuclei after 192 steps,
    # 0 : .5, .840 : .835 and .788 : .806.
    return 0.5 if batch_size == 1 else 0.0


def adaptation_of(
    module: nn.Module,
    norm_adaptation: float | str,
    *,
    batch_size: int,
    patch_size: tuple[int, ...],
    size_multiple: int,
) -> "NormAdaptation | None":
    """Return how a network that was trained on such batches adapts; None where it does not, or has no batch norms."""
    share = choose_share(norm_adaptation, batch_size)
    if not share or not _norms(module):
        return None
    part_size = tuple(min(side, max(side // 2, ENOUGH * size_multiple)) for side in patch_size)
    return NormAdaptation(module, share, part_size, math.prod(patch_size))


@dataclass(frozen=True)
class NormAdaptation:
    """How batch norms take in an image.

    Attributes
    ----------
    module : torch.nn.Module
        In evaluation mode, with the statistics of training; left as it is.
    share : float
        In 0..1: of the statistics of the image, the rest being those of training.
    part_size : tuple of int
        Most pixels per axis of the parts of large images to measure.
    patch_pixels : int
        Of the patches of training.

    References
    ----------
    Schneider, Rusak et al., Improving robustness against common corruptions by covariate shift adaptation, 2020.
    """

    module: nn.Module
    share: float
    part_size: tuple[int, ...]
    patch_pixels: int

    def windows(self, size: tuple[int, ...]) -> list[Window]:
        """Return what to measure of an image: the whole, or parts of one size, all of these or some drawn by lot.

        They depend on nothing but the sizes, so that predictions do not depend on tiles.

        Examples
        --------
        >>> NormAdaptation(nn.Identity(), 0.5, part_size=(4, 8), patch_pixels=16).windows((7, 8))
        [(slice(0, 4, None), slice(0, 8, None)), (slice(3, 7, None), slice(0, 8, None))]
        """
        if math.prod(size) <= WHOLE * self.patch_pixels:
            return [tuple(slice(0, side) for side in size)]
        spans = [_cover(side, most) for side, most in zip(size, self.part_size, strict=True)]
        n_parts = max(PATCHES * self.patch_pixels // math.prod(self.part_size), LEAST)
        shape = [len(axis) for axis in spans]
        if math.prod(shape) <= n_parts:
            return list(product(*spans))
        generator = make_generator(0)
        # One of each stratum; of large images there are too many parts to make a list of.
        bounds = [math.prod(shape) * i // n_parts for i in range(n_parts + 1)]
        chosen = [np.unravel_index(generator.integers(*stratum), shape) for stratum in pairwise(bounds)]
        return [tuple(axis[at] for axis, at in zip(spans, place, strict=True)) for place in chosen]

    def measure(self, patches: Tensor, forward: Callable[[nn.Module, Tensor], object]) -> NormStatistics:
        """Return what each norm meets in patches of an image, mixed with the statistics of training.

        Parameters
        ----------
        patches : Tensor (B, C, *P)
            Scaled.
        forward : callable
            Called with a network and the patches, to put the one through the other.
        """
        network = _with_own_buffers(self.module)
        norms = _norms(network)
        for norm in norms.values():
            norm.register_forward_pre_hook(self._take_in)
        forward(network, patches)
        return {name: _statistics(norm) for name, norm in norms.items()}

    def _take_in(self, norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].float()
        variance, mean = torch.var_mean(features, [0, *range(2, features.ndim)], correction=0)
        trained = _statistics(norm)
        _put(trained.lerp(torch.stack([mean, variance]).to(trained), self.share), norm)

    def network(self, statistics: NormStatistics) -> nn.Module:
        """Return a network with these statistics, its norms inside the convolutions before them."""
        network = _with_own_buffers(self.module)
        for name, norm in _norms(network).items():
            _put(statistics[name], norm)
        return folded_norms(network)


def _cover(side: int, most: int) -> list[slice]:
    n_parts = math.ceil(side / most)
    width = math.ceil(side / n_parts)
    return [slice(start, start + width) for start in np.linspace(0, side - width, n_parts).round().astype(int).tolist()]


def _norms(network: nn.Module) -> dict[str, _BatchNorm]:
    return {
        name: layer
        for name, layer in network.named_modules()
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None
    }


def _with_own_buffers(network: nn.Module) -> nn.Module:
    """Return a copy that shares the weights."""
    with torch.inference_mode(False):  # what is made in it does not count its changes, see `kept_for`
        return deepcopy(network, {id(weight): weight for weight in network.parameters()}).eval()


def _statistics(norm: Any) -> Tensor:
    return torch.stack([norm.running_mean, norm.running_var])  # (2, C)


def _put(statistics: Tensor, norm: Any) -> None:
    norm.running_mean.copy_(statistics[0])
    norm.running_var.copy_(statistics[1])
