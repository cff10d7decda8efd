"""Random rotations, zooms, shears and elastic deformations of batches, on whatever device they are."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["Warp", "draw_warp", "warp_images", "warp_masks"]

# Random displacements per axis that an elastic deformation runs smoothly through: the U-Net paper's 3 x 3.
COARSE = 3


@dataclass(frozen=True)
class Warp:
    """Where each pixel of a batch is read from.

    Attributes
    ----------
    grid : Tensor of shape (B, *S, spatial_ndim)
        As `torch.nn.functional.grid_sample` takes it: -1 to 1 from end to end, the last axis first.
    """

    grid: Tensor


def draw_warp(
    n_samples: int,
    size: Sequence[int],
    generator: np.random.Generator,
    *,
    rotation: float,
    zoom: float,
    shear: float,
    elastic: float,
    spacing: Sequence[float] | None = None,
    device: torch.device | None = None,
) -> Warp:
    """Draw a transform for each sample.

    Parameters
    ----------
    n_samples : int
    size : sequence of int
        Pixels per axis.
    generator : numpy.random.Generator
    rotation : float
        Degrees, at most, about each axis; with unequal `spacing` of depth about the depth alone.
    zoom : float
        Largest factor less 1: from 1 / (1 + zoom) to 1 + zoom.
    shear : float
        Degrees, at most.
    elastic : float
        Standard deviation of the displacements, in pixels of the last axis.
    spacing : sequence of float, optional
        Distance between pixels along each axis; 1 by default.
    device : torch.device, optional
    """
    ndim = len(size)
    steps = np.ones(ndim) if spacing is None else np.asarray(spacing, dtype=float) / spacing[-1]
    matrices = np.stack([_draw_matrix(ndim, steps, generator, rotation, zoom, shear) for _ in range(n_samples)])
    # From units of distance to those of the grid, in which the middle of the image is 0 and its ends are 1.
    extent = np.asarray(size) * steps / 2
    matrices = matrices * extent[None, None, :] / extent[None, :, None]
    reversed_axes = matrices[:, ::-1, ::-1].copy()  # the grid has the last axis first
    theta = torch.from_numpy(np.concatenate([reversed_axes, np.zeros((n_samples, ndim, 1))], axis=2))
    grid = functional.affine_grid(theta.float().to(device), [n_samples, 1, *size], align_corners=False)
    if elastic > 0:
        coarse = generator.normal(scale=elastic, size=(n_samples, ndim, *(COARSE,) * ndim)) / extent.reshape(
            (ndim,) + (1,) * ndim
        )
        displacement = functional.interpolate(
            torch.from_numpy(coarse[:, ::-1].copy()).float().to(device),
            size=tuple(size),
            mode="bicubic" if ndim == 2 else "trilinear",
            align_corners=True,
        )  # (B, ndim, *S)
        grid = grid + displacement.movedim(1, -1)
    return Warp(grid)


def _draw_matrix(
    ndim: int, steps: np.ndarray, generator: np.random.Generator, rotation: float, zoom: float, shear: float
) -> np.ndarray:
    """Return a matrix (ndim, ndim) that maps places in the result to places in the image, in units of distance."""
    matrix = np.eye(ndim)
    is_equal = bool(np.allclose(steps, steps[0]))
    planes = [(i, j) for i in range(ndim) for j in range(i + 1, ndim)] if is_equal else [(ndim - 2, ndim - 1)]
    for i, j in planes:
        angle = math.radians(generator.uniform(-rotation, rotation))
        turn = np.eye(ndim)
        turn[[i, i, j, j], [i, j, i, j]] = math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle)
        slant = np.eye(ndim)
        slant[i, j] = math.tan(math.radians(generator.uniform(-shear, shear)))
        matrix = matrix @ turn @ slant
    return matrix * math.exp(generator.uniform(-1, 1) * math.log1p(zoom))


def warp_images(images: Tensor, warp: Warp) -> Tensor:
    """Return images (B, C, *S) that are read linearly, and mirrored beyond their ends."""
    return functional.grid_sample(images, warp.grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def warp_masks(masks: Tensor, warp: Warp) -> Tensor:
    """Return masks, or weights, (B, *S) with the values of the nearest pixels."""
    if masks.device.type == "mps":  # which has no float64
        return warp_masks(masks.cpu(), Warp(warp.grid.cpu())).to(masks.device)
    # Labels of 32 and 64 bits are exact in float64 alone.
    dtype = torch.float64 if masks.dtype in (torch.int32, torch.int64, torch.float64) else torch.float32
    values = functional.grid_sample(
        masks[:, None].to(dtype), warp.grid.to(dtype), mode="nearest", padding_mode="reflection", align_corners=False
    )
    return values[:, 0].to(masks.dtype)
