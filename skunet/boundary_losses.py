"""A loss that counts how far errors are from the border they should respect."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from skunet.hyperparameters import check_spacing
from skunet.loss_terms import ClassWeight, Terms, WeightedLoss, weighted_mean

__all__ = ["BoundaryLoss"]


class BoundaryLoss(WeightedLoss):
    """Probability in the wrong place, times its distance from the border of its class: Kervadec et al. [1]_.

    The mean over pixels of the sum over classes of d * (p - t), with probabilities p, truth t and the signed distance d
    to the class's border, negative inside. (That paper has d * p, which differs by what no weight can change.) It says
    nothing where a class is absent from an image, and is meant to be added to another loss, see `SumLoss`. Distances
    are computed on the CPU, which takes time.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
    spacing : float or sequence of float, optional
        Distance between pixels along each axis; 1 by default.
    label_smoothing : float, default=0.0

    References
    ----------
    .. [1] H. Kervadec et al. "Boundary loss for highly unbalanced segmentation", MIDL 2019.

    Examples
    --------
    >>> logits = torch.zeros(1, 2, 1, 4)
    >>> BoundaryLoss()(logits, torch.tensor([[[0, 0, 1, 1]]]))
    tensor(1.5000)
    """

    def __init__(
        self,
        class_weight: ClassWeight | None = None,
        spacing: float | Sequence[float] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weight, label_smoothing)
        check_spacing(spacing)
        self.spacing = spacing

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        check_spacing(self.spacing, terms.target.ndim - 1)
        known = torch.where(terms.weight > 0, terms.target, -1).cpu().numpy()
        probabilities = terms.log_probabilities.exp()
        total = torch.zeros_like(terms.surprise)
        for k in range(terms.n_classes):
            distances = np.stack([self._distance(mask == k, (mask != k) & (mask >= 0)) for mask in known])  # (N, *S)
            d = torch.from_numpy(distances).to(total)
            truth = (1 - terms.smoothing) * (terms.target == k) + terms.smoothing / terms.n_classes
            total = total + terms.class_weight[k] * d * (probabilities[:, k] - truth)
        return weighted_mean(total, terms.weight)

    def _distance(self, is_class: np.ndarray, is_other: np.ndarray) -> np.ndarray:
        """Return the signed distance to the border, 0 everywhere where there is none; what is neither has none."""
        if not (is_class.any() and is_other.any()):
            return np.zeros(is_class.shape)
        outside, inside = (
            ndimage.distance_transform_edt(~part, sampling=self.spacing) for part in (is_class, is_other)
        )
        return np.asarray(outside - inside)
