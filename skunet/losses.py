"""Losses on logits and class indices, with weights per class, per image and per pixel.

All are called as `loss(logits, target, sample_weight=None)`:

logits : tensor (N, K, *S), floating
    Half precision is computed in float32, float64 stays float64, under autocast too.
target : integer tensor (N, *S)
    Class indices, 0 to K - 1; pixels of -1 count nowhere and have a gradient of exactly zero.
sample_weight : tensor (N,) or (N, *S), optional
    Non-negative weight of each image or pixel. A pixel of weight zero has a gradient of exactly zero.

The result is a tensor of no dimensions: 0, with zero gradients, where nothing counts at all.
"""

from collections.abc import Sequence

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["CrossEntropyDiceLoss", "CrossEntropyLoss", "DiceLoss"]

IGNORE_INDEX = -1

ClassWeight = Sequence[float] | ArrayLike | Tensor


class _WeightedLoss(nn.Module):
    """What the losses share: the class weights, kept as a buffer so that they follow `.to(device)`."""

    class_weight: Tensor | None

    def __init__(self, class_weight: ClassWeight | None = None) -> None:
        super().__init__()
        self.register_buffer("class_weight", None if class_weight is None else _to_weights(class_weight))

    def _class_weights(self, log_probabilities: Tensor) -> Tensor:
        """Return the weights of the K classes, ones by default, in the type of the computation."""
        n_classes = log_probabilities.shape[1]
        if self.class_weight is None:
            return log_probabilities.new_ones(n_classes)
        if len(self.class_weight) != n_classes:
            raise ValueError(f"class_weight must have one entry per class, {n_classes}; got {len(self.class_weight)}.")
        return self.class_weight.to(log_probabilities.dtype)


class CrossEntropyLoss(_WeightedLoss):
    """Mean cross entropy over the pixels, weighted: the sum of w * ce over the sum of w.

    Without `sample_weight` it equals `torch.nn.CrossEntropyLoss(weight=class_weight, ignore_index=-1)`.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
        A pixel's weight is the weight of its true class times its sample weight.

    Examples
    --------
    >>> logits = torch.zeros(1, 2, 1, 3)
    >>> CrossEntropyLoss()(logits, torch.tensor([[[0, 1, -1]]])).exp()
    tensor(2.)
    """

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; see the module for the arguments."""
        log_probabilities = _log_softmax(logits)
        surprise = _surprise(log_probabilities, target)
        weight = _pixel_weight(target, sample_weight, log_probabilities.dtype)
        return _cross_entropy(surprise, target, weight, self._class_weights(log_probabilities))


class DiceLoss(_WeightedLoss):
    r"""One minus the mean soft Dice score of the classes.

    With probabilities p and truth t of a class (0 or 1), weights w, and sums over all counted pixels of the
    batch, its score is (2 sum(w p t) + smooth) / (sum(w p) + sum(w t) + smooth). Sums over the batch, instead
    of a mean over the images' scores, keep an image with few pixels of a class from weighing as much as one
    with many. V-Net [1]_ squares p in the divisor; plain sums are the more common form since.

    A class absent from the batch's target is left out of the mean. Its score would be
    smooth / (sum(w p) + smooth), which says little about the errors, much about `smooth`, and whose gradient
    is the steepest where the prediction is already right: rare classes then decline from batch to batch.
    Its false positives still count, as the misses of the classes in their place.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
        Weights of the classes in the mean.
    smooth : float, default=1.0
        Non-negative, in pixels; bounds the gradient where a class has few pixels.

    References
    ----------
    .. [1] F. Milletari, N. Navab, S.-A. Ahmadi. "V-Net: Fully Convolutional Neural Networks for Volumetric
       Medical Image Segmentation", 3DV 2016.

    Examples
    --------
    >>> logits = torch.zeros(1, 2, 1, 2)
    >>> DiceLoss(smooth=0.0)(logits, torch.tensor([[[0, 1]]]))
    tensor(0.5000)
    """

    def __init__(self, class_weight: ClassWeight | None = None, smooth: float = 1.0) -> None:
        super().__init__(class_weight)
        _check_smooth(smooth)
        self.smooth = smooth

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; see the module for the arguments."""
        log_probabilities = _log_softmax(logits)
        surprise = _surprise(log_probabilities, target)
        weight = _pixel_weight(target, sample_weight, log_probabilities.dtype)
        class_weight = self._class_weights(log_probabilities)
        return _dice(log_probabilities, surprise, target, weight, class_weight, smooth=self.smooth)


class CrossEntropyDiceLoss(_WeightedLoss):
    """Cross entropy and Dice loss, mixed: (1 - dice_share) * cross entropy + dice_share * Dice.

    Cross entropy has a useful gradient at every pixel from the start; Dice does not mind how rare a class is.

    Parameters
    ----------
    class_weight, smooth
        As in `CrossEntropyLoss` and `DiceLoss`.
    dice_share : float, default=0.5
        0 to 1: the share of the Dice loss.
    """

    def __init__(self, class_weight: ClassWeight | None = None, smooth: float = 1.0, dice_share: float = 0.5) -> None:
        super().__init__(class_weight)
        _check_smooth(smooth)
        if not 0 <= dice_share <= 1:
            raise ValueError(f"dice_share must be from 0 to 1; got {dice_share!r}.")
        self.smooth = smooth
        self.dice_share = dice_share

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; see the module for the arguments."""
        log_probabilities = _log_softmax(logits)
        surprise = _surprise(log_probabilities, target)
        weight = _pixel_weight(target, sample_weight, log_probabilities.dtype)
        class_weight = self._class_weights(log_probabilities)
        cross_entropy = _cross_entropy(surprise, target, weight, class_weight)
        dice = _dice(log_probabilities, surprise, target, weight, class_weight, smooth=self.smooth)
        return (1 - self.dice_share) * cross_entropy + self.dice_share * dice


def _to_weights(class_weight: ClassWeight) -> Tensor:
    # A tensor keeps its precision; of anything else float64 would be mere habit, and not every device has it.
    is_float = isinstance(class_weight, Tensor) and class_weight.is_floating_point()
    weights = torch.as_tensor(class_weight, dtype=None if is_float else torch.float32).detach().clone()
    if weights.ndim != 1 or not (torch.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"class_weight must be one non-negative number per class; got {class_weight!r}.")
    return weights


def _check_smooth(smooth: float) -> None:
    if not 0 <= smooth < float("inf"):
        raise ValueError(f"smooth must be finite and not negative; got {smooth!r}.")


def _log_softmax(logits: Tensor) -> Tensor:
    """Return log probabilities over the classes in float32 or better, (N, K, *S)."""
    # Sums over a million pixels overflow float16 and stall in bfloat16.
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return torch.log_softmax(logits, dim=1, dtype=dtype)


def _surprise(log_probabilities: Tensor, target: Tensor) -> Tensor:
    """Return minus the log probability of the true class, 0 where ignored, (N, *S)."""
    # Picking the true class's entry needs no one-hot target, which would be as large as the logits. Without
    # reduction it is deterministic on CUDA too.
    return functional.nll_loss(log_probabilities, target.long(), ignore_index=IGNORE_INDEX, reduction="none")


def _pixel_weight(target: Tensor, sample_weight: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Return each pixel's weight, 0 where ignored, (N, *S)."""
    is_counted = target != IGNORE_INDEX
    if sample_weight is None:
        return is_counted.to(dtype)
    if sample_weight.shape != target.shape:
        if sample_weight.shape != target.shape[:1]:
            raise ValueError(
                f"sample_weight must have the shape {tuple(target.shape[:1])} or {tuple(target.shape)}; "
                f"got {tuple(sample_weight.shape)}."
            )
        sample_weight = sample_weight.reshape(-1, *[1] * (target.ndim - 1))  # (N, 1, ...)
    return torch.where(is_counted, sample_weight.to(dtype), 0)


def _cross_entropy(surprise: Tensor, target: Tensor, weight: Tensor, class_weight: Tensor) -> Tensor:
    weight = weight * class_weight[target.long().clamp(min=0)]  # an ignored pixel's weight is 0 already
    return _mean(surprise, weight)


def _dice(
    log_probabilities: Tensor,
    surprise: Tensor,
    target: Tensor,
    weight: Tensor,
    class_weight: Tensor,
    *,
    smooth: float,
) -> Tensor:
    n_classes = log_probabilities.shape[1]
    hits = _sum_by_class(torch.exp(-surprise) * weight, target, n_classes)  # (K,)
    in_truth = _sum_by_class(weight, target, n_classes)  # (K,)
    # One class at a time: the weighted probabilities of all would be a second tensor (N, K, *S).
    in_prediction = torch.stack([(p * weight).sum() for p in log_probabilities.exp().unbind(dim=1)])  # (K,)
    is_present = in_truth > 0
    divisor = torch.where(is_present, in_prediction + in_truth + smooth, 1)
    return _mean(1 - (2 * hits + smooth) / divisor, class_weight * is_present)


def _sum_by_class(values: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """Return the sums of values (N, *S) over the pixels of each true class, (K,)."""
    # Not index_add: on CUDA that adds in an order that changes from run to run, and so would the weights.
    return torch.stack([torch.where(target == k, values, 0).sum() for k in range(n_classes)])


def _mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean, or 0 if all weights are 0."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)
