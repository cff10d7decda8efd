"""The parts of a U-Net: the convolutions of a level, and the gate of a skip connection."""

from typing import cast

import torch
from torch import Tensor, nn

from skunet.reach import centre_crop

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
    """

    def __init__(self, convolutions: nn.Module, shortcut: nn.Module | None, activation: nn.Module) -> None:
        super().__init__()
        self.convolutions, self.shortcut, self.activation = convolutions, shortcut, activation
        self.gate: nn.Module | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Map (N, C, *S) to (N, C', *S'); unpadded convolutions make S' smaller than S."""
        convolved: Tensor = self.convolutions(features)  # (N, C', *S')
        if self.shortcut is not None:
            convolved = convolved + self.shortcut(centre_crop(features, convolved.shape[2:]))
        return cast(Tensor, self.activation(convolved))

    def join(self, skip: Tensor, features: Tensor) -> Tensor:
        """Map features of the encoder and of the coarser level, as `forward` does their channels together."""
        skip = skip if self.gate is None else self.gate(skip, features)
        return cast(Tensor, self(torch.cat([skip, features], dim=1)))
