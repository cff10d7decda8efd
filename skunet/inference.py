"""From images to logits: device, precision, scaling, tiles and the network, in this order."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skunet.adaptation import NormAdaptation, NormStatistics
from skunet.blending import IsDone, never
from skunet.components import is_deeply_supervised, uncompiled
from skunet.derived import kept_for
from skunet.engines import engine_logits
from skunet.exactness import with_exact_start
from skunet.geometry import Geometry, PlainGeometry
from skunet.hardware import free_memory, is_out_of_memory
from skunet.joining import without_copies
from skunet.network import UNet
from skunet.pixels import Pixels, TensorPixels, Window, pixel_statistics
from skunet.reach import cut
from skunet.receptive_field import MeasuredGeometry
from skunet.scaling import image_scaling, scale
from skunet.shallow_convolutions import sound_convolutions
from skunet.tile_size import TileMemory, auto_tile_size, choose_tile_size, measure_tile
from skunet.tiling import assemble, predict_tiles, predict_whole
from skunet.turning import Turn

__all__ = ["Inference", "channels_last", "check_logits", "geometry_of"]

# Share of the free memory that a tile may take: others want some, and more may be kept than was measured.
SHARE = 0.5
# Pixels of images that are predicted whole without a question for memory.
SMALL = 1 << 16


@dataclass(frozen=True)
class Inference:
    """A network with all that its forward pass depends on.

    Attributes
    ----------
    module : torch.nn.Module
        Maps scaled images (N, C, *S) to logits (N, K, *S); with a true attribute `deep_supervision`, in training mode
        to (N, K (1 + L), *S), those of coarser levels behind.
    n_classes : int
    device : str
    precision : {"float32", "bfloat16", "float16"}
    scaling : see `UNetSegmenter`
    constants : ndarray of shape (2, C) or None
        Of the scaling; None where each image has its own.
    tile_size : see `UNetSegmenter`
    geometry : Geometry
    engine : {"torch", "openvino", "onnxruntime"}
        What computes; others than torch take no `fit_params`.
    memory_limit : float or None
        Bytes that an automatic tile may take; None for a share of those that are free.
    adaptation : NormAdaptation or None
        What norms take from an image, instead of those of `module`.
    norm_statistics : NormStatistics or None
        By `measure_norms`; None where each image has its own.
    """

    module: nn.Module
    n_classes: int
    device: str
    precision: str
    scaling: Any
    constants: np.ndarray | None
    tile_size: Any
    geometry: Geometry
    engine: str = "torch"
    memory_limit: float | None = None
    adaptation: NormAdaptation | None = None
    norm_statistics: NormStatistics | None = None

    def patches(self, patches: Tensor, **fit_params: Any) -> Tensor:
        """Return the logits (B, K, *S) of scaled patches, in one piece: norms may take in all of them."""
        pixels = TensorPixels(patches.to(self.device))
        return predict_whole(pixels, lambda tile, window: self._forward(tile, window, fit_params), self.geometry)

    def images(self, images: Tensor, **fit_params: Any) -> Tensor:
        """Return the logits (B, K, *S) of images as they came."""
        # Norms that adapt take in one image each.
        stacks = [TensorPixels(stack) for stack in (images[:, None] if self.adaptation else [images])]
        logits = [assemble(self.tiles(stack, **fit_params), stack.size) for stack in stacks]
        return logits[0] if len(logits) == 1 else torch.cat(logits)

    def tiles(self, pixels: Pixels, **fit_params: Any) -> Iterator[tuple[Window, Tensor]]:
        """Yield windows of images (B, C, *S) as they came, with their logits."""
        return self._tiles(pixels, lambda logits: logits, (), fit_params)

    def activated_tiles(
        self,
        pixels: Pixels,
        activate: Callable[[Tensor], Tensor],
        *,
        turns: Sequence[Turn] = (),
        is_done: IsDone = never,
        region: Window | None = None,
    ) -> Iterator[tuple[Window, Tensor]]:
        """Yield windows with what `activate` makes of their logits, the mean of it where images are turned too."""
        if turns:
            return self._tiles(pixels, activate, turns, {}, is_done, region)
        tiles = self._tiles(pixels, lambda logits: logits, (), {}, is_done, region)
        return ((window, activate(logits)) for window, logits in tiles)

    def _tiles(
        self,
        pixels: Pixels,
        activate: Callable[[Tensor], Tensor],
        turns: Sequence[Turn],
        fit_params: dict[str, Any],
        is_done: IsDone = never,
        region: Window | None = None,
    ) -> Iterator[tuple[Window, Tensor]]:
        constants = self._constants_of(pixels)
        if isinstance(self.tile_size, str):
            tile_size = self._auto_tile_size(pixels, constants)
        else:
            tile_size = choose_tile_size(self.tile_size, pixels.size, size_multiple=self.geometry.size_multiple)
        if tile_size is not None and not self.geometry.is_exactly_tileable:
            _warn_of_blending()
        adapted = self._adapted(pixels, constants, fit_params)
        return predict_tiles(
            pixels,
            lambda tile, window: activate(
                adapted._forward(scale(tile, constants, device=self.device), window, fit_params)
            ),
            tile_size=tile_size,
            geometry=self.geometry,
            turns=turns,
            is_done=is_done,
            region=region,
        )

    def _adapted(self, pixels: Pixels, constants: Tensor, fit_params: dict[str, Any]) -> "Inference":
        """Return the inference of one image, whose norms have taken in what they take of it."""
        if self.adaptation is None:
            return self
        statistics = self.norm_statistics
        if statistics is None:
            windows = self.adaptation.windows(pixels.size)
            statistics = self.measure_norms(map(pixels.read, windows), constants, fit_params)
        return replace(self, module=self.adaptation.network(statistics), adaptation=None)

    def measure_norms(self, parts: Iterable[Tensor], constants: Tensor, fit_params: dict[str, Any]) -> NormStatistics:
        """Return the statistics of the norms in parts (1, C, *P) of an image as it came, see `NormAdaptation`."""
        plain = replace(self, engine="torch", adaptation=None)
        try:
            return cast(NormAdaptation, self.adaptation).measure(
                torch.cat([scale(part, constants, device=self.device) for part in parts]),
                lambda network, patches: replace(plain, module=network).patches(patches, **fit_params),
            )
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                error.add_note(
                    "The statistics of an image are measured in parts of it, all at once, with about the memory of a "
                    "training step. norm_adaptation=0 predicts with the statistics of training, which takes less."
                )
            raise

    def _auto_tile_size(self, pixels: Pixels, constants: Tensor) -> tuple[int, ...] | None:
        size, n_images = pixels.size, len(pixels.images) if isinstance(pixels, TensorPixels) else 1
        limit = self.memory_limit or (None if n_images * math.prod(size) <= SMALL else free_memory(self.device))
        if limit is not None and self.memory_limit is None:
            limit *= SHARE
        return auto_tile_size(
            size,
            geometry=self.geometry,
            memory=None if limit is None else self._tile_memory(constants.shape[-1], len(size), n_images),
            limit=limit,
            is_gpu=torch.device(self.device).type == "cuda",
        )

    def _tile_memory(self, n_channels: int, ndim: int, n_images: int) -> TileMemory | None:
        """Return what the forward pass of tiles takes; None where it cannot be measured."""
        if self.engine != "torch":
            return None
        sides = [self.geometry.input_size(n * self.geometry.size_multiple) for n in (4, 8)]

        def run(size: tuple[int, ...]) -> None:
            window = tuple(slice(0, self.geometry.output_size(n)) for n in size)
            images = torch.zeros(1, n_channels, *size, device=self.device)
            with torch.no_grad():
                self._forward(images, window, {})

        def measure() -> TileMemory | None:
            try:
                return measure_tile(run, [(side,) * ndim for side in sides])
            except (RuntimeError, TypeError, ValueError):  # a module of others wants other sizes, or further arguments
                return None

        key = ("tile memory", self.precision, n_channels, ndim)
        memory: TileMemory | None = kept_for(self.module, key, measure)
        return None if memory is None else replace(memory, per_pixel=n_images * memory.per_pixel)

    def _constants_of(self, pixels: Pixels) -> Tensor:
        """Return offset and divisor, where each image has its own those of the whole of it."""
        constants = self.constants
        if constants is None:
            constants = image_scaling(self.scaling, pixel_statistics(pixels))
        return torch.from_numpy(np.array(constants))

    def _forward(self, images: Tensor, window: Window, fit_params: dict[str, Any]) -> Tensor:
        """Return a window of the float32 logits (N, K, *T) of scaled images."""
        if self.engine != "torch":
            logits = engine_logits(self.module, images, engine=self.engine, precision=self.precision)
            return cut(self._checked(logits, images), window)
        is_mixed = self.precision != "float32"
        device_type = torch.device(self.device).type
        module = self.module if torch.is_grad_enabled() or self.module.training else self._for_prediction(device_type)
        images = images.contiguous(memory_format=channels_last(images.ndim - 2))
        with (
            torch.autocast(device_type, getattr(torch, self.precision)) if is_mixed else nullcontext(),
            sound_convolutions(images) if is_mixed and module.training else nullcontext(),
        ):
            if type(module) is UNet and not module.training:
                return check_logits(module(images, window, **fit_params), self.n_classes)
            logits = module(images, **fit_params)
        return cut(self._checked(logits, images), window)

    def _for_prediction(self, device_type: str) -> nn.Module:
        """Return the network as it predicts best here; without gradients."""
        dtype = getattr(torch, self.precision)
        module = without_copies(self.module, dtype) if device_type == "cpu" else self.module
        # Two classes are seldom as probable as each other within what rounding changes, several more often.
        return with_exact_start(module) if self.precision != "float32" and self.n_classes > 2 else module

    def _checked(self, output: Any, images: Tensor) -> Tensor:
        has_levels = self.module.training and is_deeply_supervised(self.module)
        if has_levels and isinstance(output, Tensor) and output.ndim == images.ndim + 1:
            output = output.flatten(1, 2)  # levels on an axis of their own, as of MONAI's DynUNet
        logits = check_logits(output, self.n_classes, has_levels=has_levels)
        expected = [self.geometry.output_size(n) for n in images.shape[2:]]
        if list(logits.shape[2:]) != expected:
            raise ValueError(
                f"module must keep the size of its input: from {tuple(images.shape[2:])} pixels came "
                f"{tuple(logits.shape[2:])}. Pad its convolutions."
            )
        return logits


def check_logits(output: Any, n_classes: int, *, has_levels: bool = False) -> Tensor:
    """Return what a module gave as float32 logits (N, K, *T); a single logit z becomes the pair (0, z).

    With `has_levels` those of coarser levels may follow, K maps each.
    """
    logits: Tensor = torch.as_tensor(output[0] if isinstance(output, tuple) else output).float()
    if logits.shape[1] == 1 and n_classes == 2:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # (N, 2, *T)
    n_maps = logits.shape[1] % n_classes or n_classes if has_levels else logits.shape[1]
    if n_maps != n_classes:
        raise ValueError(
            f"module must give one map of logits per class, (N, {n_classes}, ...); "
            f"got shape {tuple(logits.shape)}. It is called with n_classes={n_classes}."
        )
    return logits


def _warn_of_blending() -> None:
    warnings.warn(
        "Tiles are blended where they overlap, and may differ from the whole image: the network's layers look "
        "beyond their neighbourhood (instance or group normalization, self-attention), or farther than they say. Use "
        "batch normalization, or tile_size=None where the memory holds the whole image.",
        UserWarning,
        stacklevel=3,
    )


def channels_last(spatial_ndim: int) -> torch.memory_format:
    """Return the layout in which convolutions are fastest."""
    return torch.channels_last if spatial_ndim == 2 else torch.channels_last_3d


def geometry_of(module: nn.Module, *, size_multiple: int, n_channels: int, spatial_ndim: int) -> Geometry:
    """Return what tiling must know of a network.

    Parameters
    ----------
    module : torch.nn.Module
        `UNet`, or any that says the same about itself, answers alone. Others, and those made of `UNet`, may say
        `receptive_field`, pixels before and after or one number for both, `is_exactly_tileable` or `size_multiple`.
        What they read is tried or measured.
    size_multiple : int
        Of input sides, for a module that does not say.
    n_channels : int
    spatial_ndim : int
    """
    plain: Any = uncompiled(module)
    says_all = all(hasattr(plain, name) for name in ("input_size", "output_size", "margin"))
    if says_all and (type(plain) is UNet or not isinstance(plain, UNet) or plain.margin):
        return cast(Geometry, plain)
    multiple = getattr(plain, "size_multiple", size_multiple)
    # What a network made of `UNet` inherits need not hold for its layers.
    is_inherited = isinstance(plain, UNet) and type(plain).receptive_field is UNet.receptive_field
    reach = None if is_inherited else getattr(plain, "receptive_field", None)
    is_exact = getattr(plain, "is_exactly_tileable", True)
    is_known = reach is None or isinstance(reach, int) or (len(reach) == 2 and all(isinstance(n, int) for n in reach))
    if not is_known:
        raise ValueError(f"receptive_field of a module must be a number of pixels, or two; got {reach!r}.")
    pair = None if reach is None else (reach, reach) if isinstance(reach, int) else tuple(reach)
    return (
        MeasuredGeometry(plain, multiple, n_channels, spatial_ndim, pair) if is_exact else PlainGeometry(multiple, pair)
    )
