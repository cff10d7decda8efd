import numpy as np
import pytest
from torch.utils.data import Subset

from skunet import UNetSegmenter
from skunet.datasets import make_cells
from skunet.patches import draw_window
from skunet.randomness import make_generator
from skunet.sampling import ClassPixels, PatchSampler, choose_batches, count_patches
from skunet.training_set import open_training_set


def test_an_epoch_takes_every_image_in_a_new_seeded_order():
    sampler = PatchSampler(np.array([1, 2, 1, 1]), batch_size=2, seed=0, first_epoch=0)
    epochs = [list(sampler) for _ in range(3)]
    for epoch, plans in enumerate(epochs):
        assert [(plan.epoch, plan.batch) for plan in plans] == [(epoch, 0), (epoch, 1), (epoch, 2)]
        assert sorted(np.concatenate([plan.indices for plan in plans])) == [0, 1, 1, 2, 3]
    orders = {tuple(np.concatenate([plan.indices for plan in plans])) for plans in epochs}
    assert len(orders) > 1
    resumed = list(PatchSampler(np.array([1, 2, 1, 1]), batch_size=2, seed=0, first_epoch=2))
    assert [plan.indices.tolist() for plan in resumed] == [plan.indices.tolist() for plan in epochs[2]]


def test_loader_options_shape_the_batches():
    unshuffled = PatchSampler(np.array([1, 1, 1]), batch_size=2, seed=0, first_epoch=0, shuffle=False)
    assert [plan.indices.tolist() for plan in unshuffled] == [[0, 1], [2]]
    dropping = PatchSampler(np.array([1, 1, 1]), batch_size=2, seed=0, first_epoch=0, drop_last=True)
    assert len(dropping) == len(list(dropping)) == 1
    never_empty = PatchSampler(np.array([1]), batch_size=2, seed=0, first_epoch=0, drop_last=True)
    assert len(list(never_empty)) == 1


def test_patches_cover_about_as_many_pixels_as_the_images_have():
    assert count_patches(np.array([(64, 64), (10, 10), (48, 64)]), (32, 32)).tolist() == [4, 1, 3]


@pytest.mark.parametrize("n_batches", [1, 2, 5])
def test_an_epoch_has_as_many_full_batches_as_asked_for(n_batches):
    sampler = PatchSampler(np.array([1, 2, 1]), batch_size=3, seed=0, first_epoch=0, n_batches=n_batches)
    epochs = [list(sampler) for _ in range(40)]
    assert len(sampler) == n_batches
    assert sampler.n_patches == 3 * n_batches
    assert all([len(plan.indices) for plan in plans] == [3] * n_batches for plans in epochs)
    counts = np.bincount(np.concatenate([plan.indices for plans in epochs for plan in plans])) / (120 * n_batches)
    assert counts == pytest.approx([0.25, 0.5, 0.25], abs=0.1)


@pytest.mark.parametrize(
    ("asked", "n_patches", "expected"),
    [("auto", 31, 8), ("auto", 32, None), ("auto", 1, 8), (None, 1, None), (3, 1, 3), (3, 100, 3)],
)
def test_epochs_of_few_patches_have_some_batches_all_the_same(asked, n_patches, expected):
    assert choose_batches(asked, np.full(n_patches, 1), batch_size=4) == expected


@pytest.mark.parametrize(("parameters", "steps"), [({}, 8), ({"batches_per_epoch": None}, 2), ({"batch_size": 1}, 10)])
def test_a_fit_of_few_images_takes_more_than_a_few_steps(cells, parameters, steps):
    segmenter = UNetSegmenter(1, 4, batch_size=5, max_epochs=2, random_state=0, verbose=0)
    segmenter.set_params(**parameters).fit(*cells)  # 10 of the 12 cells train, each a patch
    assert segmenter.history[:, "train_batch_count"] == [steps, steps]


def rare_set(*, weights=None):
    """Three images, of which one has 10 pixels of label 7; 9 is ignored."""
    masks = np.zeros((3, 40, 50), dtype=np.uint8)
    masks[1, 30, 10:20] = 7
    masks[:, :5] = 9
    images = np.random.default_rng(0).integers(0, 255, masks.shape, dtype=np.uint8)
    return images, masks, open_training_set(images, masks, ignore_label=9, sample_weight=weights)


def test_pixels_are_found_by_class_and_ignored_ones_are_not():
    _, masks, data = rare_set()
    pixels = ClassPixels.find(data, seed=0)
    for label, images, positions in zip((0, 7), pixels.images, pixels.positions, strict=True):
        assert (masks[images, positions[:, 0], positions[:, 1]] == label).all()
    assert [len(images) for images in pixels.images] == [3000, 10]
    draws = [pixels.draw(make_generator(0, i)) for i in range(400)]
    share = np.mean([masks[image, row, column] == 7 for image, (row, column) in draws])
    assert share == pytest.approx(0.5, abs=0.1)


def test_pixels_without_weight_are_passed_over():
    weights = np.ones((3, 40, 50))
    weights[1, 30, 11:] = 0
    pixels = ClassPixels.find(rare_set(weights=weights)[2], seed=0)
    assert pixels.positions[1].tolist() == [[30, 10]]


def test_windows_hold_the_pixel_that_was_asked_for():
    generator = np.random.default_rng(0)
    for pixel in ([0, 0], [39, 49], [20, 3], [39, 0]):
        starts = set()
        for _ in range(300):
            rows, columns = draw_window(np.array([40, 50]), (16, 60), generator, around=np.array(pixel))
            assert pixel[0] in rows
            assert pixel[1] in columns
            starts.add(int(rows[0]))
        assert starts == set(range(max(0, pixel[0] - 15), min(24, pixel[0]) + 1))


class Spy(UNetSegmenter):
    """Notes the labels of the training patches."""

    def train_step_single(self, batch, **fit_params):
        vars(self).setdefault("seen", []).extend(set(np.unique(labels)) for labels in batch[1])
        return super().train_step_single(batch, **fit_params)


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0.25), (0.5, 0.3, 0.5), (1.0, 0.5, 0.8)])
def test_rare_classes_occur_as_often_as_asked_for(share, least, most):
    X, y, _ = rare_set()
    segmenter = Spy(1, 2, patch_size=8, batches_per_epoch=40, balanced_share=share, ignore_label=9, train_split=None)
    segmenter.set_params(max_epochs=1, verbose=0, random_state=0).fit(X, y)
    assert len(segmenter.seen) == 160
    assert least <= np.mean([7 in labels for labels in segmenter.seen]) <= most


def test_balanced_patches_are_the_same_in_any_number_of_workers():
    X, y, _ = rare_set()
    fits = [
        UNetSegmenter(
            1, 2, patch_size=16, balanced_share=0.5, ignore_label=9, max_epochs=2, train_split=None, verbose=0,
            random_state=0, iterator_train__num_workers=workers,
        ).fit(X, y).predict_proba(X)
        for workers in (0, 2)
    ]  # fmt: skip
    assert np.array_equal(*fits)


def test_scribbles_are_learned_from_in_parts():
    """A stroke per class and image, all else ignored: whole masks come out."""
    X, y = make_cells(6, size=64, random_state=0)
    scribbles = np.full_like(y, 255)
    rows = slice(30, 33)
    scribbles[:, rows] = y[:, rows]
    segmenter = UNetSegmenter(
        2, 8, ignore_label=255, patch_size=32, balanced_share=1.0, batches_per_epoch=8, lr=5e-3, max_epochs=10,
        train_split=None, verbose=0, random_state=0,
    )  # fmt: skip
    segmenter.partial_fit(X[:3], scribbles[:3], classes=np.unique(y))
    segmenter.partial_fit(X[3:], scribbles[3:])
    assert segmenter.score(X, y) > 0.8


@pytest.mark.parametrize("parameters", [{"batches_per_epoch": 0}, {"balanced_share": 1.5}, {"balanced_share": -1}])
def test_what_is_out_of_range_raises(parameters):
    X, y, _ = rare_set()
    with pytest.raises(ValueError, match=next(iter(parameters))):
        UNetSegmenter(**parameters).fit(X, y)


def test_without_any_pixel_that_counts_balanced_patches_raise():
    X, y, _ = rare_set()
    y[:2] = 9  # the third is held out
    segmenter = UNetSegmenter(1, 2, balanced_share=0.5, ignore_label=9, classes=[0, 7], train_split=last_held_out)
    with pytest.raises(ValueError, match="balanced_share must be 0 where no pixel"):
        segmenter.set_params(verbose=0).fit(X, y)


def last_held_out(dataset, y=None, groups=None):
    return Subset(dataset, [0, 1]), Subset(dataset, [2])
