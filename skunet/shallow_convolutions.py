"""A fault of the bfloat16 kernels for volumes on CPUs, kept away from training."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["sound_convolutions"]


@contextmanager
def sound_convolutions(features: Tensor) -> Iterator[None]:
    """Let 3-D convolutions of few slices compute in float32, inside the block, where bfloat16 goes wrong.

    Where a volume has fewer slices than the kernel, as at the lowest resolution of a U-Net of depth 4 that gets 32
    slices, oneDNN's `jit_bf16:avx512_core_bf16` for the gradient of the weights reads memory that nobody has written,
    or writes beyond its end (torch 2.13.0; 2 slices with kernels of 3, 3 slices with kernels of 5 or 7): gradients are
    mostly right, now and then huge or NaN. The float32 kernels are sound, and such levels have few pixels.

    Parameters
    ----------
    features : Tensor of shape (N, C, *S)
        What goes through the layers; nothing is done unless these are volumes on a CPU.
    """
    if features.ndim != 5 or features.device.type != "cpu":
        yield
        return
    with _SoundConvolutions():
        yield


class _SoundConvolutions(TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is not torch.conv3d or not _is_shallow(*args, **kwargs):
            return function(*args, **kwargs)
        images, *others = args
        with torch.autocast("cpu", enabled=False):
            return function(images.float(), *others, **kwargs)


def _is_shallow(
    input: Tensor,
    weight: Tensor,
    bias: Any = None,  # noqa: ARG001
    stride: Any = 1,  # noqa: ARG001
    padding: Any = 0,  # noqa: ARG001
    dilation: int | Sequence[int] = 1,
    groups: int = 1,  # noqa: ARG001
) -> bool:
    step = dilation if isinstance(dilation, int) else dilation[0]
    return bool(input.shape[2] <= step * (weight.shape[2] - 1))
