"""A thin face that shows UNetSegmenter to tools that know only tables."""

import numpy as np
from sklearn.utils.validation import column_or_1d, validate_data

from skunet import UNetSegmenter


class TabularFace(UNetSegmenter):
    """A segmenter of tables: a row is an image (f, 1), its label a constant mask, its probability the pixels' mean.

    Only what makes a table is checked here (rank, columns, one label per row); values, labels, weights and
    parameters are left to UNetSegmenter.
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.three_d_array = True, False
        return tags

    def _images(self, X, *, reset):
        return validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False)[..., np.newaxis]

    def fit(self, X, y, sample_weight=None):
        images = self._images(X, reset=True)
        return super().fit(images, constant_masks(y, images), sample_weight=sample_weight)

    def partial_fit(self, X, y, classes=None, sample_weight=None):
        images = self._images(X, reset=not hasattr(self, "classes_"))
        return super().partial_fit(images, constant_masks(y, images), classes, sample_weight=sample_weight)

    def predict_proba(self, X):
        return super().predict_proba(self._images(X, reset=False)).mean(axis=(2, 3))

    def predict(self, X):
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def score(self, X, y, sample_weight=None):
        return float(np.average(self.predict(X) == y, weights=sample_weight))


def constant_masks(y, images):
    """Return a mask (f, 1) for each label; None where there are no labels."""
    if y is None:
        return None
    labels = column_or_1d(y, warn=True)
    return np.repeat(labels, images.shape[1]).reshape(len(labels), *images.shape[1:])
