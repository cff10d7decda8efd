"""Batch normalization inside the convolutions before it: the same prediction in fewer passes over memory."""

from copy import deepcopy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from skunet.derived import kept_for
from skunet.network import UNet

__all__ = ["folded_norms"]

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm2d, nn.BatchNorm3d)


def folded_norms(module: nn.Module) -> nn.Module:
    """Return a copy of a network whose convolutions have taken in the batch norms that follow them.

    In evaluation mode a batch norm multiplies each channel and adds to it, which a convolution's weights and bias can
    do as well. The copy is kept, see `kept_for`.

    Parameters
    ----------
    module : torch.nn.Module
        Left as it is.

    Returns
    -------
    torch.nn.Module
        In evaluation mode, with the logits of `module` in evaluation mode but for rounding; `module` itself if it is
        no `UNet` (others may look at their norms from elsewhere), has no batch norms, or has a layer with hooks or
        parametrizations.

    Examples
    --------
    >>> network = UNet(in_channels=1, n_classes=2, depth=1, filters=2)
    >>> sum(isinstance(layer, NORMS) for layer in folded_norms(network).modules())
    0
    """
    layers = list(module.modules())
    if not isinstance(module, UNet) or not any(isinstance(layer, NORMS) for layer in layers) or _is_hooked(layers):
        return module
    folded: nn.Module = kept_for(module, "folded", lambda: _fold(module))
    return folded


def _fold(module: nn.Module) -> nn.Module:
    with torch.inference_mode(False), torch.no_grad():
        network = deepcopy(module).eval()
        _fold_sequences(network)
    return network.requires_grad_(False)


def _fold_sequences(network: nn.Module) -> None:
    for sequence in [part for part in network.modules() if type(part) is nn.Sequential]:
        for index, (layer, following) in enumerate(pairwise(sequence)):
            if isinstance(layer, CONVOLUTIONS) and isinstance(following, NORMS):
                sequence[index] = fuse_conv_bn_eval(layer, following)
                sequence[index + 1] = nn.Identity()


def _is_hooked(layers: list[nn.Module]) -> bool:
    """Return whether somebody listens to what a layer gives, or replaces it."""
    return any(
        layer._forward_hooks or layer._forward_pre_hooks or hasattr(layer, "parametrizations") for layer in layers
    )
