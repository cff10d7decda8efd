"""What all losses have in common: log probabilities, weights and targets, in float32 or better."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["IGNORE_INDEX", "ClassWeight", "Terms", "WeightedLoss", "check_number", "sum_by_class", "weighted_mean"]

IGNORE_INDEX = -1

ClassWeight = Sequence[float] | ArrayLike | Tensor


class Terms(NamedTuple):
    """What a loss is computed from.

    Attributes
    ----------
    log_probabilities : Tensor of shape (N, K, *S)
    surprise : Tensor of shape (N, *S)
        Minus the log probability of the true class, 0 where ignored.
    target : Tensor of shape (N, *S)
    weight : Tensor of shape (N, *S)
        Of the pixels, 0 where ignored.
    class_weight : Tensor of shape (K,)
    smoothing : float
        Share of the target that is spread over all classes.
    """

    log_probabilities: Tensor
    surprise: Tensor
    target: Tensor
    weight: Tensor
    class_weight: Tensor
    smoothing: float

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return self.log_probabilities.shape[1]

    @property
    def pixel_class_weight(self) -> Tensor:
        """Weight of each pixel times that of its true class, (N, *S)."""
        return self.weight * self.class_weight[self.target.long().clamp(min=0)]  # an ignored pixel's weight is 0


class WeightedLoss(nn.Module):
    """A loss with weights; subclasses say what it is of its terms.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
        Kept as a buffer, so that it follows `.to(device)`.
    label_smoothing : float, default=0.0
        0 to below 1: the share of each pixel's target that is spread evenly over all classes.
    """

    class_weight: Tensor | None
    label_smoothing = 0.0

    def __init__(self, class_weight: ClassWeight | None = None, label_smoothing: float = 0.0) -> None:
        super().__init__()
        check_number("label_smoothing", label_smoothing, "from 0 to below 1", 0 <= label_smoothing < 1)
        self.register_buffer("class_weight", None if class_weight is None else _to_weights(class_weight))
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, target: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the loss; see `skunet.losses` for the arguments."""
        # Sums over a million pixels overflow float16 and stall in bfloat16.
        dtype = torch.promote_types(logits.dtype, torch.float32)
        log_probabilities = torch.log_softmax(logits, dim=1, dtype=dtype)
        return self.loss_of(
            Terms(
                log_probabilities,
                _surprise(log_probabilities, target),
                target,
                _pixel_weight(target, sample_weight, dtype),
                self._class_weights(log_probabilities),
                self.label_smoothing,
            )
        )

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss, a tensor of no dimensions."""
        raise NotImplementedError

    def _class_weights(self, log_probabilities: Tensor) -> Tensor:
        """Return the weights of the K classes, ones by default, in the type of the computation."""
        n_classes = log_probabilities.shape[1]
        if self.class_weight is None:
            return log_probabilities.new_ones(n_classes)
        if len(self.class_weight) != n_classes:
            raise ValueError(f"class_weight must have one entry per class, {n_classes}; got {len(self.class_weight)}.")
        return self.class_weight.to(log_probabilities.dtype)


def _to_weights(class_weight: ClassWeight) -> Tensor:
    # A tensor keeps its precision; of anything else float64 would be mere habit, and not every device has it.
    is_float = isinstance(class_weight, Tensor) and class_weight.is_floating_point()
    weights = torch.as_tensor(class_weight, dtype=None if is_float else torch.float32).detach().clone()
    if weights.ndim != 1 or not (torch.isfinite(weights) & (weights >= 0)).all():
        raise ValueError(f"class_weight must be one non-negative number per class; got {class_weight!r}.")
    return weights


def check_number(name: str, value: float, rule: str, is_valid: bool) -> None:
    """Raise ValueError if a parameter of a loss is out of its range, or infinite."""
    if not (is_valid and value < float("inf")):
        raise ValueError(f"{name} must be {rule}; got {value!r}.")


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


def sum_by_class(values: Tensor, target: Tensor, n_classes: int) -> Tensor:
    """Return the sums of values (N, *S) over the pixels of each true class, (N, K)."""
    # Not index_add: on CUDA that adds in an order that changes from run to run, and so would the weights.
    return torch.stack([torch.where(target == k, values, 0).flatten(1).sum(1) for k in range(n_classes)], dim=1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean, or 0 if all weights are 0."""
    total = weight.sum()
    return (values * weight).sum() / torch.where(total > 0, total, 1)
