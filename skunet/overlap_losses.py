"""Losses of overlap: Dice, Jaccard, Tversky and Lovasz, over the batch or image by image."""

import torch
from torch import Tensor

from skunet.loss_terms import ClassWeight, Terms, WeightedLoss, check_number, sum_by_class, weighted_mean

__all__ = ["DiceLoss", "FocalTverskyLoss", "JaccardLoss", "LovaszLoss", "TverskyLoss", "dice_loss"]


class TverskyLoss(WeightedLoss):
    r"""One minus the mean soft Tversky index of the classes, Salehi et al. [1]_.

    With probabilities p and truth t of a class, weights w, and sums over all counted pixels, hits are sum(w p t), false
    alarms sum(w p (1 - t)), misses sum(w (1 - p) t), and the index is
    (hits + smooth) / (hits + alpha * false alarms + beta * misses + smooth).

    A class absent from the target is left out of the mean. Its index would be smooth / (alpha sum(w p) + smooth), which
    says little about the errors, much about `smooth`, and whose gradient is the steepest where the prediction is
    already right: rare classes then decline from batch to batch. Its false alarms count as misses of other classes.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
        Weights of the classes in the mean.
    alpha, beta : float, default=0.5
        Weights of false alarms and of misses, at least 0 and not both 0: 0.5 is Dice, 1 is Jaccard, and a larger `beta`
        finds more of what is rare.
    smooth : float, default=1.0
        Non-negative, in pixels; bounds the gradient where a class has few pixels.
    per_image : bool, default=False
        Whether sums are over each image, and the loss is the mean over images, instead of over the batch. An image with
        few pixels of a class then weighs as much as one with many.
    label_smoothing : float, default=0.0

    References
    ----------
    .. [1] S. S. M. Salehi, D. Erdogmus, A. Gholipour. "Tversky loss function for image segmentation using 3D fully
       convolutional deep networks", MLMI 2017.
    """

    def __init__(
        self,
        class_weight: ClassWeight | None = None,
        alpha: float = 0.5,
        beta: float = 0.5,
        smooth: float = 1.0,
        per_image: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weight, label_smoothing)
        for name, value in (("alpha", alpha), ("beta", beta), ("smooth", smooth)):
            check_number(name, value, "finite and not negative", value >= 0)
        check_number("alpha and beta", alpha + beta, "not both 0", alpha + beta > 0)
        self.alpha = alpha
        self.beta = beta
        self.smooth = smooth
        self.per_image = per_image

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        return _tversky(terms, alpha=self.alpha, beta=self.beta, smooth=self.smooth, per_image=self.per_image)


class FocalTverskyLoss(TverskyLoss):
    """The Tversky loss of each class to the power 1 / gamma, Abraham and Khan [1]_.

    Parameters
    ----------
    class_weight, smooth, per_image, label_smoothing
        As in `TverskyLoss`.
    alpha : float, default=0.3
    beta : float, default=0.7
    gamma : float, default=4/3
        Above 0; above 1, classes that are nearly right keep a steep gradient.

    References
    ----------
    .. [1] N. Abraham, N. M. Khan. "A Novel Focal Tversky Loss Function With Improved Attention U-Net for Lesion
       Segmentation", ISBI 2019.
    """

    def __init__(
        self,
        class_weight: ClassWeight | None = None,
        alpha: float = 0.3,
        beta: float = 0.7,
        gamma: float = 4 / 3,
        smooth: float = 1.0,
        per_image: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weight, alpha, beta, smooth, per_image, label_smoothing)
        check_number("gamma", gamma, "finite and above 0", gamma > 0)
        self.gamma = gamma

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        return _tversky(
            terms, alpha=self.alpha, beta=self.beta, smooth=self.smooth, per_image=self.per_image, power=1 / self.gamma
        )


class DiceLoss(WeightedLoss):
    r"""One minus the mean soft Dice score of the classes.

    With probabilities p and truth t of a class (0 or 1), weights w, and sums over all counted pixels, its score is
    (2 sum(w p t) + smooth) / (sum(w p) + sum(w t) + smooth). V-Net [1]_ squares p in the divisor; plain sums are the
    more common form since. Classes absent from the target are left out, see `TverskyLoss`.

    Parameters
    ----------
    class_weight, per_image, label_smoothing
        As in `TverskyLoss`.
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

    def __init__(
        self,
        class_weight: ClassWeight | None = None,
        smooth: float = 1.0,
        per_image: bool = False,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(class_weight, label_smoothing)
        check_number("smooth", smooth, "finite and not negative", smooth >= 0)
        self.smooth = smooth
        self.per_image = per_image

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        return dice_loss(terms, smooth=self.smooth, per_image=self.per_image)


class JaccardLoss(DiceLoss):
    """One minus the mean soft Jaccard index (IoU) of the classes: hits over the union.

    Parameters
    ----------
    class_weight, smooth, per_image, label_smoothing
        As in `DiceLoss`.
    """

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        return _tversky(terms, alpha=1.0, beta=1.0, smooth=self.smooth, per_image=self.per_image)


def dice_loss(terms: Terms, *, smooth: float, per_image: bool = False) -> Tensor:
    """Return the Dice loss of its terms; see `DiceLoss`."""
    return _tversky(terms, alpha=0.5, beta=0.5, smooth=smooth / 2, per_image=per_image)


def _tversky(terms: Terms, *, alpha: float, beta: float, smooth: float, per_image: bool, power: float = 1.0) -> Tensor:
    target, weight, n_classes = terms.target, terms.weight, terms.n_classes
    hits = sum_by_class(torch.exp(-terms.surprise) * weight, target, n_classes)  # (N, K)
    in_truth = sum_by_class(weight, target, n_classes)
    # One class at a time: the weighted probabilities of all would be a second tensor (N, K, *S).
    in_prediction = [(p * weight).flatten(1).sum(1) for p in terms.log_probabilities.exp().unbind(dim=1)]
    sums = hits, in_truth, torch.stack(in_prediction, dim=1)
    if not per_image:
        hits, in_truth, predicted = (part.sum(0, keepdim=True) for part in sums)
    else:
        hits, in_truth, predicted = sums
    is_present = in_truth > 0
    if terms.smoothing:
        hits = (1 - terms.smoothing) * hits + terms.smoothing / n_classes * predicted
        all_truth = in_truth.sum(1, keepdim=True)
        in_truth = (1 - terms.smoothing) * in_truth + terms.smoothing / n_classes * all_truth
    divisor = hits + alpha * (predicted - hits) + beta * (in_truth - hits) + smooth
    losses = 1 - (hits + smooth) / torch.where(is_present, divisor, 1)  # (N or 1, K)
    if power != 1:
        # A power below 1 is infinitely steep at 0.
        losses = losses.clamp_min(torch.finfo(losses.dtype).eps) ** power
    return weighted_mean(losses, _class_shares(terms, is_present, per_image=per_image))


def _class_shares(terms: Terms, is_present: Tensor, *, per_image: bool) -> Tensor:
    """Return what each class of each image weighs: all classes of an image as much as its pixels do on average."""
    shares = terms.class_weight * is_present  # (N or 1, K)
    if not per_image:
        return shares
    n_counted = (terms.weight > 0).flatten(1).sum(1).clamp(min=1)
    of_images = terms.weight.flatten(1).sum(1) / n_counted
    totals = shares.sum(1)
    return shares * (of_images / torch.where(totals > 0, totals, 1))[:, None]


class LovaszLoss(WeightedLoss):
    """The Lovasz extension of the Jaccard loss, a surrogate of the IoU itself: Berman et al. [1]_.

    It sorts all pixels by their error, per class present in the batch: slower than the other losses.

    Parameters
    ----------
    class_weight : sequence of K non-negative floats, optional
        Weights of the classes in the mean.
    label_smoothing : float, default=0.0

    References
    ----------
    .. [1] M. Berman, A. Rannen Triki, M. B. Blaschko. "The Lovasz-Softmax Loss: A Tractable Surrogate for the
       Optimization of the Intersection-Over-Union Measure in Neural Networks", CVPR 2018.
    """

    def loss_of(self, terms: Terms) -> Tensor:
        """Return the loss of its terms."""
        is_counted = terms.weight > 0
        target, weight = terms.target[is_counted], terms.weight[is_counted]
        probabilities = terms.log_probabilities.movedim(1, -1)[is_counted].exp()  # (P, K)
        losses, present = [], []
        for k in range(terms.n_classes):
            is_class = target == k
            truth = is_class.to(weight.dtype)
            smoothed = (1 - terms.smoothing) * truth + terms.smoothing / terms.n_classes
            losses.append(_lovasz_extension((smoothed - probabilities[:, k]).abs(), truth, weight))
            present.append(is_class.any())
        return weighted_mean(torch.stack(losses), terms.class_weight * torch.stack(present))


def _lovasz_extension(errors: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """Return the sum of errors, each times what the Jaccard loss grows by if it joins those larger than it."""
    order = torch.argsort(errors.detach(), descending=True, stable=True)
    missed, alarms = (torch.cumsum((weight * part)[order], 0) for part in (truth, 1 - truth))
    total = (weight * truth).sum()
    union = total + alarms
    jaccard = 1 - (total - missed) / torch.where(union > 0, union, 1)
    steps = torch.diff(jaccard, prepend=jaccard.new_zeros(1))
    return (errors[order] * steps).sum()
