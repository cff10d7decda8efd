"""Splits of images into training and validation, also by share of foreground and by groups."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import model_selection
from sklearn.utils import check_consistent_length, check_random_state

from skunet.containers import open_container
from skunet.labels import count_labels
from skunet.randomness import SPLIT, make_generator

__all__ = [
    "StratifiedGroupKFold",
    "StratifiedKFold",
    "StratifiedShuffleSplit",
    "check_splitter",
    "cut_strata",
    "foreground_shares",
    "hold_out",
    "holds_classes",
]

# Positions of the images to train on, and of those to test on.
Parts = Iterator[tuple[np.ndarray, np.ndarray]]

FEWEST_IMAGES, FEWEST_GROUPS = 5, 2


def hold_out(
    n_images: int, share: float, *, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Draw the images to validate on.

    Parameters
    ----------
    n_images : int
    share : float
        Of the images (of the groups, where given) to hold out, in (0, 1); at least one is.
    groups : ndarray of shape (n_images,) or None
        Images of one group stay together.
    seed : int

    Returns
    -------
    train, valid : ndarray of int, sorted; or None
        None where there are under 5 images or under 2 groups: too few to spare any.

    Examples
    --------
    >>> train, valid = hold_out(10, 0.2, groups=None, seed=0)
    >>> len(train), len(valid)
    (8, 2)
    """
    units = np.arange(n_images) if groups is None else np.unique(groups, return_inverse=True)[1]
    n_units = len(np.unique(units))
    if n_units < (FEWEST_IMAGES if groups is None else FEWEST_GROUPS):
        return None
    n_valid = min(max(1, int(n_units * share)), n_units - 1)
    is_valid = np.isin(units, make_generator(seed, *SPLIT).permutation(n_units)[:n_valid])
    return np.flatnonzero(~is_valid), np.flatnonzero(is_valid)


def foreground_shares(y: Any) -> np.ndarray:
    """Return the share of each mask's pixels that are not of the most frequent label of all masks.

    For two classes this orders masks by their foreground, whichever label that is, and for more by how much of them
    is not background. Of equally frequent labels the lowest counts as background.

    Parameters
    ----------
    y : container of N masks
        As for `UNetSegmenter.fit`; read one at a time.

    Returns
    -------
    shares : ndarray of shape (N,), float64
        In 0..1.

    Examples
    --------
    >>> foreground_shares(np.array([[[0, 0], [0, 7]], [[0, 7], [7, 5]]])).tolist()
    [0.25, 0.75]
    """
    masks = open_container(y, "y")
    counts = [count_labels(masks[index], masks.describe(index)) for index in range(len(masks))]
    labels, places = np.unique(np.concatenate([mask.values for mask in counts]), return_inverse=True)
    pixels = np.bincount(places, weights=np.concatenate([mask.counts for mask in counts]))
    background = labels[pixels.argmax()]
    return np.array([1 - mask.counts[mask.values == background].sum() / mask.counts.sum() for mask in counts])


def holds_classes(y: Any) -> bool:
    """Return whether this is one number per image, which scikit-learn stratifies by, rather than masks."""
    if isinstance(y, np.ndarray):
        return y.ndim == 1 and y.dtype.kind in "buif"
    is_number = isinstance(y, list | tuple) and len(y) > 0 and not isinstance(y[0], str | Path)
    return is_number and np.ndim(y[0]) == 0


def check_splitter(cv: Any, y: Any) -> None:
    """Raise ValueError where a splitter of scikit-learn would have to stratify by masks: it needs one class per image.

    Parameters
    ----------
    cv : int, splitter, iterable of (train, test), or None
        Subclasses may know what to do with masks.
    y : container of N masks, ndarray of shape (N,), or None
    """
    if type(cv) in OWN_NAMES and y is not None and not holds_classes(y):
        raise ValueError(
            f"cv must stratify by masks; got scikit-learn's {type(cv).__name__}, which stratifies by one class per "
            f"image. Pass skunet.model_selection.{OWN_NAMES[type(cv)]}, which keeps shares of foreground even."
        )


# What takes masks in place of scikit-learn's splitters.
OWN_NAMES = {
    model_selection.StratifiedKFold: "StratifiedKFold",
    model_selection.RepeatedStratifiedKFold: "StratifiedKFold",
    model_selection.StratifiedGroupKFold: "StratifiedGroupKFold",
    model_selection.StratifiedShuffleSplit: "StratifiedShuffleSplit",
}


class StratifiedKFold(model_selection.StratifiedKFold):  # type: ignore[misc]  # sklearn is not typed
    """K folds of images that have about the same share of foreground.

    Images are ordered by `foreground_shares` and taken in blocks of `n_splits`, of which each fold gets one.
    Parameters and methods are those of `sklearn.model_selection.StratifiedKFold`, and so are the folds where `y` is
    one number per image. `train_split=skorch.dataset.ValidSplit(StratifiedKFold(5))` validates on the first fold.

    Examples
    --------
    >>> y = np.zeros((4, 2, 2), dtype=np.uint8)
    >>> y[2:] = 1
    >>> [test.tolist() for _, test in StratifiedKFold(2).split(y, y)]
    [[0, 3], [1, 2]]
    """

    def split(self, X: Any, y: Any, groups: Any = None) -> Parts:
        """Yield positions of the images to train and to test on.

        Parameters
        ----------
        X : container of N images
        y : container of N masks, or ndarray of shape (N,)
        groups : ignored

        Yields
        ------
        train, test : ndarray of int, sorted

        Raises
        ------
        ValueError
            If there are fewer images than `n_splits`.
        """
        if holds_classes(y):
            yield from super().split(X, y, groups)
            return
        check_consistent_length(X, y)
        positions = np.arange(len(y))
        blocks = np.minimum(positions // self.n_splits, max(len(y) // self.n_splits, 1) - 1)
        # Every other block runs backwards: the first fold would else get the least of each block.
        order = np.argsort(foreground_shares(y), kind="stable")
        order = order[np.lexsort((np.where(blocks % 2, -positions, positions), blocks))]
        for train, test in super().split(positions, blocks, groups):
            yield np.sort(order[train]), np.sort(order[test])


def cut_strata(shares: np.ndarray, *, test_size: Any, train_size: Any) -> np.ndarray:
    """Return a number per image: they are ordered by share and cut into strata of equal size.

    There are as many strata as the smaller part of a split has images, so that it gets one of each, but none of less
    than two images.

    Parameters
    ----------
    shares : ndarray of shape (N,)
    test_size, train_size : float, int or None
        As in `sklearn.model_selection.ShuffleSplit`.
    """
    sizes = {"test_size": test_size, "train_size": train_size}
    parts = next(model_selection.ShuffleSplit(1, **sizes, random_state=0).split(shares))
    n_strata = max(1, min(*map(len, parts), len(shares) // 2))
    strata = np.empty(len(shares), dtype=int)
    strata[np.argsort(shares, kind="stable")] = np.arange(len(shares)) * n_strata // len(shares)
    return strata


class StratifiedShuffleSplit(model_selection.StratifiedShuffleSplit):  # type: ignore[misc]
    """Random splits of images into parts that have about the same share of foreground.

    Images are drawn from strata, see `cut_strata`. Parameters and methods are those of
    `sklearn.model_selection.StratifiedShuffleSplit`, and so are the splits where `y` is one number per image.

    Examples
    --------
    >>> y = np.zeros((4, 2, 2), dtype=np.uint8)
    >>> y[2:] = 1
    >>> train, test = next(StratifiedShuffleSplit(1, test_size=2, random_state=0).split(y, y))
    >>> y[test].mean()
    np.float64(0.5)
    """

    def split(self, X: Any, y: Any, groups: Any = None) -> Parts:
        """Yield positions of the images to train and to test on.

        Parameters
        ----------
        X, y, groups
            As in `StratifiedKFold.split`.

        Yields
        ------
        train, test : ndarray of int, shuffled
        """
        if holds_classes(y):
            yield from super().split(X, y, groups)
            return
        check_consistent_length(X, y)
        strata = cut_strata(foreground_shares(y), test_size=self.test_size, train_size=self.train_size)
        yield from super().split(strata, strata, groups)


class StratifiedGroupKFold(model_selection.StratifiedGroupKFold):  # type: ignore[misc]
    """K folds of whole groups of images that have about the same number of images and share of foreground.

    Groups are handed out one by one, the largest or most unusual first, to the fold where the squares of the folds'
    sizes and deviations from the mean share stay lowest: the greedy rule of Graham (1969) for two quantities at once.
    Parameters and methods are those of `sklearn.model_selection.StratifiedGroupKFold`, and so are the folds where `y`
    is one number per image; shuffling decides between equal groups.

    Examples
    --------
    >>> y = np.zeros((4, 2, 2), dtype=np.uint8)
    >>> y[2:] = 1
    >>> [test.tolist() for _, test in StratifiedGroupKFold(2).split(y, y, groups=["a", "b", "c", "d"])]
    [[0, 2], [1, 3]]
    """

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Parts:
        """Yield positions of the images to train and to test on.

        Parameters
        ----------
        X : container of N images
        y : container of N masks, or ndarray of shape (N,)
        groups : array-like of shape (N,)

        Yields
        ------
        train, test : ndarray of int, sorted

        Raises
        ------
        ValueError
            If `groups` is missing or has fewer groups than `n_splits`.
        """
        if holds_classes(y):
            yield from super().split(X, y, groups)
            return
        if groups is None:
            raise ValueError("The 'groups' parameter should not be None. Pass one value per image.")
        shares = foreground_shares(y)
        check_consistent_length(X, shares, groups)
        numbers = np.unique(groups, return_inverse=True)[1]
        folds = self._hand_out(np.bincount(numbers), np.bincount(numbers, shares - shares.mean()))[numbers]
        for fold in range(self.n_splits):
            yield np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)

    def _hand_out(self, sizes: np.ndarray, deviations: np.ndarray) -> np.ndarray:
        """Return the fold of each group, from its number of images and its sum of deviations from the mean share."""
        n_groups = len(sizes)
        if n_groups < self.n_splits:
            raise ValueError(
                f"Cannot have number of splits n_splits={self.n_splits} greater than the number of groups: {n_groups}."
            )
        order = check_random_state(self.random_state).permutation(n_groups) if self.shuffle else np.arange(n_groups)
        amounts = np.stack([sizes / sizes.sum(), deviations / max(np.abs(deviations).sum(), 1e-12)], axis=1)
        order = order[np.argsort(-np.linalg.norm(amounts[order], axis=1), kind="stable")]
        folds, totals = np.full(n_groups, -1), np.zeros((self.n_splits, 2))
        for n_done, group in enumerate(order):
            is_empty = ~np.isin(np.arange(self.n_splits), folds)
            must_fill = is_empty.sum() == n_groups - n_done
            growth = np.where(is_empty | (not must_fill), totals @ amounts[group], np.inf)
            folds[group] = growth.argmin()
            totals[folds[group]] += amounts[group]
        return folds
