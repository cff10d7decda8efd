import numpy as np
import pytest
import torch
from torch import nn

from skunet.components import accepted, class_weights, criterion_arguments, weighted_loss
from skunet.labels import LabelCodec
from skunet.losses import CrossEntropyDiceLoss


def test_only_named_arguments_are_handed_over():
    assert accepted(lambda depth, **kwargs: None, {"depth": 1, "filters": 2}) == {"depth": 1}


def test_balanced_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    y = np.repeat([0, 1, 2], [10, 30, 60])
    codec = LabelCodec(np.array([0, 1, 2]))
    expected = compute_class_weight("balanced", classes=codec.classes, y=y)
    np.testing.assert_allclose(class_weights("balanced", codec, np.bincount(y)), expected)
    assert class_weights("balanced", codec, np.array([10, 0, 30])) == [2, 1, pytest.approx(2 / 3)]


def test_weights_by_label():
    codec = LabelCodec(np.array(["a", "b"]))
    assert class_weights({"b": 3}, codec, np.array([1, 1])) == [1, 3]
    assert class_weights(None, codec, np.array([1, 1])) is None


def test_criteria_get_the_names_they_take():
    assert set(criterion_arguments(nn.CrossEntropyLoss, [1.0, 2.0])) == {"weight", "ignore_index"}
    assert set(criterion_arguments(CrossEntropyDiceLoss, [1.0, 2.0])) == {"class_weight"}
    assert criterion_arguments(CrossEntropyDiceLoss(), None) == {}
    with pytest.raises(ValueError, match="criterion is an instance"):
        criterion_arguments(CrossEntropyDiceLoss(), [1.0, 2.0])
    with pytest.raises(ValueError, match="MSELoss does not"):
        criterion_arguments(nn.MSELoss, [1.0, 2.0])


def test_weighted_loss_of_a_foreign_criterion_is_the_weighted_mean():
    logits, target = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 4, 4))
    target[0, 0, 0] = -1
    weights = torch.rand(2, 4, 4)
    losses = nn.functional.cross_entropy(logits, target, reduction="none", ignore_index=-1)
    counted = weights * (target != -1)
    criterion = nn.CrossEntropyLoss(ignore_index=-1)
    expected = (losses * counted).sum() / counted.sum()
    torch.testing.assert_close(weighted_loss(criterion, logits, target, weights), expected)
    assert criterion.reduction == "mean"
    per_image = weighted_loss(criterion, logits, target, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(per_image, criterion(logits[1:], target[1:]))


class Overlap(nn.Module):
    """As losses of other libraries: a reduction, an index to ignore that is None, and no losses of pixels."""

    ignore_index = None
    reduction = "mean"

    def forward(self, logits, target):
        overlap = (logits.softmax(1)[:, 1] * (target == 1)).flatten(1).sum(1)
        return overlap if self.reduction == "none" else overlap.mean()


def test_criteria_of_other_libraries_may_have_no_index_to_ignore():
    logits, target = torch.zeros(2, 2, 4, 4), torch.ones(2, 4, 4, dtype=torch.int64)
    assert weighted_loss(Overlap(), logits, target, None).item() == 8
    for weights in (torch.ones(2), torch.ones(2, 4, 4)):
        with pytest.raises(ValueError, match=r'Overlap gives \(2,\) of \(2, 4, 4\) pixels with reduction="none"'):
            weighted_loss(Overlap(), logits, target, weights)


@pytest.mark.parametrize("criterion", [nn.CrossEntropyLoss, nn.NLLLoss])
@pytest.mark.parametrize("weights", [None, torch.ones(2)])
def test_pixels_whose_class_weighs_nothing_count_nowhere(criterion, weights):
    logits, target = torch.randn(2, 2, 4, 4, requires_grad=True), torch.ones(2, 4, 4, dtype=torch.int64)
    weighted = criterion(weight=torch.tensor([2.0, 0.0]), ignore_index=-1)
    loss = weighted_loss(weighted, logits, target, weights)
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()
    target[0] = 0
    torch.testing.assert_close(weighted_loss(weighted, logits, target, None), weighted(logits, target))


@pytest.mark.parametrize("weights", [None, torch.ones(2)])
def test_where_no_pixel_has_a_label_the_loss_of_a_foreign_criterion_is_zero(weights):
    logits = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = weighted_loss(nn.CrossEntropyLoss(), logits, torch.full((2, 4, 4), -1), weights)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_a_criterion_that_takes_no_weights_raises():
    class Mean(nn.Module):
        def forward(self, logits, target):
            return (logits.mean(1) - target).mean()

    with pytest.raises(ValueError, match="sample_weight must be None"):
        weighted_loss(Mean(), torch.zeros(1, 2, 3, 3), torch.zeros(1, 3, 3), torch.ones(1))
