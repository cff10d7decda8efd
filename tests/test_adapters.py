"""Transforms of other libraries, each on images that hold their own mask as a channel."""

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skunet import UNetSegmenter
from skunet.adapters import Albumentations, TorchIO, Torchvision
from skunet.callbacks import Checkpoint, Resume
from skunet.datasets import make_cells
from skunet.model_selection import cross_val_score


def albumentations_transform(ndim):
    library = pytest.importorskip("albumentations", reason="needs albumentations")
    if ndim == 3:
        pytest.skip("albumentations knows 2-D images")
    return Albumentations(library.Compose([library.D4(p=1), library.Rotate(90, interpolation=0, p=1)]))


def torchio_transform(ndim):
    library = pytest.importorskip("torchio", reason="needs torchio")
    degrees = (30, 0, 0) if ndim == 2 else 30
    return TorchIO(library.RandomAffine(degrees=degrees, image_interpolation="nearest"))


def torchvision_transform(ndim):
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError):  # built for another torch
        pytest.skip("needs torchvision")
    if ndim == 3:
        pytest.skip("torchvision knows 2-D images")
    return Torchvision(v2.RandomAffine(45))


ADAPTERS = [albumentations_transform, torchio_transform, torchvision_transform]


def make_batch(ndim, dtype=torch.uint8):
    rng = np.random.default_rng(0)
    masks = torch.tensor(rng.integers(0, 3, (3, *[20] * ndim))) * 100
    images = torch.stack([masks.float(), masks.float() / 2], dim=1)
    return images, masks.to(dtype), masks.float() + 1


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("make", ADAPTERS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
def test_images_labels_and_weights_go_together(make, ndim, dtype):
    adapter = make(ndim)
    images, masks, weights = make_batch(ndim, dtype)
    changed, labels, changed_weights = adapter(images, masks, weights, np.random.default_rng(0))
    assert changed.shape == images.shape
    assert labels.dtype == dtype
    assert not torch.equal(labels, masks)
    assert not torch.equal(labels[0] == masks[0], labels[1] == masks[1])  # each its own
    inside = (changed_weights > 0) & (changed[:, 0] == 2 * changed[:, 1])  # what came in from outside has no partner
    assert inside.float().mean() > 0.5
    assert torch.equal(labels[inside].float(), changed_weights[inside] - 1)
    assert (changed[:, 0][inside] == labels[inside]).float().mean() > 0.95
    assert set(labels.unique().tolist()) <= {0, 100, 200}


@pytest.mark.parametrize("make", ADAPTERS)
def test_the_generator_decides(make):
    adapter = make(2)
    images, masks, _ = make_batch(2)
    state = torch.random.get_rng_state()
    first, again, other = (adapter(images, masks, None, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("make", ADAPTERS)
@pytest.mark.parametrize("weight", [None, 3.0])
def test_pixels_that_are_made_up_count_nowhere(make, weight):
    images, masks, _ = make_batch(2)
    weights = None if weight is None else torch.full(masks.shape, weight)
    _, labels, kept = make(2)(images, masks + 5, weights, np.random.default_rng(0))
    is_made_up = labels == 0
    assert 0.05 < is_made_up.float().mean() < 0.5
    assert kept[is_made_up].max() == 0
    assert kept[~is_made_up].min() == (weight or 1)


def test_where_nothing_is_made_up_there_are_no_weights():
    library = pytest.importorskip("albumentations", reason="needs albumentations")
    images, masks, _ = make_batch(2)
    adapter = Albumentations(library.Compose([library.D4(p=1)]))
    assert adapter(images, masks, None, np.random.default_rng(0))[2] is None


def test_a_fill_for_labels_gives_no_weight_of_its_size():
    library = pytest.importorskip("albumentations", reason="needs albumentations")
    images, masks, _ = make_batch(2)
    adapter = Albumentations(library.Compose([library.Rotate((45, 45), fill_mask=200, p=1)]))
    _, labels, kept = adapter(images, masks, None, np.random.default_rng(0))
    assert labels[:, 0, 0].tolist() == [200] * 3
    assert kept is None  # each pixel has a label, and counts once


def test_pixels_that_are_not_finite_raise():
    library = pytest.importorskip("torchio", reason="needs torchio")
    adapter = TorchIO(library.Lambda(lambda part: part / 0, types_to_apply=[library.INTENSITY]))
    with pytest.raises(ValueError, match="augment must return finite pixels; got NaN or infinity from"):
        adapter(*make_batch(2), np.random.default_rng(0))


@pytest.mark.parametrize("adapter", [Albumentations(None), Albumentations(print), Torchvision(torch.nn.Identity)])
def test_what_is_no_transform_is_told(adapter):
    with pytest.raises(ValueError, match=f"{type(adapter).__name__} must be given a transform of that library, built"):
        adapter(*make_batch(2), np.random.default_rng(0))


def test_a_change_of_size_raises():
    library = pytest.importorskip("albumentations", reason="needs albumentations")
    adapter = Albumentations(library.Compose([library.RandomCrop(8, 8)]))
    with pytest.raises(ValueError, match="augment must keep the shape"):
        adapter(*make_batch(2), np.random.default_rng(0))


def test_labels_that_float32_cannot_hold_raise():
    images, masks, _ = make_batch(2, torch.int64)
    with pytest.raises(ValueError, match="labels up to 16777216"):
        TorchIO(print)(images, masks + 2**24, None, np.random.default_rng(0))


def test_a_segmenter_trains_with_it():
    adapter = albumentations_transform(2)
    X, y = make_cells(4, size=32, random_state=0)
    fits = [
        UNetSegmenter(1, 4, augment=adapter, max_epochs=2, verbose=0, random_state=0, iterator_train__num_workers=n)
        .fit(X, 255 * y.astype(np.uint8))
        .predict_proba(X)
        for n in (0, 2)
    ]
    assert np.array_equal(*fits)


@pytest.mark.parametrize("make", ADAPTERS)
def test_segmenters_with_it_are_cloned_searched_and_kept(make, tmp_path):
    X, y = make_cells(6, size=32, random_state=0)
    segmenter = UNetSegmenter(1, 4, augment=make(2), max_epochs=1, verbose=0, random_state=0, train_split=None)
    assert len(cross_val_score(segmenter, X, y, cv=2, error_score="raise")) == 2
    segmenter.set_params(callbacks=[Checkpoint(tmp_path), Resume(tmp_path)]).fit(X, y)
    assert clone(segmenter).set_params(max_epochs=2).fit(X, y).n_iter_ == 2  # one resumed
    assert len(list(tmp_path.iterdir())) == 1


def test_boolean_masks_stay_boolean():
    images, masks, _ = make_batch(2)
    _, labels, _ = torchio_transform(2)(images, masks > 0, None, np.random.default_rng(0))
    assert labels.dtype == torch.bool


def test_volumes_are_not_for_albumentations():
    library = pytest.importorskip("albumentations", reason="needs albumentations")
    images, masks, _ = make_batch(3)
    with pytest.raises(ValueError, match="for 2-D images"):
        Albumentations(library.Compose([]))(images, masks, None, np.random.default_rng(0))
