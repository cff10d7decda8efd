"""Transforms of other libraries as the `augment` of a segmenter: image by image, each with a seed of its own."""

import copy
import re
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from skunet.randomness import seeded_torch

__all__ = ["Albumentations", "TorchIO", "Torchvision"]


# Whole numbers up to here are exact in float32.
MOST = 2**24


class _SampleBySample(BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """What all adapters have in common.

    Parameters
    ----------
    transform : callable
        Of the other library. It gets images as the network does, scaled: with a standard deviation of about 1, and not
        within 0..1 or 0..255. Labels reach it as float32, under the values they have in `y`, and weights of pixels, 1
        where none were given, as a second mask: pixels that it makes up and fills with 0 count nowhere.
    """

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002
        """Return the transform, whose own parameters are no business of a search."""
        return {"transform": self.transform}

    def __sklearn_clone__(self) -> Self:
        return type(self)(copy.deepcopy(self.transform))

    def fingerprint_parts(self) -> list[str]:
        """Return what tells this adapter from others, for a file."""
        return [re.sub(r"seed=\w+", "", repr(self.transform))]

    def __call__(
        self, images: Tensor, masks: Tensor, weights: Tensor | None, generator: np.random.Generator
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images (B, C, *S), masks (B, *S) and weights (B, *S), or None, transformed.

        Raises
        ------
        ValueError
            If there is no transform of that library, or a class of one; if it changes the size or the number of
            channels, or makes pixels that are not finite; if labels are beyond what float32 holds.
        """
        if isinstance(self.transform, type) or not self._is_transform():
            raise ValueError(
                f"{type(self).__name__} must be given a transform of that library, built; got {self.transform!r}."
            )
        largest = masks.cpu().double().abs().max()  # some GPUs have no float64
        if largest > MOST:
            raise ValueError(f"{type(self).__name__} takes labels up to {MOST}; got {largest:.0f}. Renumber them.")
        given = torch.ones(masks.shape, device=masks.device) if weights is None else weights
        samples = []
        for index in range(len(images)):
            maps = [masks[index].float(), given[index]]
            image, maps = self._apply(images[index], maps, int(generator.integers(2**31)))
            shapes = [tuple(image.shape), *(tuple(part.shape) for part in maps)]
            expected = [tuple(images.shape[1:]), *[tuple(masks.shape[1:])] * len(maps)]
            if shapes != expected:
                raise ValueError(
                    f"augment must keep the shape of an image and its masks, {expected}; got {shapes} from "
                    f"{self.transform!r}. Leave out what crops, pads or resizes: patch_size crops already."
                )
            samples.append((image, *maps))
        pixels, labels, kept = (torch.stack(part) for part in zip(*samples, strict=True))
        if not torch.isfinite(pixels).all():
            raise ValueError(
                f"augment must return finite pixels; got NaN or infinity from {self.transform!r}. Images reach it "
                "scaled, not within 0..1: leave out what expects these, as gamma; `Augment` has its own."
            )
        # A fill for labels fills the weights too.
        kept = kept.to(given.dtype).clamp_(0, float(given.max()))
        is_none = weights is None and bool((kept == 1).all())
        return pixels.to(images.dtype), labels.round().to(masks.dtype), None if is_none else kept

    def _is_transform(self) -> bool:
        return callable(self.transform)

    def _apply(self, image: Tensor, maps: Sequence[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
        """Return an image (C, *S) and maps (*S) of it, transformed alike."""
        raise NotImplementedError


class Albumentations(_SampleBySample):
    """A transform of albumentations, for 2-D images.

    Parameters
    ----------
    transform : albumentations.Compose
        Of any transforms that keep the size and take float32 images whose pixels are not within 0..1.

    Examples
    --------
    >>> import albumentations as A  # doctest: +SKIP
    >>> UNetSegmenter(augment=Albumentations(A.Compose([A.ElasticTransform(p=0.5), A.D4()])))  # doctest: +SKIP
    """

    def _is_transform(self) -> bool:
        return super()._is_transform() and hasattr(self.transform, "set_random_seed")

    def _apply(self, image: Tensor, maps: Sequence[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
        if image.ndim != 3:
            raise ValueError(f"Albumentations is for 2-D images; got volumes of {tuple(image.shape[1:])}. Use TorchIO.")
        self.transform.set_random_seed(seed)
        arrays = [np.ascontiguousarray(part.cpu().numpy()) for part in maps]
        found = self.transform(image=np.ascontiguousarray(image.movedim(0, -1).cpu().numpy()), masks=arrays)
        changed, *masks = (
            torch.as_tensor(np.ascontiguousarray(part)).to(image.device) for part in (found["image"], *found["masks"])
        )
        return changed.movedim(-1, 0), masks


class Torchvision(_SampleBySample):
    """A transform of torchvision's version 2, for 2-D images.

    Parameters
    ----------
    transform : torchvision.transforms.v2.Transform

    Examples
    --------
    >>> from torchvision.transforms import v2  # doctest: +SKIP
    >>> UNetSegmenter(augment=Torchvision(v2.RandomAffine(30, scale=(0.8, 1.2))))  # doctest: +SKIP
    """

    def _apply(self, image: Tensor, maps: Sequence[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
        from torchvision import tv_tensors

        with seeded_torch(seed, device=image.device):
            found, *changed = self.transform(tv_tensors.Image(image), *map(tv_tensors.Mask, maps))
        return torch.as_tensor(found).as_subclass(Tensor), [part.as_subclass(Tensor) for part in changed]


class TorchIO(_SampleBySample):
    """A transform of TorchIO, for volumes, and for images as volumes of one slice.

    Images are turned by `degrees=(10, 0, 0)`; other axes turn them out of their plane, which leaves a strip of them.

    Parameters
    ----------
    transform : torchio.Transform

    Examples
    --------
    >>> import torchio  # doctest: +SKIP
    >>> UNetSegmenter(augment=TorchIO(torchio.RandomAffine(degrees=(10, 0, 0))))  # doctest: +SKIP
    """

    def _apply(self, image: Tensor, maps: Sequence[Tensor], seed: int) -> tuple[Tensor, list[Tensor]]:
        import torchio

        flat = image.ndim == 3
        volumes = [image, *(part[None] for part in maps)]  # (C, *S)
        volumes = [part[:, None].cpu() if flat else part.cpu() for part in volumes]  # (C, D, H, W)
        names = ["image", *(f"map{index}" for index in range(len(maps)))]
        kinds = [torchio.ScalarImage, *[torchio.LabelMap] * len(maps)]
        parts = {name: kind(tensor=part) for name, kind, part in zip(names, kinds, volumes, strict=True)}
        subject: Any = torchio.Subject
        with seeded_torch(seed):
            found = self.transform(subject(**parts))
        tensors = [found[name].data[:, 0] if flat else found[name].data for name in names]
        return tensors[0].to(image.device), [part[0].to(image.device) for part in tensors[1:]]
