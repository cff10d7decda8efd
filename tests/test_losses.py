import numpy as np
import pytest
import torch
from conftest import make_segmenter
from torch.nn import functional

from skunet import UNetSegmenter
from skunet.losses import (
    BoundaryLoss,
    CrossEntropyDiceLoss,
    CrossEntropyLoss,
    DiceLoss,
    FocalLoss,
    FocalTverskyLoss,
    JaccardLoss,
    LovaszLoss,
    SumLoss,
    TverskyLoss,
)


class ImageDiceLoss(DiceLoss):
    """The loss of each image."""

    def __init__(self, class_weight=None, label_smoothing=0.0):
        super().__init__(class_weight, per_image=True, label_smoothing=label_smoothing)


LOSSES = [
    *(CrossEntropyLoss, FocalLoss, DiceLoss, ImageDiceLoss, JaccardLoss, TverskyLoss, FocalTverskyLoss),
    *(LovaszLoss, BoundaryLoss, CrossEntropyDiceLoss),
]
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
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradient_equals_finite_differences(loss_class, label_smoothing):
    logits, target = make_batch((2, 3, 2), n_classes=3)
    weight = torch.rand(target.shape, dtype=torch.float64)
    loss = loss_class([1.0, 2.0, 0.5], label_smoothing=label_smoothing)
    assert torch.autograd.gradcheck(lambda x: loss(x, ignore_some(target), weight), logits)


@every_loss
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradient_of_ignored_and_zero_weight_pixels_is_exactly_zero(loss_class, label_smoothing):
    logits, target = make_batch()
    target = ignore_some(target)
    weight = torch.ones(target.shape)
    weight.view(-1)[::5] = 0
    gradients = gradient(loss_class(label_smoothing=label_smoothing), logits, target, weight).movedim(1, -1)
    is_counted = (target >= 0) & (weight > 0)
    assert (gradients[~is_counted] == 0).all()
    if loss_class is not LovaszLoss:  # to which an error too small to change the order of overlaps is none
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
    # The power of a class's loss in the focal Tversky loss lifts what rounding leaves.
    tolerance = 1e-4 if loss_class is FocalTverskyLoss else 1e-6
    assert loss_class()(perfect, target).item() == pytest.approx(0, abs=tolerance)
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
        (CrossEntropyLoss, {"label_smoothing": 1.0}),
        (FocalLoss, {"gamma": -1}),
        (FocalTverskyLoss, {"gamma": 0}),
        (TverskyLoss, {"alpha": -1}),
        (BoundaryLoss, {"spacing": 0}),
    ],
)
def test_bad_number_raises(loss_class, bad):
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"):
        loss_class(**bad)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
@pytest.mark.parametrize("class_weight", [None, [1.0, 0.3, 2.0, 0.0]])
def test_smoothed_cross_entropy_equals_torch(label_smoothing, class_weight):
    logits, target = make_batch()
    target = ignore_some(target)
    weight = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64)
    loss = CrossEntropyLoss(weight, label_smoothing)
    expected = functional.cross_entropy(logits, target, weight=weight, ignore_index=-1, label_smoothing=label_smoothing)
    torch.testing.assert_close(loss(logits, target), expected)
    torch.testing.assert_close(FocalLoss(weight, 0.0, label_smoothing)(logits, target), expected)


def soft_sums(logits, target, k, weight):
    p = logits.softmax(1)[:, k].detach().double()
    t = (target == k).double()
    return [(weight * part).sum().item() for part in (p * t, p * (1 - t), (1 - p) * t)]


def test_overlap_losses_equal_their_formulas():
    logits, target = make_batch()
    weight = torch.rand(target.shape, dtype=torch.float64)
    parts = [soft_sums(logits, target, k, weight) for k in range(4)]

    def expected(alpha, beta, smooth, power=1.0):
        return np.mean([(1 - (h + smooth) / (h + alpha * a + beta * m + smooth)) ** power for h, a, m in parts])

    for loss, value in [
        (JaccardLoss(smooth=0.5), expected(1, 1, 0.5)),
        (TverskyLoss(alpha=0.2, beta=0.9), expected(0.2, 0.9, 1)),
        (FocalTverskyLoss(gamma=2.0), expected(0.3, 0.7, 1, 0.5)),
        (TverskyLoss(smooth=0.5), DiceLoss(smooth=1.0)(logits, target, weight).item()),
    ]:
        assert loss(logits, target, weight).item() == pytest.approx(value)


def test_smoothed_dice_equals_dice_against_a_smoothed_truth():
    logits, target = make_batch((1, 6, 5))
    p = logits.softmax(1).detach()
    t = 0.9 * functional.one_hot(target, 4).movedim(-1, 1) + 0.1 / 4
    scores = [(2 * (p[:, k] * t[:, k]).sum() + 1) / (p[:, k].sum() + t[:, k].sum() + 1) for k in range(4)]
    loss = DiceLoss(label_smoothing=0.1)(logits, target)
    assert loss.item() == pytest.approx(1 - np.mean(scores))


def test_dice_per_image_is_the_mean_over_images():
    logits, target = make_batch((3, 6, 5))
    alone = [DiceLoss()(logits[i : i + 1], target[i : i + 1]).item() for i in range(3)]
    assert DiceLoss(per_image=True)(logits, target).item() == pytest.approx(np.mean(alone))
    weighted = DiceLoss(per_image=True)(logits, target, torch.tensor([1.0, 0.0, 3.0])).item()
    smoothed_away = DiceLoss(smooth=0.0, per_image=True)(logits, target, torch.tensor([1.0, 0.0, 3.0])).item()
    exact = [DiceLoss(smooth=0.0)(logits[i : i + 1], target[i : i + 1]).item() for i in range(3)]
    assert smoothed_away == pytest.approx((exact[0] + 3 * exact[2]) / 4)
    assert weighted == pytest.approx((alone[0] + 3 * alone[2]) / 4, rel=0.1)


def test_focal_loss_equals_its_formula():
    logits, target = make_batch()
    p = logits.softmax(1).gather(1, target[:, None]).detach()
    assert FocalLoss(gamma=3.0)(logits, target).item() == pytest.approx(((1 - p) ** 3 * -p.log()).mean().item())


def test_lovasz_is_the_iou_of_labels_that_are_sure():
    generator = torch.Generator().manual_seed(0)
    target, predicted = torch.randint(3, (2, 1, 8, 9), generator=generator)
    logits = 1000.0 * functional.one_hot(predicted, 3).movedim(-1, 1)
    scores = []
    for k in range(3):
        both, either = (predicted == k) & (target == k), (predicted == k) | (target == k)
        scores.append(both.sum().item() / either.sum().item())
    assert LovaszLoss()(logits, target).item() == pytest.approx(1 - np.mean(scores), abs=1e-6)


def test_a_distance_per_axis_that_is_not_there_raises():
    with pytest.raises(ValueError, match=r"spacing must be one number, or one per axis, 2 here; got \(3, 1, 1\)"):
        BoundaryLoss(spacing=(3, 1, 1))(*make_batch())


def test_boundary_loss_weighs_errors_by_distance():
    target = torch.zeros(1, 1, 9, dtype=torch.long)
    target[..., :3] = 1
    costs = []
    for position in (3, 5, 8):
        predicted = target.clone()
        predicted[..., position] = 1
        logits = 50.0 * functional.one_hot(predicted, 2).movedim(-1, 1)
        costs.append(BoundaryLoss()(logits, target).item())
    assert costs[0] < costs[1] < costs[2]
    assert costs[1] == pytest.approx(2 * 3 / 9)  # 3 pixels off, in both classes
    far = BoundaryLoss(spacing=(1, 2.0))(logits, target).item()
    assert far == pytest.approx(2 * costs[2])


def test_the_edge_of_what_is_not_counted_is_no_border():
    assert BoundaryLoss()(torch.zeros(1, 2, 1, 4), torch.tensor([[[0, 0, -1, -1]]])).item() == 0
    # Class 0 alone lies beside it; its border is that to class 1.
    logits, target = torch.randn(1, 2, 1, 6), torch.tensor([[[-1, 0, 0, 1, 1, 1]]])
    within = BoundaryLoss()(logits[..., 1:], target[..., 1:]).item()
    assert BoundaryLoss()(logits, target).item() == pytest.approx(within)


def test_sums_of_losses():
    logits, target = make_batch()
    weight = torch.rand(target.shape)
    weights = [1.0, 2.0, 0.5, 1.0]
    loss = SumLoss([CrossEntropyLoss, LovaszLoss, DiceLoss(weights, smooth=0.0)], [1, 2, 0.5], weights)
    parts = [
        CrossEntropyLoss([1.0, 2.0, 0.5, 1.0])(logits, target, weight),
        2 * LovaszLoss([1.0, 2.0, 0.5, 1.0])(logits, target, weight),
        0.5 * DiceLoss(weights, smooth=0.0)(logits, target, weight),
    ]
    torch.testing.assert_close(loss(logits, target, weight), sum(parts))
    for weights in [1, 2], [-1]:
        with pytest.raises(ValueError, match="weights must be"):
            SumLoss([DiceLoss], weights)
    with pytest.raises(ValueError, match="weights must not all be 0"):
        SumLoss([DiceLoss], [0])
    for arguments in {"class_weight": [1.0, 2.0]}, {"label_smoothing": 0.1}:
        with pytest.raises(ValueError, match=r"does not reach DiceLoss\(\)"):
            SumLoss([CrossEntropyLoss, DiceLoss()], **arguments)


@pytest.mark.parametrize("losses", [[], "dice", DiceLoss, ["dice"], [torch.nn.MSELoss]])
def test_a_sum_of_other_things_raises(losses):
    with pytest.raises(ValueError, match=r"losses must list classes or instances of skunet\.losses"):
        SumLoss(losses)


def test_a_sum_of_no_losses_is_told_before_training(cells):
    with pytest.raises(ValueError, match=r"losses must list .* criterion__losses=\[...\]"):
        make_segmenter(criterion=SumLoss).fit(*cells)


def test_a_sum_of_instances_is_saved_without_them(cells, tmp_path):
    X, y = cells
    losses = [DiceLoss(per_image=True), CrossEntropyLoss()]
    segmenter = make_segmenter(criterion=SumLoss, criterion__losses=losses, criterion__weights=[1, 2]).fit(X, y)
    segmenter.save(tmp_path / "file")
    with pytest.warns(UserWarning, match="these parameters have their defaults: criterion, criterion__losses"):
        loaded = UNetSegmenter.load(tmp_path / "file")
    np.testing.assert_array_equal(loaded.predict(X), segmenter.predict(X))


TRAINED = [loss for loss in LOSSES if loss is not ImageDiceLoss]


@pytest.mark.parametrize("criterion", [*TRAINED, SumLoss])
def test_the_segmenter_trains_with_each(cells, criterion, tmp_path):
    X, y = cells
    y = np.where(y == 0, 0, 255).astype(np.uint8)
    y[:, 0, :3] = 7
    parameters = {"criterion__losses": [CrossEntropyLoss, LovaszLoss]} if criterion is SumLoss else {}
    segmenter = make_segmenter(
        criterion=criterion, criterion__label_smoothing=0.05, class_weight="balanced", ignore_label=7, **parameters
    ).fit(X, y, sample_weight=np.arange(12.0))
    assert np.isfinite(segmenter.history[-1, "train_loss"])
    segmenter.save(tmp_path / "file")
    loaded = UNetSegmenter.load(tmp_path / "file")
    assert loaded.criterion is criterion
    assert loaded.get_params().get("criterion__losses") == parameters.get("criterion__losses")
