import inspect

import imageio.v3 as iio
import numpy as np
import pytest
from conftest import make_segmenter, real_data
from hypothesis import given
from hypothesis import strategies as st
from sklearn import model_selection as of_sklearn
from sklearn.model_selection import GroupKFold, KFold
from skorch.dataset import ValidSplit

from skunet.containers import object_array
from skunet.splits import (
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
    foreground_shares,
    hold_out,
    holds_classes,
)


@given(st.integers(5, 60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_parts_cover_all_images_once(n_images, share, seed):
    train, valid = hold_out(n_images, share, groups=None, seed=seed)
    assert sorted([*train, *valid]) == list(range(n_images))
    assert len(valid) == min(max(1, int(n_images * share)), n_images - 1)


@given(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=40), st.integers(0, 5))
def test_groups_stay_together(groups, seed):
    groups = np.array(groups)
    parts = hold_out(len(groups), 0.2, groups=groups, seed=seed)
    if len(set(groups)) < 2:
        assert parts is None
    else:
        assert not set(groups[parts[0]]) & set(groups[parts[1]])


@pytest.mark.parametrize("n_images", [1, 4])
def test_too_few_images_are_all_for_training(n_images):
    assert hold_out(n_images, 0.2, groups=None, seed=0) is None


def test_the_seed_decides():
    splits = {tuple(hold_out(20, 0.2, groups=None, seed=seed)[1]) for seed in range(5)}
    assert len(splits) > 1
    assert tuple(hold_out(20, 0.2, groups=None, seed=0)[1]) in splits


# ---- the share of foreground


def masks_of(shares, n_pixels=100):
    """Return masks (10, n_pixels / 10) with these shares of label 255."""
    masks = np.zeros((len(shares), n_pixels), dtype=np.uint8)
    for mask, share in zip(masks, shares, strict=True):
        mask[: round(share * n_pixels)] = 255
    return masks.reshape(len(shares), 10, -1)


@pytest.mark.parametrize("make", [list, object_array, np.asarray])
def test_foreground_is_what_is_not_the_most_frequent_label(make):
    shares = [0.1, 0.5, 0.0, 0.3]
    np.testing.assert_allclose(foreground_shares(make(masks_of(shares))), shares)


def test_where_the_higher_label_is_most_frequent_the_lower_is_foreground():
    np.testing.assert_allclose(foreground_shares(masks_of([0.9, 0.8, 0.2])), [0.1, 0.2, 0.8])


def test_with_several_classes_foreground_is_all_that_is_not_the_most_frequent():
    masks = np.array([[[0, 0], [1, 2]], [[0, 0], [0, 5]]], dtype=np.float32)
    assert foreground_shares(masks).tolist() == [0.5, 0.25]


def test_shares_of_strings_and_of_files_of_several_sizes(tmp_path):
    assert foreground_shares(np.array([[["a", "a"], ["a", "b"]]] * 2)).tolist() == [0.25, 0.25]
    masks = [np.zeros((4, 4), np.uint8), np.full((4, 8), 255, np.uint8), np.zeros((8, 8), np.uint8)]
    for index, mask in enumerate(masks):
        iio.imwrite(tmp_path / f"{index}.png", mask)
    assert foreground_shares([str(tmp_path / f"{index}.png") for index in range(3)]).tolist() == [0, 1, 0]


def test_masks_are_told_from_numbers():
    assert holds_classes([0, 1])
    assert holds_classes(np.array([True, False]))
    for masks in (masks_of([0.1]), list(masks_of([0.1])), object_array(masks_of([0.1])), ["mask.png"], None):
        assert not holds_classes(masks)


# ---- splitters


def spread(folds, shares):
    means = [shares[test].mean() for _, test in folds]
    return max(means) - min(means)


def check_partition(folds, n_images):
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(n_images))
    for train, test in folds:
        assert sorted([*train, *test]) == list(range(n_images))


SHARES = st.lists(st.integers(0, 100).map(lambda percent: percent / 100), min_size=6, max_size=40)


@given(SHARES, st.integers(2, 5), st.booleans())
def test_each_fold_gets_one_image_of_every_block(shares, n_splits, shuffle):
    masks = masks_of(shares)
    folds = list(StratifiedKFold(n_splits, shuffle=shuffle, random_state=0 if shuffle else None).split(masks, masks))
    check_partition(folds, len(shares))
    sizes = [len(test) for _, test in folds]
    assert max(sizes) - min(sizes) <= 1
    if len(shares) % n_splits == 0:
        # Each block adds at most its own range to the difference of two folds.
        n_blocks = len(shares) // n_splits
        ordered = np.sort(foreground_shares(masks)).reshape(n_blocks, n_splits)
        assert spread(folds, foreground_shares(masks)) <= np.ptp(ordered, axis=1).sum() / n_blocks + 1e-9


def test_folds_of_sorted_images_are_evener_than_those_of_kfold():
    shares = np.linspace(0, 0.6, 30)
    masks = masks_of(shares, n_pixels=1000)
    plain = spread(list(KFold(5).split(masks)), shares)
    assert spread(list(StratifiedKFold(5).split(masks, masks)), shares) < plain / 50
    assert spread(list(StratifiedKFold(5, shuffle=True, random_state=0).split(masks, masks)), shares) < plain / 5


@given(SHARES, st.integers(2, 20), st.integers(0, 3))
def test_parts_of_a_shuffle_split_are_stratified(shares, n_test, seed):
    n_test = min(n_test, len(shares) // 2)
    masks = masks_of(shares)
    splitter = StratifiedShuffleSplit(2, test_size=n_test, random_state=seed)
    ordered = np.sort(foreground_shares(masks))
    for train, test in splitter.split(masks, masks):
        assert len(test) == n_test
        assert sorted([*train, *test]) == list(range(len(shares)))
        # Strata hold consecutive shares, one test image each.
        strata = np.arange(len(shares)) * n_test // len(shares)
        chosen = np.sort(foreground_shares(masks)[test])
        for stratum, share in enumerate(chosen):
            assert ordered[strata == stratum].min() <= share <= ordered[strata == stratum].max()


@given(st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 100)), min_size=8, max_size=40), st.booleans())
def test_groups_are_never_on_both_sides(items, shuffle):
    groups = np.array([group for group, _ in items])
    masks = masks_of([percent / 100 for _, percent in items])
    n_splits = min(3, len(set(groups)))
    if n_splits < 2:
        return
    splitter = StratifiedGroupKFold(n_splits, shuffle=shuffle, random_state=0 if shuffle else None)
    folds = list(splitter.split(masks, masks, groups))
    check_partition(folds, len(items))
    for train, test in folds:
        assert len(train)
        assert len(test)
        assert not set(groups[train]) & set(groups[test])


@pytest.mark.parametrize("n_groups", [10, 20, 40])
def test_folds_of_groups_are_evener_than_those_of_groupkfold_and_of_sklearns_bins(n_groups):
    generator = np.random.default_rng(0)
    ours, theirs, plain, differences = [], [], [], []
    for _ in range(10):
        groups = np.repeat(np.arange(n_groups), 4)
        shares = np.clip(generator.beta(1, 3, n_groups)[groups] + generator.normal(0, 0.05, len(groups)), 0, 1)
        masks = masks_of(shares, n_pixels=1000)
        shares = masks.mean(axis=(1, 2)) / 255
        bins = np.argsort(np.argsort(shares)) * 4 // len(shares)
        folds = list(StratifiedGroupKFold(5).split(masks, masks, groups))
        ours.append(spread(folds, shares))
        differences.append(np.ptp([len(test) for _, test in folds]))
        theirs.append(spread(list(of_sklearn.StratifiedGroupKFold(5).split(bins, bins, groups)), shares))
        plain.append(spread(list(GroupKFold(5).split(shares, groups=groups)), shares))
    assert np.mean(ours) < np.mean(plain) / 2
    assert np.mean(ours) < 0.7 * np.mean(theirs)
    assert np.mean(differences) <= 4


@pytest.mark.parametrize("splitter", [StratifiedKFold, StratifiedShuffleSplit, StratifiedGroupKFold])
def test_the_random_state_decides(splitter):
    masks, groups = masks_of(np.full(20, 0.3)), np.arange(20)

    def split(seed):
        shuffle = {} if splitter is StratifiedShuffleSplit else {"shuffle": True}
        arguments = (groups,) if splitter is StratifiedGroupKFold else ()
        parts = splitter(4, random_state=seed, **shuffle).split(masks, masks, *arguments)
        return [test.tolist() for _, test in parts]

    assert split(0) == split(0)
    assert split(0) != split(1)


@pytest.mark.parametrize("splitter", [StratifiedKFold, StratifiedGroupKFold])
def test_without_shuffling_nothing_is_drawn(splitter):
    masks = masks_of(np.full(20, 0.3))
    arguments = (np.arange(20),) if splitter is StratifiedGroupKFold else ()
    first, second = ([test.tolist() for _, test in splitter(4).split(masks, masks, *arguments)] for _ in range(2))
    assert first == second


@pytest.mark.parametrize("name", ["StratifiedKFold", "StratifiedShuffleSplit", "StratifiedGroupKFold"])
def test_splitters_are_sklearns_in_signature_repr_and_on_numbers(name):
    ours, theirs = {"StratifiedKFold": StratifiedKFold, "StratifiedShuffleSplit": StratifiedShuffleSplit,
                    "StratifiedGroupKFold": StratifiedGroupKFold}[name], getattr(of_sklearn, name)  # fmt: skip
    for method in ("__init__", "split", "get_n_splits"):
        expected = [(p.name, p.kind, p.default) for p in inspect.signature(getattr(theirs, method)).parameters.values()]
        found = [(p.name, p.kind, p.default) for p in inspect.signature(getattr(ours, method)).parameters.values()]
        assert found == expected
    assert repr(ours(3, random_state=None)) == repr(theirs(3, random_state=None))
    classes, groups = np.tile([0, 1, 1], 6), np.arange(18) if name == "StratifiedGroupKFold" else None
    options = {"random_state": 0} if name == "StratifiedShuffleSplit" else {}
    pairs = zip(
        ours(3, **options).split(classes, classes, groups),
        theirs(3, **options).split(classes, classes, groups),
        strict=True,
    )
    for our, their in pairs:
        assert [part.tolist() for part in our] == [np.asarray(part).tolist() for part in their]


@pytest.mark.parametrize("n_splits", [1, 0, 2.5])
@pytest.mark.parametrize("splitter", [StratifiedKFold, StratifiedGroupKFold])
def test_bad_numbers_of_splits_are_refused_as_in_sklearn(splitter, n_splits):
    with pytest.raises(ValueError, match=r"n_splits=2 or more|must be of Integral type"):
        splitter(n_splits)


def test_what_cannot_be_split_is_refused_as_in_sklearn():
    masks = masks_of([0.1, 0.2, 0.3])
    with pytest.raises(ValueError, match="n_splits=5 greater than the number of samples: n_samples=3"):
        next(StratifiedKFold(5).split(masks, masks))
    with pytest.raises(ValueError, match="n_splits=3 greater than the number of groups: 2"):
        next(StratifiedGroupKFold(3).split(masks, masks, [0, 0, 1]))
    with pytest.raises(ValueError, match="'groups' parameter should not be None"):
        next(StratifiedGroupKFold(2).split(masks, masks))
    with pytest.raises(ValueError, match="y must be a stack of masks"):
        next(StratifiedGroupKFold(2).split(masks, None, [0, 0, 1]))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(StratifiedKFold(2).split(masks[:2], masks))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        next(StratifiedGroupKFold(2).split(masks, masks, [0, 1]))
    with pytest.raises(ValueError, match="test_size=3 should be either positive and smaller"):
        next(StratifiedShuffleSplit(test_size=3).split(masks, masks))


def test_groups_that_would_be_ignored_are_warned_of():
    masks = masks_of([0.1, 0.2, 0.3, 0.4])
    with pytest.warns(UserWarning, match="groups parameter is ignored by StratifiedKFold"):
        next(StratifiedKFold(2).split(masks, masks, groups=[0, 0, 1, 1]))


@pytest.mark.parametrize("make", [np.asarray, list])
def test_skorchs_valid_split_takes_the_stratified_splitter(cells, make):
    X, y = map(make, cells)
    parts = []

    def split(dataset, masks, **arguments):
        parts.append(ValidSplit(StratifiedKFold(3))(dataset, masks, **arguments))
        return parts[-1]

    segmenter = make_segmenter(filters=2, train_split=split).fit(X, y)
    _, expected = next(StratifiedKFold(3).split(X, y))
    assert parts[0][1].indices.tolist() == expected.tolist()
    assert "valid_iou" in segmenter.history[-1]


def test_cars_stay_together_and_sections_are_even():
    paths = sorted(real_data("carvana96", "masks").iterdir())
    groups = np.array([path.name.split("_")[0] for path in paths])
    shares = foreground_shares(paths)
    folds = list(StratifiedGroupKFold(3).split(paths, paths, groups))
    for train, test in folds:
        assert not set(groups[train]) & set(groups[test])
    assert spread(folds, shares) <= spread(list(GroupKFold(3).split(paths, groups=groups)), shares)
