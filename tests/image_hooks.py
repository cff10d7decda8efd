"""What scikit-learn's checks of estimators call to adapt their data, made to give images and masks."""

import numpy as np

SIDE = 6


def as_images(estimator, X, X_test=None, kernel=None):
    """Make an image of each row; scikit-learn's checks call this before they fit."""
    images = np.stack([np.resize(row, (SIDE, SIDE)) for row in np.asarray(X)])
    return images if X_test is None else (images, as_images(estimator, X_test))


def as_tables(estimator, X, X_test=None, kernel=None):
    """Leave tables as they are, where a check makes sparse arrays of them, which have two axes."""
    return X if X_test is None else (X, X_test)


def as_masks(estimator, y):
    """Make a constant mask of each label; checks that take y from a column of X get it from its first pixel."""
    labels = np.reshape(y, (len(y), -1))[:, 0]
    return np.repeat(labels, SIDE**2).reshape(-1, SIDE, SIDE)


def apply_on_subsets(function, X):
    """Apply to all images, and to each alone; scikit-learn's own makes rows of the subsets."""
    return np.ravel(function(X)), np.ravel([function(image[np.newaxis]) for image in X])
