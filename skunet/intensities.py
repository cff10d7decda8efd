"""Random changes of brightness, contrast, sharpness and noise, sample by sample, on scaled images (B, C, *S)."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "add_noise",
    "blur",
    "change_brightness",
    "change_contrast",
    "change_gamma",
    "drop_channels",
    "lower_resolution",
]


def _per_sample(values: np.ndarray, images: Tensor) -> Tensor:
    """Return numbers (B,) or (B, C) so that they multiply images."""
    shape = values.shape + (1,) * (images.ndim - values.ndim)
    return torch.from_numpy(values.reshape(shape)).to(images)


def _factors(most: float, n: int, generator: np.random.Generator) -> np.ndarray:
    """Return factors from 1 / (1 + most) to 1 + most."""
    return np.exp(generator.uniform(-1, 1, n) * math.log1p(most))


def change_brightness(images: Tensor, most: float, generator: np.random.Generator) -> Tensor:
    """Add a number from -most to most, one per channel, in standard deviations of scaled images."""
    return images + _per_sample(generator.uniform(-most, most, images.shape[:2]), images)


def change_contrast(images: Tensor, most: float, generator: np.random.Generator) -> Tensor:
    """Multiply what each channel differs from its mean by."""
    mean = images.flatten(2).mean(2).reshape(*images.shape[:2], *(1,) * (images.ndim - 2))
    return mean + (images - mean) * _per_sample(_factors(most, len(images), generator), images)


def change_gamma(images: Tensor, most: float, generator: np.random.Generator) -> Tensor:
    """Raise pixels, from 0 for the least to 1 for the largest of their image, to a power; the range stays."""
    shape = (len(images), *(1,) * (images.ndim - 1))
    least = images.flatten(1).amin(1).reshape(shape)
    extent = (images.flatten(1).amax(1).reshape(shape) - least).clamp_min(torch.finfo(images.dtype).eps)
    power = _per_sample(_factors(most, len(images), generator), images)
    return least + extent * ((images - least) / extent).clamp(0, 1) ** power


def add_noise(images: Tensor, most: float, generator: np.random.Generator) -> Tensor:
    """Add Gaussian noise of a standard deviation from 0 to most."""
    source = torch.Generator(images.device).manual_seed(int(generator.integers(2**63)))
    noise = torch.randn(images.shape, generator=source, device=images.device, dtype=images.dtype)
    return images + noise * _per_sample(generator.uniform(0, most, len(images)), images)


def blur(images: Tensor, most: float, generator: np.random.Generator) -> Tensor:
    """Blur with a Gaussian of a width from 0 to most pixels."""
    sigmas = generator.uniform(0, most, len(images)).clip(1e-3)
    reach = max(1, math.ceil(3 * most))
    positions = np.arange(-reach, reach + 1)
    kernels = np.exp(-0.5 * (positions / sigmas[:, None]) ** 2)
    weights = torch.from_numpy(kernels / kernels.sum(1, keepdims=True)).to(images)  # (B, L)
    ndim = images.ndim - 2
    convolve = (functional.conv2d, functional.conv3d)[ndim - 2]
    for axis in range(ndim):
        pad = [0, 0] * (ndim - 1 - axis) + [reach, reach] + [0, 0] * axis
        mode = "reflect" if images.shape[2 + axis] > reach else "replicate"
        padded = functional.pad(images, pad, mode=mode).transpose(0, 1)  # (C, B, *S)
        kernel = weights.reshape(len(images), 1, *(-1 if a == axis else 1 for a in range(ndim)))
        images = convolve(padded, kernel, groups=len(images)).transpose(0, 1)
    return images


def lower_resolution(images: Tensor, most: float, generator: np.random.Generator) -> Tensor:
    """Make images as if they had been taken with pixels up to 1 + most times as wide."""
    mode = "bilinear" if images.ndim == 4 else "trilinear"
    results = []
    for image, factor in zip(images, _factors(most, len(images), generator), strict=True):
        scale = min(float(factor), 1 / float(factor))
        small = [max(1, round(n * scale)) for n in image.shape[1:]]
        # Of the middles, as enlarging takes them: "nearest" takes pixels on one side, which moves the image.
        coarse = functional.interpolate(image[None], size=small, mode="nearest-exact")
        results.append(functional.interpolate(coarse, size=tuple(image.shape[1:]), mode=mode, align_corners=False))
    return torch.cat(results)


def drop_channels(images: Tensor, probability: float, generator: np.random.Generator) -> Tensor:
    """Set channels to 0, the mean of scaled images, but never all of one image."""
    stays = generator.random(images.shape[:2]) >= probability
    stays[np.arange(len(stays)), generator.integers(stays.shape[1], size=len(stays))] = True
    return images * _per_sample(stays.astype(np.float32), images)
