import numpy as np
import pytest
import torch
from conftest import make_segmenter
from hypothesis import given
from hypothesis import strategies as st

from skunet.geometry import PlainGeometry
from skunet.network import UNet
from skunet.patches import (
    EvaluationBatches,
    PatchBatches,
    choose_batch_size,
    choose_patch_size,
    draw_window,
    group_equal_sizes,
)
from skunet.sampling import BatchPlan
from skunet.training_set import open_training_set


def make_batches(*, weights=None, patch_size=(4, 4), augment=None, sizes=((8, 6), (3, 5)), scaling=None):
    images = [np.arange(np.prod(size)).reshape(size) + 100 * i for i, size in enumerate(sizes)]
    masks = [image % 2 for image in images]
    data = open_training_set(images, masks, sample_weight=weights)
    constants = np.array([[0.0], [1.0]]) if scaling is None else None
    return data, PatchBatches(
        data, patch_size=patch_size, scaling=scaling, constants=constants, augment=augment, seed=5
    )


def test_patches_are_windows_of_the_image_with_the_labels_of_the_same_pixels():
    _, batches = make_batches()
    inputs, labels = batches.__getitems__(BatchPlan(0, 0, np.array([0, 1, 0])))
    patches = inputs["patches"]
    assert patches.shape == (3, 1, 4, 4)
    assert patches.dtype == torch.float32
    assert torch.equal(patches[:, 0] % 2, labels.float())
    assert (patches[1] >= 100).all()
    first = patches[0, 0]
    assert torch.equal(first, first[0, 0] + torch.arange(4)[:, None] * 6.0 + torch.arange(4))


def test_draws_depend_on_epoch_and_batch_only():
    _, batches = make_batches(augment=0)
    plans = [BatchPlan(epoch, batch, np.array([0, 0, 0])) for epoch, batch in [(0, 0), (0, 1), (1, 0), (0, 0)]]
    a, b, c, again = (batches.__getitems__(plan)[0]["patches"] for plan in plans)
    assert torch.equal(a, again)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_every_window_of_an_image_is_drawn():
    rng = np.random.default_rng(0)
    starts = {tuple(int(at[0]) for at in draw_window(np.array([6, 5]), (4, 4), rng)) for _ in range(200)}
    assert starts == {(row, column) for row in range(3) for column in range(2)}


def test_weights_that_an_augmentation_returns_are_times_those_of_the_images():
    def blind(images, masks, weights, generator):
        return images, masks, (torch.arange(4) > 0).expand(masks.shape).float()

    _, batches = make_batches(weights=[2, 3], augment=blind)
    inputs, _ = batches.__getitems__(BatchPlan(0, 0, np.array([1, 0])))
    assert inputs["sample_weight"].shape == (2, 4, 4)
    assert inputs["sample_weight"][:, 0].tolist() == [[0, 3, 3, 3], [0, 2, 2, 2]]


def test_image_and_pixel_weights_travel_with_their_patches():
    data, batches = make_batches(weights=[2, 3])
    inputs, _ = batches.__getitems__(BatchPlan(0, 0, np.array([1, 0])))
    assert inputs["sample_weight"].tolist() == [3, 2]
    weights = [image.astype(float) for image in (data.images[0][0], data.images[1][0])]
    _, batches = make_batches(weights=weights, augment=0)
    inputs, _ = batches.__getitems__(BatchPlan(0, 0, np.array([1, 0])))
    assert torch.equal(inputs["sample_weight"], inputs["patches"][:, 0])


def test_scaling_by_image_uses_the_whole_image_not_the_patch():
    _, batches = make_batches(scaling="minmax", sizes=((8, 6), (8, 6)))
    inputs, _ = batches.__getitems__(BatchPlan(0, 0, np.array([0])))
    difference = inputs["patches"][0, 0, 0, 1] - inputs["patches"][0, 0, 0, 0]
    assert difference == pytest.approx(1 / 47)


@pytest.mark.parametrize(
    ("patch_size", "sizes", "expected"),
    [
        (None, [(40, 50), (40, 50)], (40, 48)),
        (None, [(400, 500), (300, 500)], (256, 256)),
        (None, [(300, 200), (300, 200)], (256, 200)),
        (None, [(32, 200, 200)], (32, 128, 128)),
        (None, [(100, 500), (100, 300)], (100, 256)),
        (32, [(40, 50), (20, 50)], (32, 32)),
        ((16, 24), [(40, 50)], (16, 24)),
        (64, [(40, 50)], (40, 52)),
        (None, [(80, 90, 90), (70, 90, 90)], (72, 88, 88)),
        (None, [(13, 91, 157)], (16, 88, 128)),
        (None, [(14, 18)], (16, 16)),
        (30, [(40, 50)], (32, 32)),
        (64, [(38, 50)], (40, 52)),
        (None, [(4, 4)], (4, 8)),
        (None, [(1, 1)], (4, 8)),
    ],
)
def test_patch_sizes(patch_size, sizes, expected):
    assert choose_patch_size(patch_size, np.array(sizes), PlainGeometry(size_multiple=4)) == expected


@pytest.mark.parametrize(
    ("batch_size", "patch_size", "expected"),
    [
        ("auto", (256, 256), 4),
        ("auto", (64, 64, 64), 4),
        ("auto", (32, 96, 96), 1),
        ("auto", (), 4),
        (3, (999, 999), 3),
    ],
)
def test_batch_sizes(batch_size, patch_size, expected):
    assert choose_batch_size(batch_size, patch_size) == expected


def test_the_fit_takes_large_patches_of_volumes_one_by_one():
    X, y = np.random.default_rng(0).normal(size=(1, 10, 90, 300)), np.arange(300) % 2 * np.ones((1, 10, 90, 1), int)
    segmenter = make_segmenter(batch_size="auto", depth=2, filters=1, max_epochs=1).fit(X, y)
    assert (segmenter.batch_size_, segmenter.patch_size_) == (4, (12, 88, 128))
    segmenter.set_params(patch_size=(10, 90, 300)).fit(X, y)
    assert (segmenter.batch_size_, segmenter.patch_size_) == (1, (12, 92, 300))


def test_patches_of_valid_networks_have_a_size_that_the_network_gives():
    valid = UNet(1, 2, depth=4, filters=1, padding="valid")
    assert choose_patch_size(388, np.array([[512, 512]]), valid) == (388, 388)
    assert choose_patch_size(380, np.array([[512, 512]]), valid) == (388, 388)


def test_evaluation_batches_are_whole_images_as_they_came():
    data, _ = make_batches(sizes=((4, 6), (4, 6)), weights=[1, 2])
    inputs, labels = EvaluationBatches(data).__getitems__([0, 1])
    assert inputs["images"].dtype == torch.int64
    assert inputs["images"].shape == (2, 1, 4, 6)
    assert inputs["sample_weight"].tolist() == [1, 2]
    assert torch.equal(inputs["images"][:, 0] % 2, labels)


@given(st.lists(st.sampled_from([(4, 4), (4, 8)]), min_size=1, max_size=12), st.integers(1, 4))
def test_groups_of_equal_size_keep_order_and_cover_all(sizes, batch_size):
    batches = group_equal_sizes(sizes, batch_size=batch_size, largest=100)
    assert [index for batch in batches for index in batch] == list(range(len(sizes)))
    assert all(len(batch) <= batch_size and len({sizes[i] for i in batch}) == 1 for batch in batches)


def test_large_images_go_alone():
    assert group_equal_sizes([(8, 8)] * 3, batch_size=2, largest=63) == [[0], [1], [2]]
