"""Losses on logits and class indices, with weights per class, per image and per pixel.

All are called as `loss(logits, target, sample_weight=None)`:

logits : tensor (N, K, *S), floating
    Half precision is computed in float32, float64 stays float64, under autocast too. A network with one logit z for
    two classes stands for the pair (0, z), whose cross entropy is the binary one.
target : integer tensor (N, *S)
    Class indices, 0 to K - 1; pixels of -1 count nowhere and have a gradient of exactly zero.
sample_weight : tensor (N,) or (N, *S), optional
    Non-negative weight of each image or pixel. A pixel of weight zero has a gradient of exactly zero.

The result is a tensor of no dimensions: 0, with zero gradients, where nothing counts at all.

All take `class_weight`, one non-negative number per class, and `label_smoothing`, the share of each pixel's target that
is spread evenly over all classes (Szegedy et al., 2016).
"""

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skunet.boundary_losses import BoundaryLoss
from skunet.loss_terms import ClassWeight, Terms, WeightedLoss, check_number, weighted_mean
from skunet.overlap_losses import DiceLoss, FocalTverskyLoss, JaccardLoss, LovaszLoss, TverskyLoss, dice_loss

__all__ = [
    "BoundaryLoss",
    "CrossEntropyDiceLoss",
    "CrossEntropyLoss",
    "DiceLoss",
    "FocalLoss",
    "FocalTverskyLoss",
    "JaccardLoss",
    "LovaszLoss",
    "SumLoss",
    "TverskyLoss",
]


class CrossEntropyLoss(WeightedLoss):
    """Mean cross entropy over the pixels, weighted: the sum of w * ce over the sum of w.

    Without `sample_weight` it equals `torch.nn.CrossEntropyLoss` with the same weights and smoothing, and
    `ignore_index=-1`.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
        A pixel's weight is the weight of its true class times its sample weight.
    label_smoothing : float, default=0.0

    Examples
    --------
    >>> logits = torch.zeros(1, 2, 1, 3)
    >>> CrossEntropyLoss()(logits, torch.tensor([[[0, 1, -1]]])).exp()
    tensor(2.)
    """

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        return _cross_entropy(terms)


class FocalLoss(WeightedLoss):
    """Cross entropy with pixels weighing the less the surer they are right: (1 - p)^gamma * ce, Lin et al. [1]_.

    Parameters
    ----------
    class_weight, label_smoothing
        As in `CrossEntropyLoss`.
    gamma : float, default=2.0
        At least 0, which is cross entropy.

    References
    ----------
    .. [1] T.-Y. Lin, P. Goyal, R. Girshick, K. He, P. Dollar. "Focal Loss for Dense Object Detection", ICCV 2017.

    Examples
    --------
    >>> loss = FocalLoss(gamma=1.0)(torch.zeros(1, 2, 1, 1), torch.tensor([[[1]]]))
    >>> float(loss / torch.log(torch.tensor(2.0)))
    0.5
    """

    def __init__(
        self, class_weight: ClassWeight | None = None, gamma: float = 2.0, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(class_weight, label_smoothing)
        check_number("gamma", gamma, "finite and not negative", gamma >= 0)
        self.gamma = gamma

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        doubt = -torch.expm1(-terms.surprise)  # 1 - p
        # A power below 1 is infinitely steep at 0.
        return _cross_entropy(terms, doubt.clamp_min(torch.finfo(doubt.dtype).eps) ** self.gamma)


class CrossEntropyDiceLoss(WeightedLoss):
    """Cross entropy and Dice loss, mixed: (1 - dice_share) * cross entropy + dice_share * Dice.

    Cross entropy has a useful gradient at every pixel from the start; Dice does not mind how rare a class is.

    Parameters
    ----------
    class_weight, smooth, label_smoothing
        As in `CrossEntropyLoss` and `DiceLoss`.
    dice_share : float, default=0.5
        0 to 1: the share of the Dice loss.
    """

    def __init__(
        self,
        class_weight: ClassWeight | None = None,
        smooth: float = 1.0,
        dice_share: float = 0.5,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weight, label_smoothing)
        check_number("smooth", smooth, "finite and not negative", smooth >= 0)
        check_number("dice_share", dice_share, "from 0 to 1", 0 <= dice_share <= 1)
        self.smooth = smooth
        self.dice_share = dice_share

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        dice = dice_loss(terms, smooth=self.smooth)
        return (1 - self.dice_share) * _cross_entropy(terms) + self.dice_share * dice


class SumLoss(nn.Module):
    """The weighted sum of losses.

    Parameters
    ----------
    losses : sequence of type or Module
        Of these losses, or of your own that are called alike. Classes are built with `class_weight` and
        `label_smoothing`, instances taken as they are.
    weights : sequence of float, optional
        Of the losses, at least 0, and one above it; ones by default.
    class_weight, label_smoothing
        As in `CrossEntropyLoss`.

    Examples
    --------
    As `UNetSegmenter(criterion=SumLoss, criterion__losses=[CrossEntropyLoss, LovaszLoss])`.

    >>> logits, target = torch.zeros(1, 2, 1, 2), torch.tensor([[[0, 1]]])
    >>> SumLoss([DiceLoss(smooth=0.0), JaccardLoss(smooth=0.0)], weights=[1, 3])(logits, target)
    tensor(2.5000)
    """

    def __init__(
        self,
        losses: Sequence[Any] = (),
        weights: Sequence[float] | None = None,
        class_weight: ClassWeight | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if not isinstance(losses, Iterable) or not (losses := list(losses)) or not all(map(_is_loss, losses)):
            raise ValueError(
                "losses must list classes or instances of skunet.losses, or of losses with class_weight and "
                f"label_smoothing that are called with sample_weight; got {losses!r}. "
                "In a segmenter they are criterion__losses=[...]."
            )
        arguments = {"class_weight": class_weight, "label_smoothing": label_smoothing}
        for name, value in arguments.items():
            deaf = [loss for loss in losses if not isinstance(loss, type) and not _has(loss, name)]
            if deaf and value is not None and np.any(np.asarray(value) != 0):
                raise ValueError(f"{name} does not reach {deaf[0]}. Give the instance its own, or name the class.")
        self.losses = nn.ModuleList(loss(**arguments) if isinstance(loss, type) else loss for loss in losses)
        self.weights = [1.0] * len(self.losses) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(self.losses):
            raise ValueError(f"weights must be one number per loss; got {len(self.weights)} for {len(self.losses)}.")
        for weight in self.weights:
            check_number("weights", weight, "finite and not negative", weight >= 0)
        if not any(self.weights):
            raise ValueError(f"weights must not all be 0; got {self.weights}.")

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; see the module for the arguments."""
        parts = [
            weight * loss(logits, target, sample_weight) for weight, loss in zip(self.weights, self.losses, strict=True)
        ]
        return torch.stack(parts).sum()


def _is_loss(value: Any) -> bool:
    """Return whether this is a class that takes what all losses here do, or a loss that weighs pixels."""
    if isinstance(value, type):
        return {"class_weight", "label_smoothing"} <= set(inspect.signature(value).parameters)
    return isinstance(value, nn.Module) and "sample_weight" in inspect.signature(value.forward).parameters


def _has(loss: Any, name: str) -> bool:
    value = getattr(loss, name, None)
    return value is not None and bool(np.any(np.asarray(value) != 0))


def _cross_entropy(terms: Terms, factor: Tensor | float = 1.0) -> Tensor:
    """Return the mean cross entropy, pixels multiplied by a factor that leaves the divisor as it is."""
    weight = terms.pixel_class_weight
    if not terms.smoothing:
        return weighted_mean(factor * terms.surprise, weight)
    # As torch has it: each class of a smoothed target weighs what the class does.
    spread = -(terms.log_probabilities.movedim(1, -1) @ terms.class_weight) / terms.n_classes  # (N, *S)
    smoothed = (1 - terms.smoothing) * terms.surprise * weight + terms.smoothing * spread * terms.weight
    total = weight.sum()
    return (factor * smoothed).sum() / torch.where(total > 0, total, 1)
