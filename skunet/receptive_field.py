"""What a network of unknown make reads, measured once from gradients, and tried."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F  # noqa: N812  # as everywhere
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skunet.geometry import PlainGeometry, SameSize, round_up
from skunet.pixels import TensorPixels
from skunet.tiling import assemble, predict_tiles

__all__ = ["MeasuredGeometry", "measure_receptive_field"]

# Pixels along the axis that is measured, and across: the first try, and the longest.
FIRST, LONGEST, ACROSS = 256, 2048, 64
# Share of the largest logit that tiles may differ from the whole; a tile of the wrong pixels differs by far more.
TOLERANCE = 1e-3

# Of each network that is alive: what it said, and what came of it.
_measured: WeakKeyDictionary[nn.Module, tuple[tuple[int, int] | None, tuple[int, int] | None]] = WeakKeyDictionary()


@dataclass(frozen=True)
class MeasuredGeometry(SameSize):
    """A network that keeps the size and says nothing of itself; measured when it is asked what it reads.

    Attributes
    ----------
    module : torch.nn.Module
        Maps (N, C, *S) to (N, K, *S).
    size_multiple : int
    n_channels : int
    spatial_ndim : {2, 3}
    said : (int, int) or None
        What it says that it reads, to be tried instead of measured.
    """

    module: nn.Module
    size_multiple: int
    n_channels: int
    spatial_ndim: int
    said: tuple[int, int] | None = None
    margin: int = 0

    @property
    def is_exactly_tileable(self) -> bool:
        """Whether tiles with what the network reads around them equalled the whole."""
        return self._measure() is not None

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Pixels before and after an output pixel that can change it; a guess where there is no end to them."""
        return self._measure() or PlainGeometry(self.size_multiple).receptive_field

    def _measure(self) -> tuple[int, int] | None:
        known = _measured.get(self.module)
        if known is None or known[0] != self.said:
            found = measure_receptive_field(
                self.module,
                size_multiple=self.size_multiple,
                n_channels=self.n_channels,
                spatial_ndim=self.spatial_ndim,
                said=self.said,
            )
            known = _measured[self.module] = (self.said, found)
        return known[1]


def measure_receptive_field(
    module: nn.Module,
    *,
    size_multiple: int,
    n_channels: int,
    spatial_ndim: int,
    said: tuple[int, int] | None = None,
) -> tuple[int, int] | None:
    """Return how many pixels before and after an output pixel can change it, along any axis.

    Measured with gradients, of a copy whose weights are all positive, so that none cancel, and which averages where
    the network takes a maximum, so that none are lost. Then the network itself is tried: on noise, its tiles must
    equal the whole.

    Parameters
    ----------
    module : torch.nn.Module
        Maps (N, C, *S) to (N, K, *S).
    size_multiple : int
        Of the sides that it takes, and of the starts of tiles.
    n_channels : int
    spatial_ndim : {2, 3}
    said : (int, int), optional
        To be tried instead of measured.

    Returns
    -------
    (int, int) or None
        None if the whole image can change a pixel, or tiles did not equal the whole.

    Examples
    --------
    >>> network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 5, padding=2))
    >>> measure_receptive_field(network, size_multiple=1, n_channels=1, spatial_ndim=2)
    (3, 3)
    """
    measure = _Measurement(size_multiple, n_channels, spatial_ndim)
    try:
        with torch.inference_mode(mode=False), torch.random.fork_rng():
            torch.manual_seed(0)
            reaches = [said or measure.reach(_all_positive(module), axis) for axis in range(spatial_ndim)]
            before, after = (max(pair[side] for pair in reaches) for side in (0, 1))
            is_exact = all(measure.is_tileable(module, (before, after), axis) for axis in range(spatial_ndim))
    except Exception:  # networks of others refuse such images in their own ways
        return None
    return (before, after) if is_exact else None


class _NoEndError(Exception):
    """A pixel depends on all pixels that were tried."""


@dataclass(frozen=True)
class _Measurement:
    size_multiple: int
    n_channels: int
    spatial_ndim: int

    def _size(self, length: int, axis: int) -> list[int]:
        """Return the pixels of a strip along an axis."""
        sides = [round_up(ACROSS if self.spatial_ndim == 2 else 1, 2 * self.size_multiple)] * self.spatial_ndim
        sides[axis] = round_up(length, self.size_multiple)
        return sides

    def reach(self, network: nn.Module, axis: int) -> tuple[int, int]:
        """Return how far outputs at any place of a period read."""
        length = max(FIRST, 8 * self.size_multiple)
        while length <= LONGEST:
            strip = torch.rand(1, self.n_channels, *self._size(length, axis), dtype=torch.float64) + 0.5
            strip.requires_grad_()
            middle = strip.shape[2 + axis] // 2 // self.size_multiple * self.size_multiple
            with torch.enable_grad(), _MeanForMaximum():
                logits = _logits(network(strip))
                (gradient,) = torch.autograd.grad(logits.narrow(2 + axis, middle, self.size_multiple).sum(), strip)
            is_read = gradient.transpose(0, 2 + axis).flatten(1).ne(0).any(1).nonzero()
            first, last = int(is_read.min()), int(is_read.max())
            if first > 0 and last < strip.shape[2 + axis] - 1:
                return middle + self.size_multiple - 1 - first, last - middle
            length *= 2
        raise _NoEndError

    def is_tileable(self, module: nn.Module, reach: tuple[int, int], axis: int) -> bool:
        """Return whether tiles of noise, from odd multiples on, equal the whole."""
        parameter = next(module.parameters(), torch.zeros(()))
        tile = (sum(reach) // (2 * self.size_multiple)) * 2 * self.size_multiple + self.size_multiple
        size = self._size(3 * tile + self.size_multiple, axis)
        noise = TensorPixels(torch.randn(1, self.n_channels, *size).to(parameter.device, parameter.dtype))
        geometry = PlainGeometry(self.size_multiple, reach, is_exactly_tileable=True)
        was_training = module.training
        module.eval()
        try:
            with torch.no_grad():
                whole, tiled = (
                    assemble(predict_tiles(noise, _forward(module), tile_size=tile_size, geometry=geometry), noise.size)
                    for tile_size in (None, tuple(tile if a == axis else n for a, n in enumerate(size)))
                )
        finally:
            module.train(was_training)
        return bool((whole - tiled).abs().max() <= TOLERANCE * whole.abs().max())


def _forward(module: nn.Module) -> Callable[..., Tensor]:
    return lambda images, window: _logits(module(images))[(..., *window)]


def _logits(output: Any) -> Tensor:
    logits: Tensor = output[0] if isinstance(output, tuple) else output
    return logits


def _all_positive(module: nn.Module) -> nn.Module:
    """Return a copy in float64 in which each output grows with all that it depends on."""
    network = deepcopy(module).cpu().double().eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.fill_(parameter.shape[0] / parameter.numel())
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.zero_()
            elif name.endswith("running_var"):
                buffer.fill_(1.0)
    return network


# The arguments of torch's poolings, with their defaults.
POOLING: dict[str, Any] = {
    "input": None,
    "kernel_size": None,
    "stride": None,
    "padding": 0,
    "dilation": 1,
    "ceil_mode": False,
}


class _MeanForMaximum(TorchFunctionMode):
    """Take the mean of a window where the maximum is asked for, whose gradient reaches one pixel alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        mean = {torch.max_pool2d: F.avg_pool2d, torch.max_pool3d: F.avg_pool3d}.get(func)
        if mean is None:
            return func(*args, **kwargs)
        given = dict(zip(POOLING, args, strict=False)) | kwargs
        images, kernel_size, stride, padding, dilation, ceil_mode = (given.get(name, POOLING[name]) for name in POOLING)
        if dilation not in (1, (1,) * (images.ndim - 2)):
            return func(*args, **kwargs)
        return mean(images, kernel_size, stride, padding, ceil_mode)
