"""What the estimator hands to a module and a criterion, its own or another library's."""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from skunet.labels import LabelCodec

__all__ = [
    "accepted",
    "class_weights",
    "criterion_arguments",
    "is_deeply_supervised",
    "mean_over_levels",
    "plain_name",
    "uncompiled",
    "weighted_loss",
]


def accepted(component: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that a class or factory names in its signature and that a partial leaves open."""
    taken = component.keywords if isinstance(component, partial) else {}
    names = set(inspect.signature(component).parameters) - set(taken)
    return {name: value for name, value in arguments.items() if name in names}


def uncompiled(module: nn.Module) -> nn.Module:
    """Return the module that a compiled one wraps, whose weights carry no prefix; any other as it is."""
    return cast(nn.Module, getattr(module, "_orig_mod", module))


def plain_name(name: str) -> str:
    """Return a weight's name without the prefix that it has in a compiled module."""
    return name.removeprefix("_orig_mod.")


def is_deeply_supervised(module: Any) -> bool:
    """Return whether a module says that in training logits of coarser levels follow its own, as `UNet` can."""
    return isinstance(module, nn.Module) and bool(getattr(uncompiled(module), "deep_supervision", False))


def mean_over_levels(losses: Sequence[Tensor]) -> Tensor:
    """Return the mean of the losses of levels, finest first; each weighs half of that before it.

    References
    ----------
    Isensee et al., nnU-Net: a self-configuring method for deep learning-based biomedical image segmentation, 2021.

    Examples
    --------
    >>> mean_over_levels([torch.tensor(1.0), torch.tensor(4.0)])
    tensor(2.)
    """
    weights = [0.5**level for level in range(len(losses))]
    return sum((weight / sum(weights) * loss for weight, loss in zip(weights, losses, strict=True)), torch.zeros(()))


def class_weights(class_weight: str | Mapping[Any, float] | None, codec: LabelCodec, counts: np.ndarray) -> Any:
    """Return one weight per class.

    Parameters
    ----------
    class_weight : "balanced", dict or None
        "balanced" is n_pixels / (n_classes * count), as in scikit-learn, over the classes that occur. A dict
        gives weights by label, 1 where it has none.
    codec : LabelCodec
    counts : ndarray of shape (K,)
        Pixels of each class.

    Returns
    -------
    list of K floats, or None

    Raises
    ------
    ValueError
        If the dict names a label that is no class, or all weights are 0.
    """
    if class_weight is None:
        return None
    if isinstance(class_weight, str):
        n_present = max(int((counts > 0).sum()), 1)
        return [float(counts.sum() / (n_present * count)) if count else 1.0 for count in counts]
    labels = codec.classes.tolist()
    unknown = [label for label in class_weight if label not in labels]
    if unknown:
        raise ValueError(f"class_weight must name labels of y, {labels}; got {unknown}.")
    weights = [float(class_weight.get(label, 1.0)) for label in labels]
    if not any(weights):
        raise ValueError(f"class_weight must be above 0 for some label of y, {labels}; got {class_weight}.")
    return weights


def criterion_arguments(criterion: Any, weights: list[float] | None) -> dict[str, Any]:
    """Return what a criterion class takes of the class weights and the index that counts nowhere.

    Raises
    ------
    ValueError
        If there are class weights and the criterion takes none.
    """
    if isinstance(criterion, nn.Module):
        if weights is not None:
            raise ValueError("class_weight must be None where criterion is an instance. Give the instance its weights.")
        return {}
    tensor = None if weights is None else torch.tensor(weights)
    arguments = accepted(criterion, {"class_weight": tensor, "weight": tensor, "ignore_index": -1})
    if weights is not None and not {"class_weight", "weight"} & set(arguments):
        raise ValueError(
            f"class_weight must be None for a criterion that takes no class weights; {criterion.__name__} does not. "
            "Use skunet's CrossEntropyDiceLoss or torch's CrossEntropyLoss."
        )
    return arguments


def weighted_loss(criterion: nn.Module, logits: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
    """Return the loss, pixels weighted where there are weights.

    Raises
    ------
    ValueError
        If there are weights and the criterion can take none.
    """
    if isinstance(criterion, nn.CrossEntropyLoss | nn.NLLLoss) and criterion.weight is not None:
        # Their mean over pixels whose classes all weigh nothing is NaN.
        target = target.masked_fill((criterion.weight == 0)[target.clamp_min(0)], -1)
    ignore_index = getattr(criterion, "ignore_index", None)
    if ignore_index is None:
        ignore_index = -1
    if ignore_index != -1:  # an instance that the user made
        target = target.masked_fill(target == -1, ignore_index)
    if weights is None:
        loss = torch.as_tensor(criterion(logits, target))
        # torch's mean over no pixels is NaN.
        return torch.where((target != ignore_index).any(), loss, torch.zeros_like(loss))
    if "sample_weight" in inspect.signature(criterion.forward).parameters:
        return torch.as_tensor(criterion(logits, target, sample_weight=weights))
    losses = _losses_per_pixel(criterion, logits, target)
    weights = weights.reshape(weights.shape + (1,) * (losses.ndim - weights.ndim)).expand_as(losses)
    counted = weights * (target != ignore_index)
    return torch.as_tensor((losses * counted).sum() / counted.sum().clamp_min(torch.finfo(losses.dtype).tiny))


def _losses_per_pixel(criterion: nn.Module, logits: Tensor, target: Tensor) -> Tensor:
    """Return the losses (B, *S) of a criterion that has a reduction."""
    rule = f"sample_weight must be None for a criterion without per-pixel losses; {type(criterion).__name__}"
    if not hasattr(criterion, "reduction"):
        raise ValueError(f"{rule} takes neither sample_weight nor reduction. Use skunet's CrossEntropyDiceLoss.")
    unreduced = copy.copy(criterion)
    unreduced.reduction = "none"  # type: ignore[assignment]  # torch declares it a str where it exists
    losses = torch.as_tensor(unreduced(logits, target))
    if losses.shape != target.shape:
        shapes = f"{tuple(losses.shape)} of {tuple(target.shape)} pixels"
        raise ValueError(f'{rule} gives {shapes} with reduction="none". Use skunet\'s CrossEntropyDiceLoss.')
    return losses
