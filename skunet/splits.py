"""Splits of images into training and validation."""

import numpy as np

from skunet.randomness import SPLIT, make_generator

__all__ = ["hold_out"]

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
