"""Segmenters that scikit-learn's checks must catch on images: each with one of its promises broken."""

import numpy as np
from image_hooks import as_images

from skunet import UNetSegmenter


class ReturnsNothing(UNetSegmenter):
    def fit(self, X, y=None, **fit_params):
        super().fit(X, y, **fit_params)


class CountsFilters(UNetSegmenter):
    def fit(self, X, y=None, **fit_params):
        super().fit(X, y, **fit_params)
        self.filters = self.filters + 1
        return self


class PredictsUnfitted(UNetSegmenter):
    def predict(self, X):
        return np.zeros(X.shape)


class CountsImages(UNetSegmenter):
    def predict_proba(self, X):
        return super().predict_proba(X) + np.arange(len(X)).reshape(-1, 1, 1, 1)


class RemembersImages(UNetSegmenter):
    def predict(self, X):
        self.images_ = X
        return super().predict(X)


class IgnoresItsSeed(UNetSegmenter):
    def fit(self, X, y=None, **fit_params):
        seed, self.random_state = self.random_state, None
        super().fit(X, y, **fit_params)
        self.random_state = seed
        return self


class WritesIntoImages(UNetSegmenter):
    def fit(self, X, y=None, **fit_params):
        X -= X.mean()
        return super().fit(X, y, **fit_params)


class LosesItsWeights(UNetSegmenter):
    def __getstate__(self):
        return super().__getstate__() | {"is_trained_": False}


class IgnoresWeights(UNetSegmenter):
    def fit(self, X, y=None, sample_weight=None):
        return super().fit(X, y)


class FillsGaps(UNetSegmenter):
    def fit(self, X, y=None, **fit_params):
        return super().fit(as_images(self, np.nan_to_num(X)) if X.ndim == 2 else X, y, **fit_params)


class ClaimsSparse(UNetSegmenter):
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags


class TakesNoMasks(UNetSegmenter):
    def fit(self, X, masks=None, **fit_params):
        return super().fit(X, masks, **fit_params)


# Name of a check, who must fail it, and with what words.
TAMPERED = [
    ("check_estimators_fit_returns_self", ReturnsNothing, "^$"),
    ("check_dont_overwrite_parameters", CountsFilters, "filters changed"),
    ("check_estimators_overwrite_params", CountsFilters, "the parameter filters"),
    ("check_estimators_unfitted", PredictsUnfitted, "raise a NotFittedError"),
    ("check_methods_sample_order_invariance", CountsImages, "different sample order"),
    ("check_methods_subset_invariance", CountsImages, "applied to a subset"),
    ("check_dict_unchanged", RemembersImages, "changes __dict__ during predict"),
    ("check_fit_idempotent", IgnoresItsSeed, "Idempotency check failed"),
    ("check_readonly_memmap_input", WritesIntoImages, "read-only"),
    ("check_estimators_pickle", LosesItsWeights, "random weights"),
    ("check_all_zero_sample_weights_error", IgnoresWeights, "Did not raise"),
    ("check_estimators_nan_inf", FillsGaps, "check for NaN and inf in fit"),
    ("check_estimator_sparse_tag", ClaimsSparse, "sparse=True"),
    ("check_fit_score_takes_y", TakesNoMasks, "Expected y or Y as second argument"),
]
