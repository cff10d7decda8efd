"""scikit-learn's cross-validation on images, compared with plain loops."""

import imageio.v3 as iio
import numpy as np
import pytest
from by_hand import assert_same_weights, fit_folds, predict_folds, score_folds
from conftest import make_segmenter
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    KFold,
    LeaveOneGroupOut,
    ShuffleSplit,
    cross_val_predict,
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)

from skunet.containers import object_array
from skunet.metrics import dice_score, dice_scorer, iou_score, iou_scorer


@pytest.fixture(scope="module")
def small(cells):
    X, y = cells
    return X[:, :16, :16], y[:, :16, :16]


@pytest.fixture(scope="module")
def ragged(cells):
    """Lists of images of equal height and several widths."""
    X, y = cells
    widths = range(12, 24)
    return [image[:16, :w] for image, w in zip(X, widths, strict=True)], [
        mask[:16, :w] for mask, w in zip(y, widths, strict=True)
    ]


@pytest.fixture(scope="module")
def files(small, tmp_path_factory):
    """Paths of images and of masks."""
    folder = tmp_path_factory.mktemp("files")
    paths = [], []
    for index, (image, mask) in enumerate(zip(*small, strict=True)):
        for kind, array, of_kind in zip(("image", "mask"), (image, mask.astype(np.uint8)), paths, strict=True):
            of_kind.append(folder / f"{kind}_{index:02}.png")
            iio.imwrite(of_kind[-1], array)
    return paths


def test_cross_val_score_is_that_of_a_loop(small):
    X, y = small
    scores = cross_val_score(make_segmenter(), X, y, cv=3, error_score="raise")
    np.testing.assert_array_equal(scores, score_folds(make_segmenter(), X, y, KFold(3).split(X)))


def test_cross_val_score_of_volumes_is_that_of_a_loop(volumes):
    X, y = volumes
    scores = cross_val_score(make_segmenter(filters=2), X, y, cv=2, error_score="raise")
    np.testing.assert_array_equal(scores, score_folds(make_segmenter(filters=2), X, y, KFold(2).split(X)))


def test_cross_val_score_of_text_labels_is_that_of_a_loop(small):
    X, y = small
    y = np.array(["background", "cell"])[y]
    scores = cross_val_score(make_segmenter(), X, y, cv=2, error_score="raise")
    np.testing.assert_array_equal(scores, score_folds(make_segmenter(), X, y, KFold(2).split(X)))


def test_cross_validate_with_several_scorers(small):
    X, y = small
    splits = list(KFold(3, shuffle=True, random_state=0).split(X))
    results = cross_validate(
        make_segmenter(),
        X,
        y,
        cv=splits,
        scoring={"iou": iou_scorer, "dice": dice_scorer},
        return_train_score=True,
        return_estimator=True,
        return_indices=True,
        error_score="raise",
    )
    for fold, (fitted, (train, test)) in enumerate(zip(fit_folds(make_segmenter(), X, y, splits), splits, strict=True)):
        assert_same_weights(results["estimator"][fold], fitted)
        np.testing.assert_array_equal(results["indices"]["test"][fold], test)
        assert results["test_iou"][fold] == iou_score(y[test], fitted.predict(X[test]))
        assert results["test_dice"][fold] == dice_score(y[test], fitted.predict(X[test]))
        assert results["train_iou"][fold] == iou_score(y[train], fitted.predict(X[train]))


def test_cross_val_predict_gives_each_image_the_mask_of_the_fit_without_it(small):
    X, y = small
    labels = cross_val_predict(make_segmenter(), X, y * np.uint8(255), cv=KFold(3))
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, predict_folds(make_segmenter(), X, y * np.uint8(255), KFold(3).split(X)))


def test_learning_curve_scores_are_those_of_a_loop(small):
    X, y = small
    sizes, train, test = learning_curve(make_segmenter(), X, y, train_sizes=[4, 6, 8], cv=3, error_score="raise")
    assert sizes.tolist() == [4, 6, 8]
    for row, size in enumerate(sizes):
        splits = [(indices[:size], held_out) for indices, held_out in KFold(3).split(X)]
        np.testing.assert_array_equal(test[row], score_folds(make_segmenter(), X, y, splits))
        np.testing.assert_array_equal(
            train[row], score_folds(make_segmenter(), X, y, [(indices, indices) for indices, _ in splits])
        )


def test_learning_curve_goes_on_from_the_images_before(small):
    X, y = small
    _, _, test = learning_curve(
        make_segmenter(train_split=None),
        X,
        y,
        train_sizes=[4, 8],
        cv=KFold(3),
        exploit_incremental_learning=True,
        error_score="raise",
    )
    for fold, (indices, held_out) in enumerate(KFold(3).split(X)):
        segmenter = make_segmenter(train_split=None)
        for row, part in enumerate((indices[:4], indices[4:8])):
            segmenter.partial_fit(X[part], y[part], classes=[0, 1])
            assert test[row, fold] == segmenter.score(X[held_out], y[held_out])


def test_validation_curve_scores_are_those_of_a_loop(small):
    X, y = small
    train, test = validation_curve(
        make_segmenter(), X, y, param_name="filters", param_range=[2, 3], cv=2, error_score="raise"
    )
    assert train.shape == test.shape == (2, 2)
    for row, filters in enumerate([2, 3]):
        expected = score_folds(make_segmenter(filters=filters), X, y, KFold(2).split(X))
        np.testing.assert_array_equal(test[row], expected)


def test_permutation_test_score_gives_images_the_masks_of_others(small):
    X, y = small
    score, permuted, p_value = permutation_test_score(
        make_segmenter(), X, y, cv=KFold(2), n_permutations=3, random_state=0
    )
    assert score == score_folds(make_segmenter(), X, y, KFold(2).split(X)).mean()
    generator = np.random.RandomState(0)
    orders = [generator.permutation(len(y)) for _ in range(3)]
    expected = [score_folds(make_segmenter(), X, y[order], KFold(2).split(X)).mean() for order in orders]
    np.testing.assert_array_equal(permuted, expected)
    assert p_value == (np.sum(permuted >= score) + 1) / 4


@pytest.mark.parametrize("splitter", [GroupKFold(2), LeaveOneGroupOut()])
def test_group_k_fold_and_the_like_part_groups(small, splitter):
    X, y = small
    groups = np.repeat(["a", "b", "c", "d"], 3)
    splits = list(splitter.split(X, groups=groups))
    assert not any(set(groups[train]) & set(groups[test]) for train, test in splits)
    scores = cross_val_score(make_segmenter(), X, y, groups=groups, cv=splitter, error_score="raise")
    np.testing.assert_array_equal(scores, score_folds(make_segmenter(), X, y, splits))


def test_group_k_fold_parts_groups_within_each_fit_too(small):
    X, y = small
    groups = np.repeat(["a", "b", "c", "d"], 3)
    scores = cross_val_score(
        make_segmenter(), X, y, groups=groups, cv=GroupKFold(2), params={"groups": groups}, error_score="raise"
    )
    splits = list(GroupKFold(2).split(X, groups=groups))
    np.testing.assert_array_equal(scores, score_folds(make_segmenter(), X, y, splits, groups=groups))
    assert (scores != score_folds(make_segmenter(), X, y, splits)).any()


def test_frozen_estimator_is_scored_as_it_is(small, fitted):
    X, y = small
    frozen = FrozenEstimator(fitted)
    before = fitted.predict_proba(X)
    scores = cross_val_score(frozen, X, y, cv=3, error_score="raise")
    assert scores.tolist() == [fitted.score(X[test], y[test]) for _, test in KFold(3).split(X)]
    np.testing.assert_array_equal(frozen.fit(X, 1 - y).predict_proba(X), before)


# ---- containers other than stacks


def test_object_arrays_of_several_sizes(ragged):
    X, y = ragged
    arrays = object_array(X), object_array(y)
    expected = score_folds(make_segmenter(), X, y, KFold(3).split(X))
    np.testing.assert_array_equal(cross_val_score(make_segmenter(), *arrays, cv=3, error_score="raise"), expected)
    search = GridSearchCV(make_segmenter(), {"filters": [4]}, cv=3, error_score="raise").fit(*arrays)
    assert search.best_score_ == expected.mean()
    assert [mask.shape for mask in search.predict(arrays[0])] == [mask.shape for mask in y]


def test_an_explicit_splitter_takes_ragged_lists(ragged):
    X, y = ragged
    splitter = ShuffleSplit(2, test_size=0.25, random_state=0)
    expected = score_folds(make_segmenter(), X, y, splitter.split(X))
    np.testing.assert_array_equal(cross_val_score(make_segmenter(), X, y, cv=splitter, error_score="raise"), expected)
    search = GridSearchCV(make_segmenter(), {"filters": [4]}, cv=splitter, error_score="raise").fit(X, y)
    assert search.best_score_ == expected.mean()
    results = cross_validate(make_segmenter(), X, y, cv=splitter, scoring={"dice": dice_scorer}, error_score="raise")
    assert results["test_dice"].shape == (2,)
    _, _, test = learning_curve(make_segmenter(), X, y, cv=splitter, train_sizes=[9], error_score="raise")
    np.testing.assert_array_equal(test[0], expected)


def test_paths_are_read_as_they_are_needed(files, small):
    expected = score_folds(make_segmenter(), *small, KFold(3).split(small[0]))
    np.testing.assert_array_equal(cross_val_score(make_segmenter(), *files, cv=3, error_score="raise"), expected)
    search = GridSearchCV(make_segmenter(), {"filters": [4]}, cv=3, error_score="raise").fit(*files)
    assert search.best_score_ == expected.mean()
    arrays_as_masks = files[0], list(small[1])
    scores = cross_val_score(make_segmenter(), *arrays_as_masks, cv=KFold(3), error_score="raise")
    np.testing.assert_array_equal(scores, expected)


def test_an_explicit_splitter_takes_paths_that_are_text(files, small):
    images, masks = ([str(path) for path in paths] for paths in files)
    scores = cross_val_score(make_segmenter(), images, masks, cv=KFold(3), error_score="raise")
    np.testing.assert_array_equal(scores, score_folds(make_segmenter(), *small, KFold(3).split(small[0])))
