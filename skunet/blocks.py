"""The parts of a U-Net: the convolutions of a level, and the gate of a skip connection."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from skunet.reach import centre_crop
from skunet.shallow_convolutions import sound_convolutions

__all__ = ["AttentionGate", "ConvolutionBlock"]


class AttentionGate(nn.Module):
    """Weigh each pixel of a skip connection in 0..1, by itself and by the coarser features (Oktay et al. 2018).

    The paper's gates work on the coarser grid, and are enlarged. Here the coarser features are, by the upsampling that
    follows anyway: a gate reads its own pixel alone, so that receptive field and exact tiles stay as they are.

    Parameters
    ----------
    of_skip, of_coarser : nn.Module
        From features (N, C, *S) to (N, C', *S), 1 pixel wide, with norms.
    to_weight : nn.Module
        From (N, C', *S) to (N, 1, *S).

    References
    ----------
    Oktay et al., Attention U-Net: learning where to look for the pancreas, 2018.
    """

    def __init__(self, of_skip: nn.Module, of_coarser: nn.Module, to_weight: nn.Module) -> None:
        super().__init__()
        self.of_skip, self.of_coarser, self.to_weight = of_skip, of_coarser, to_weight

    def forward(self, skip: Tensor, features: Tensor) -> Tensor:
        """Return the skip connection (N, C, *S), weighed."""
        both = torch.relu(self.of_skip(skip) + self.of_coarser(features))
        return skip * torch.sigmoid(self.to_weight(both))


class ConvolutionBlock(nn.Module):
    """The convolutions of one level, with a shortcut round all but the last activation where one is given.

    Attributes
    ----------
    gate : nn.Module or None
        Called with the two that are joined, before they are; returns the skip connection.
    keeps_features : bool
        Whether all that the backward pass needs is kept in training, or computed once more from what the block got.
    """

    def __init__(
        self, convolutions: nn.Module, shortcut: nn.Module | None, activation: nn.Module, *, keeps_features: bool = True
    ) -> None:
        super().__init__()
        self.convolutions, self.shortcut, self.activation = convolutions, shortcut, activation
        self.gate: nn.Module | None = None
        self.keeps_features = keeps_features

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, *S) to (N, C', *S'); unpadded convolutions make S' smaller than S."""
        return self._convolve(features) if self._keeps() else self._twice(self._convolve, features)

    def join(self, skip: Tensor, features: Tensor) -> Tensor:
        """Map features of the encoder and of the coarser level, as `forward` does their channels together."""
        if self._keeps():
            return cast(Tensor, self(self._joined(skip, features)))
        return self._twice(lambda *both: self._convolve(self._joined(*both)), skip, features)

    def _convolve(self, features: Tensor) -> Tensor:
        convolved: Tensor = self.convolutions(features)  # (N, C', *S')
        if self.shortcut is not None:
            convolved = convolved + self.shortcut(centre_crop(features, convolved.shape[2:]))
        return cast(Tensor, self.activation(convolved))

    def _joined(self, skip: Tensor, features: Tensor) -> Tensor:
        skip = skip if self.gate is None else self.gate(skip, features)
        return torch.cat([skip, features], dim=1)

    def _keeps(self) -> bool:
        has_backward_pass = self.training and torch.is_grad_enabled()
        return self.keeps_features or not has_backward_pass or torch.compiler.is_compiling()

    def _twice(self, function: Callable[..., Tensor], *features: Tensor) -> Tensor:
        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return sound_convolutions(features[0]), _second_pass(self, features[0])

        return cast(Tensor, checkpoint(function, *features, use_reentrant=False, context_fn=contexts))


@contextmanager
def _second_pass(block: nn.Module, features: Tensor) -> Iterator[None]:
    """Compute as in the first pass; it is no further batch for running means."""
    norms: list[Any] = [norm for norm in block.modules() if isinstance(norm, nn.modules.batchnorm._NormBase)]
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in norms if norm.training]
    for norm, _, n_batches in kept:
        norm.momentum = 0.0
        norm.num_batches_tracked = None if n_batches is None else n_batches.clone()
    try:
        with sound_convolutions(features):
            yield
    finally:
        for norm, momentum, n_batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, n_batches
