"""scikit-learn's model selection, on images in any container.

Names and signatures are those of `sklearn.model_selection`, so that one import line changes. scikit-learn's own tools
work on stacks, but under an integer `cv` refuse lists of images of equal height and lists of `str` mask paths, cannot
stratify masks, and know no probabilities per pixel. Splitters that never look at masks are scikit-learn's.
"""

from typing import Any

import numpy as np
from sklearn import model_selection
from sklearn.model_selection import (
    GroupKFold,
    GroupShuffleSplit,
    KFold,
    LeaveOneGroupOut,
    LeaveOneOut,
    LeavePGroupsOut,
    LeavePOut,
    ParameterGrid,
    ParameterSampler,
    PredefinedSplit,
    RepeatedKFold,
    ShuffleSplit,
    TimeSeriesSplit,
)
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import _num_samples

from skunet.containers import open_stack
from skunet.cross_prediction import cross_val_predict
from skunet.cross_validation import (
    cross_val_score,
    cross_validate,
    learning_curve,
    permutation_test_score,
    validation_curve,
)
from skunet.image_array import image_array, pick_images
from skunet.searches import GridSearchCV, HalvingGridSearchCV, HalvingRandomSearchCV, RandomizedSearchCV
from skunet.splits import (
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
    cut_strata,
    foreground_shares,
    holds_classes,
)
from skunet.thresholds import FixedThresholdClassifier, TunedThresholdClassifierCV

__all__ = [
    "FixedThresholdClassifier",
    "GridSearchCV",
    "GroupKFold",
    "GroupShuffleSplit",
    "HalvingGridSearchCV",
    "HalvingRandomSearchCV",
    "KFold",
    "LeaveOneGroupOut",
    "LeaveOneOut",
    "LeavePGroupsOut",
    "LeavePOut",
    "ParameterGrid",
    "ParameterSampler",
    "PredefinedSplit",
    "RandomizedSearchCV",
    "RepeatedKFold",
    "ShuffleSplit",
    "StratifiedGroupKFold",
    "StratifiedKFold",
    "StratifiedShuffleSplit",
    "TimeSeriesSplit",
    "TunedThresholdClassifierCV",
    "cross_val_predict",
    "cross_val_score",
    "cross_validate",
    "foreground_shares",
    "image_array",
    "learning_curve",
    "permutation_test_score",
    "train_test_split",
    "validation_curve",
]

DEFAULT_TEST_SIZE = 0.25


def train_test_split(
    *arrays: Any,
    test_size: Any = None,
    train_size: Any = None,
    random_state: Any = None,
    shuffle: bool = True,
    stratify: Any = None,
    groups: Any = None,
) -> list[Any]:
    """Split images, masks and whatever belongs to them into a random training and test part.

    Parameters
    ----------
    *arrays : containers of N items
        Stacks, lists, object arrays, lists of paths, the path of a stack, tensors, lazy arrays.
    test_size, train_size, random_state, shuffle
        As in `sklearn.model_selection.train_test_split`; sizes are of groups where `groups` is given.
    stratify : container of N masks, or ndarray of shape (N,), optional
        Masks make both parts alike in their share of foreground (see `foreground_shares`), numbers in the
        frequency of each. Strings are paths of masks.
    groups : array-like of shape (N,), optional
        Images of one group stay together. Not in scikit-learn.

    Returns
    -------
    parts : list of 2 * len(arrays) containers
        Training and test part of each, in its kind of container; of a lazy array two lazy arrays, without reading.

    Raises
    ------
    ValueError
        If lengths differ, a part would be empty, or what is asked for needs shuffling.

    Examples
    --------
    >>> y = np.zeros((8, 2, 2), dtype=np.uint8)
    >>> y[4:] = 1
    >>> y_train, y_test = train_test_split(y, stratify=y, random_state=0)
    >>> y_train.mean(), y_test.mean()
    (np.float64(0.5), np.float64(0.5))
    """
    if not arrays:
        raise ValueError("At least one array required as input, e.g. train_test_split(X, y).")
    arrays = tuple(open_stack(each, "X") for each in arrays)
    check_consistent_length(*arrays, stratify, groups)
    sizes = {"test_size": test_size, "train_size": train_size}
    if stratify is None and groups is None:
        positions = np.arange(_num_samples(arrays[0]))
        parts = model_selection.train_test_split(positions, **sizes, random_state=random_state, shuffle=shuffle)
    else:
        if not shuffle:
            raise ValueError("shuffle must be True where stratify or groups is given; got False.")
        if test_size is None and train_size is None:
            sizes["test_size"] = DEFAULT_TEST_SIZE
        parts = _split_units(stratify, groups, random_state=random_state, **sizes)
    return [pick_images(array, part) for array in arrays for part in parts]


def _split_units(stratify: Any, groups: Any, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return positions to train and to test on, of images or of whole groups, stratified or not."""
    if groups is None:
        train, test = next(StratifiedShuffleSplit(1, **options).split(stratify, stratify))
        return train, test
    if stratify is None:
        train, test = next(GroupShuffleSplit(1, **options).split(groups, groups=groups))
        return train, test
    numbers = np.unique(groups, return_inverse=True)[1]
    sizes = {name: options[name] for name in ("test_size", "train_size")}
    strata = _class_of_groups(stratify, numbers) if holds_classes(stratify) else None
    if strata is None:
        strata = cut_strata(np.bincount(numbers, foreground_shares(stratify)) / np.bincount(numbers), **sizes)
    train, test = next(model_selection.StratifiedShuffleSplit(1, **options).split(strata, strata))
    return np.flatnonzero(np.isin(numbers, train)), np.flatnonzero(np.isin(numbers, test))


def _class_of_groups(classes: Any, numbers: np.ndarray) -> np.ndarray:
    """Return the class of each group."""
    first = np.unique(numbers, return_index=True)[1]
    of_groups: np.ndarray = np.asarray(classes)[first]
    is_other = of_groups[numbers] != classes
    if is_other.any():
        raise ValueError(
            f"stratify must be one number for all images of a group; image {is_other.argmax()} differs from its "
            "group. Pass masks, or leave out stratify."
        )
    return of_groups
