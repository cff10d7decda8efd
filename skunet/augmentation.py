"""Random transforms of training batches: image, mask and weight together, each sample its own."""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from skunet import intensities
from skunet.warping import draw_warp, warp_images, warp_masks

__all__ = ["Augment", "augment_batch", "choose_augment"]

Augmentation = Callable[[Tensor, Tensor, Tensor | None, np.random.Generator], tuple[Tensor, Tensor, Tensor | None]]


def choose_augment(augment: Any, n_images: int, spatial_ndim: int, n_channels: int) -> Any:
    """Return what "default" stands for, anything else as it is.

    Few images do not show how much others differ from them, but a volume shows its objects from many sides. Channels
    keep their proportions where `choose_scaling` chose, so that the network must learn that light has other colours.

    Examples
    --------
    >>> choose_augment("default", 4, 2, 1), choose_augment("default", 100, 2, 1), choose_augment("default", 1, 3, 1)
    (0.5, 0.0, 0.0)
    >>> choose_augment("default", 100, 2, 3)
    Augment(brightness=0.5)
    """
    if not isinstance(augment, str):
        return augment
    # On validation parts after 60 to 150 s, strength 0 : 0.5 (: 1). Dice of Carvana, cars that train too, 2 images
    # .691 : .715 (: .866), 4 images .914 : .938 (: .948); others, 16 images .681 : .715, 48 images .975 (0.29: .966).
    # Pixel error of ISBI, 2 images .1002 : .0957 (: .1052), 8 images .0795 : .0791 (: .0788), 16 images .0774 : .0756.
    # mIoU of CamVid, 2 images .179 (: .215), 12 images .242 : .246 (: .233), 294 images .411 : .393. One volume,
    # held-out rows: Dice of microtubules .764 : .632 (: .775), of nuclei .797 (: .773). With larger patches those of
    # microtubules, in other contrasts, noise and blur too, .882, with these in training .872.
    # Brightness of each channel, up to 0 : 0.25 : 0.5 (: 1): IoU of a car in yellower light than 48 images of others
    # .519 : .85 : .917 (: .941), of one in the same light .967 : .967 : .970 (: .961), both with scaling "image"
    # .955 and .932; mIoU of CamVid .409 : .400 : .391. Car in yellower light, 12 images, beside strength 0.5: .767
    # without, .872 with up to 0.5.
    is_few = spatial_ndim == 2 and n_images <= 16
    if n_channels == 1:
        return 0.5 if is_few else 0.0
    return Augment.of_strength(0.5).set_params(brightness=0.5) if is_few else Augment(brightness=0.5)


def augment_batch(
    augment: float | Augmentation | None,
    images: Tensor,
    masks: Tensor,
    weights: Tensor | None,
    generator: np.random.Generator,
    *,
    flip_axes: tuple[int, ...] | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Apply the augmentation that the user named.

    Parameters
    ----------
    augment : float, None or callable
        By `choose_augment`. A number is `Augment.of_strength` of it. A callable gets
        `(images, masks, weights, generator)` and returns the first three.
    images : Tensor of shape (B, C, *S), float32
    masks : Tensor of shape (B, *S)
    weights : Tensor of shape (B, *S) or None
    generator : numpy.random.Generator
    flip_axes : tuple of int or None
        For what is "auto" in an `Augment`, see there.

    Returns
    -------
    images, masks, weights
        As given in, transformed.

    Raises
    ------
    TypeError, ValueError
        If a callable returns something else.
    """
    if augment is None:
        return images, masks, weights
    transform: Any = Augment.of_strength(augment) if isinstance(augment, Real) else augment
    known = {"flip_axes": flip_axes} if isinstance(transform, Augment) else {}
    augmented = transform(images, masks, weights, generator, **known)
    return augmented if known else _checked(augmented, images, augment)


def _checked(augmented: Any, images: Tensor, augment: Any) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what a callable made of a batch, with images in their dtype."""
    parts = augmented if isinstance(augmented, tuple | list) else [augmented]
    kinds = (Tensor, Tensor, Tensor | None)
    if len(parts) != 3 or not all(map(isinstance, parts, kinds)):
        raise TypeError(
            "augment must return Tensors (images, masks, weights), where weights may be None; got "
            f"({', '.join(type(part).__name__ for part in parts)}) from {augment!r}. skunet.adapters has adapters for "
            "transforms of other libraries."
        )
    changed, masks, weights = parts
    expected = (len(masks), images.shape[1], *masks.shape[1:])
    if changed.shape != expected or (weights is not None and weights.shape != masks.shape):
        shapes = [None if part is None else tuple(part.shape) for part in parts]
        raise ValueError(
            f"augment must return images (B, {images.shape[1]}, *S), masks (B, *S) and weights (B, *S) or None; got "
            f"{shapes} from {augment!r}."
        )
    return changed.to(images.dtype), masks, weights


class Augment(BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """Random transforms of training patches; each sample has its own, and images, masks and weights share them.

    `UNetSegmenter(augment=Augment(rotation=15))`; a grid search reaches its parts as `augment__rotation`. Any callable
    in its place gets what `__call__` gets, and returns the like. Images are those that the network gets, scaled: their
    standard deviation is about 1. Between pixels they are interpolated, beyond their ends mirrored; masks and weights
    have the values of the nearest pixels.

    Parameters
    ----------
    flip : "auto" or bool, default="auto"
        Mirror along each axis, with probability 1/2 each. In the fit of a segmenter "auto" leaves out axes along which
        the masks have a direction, as from sky to road (`flip_axes_` has the others).
    turn : "auto" or bool, default="auto"
        Swap rows and columns, where they are equally many, with probability 1/2; "auto" not where one has a direction.
    rotation : float, default=0
        Degrees, at most; of volumes about each axis, or about the depth alone where `spacing` differs.
    zoom : float, default=0
        Sizes change by factors from 1 / (1 + zoom) to 1 + zoom.
    shear : float, default=0
        Degrees, at most.
    elastic : float, default=0
        Smooth deformation: the standard deviation, in pixels, of random displacements on a grid of 3 per axis that are
        interpolated bicubically (trilinearly in volumes) [1]_.
    brightness : float, default=0
        At most so much is added to each channel.
    contrast, gamma : float, default=0
        Factors of the contrast, and powers of pixels between 0 and 1, from 1 / (1 + x) to 1 + x.
    noise : float, default=0
        Standard deviation of Gaussian noise, at most.
    blur : float, default=0
        Width of a Gaussian, in pixels, at most.
    low_resolution : float, default=0
        Pixels up to 1 + x times as wide.
    channel_drop : float, default=0
        Probability of each channel to be 0; one always stays.
    probability : float, default=0.5
        Of each part, flips and turns excepted, for each sample; rotation, zoom, shear and elastic are one.
    spacing : sequence of float, optional
        Distance between pixels along each axis; 1 by default.

    References
    ----------
    .. [1] O. Ronneberger, P. Fischer, T. Brox. "U-Net: Convolutional Networks for Biomedical Image Segmentation",
       MICCAI 2015.

    Examples
    --------
    >>> images, masks = torch.rand(2, 1, 8, 8), torch.ones(2, 8, 8, dtype=torch.int64)
    >>> augmented, same, _ = Augment(rotation=30, noise=0.1)(images, masks, None, np.random.default_rng(0))
    >>> augmented.shape, bool((same == 1).all())
    (torch.Size([2, 1, 8, 8]), True)
    """

    def __init__(
        self,
        *,
        flip: bool | str = "auto",
        turn: bool | str = "auto",
        rotation: float = 0,
        zoom: float = 0,
        shear: float = 0,
        elastic: float = 0,
        brightness: float = 0,
        contrast: float = 0,
        gamma: float = 0,
        noise: float = 0,
        blur: float = 0,
        low_resolution: float = 0,
        channel_drop: float = 0,
        probability: float = 0.5,
        spacing: Sequence[float] | None = None,
    ) -> None:
        self.flip = flip
        self.turn = turn
        self.rotation = rotation
        self.zoom = zoom
        self.shear = shear
        self.elastic = elastic
        self.brightness = brightness
        self.contrast = contrast
        self.gamma = gamma
        self.noise = noise
        self.blur = blur
        self.low_resolution = low_resolution
        self.channel_drop = channel_drop
        self.probability = probability
        self.spacing = spacing

    @classmethod
    def of_strength(cls, strength: float) -> "Augment":
        """Return all parts but the dropping of channels, as strong as is said: 0 flips and turns, 1 is usual."""
        return cls(
            rotation=15 * strength,
            zoom=0.25 * strength,
            shear=5 * strength,
            elastic=5 * strength,
            brightness=0.3 * strength,
            contrast=0.3 * strength,
            gamma=0.3 * strength,
            noise=0.1 * strength,
            blur=1.0 * strength,
            low_resolution=0.5 * strength,
            probability=0.3,
        )

    def check(self) -> None:
        """Raise ValueError if a parameter is out of its range."""
        for name, value in self.get_params().items():
            if name in ("flip", "turn") and not (value == "auto" or isinstance(value, bool | np.bool_)):
                raise ValueError(f'{name} of Augment must be "auto", True or False; got {value!r}.')
            if name in ("flip", "turn", "spacing"):
                continue
            most = 1.0 if name in ("probability", "channel_drop") else 80.0 if name == "shear" else np.inf
            if not (isinstance(value, Real) and 0 <= float(value) <= most and float(value) < np.inf):
                raise ValueError(f"{name} of Augment must be a number from 0 to {most:g}; got {value!r}.")
        if self.spacing is not None and not (np.ndim(self.spacing) == 1 and (np.asarray(self.spacing) > 0).all()):
            raise ValueError(f"spacing of Augment must be None or one number per axis, above 0; got {self.spacing!r}.")

    def __call__(
        self,
        images: Tensor,
        masks: Tensor,
        weights: Tensor | None,
        generator: np.random.Generator,
        *,
        flip_axes: tuple[int, ...] | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return images (B, C, *S), masks (B, *S) and weights (B, *S), or None, transformed.

        `flip_axes` are those, of -spatial_ndim..-1, that "auto" may mirror; None is all.
        """
        self.check()
        if self.spacing is not None and len(self.spacing) != masks.ndim - 1:
            raise ValueError(f"spacing of Augment must be one number per axis, {masks.ndim - 1}; got {self.spacing!r}.")
        every = tuple(range(1 - masks.ndim, 0))
        free = every if flip_axes is None else flip_axes
        chosen_axes = {"auto": free, True: every, False: ()}[self.flip]
        may_turn = {-2, -1} <= set(free) if self.turn == "auto" else bool(self.turn)
        images, masks, weights = _flip_and_turn(images, masks, weights, generator, axes=chosen_axes, turn=may_turn)
        warps = {name: getattr(self, name) for name in ("rotation", "zoom", "shear", "elastic")}
        chosen = self._choose(len(images), generator) if any(warps.values()) else np.empty(0, dtype=int)
        if chosen.size:
            at = torch.from_numpy(chosen).to(images.device)
            size = masks.shape[1:]
            warp = draw_warp(len(at), size, generator, **warps, spacing=self.spacing, device=images.device)
            images = _at(images, at, lambda part: warp_images(part, warp))
            masks = _at(masks, at, lambda part: warp_masks(part, warp))
            weights = None if weights is None else _at(weights, at, lambda part: warp_masks(part, warp))
        for name, change in INTENSITIES.items():
            most = getattr(self, name)
            chosen = self._choose(len(images), generator) if most else np.empty(0, dtype=int)
            if chosen.size:
                at = torch.from_numpy(chosen).to(images.device)
                changed = change(images.index_select(0, at), most, generator)
                images = images.index_copy(0, at, changed)
        return images, masks, weights

    def _choose(self, n_samples: int, generator: np.random.Generator) -> np.ndarray:
        """Return the positions of samples that a part is applied to."""
        return np.flatnonzero(generator.random(n_samples) < self.probability)


# In the order in which they are applied: those of the scene before those of the camera.
INTENSITIES = {
    "brightness": intensities.change_brightness,
    "contrast": intensities.change_contrast,
    "gamma": intensities.change_gamma,
    "blur": intensities.blur,
    "low_resolution": intensities.lower_resolution,
    "noise": intensities.add_noise,
    "channel_drop": intensities.drop_channels,
}


def _flip_and_turn(
    images: Tensor,
    masks: Tensor,
    weights: Tensor | None,
    generator: np.random.Generator,
    *,
    axes: tuple[int, ...],
    turn: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Mirror along each of the axes and swap rows with columns, each with probability 1/2, sample by sample.

    Together these are all 8 flips and right-angle turns of a square. Rows and columns are swapped only where they are
    equally many.
    """
    operations: list[Callable[[Tensor], Tensor]] = [
        lambda tensor, axis=axis: tensor.flip(axis)  # type: ignore[misc]
        for axis in axes
    ]
    if turn and masks.shape[-1] == masks.shape[-2]:
        operations.append(lambda tensor: tensor.transpose(-1, -2))
    for operation in operations:
        chosen = torch.from_numpy(np.flatnonzero(generator.random(len(images)) < 0.5)).to(images.device)
        images, masks = _at(images, chosen, operation), _at(masks, chosen, operation)
        weights = None if weights is None else _at(weights, chosen, operation)
    return images, masks, weights


def _at(tensor: Tensor, chosen: Tensor, operation: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the tensor with the operation applied to the chosen samples."""
    return tensor.index_copy(0, chosen, operation(tensor.index_select(0, chosen)))
