import numpy as np
import pytest
import torch
from torch.nn import functional

from skunet.losses import CrossEntropyDiceLoss, CrossEntropyLoss, DiceLoss

LOSSES = [CrossEntropyLoss, DiceLoss, CrossEntropyDiceLoss]
every_loss = pytest.mark.parametrize("loss_class", LOSSES)


def make_batch(shape=(3, 6, 5), n_classes=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape[0], n_classes, *shape[1:], generator=generator, dtype=torch.float64)
    target = torch.randint(n_classes, shape, generator=generator)
    return logits.to(dtype).requires_grad_(), target


def ignore_some(target):
    target = target.clone()
    target.view(-1)[::7] = -1
    return target


def gradient(loss, logits, *args):
    return torch.autograd.grad(loss(logits, *args), logits)[0]


def reference_dice(logits, target, weight, smooth):
    """The formula with an explicit one-hot target, class by class."""
    probabilities = logits.softmax(1).movedim(1, -1)[target >= 0].detach().numpy()
    truth, weight = target[target >= 0].numpy(), weight[target >= 0].numpy()
    scores = []
    for k in np.unique(truth[weight > 0]):
        p, t = probabilities[:, k], truth == k
        hits, total = np.sum(weight * p * t), np.sum(weight * p) + np.sum(weight * t)
        scores.append((2 * hits + smooth) / (total + smooth))
    return 1 - np.mean(scores)


@pytest.mark.parametrize("n_classes", [2, 11])
@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 4, 3, 5), (12,)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_cross_entropy_equals_torch(n_classes, shape, is_weighted):
    logits, target = make_batch(shape, n_classes)
    target = ignore_some(target)
    class_weight = torch.rand(n_classes, dtype=torch.float64) if is_weighted else None
    loss = CrossEntropyLoss(class_weight)
    expected = functional.cross_entropy(logits, target, weight=class_weight, ignore_index=-1)
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(gradient(loss, logits, target), torch.autograd.grad(expected, logits)[0])


def test_cross_entropy_of_a_pixel_given_twice_equals_weight_two():
    logits, target = make_batch((1, 1, 4))
    weight = torch.tensor([[[2.0, 1.0, 1.0, 1.0]]])
    twice = torch.cat([logits, logits[..., :1]], -1), torch.cat([target, target[..., :1]], -1)
    loss = CrossEntropyLoss([1, 2, 3, 4])
    torch.testing.assert_close(loss(logits, target, weight), loss(*twice))


def test_dice_equals_values_computed_by_hand():
    # Probabilities of class 1: 0.5, 0.8, 0.8 with truth 0, 1, 1.
    logits = torch.zeros(1, 2, 1, 3, dtype=torch.float64)
    logits[0, 1, 0] = torch.tensor([1.0, 4.0, 4.0]).log()
    target = torch.tensor([[[0, 1, 1]]])
    background, foreground = 2 * 0.5 / (0.9 + 1), 2 * 1.6 / (2.1 + 2)
    smoothed = (2 * 0.5 + 1) / (0.9 + 1 + 1), (2 * 1.6 + 1) / (2.1 + 2 + 1)
    assert DiceLoss(smooth=0)(logits, target).item() == pytest.approx(1 - (background + foreground) / 2)
    assert DiceLoss()(logits, target).item() == pytest.approx(1 - sum(smoothed) / 2)
    weighted = DiceLoss(class_weight=[1, 3], smooth=0)(logits, target).item()
    assert weighted == pytest.approx(1 - (background + 3 * foreground) / 4)


@pytest.mark.parametrize("n_classes", [2, 11])
@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 4, 3, 5)])
def test_dice_equals_its_formula_with_weights_and_ignored_pixels(n_classes, shape):
    logits, target = make_batch(shape, n_classes)
    target = ignore_some(target)
    weight = torch.rand(shape, dtype=torch.float64)
    expected = reference_dice(logits, target, weight, smooth=0.5)
    assert DiceLoss(smooth=0.5)(logits, target, weight).item() == pytest.approx(expected)


def test_dice_leaves_out_classes_absent_from_the_target():
    logits, target = make_batch(n_classes=4)
    target = target.clamp(max=1)
    expected = reference_dice(logits, target, torch.ones(target.shape), smooth=1.0)
    assert DiceLoss()(logits, target).item() == pytest.approx(expected)


def test_dice_pools_the_batch_instead_of_averaging_images():
    logits, target = make_batch((4, 6, 5))
    as_one_image = logits.movedim(0, 1).reshape(1, 4, 24, 5), target.reshape(1, 24, 5)
    torch.testing.assert_close(DiceLoss()(logits, target), DiceLoss()(*as_one_image))


@pytest.mark.parametrize("dice_share", [0.0, 0.3, 1.0])
def test_mixed_loss_is_the_mixture_of_its_parts(dice_share):
    logits, target = make_batch()
    class_weight, weight = [1.0, 0.5, 2.0, 0.0], torch.rand(target.shape)
    parts = [loss(class_weight)(logits, target, weight) for loss in (CrossEntropyLoss, DiceLoss)]
    mixed = CrossEntropyDiceLoss(class_weight, dice_share=dice_share)(logits, target, weight)
    torch.testing.assert_close(mixed, (1 - dice_share) * parts[0] + dice_share * parts[1])


@every_loss
def test_gradient_equals_finite_differences(loss_class):
    logits, target = make_batch((2, 3, 2), n_classes=3)
    weight = torch.rand(target.shape, dtype=torch.float64)
    loss = loss_class([1.0, 2.0, 0.5])
    assert torch.autograd.gradcheck(lambda x: loss(x, ignore_some(target), weight), logits)


@every_loss
def test_gradient_of_ignored_and_zero_weight_pixels_is_exactly_zero(loss_class):
    logits, target = make_batch()
    target = ignore_some(target)
    weight = torch.ones(target.shape)
    weight.view(-1)[::5] = 0
    gradients = gradient(loss_class(), logits, target, weight).movedim(1, -1)
    is_counted = (target >= 0) & (weight > 0)
    assert (gradients[~is_counted] == 0).all()
    assert (gradients[is_counted].abs().sum(-1) > 0).all()


@every_loss
def test_zero_weight_and_ignored_pixels_count_alike(loss_class):
    logits, target = make_batch()
    ignored = ignore_some(target)
    weight = (ignored >= 0).to(torch.float64)
    torch.testing.assert_close(loss_class()(logits, target, weight), loss_class()(logits, ignored))


@every_loss
@pytest.mark.parametrize("nothing_counts", ["ignored", "zero weight", "zero class weight"])
def test_loss_and_gradient_are_zero_if_nothing_counts(loss_class, nothing_counts):
    logits, target = make_batch()
    loss = loss_class([0.0] * 4 if nothing_counts == "zero class weight" else None)
    target = torch.full_like(target, -1) if nothing_counts == "ignored" else target
    weight = torch.zeros(len(target)) if nothing_counts == "zero weight" else None
    assert loss(logits, target, weight).item() == 0
    assert (gradient(loss, logits, target, weight) == 0).all()


@every_loss
def test_image_of_weight_zero_equals_image_left_out(loss_class):
    logits, target = make_batch((3, 6, 5))
    loss = loss_class([1.0, 2.0, 0.5, 1.0])
    weight = torch.tensor([1.0, 0.0, 2.0])
    kept = torch.tensor([0, 2])
    torch.testing.assert_close(loss(logits, target, weight), loss(logits[kept], target[kept], weight[kept]))


@every_loss
def test_weight_per_image_equals_the_same_weight_per_pixel(loss_class):
    logits, target = make_batch((3, 6, 5))
    weight = torch.tensor([1.0, 0.25, 2.0])
    per_pixel = weight[:, None, None].expand(target.shape)
    torch.testing.assert_close(loss_class()(logits, target, weight), loss_class()(logits, target, per_pixel))


@every_loss
def test_constant_added_to_the_logits_changes_nothing(loss_class):
    logits, target = make_batch()
    shift = torch.randn(logits.shape[0], 1, *logits.shape[2:])
    torch.testing.assert_close(loss_class()(logits + shift, target), loss_class()(logits, target))


@every_loss
@pytest.mark.parametrize("shape", [(3, 6, 5), (2, 4, 3, 5)])
@pytest.mark.parametrize("n_classes", [2, 11])
def test_perfect_prediction_costs_nearly_nothing_and_its_opposite_much(loss_class, shape, n_classes):
    _, target = make_batch(shape, n_classes)
    perfect = 50.0 * functional.one_hot(target, n_classes).movedim(-1, 1)
    assert loss_class()(perfect, target).item() == pytest.approx(0, abs=1e-6)
    assert loss_class()(-perfect, target).item() > 0.7


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(loss_class, dtype):
    logits, target = make_batch((2, 64, 64), dtype=torch.float32)
    large = (logits.detach() * 1e4).to(dtype).requires_grad_()
    value = loss_class()(large, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss_class()(large.detach().float(), target))
    gradients = torch.autograd.grad(value, large)[0]
    assert gradients.dtype == dtype
    assert gradients.isfinite().all()


@every_loss
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_autocast_does_not_lower_the_precision(loss_class, dtype):
    logits, target = make_batch((2, 16, 16), dtype=dtype)
    weight = torch.rand(target.shape)
    with torch.autocast("cpu", torch.bfloat16):
        inside = loss_class([1, 2, 3, 4])(logits, target, weight)
    torch.testing.assert_close(inside, loss_class([1, 2, 3, 4])(logits, target, weight), rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32])
def test_target_may_be_of_any_integer_type(loss_class, dtype):
    logits, target = make_batch()
    torch.testing.assert_close(loss_class()(logits, target.to(dtype)), loss_class()(logits, target))


@every_loss
@pytest.mark.parametrize("kind", [list, np.array, torch.tensor])
def test_class_weight_is_a_buffer(loss_class, kind):
    loss = loss_class(kind([1.0, 2.0, 0.0]))
    assert list(loss.state_dict()) == ["class_weight"]
    assert loss.class_weight.tolist() == [1, 2, 0]
    assert loss.class_weight.dtype == torch.float32


@every_loss
def test_bad_class_weight_raises(loss_class):
    for bad in ([1.0, -1.0], [1.0, float("nan")], [[1.0]]):
        with pytest.raises(ValueError, match="class_weight must be one non-negative number per class"):
            loss_class(bad)
    logits, target = make_batch(n_classes=4)
    with pytest.raises(ValueError, match="one entry per class, 4; got 1"):
        loss_class([1.0])(logits, target)


@every_loss
def test_bad_sample_weight_shape_raises(loss_class):
    logits, target = make_batch((3, 6, 5))
    with pytest.raises(ValueError, match=r"must have the shape \(3,\) or \(3, 6, 5\); got \(6, 5\)"):
        loss_class()(logits, target, torch.ones(6, 5))


@every_loss
def test_target_out_of_range_raises(loss_class):
    logits, target = make_batch(n_classes=4)
    target[0, 0, 0] = 4
    with pytest.raises(IndexError, match="out of bounds"):
        loss_class()(logits, target)


@pytest.mark.parametrize(
    ("loss_class", "bad"),
    [
        (DiceLoss, {"smooth": -1.0}),
        (CrossEntropyDiceLoss, {"smooth": float("inf")}),
        (CrossEntropyDiceLoss, {"dice_share": 1.5}),
    ],
)
def test_bad_number_raises(loss_class, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        loss_class(**bad)
