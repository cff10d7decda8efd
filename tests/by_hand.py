"""What scikit-learn's tools do with an estimator, as plain loops to compare them with."""

import numpy as np
import torch
from sklearn.base import clone


def pick(values, indices):
    return values[indices] if isinstance(values, np.ndarray) else [values[index] for index in indices]


def fit_folds(segmenter, X, y, splits, **fit_params):
    """Fit a clone on the training images of each split; `fit_params` are one value per image."""
    for train, _ in splits:
        picked = {name: pick(values, train) for name, values in fit_params.items()}
        yield clone(segmenter).fit(pick(X, train), pick(y, train), **picked)


def score_folds(segmenter, X, y, splits, *, score_weight=None, **fit_params):
    """Return the score of each split's fit on its test images."""
    splits = list(splits)
    scores = []
    for fitted, (_, test) in zip(fit_folds(segmenter, X, y, splits, **fit_params), splits, strict=True):
        weights = {} if score_weight is None else {"sample_weight": pick(score_weight, test)}
        scores.append(fitted.score(pick(X, test), pick(y, test), **weights))
    return np.array(scores)


def predict_folds(segmenter, X, y, splits):
    """Return the prediction of each image by the fit that did not see it."""
    splits = list(splits)
    labels = [None] * len(X)
    for fitted, (_, test) in zip(fit_folds(segmenter, X, y, splits), splits, strict=True):
        for index, mask in zip(test, fitted.predict(pick(X, test)), strict=True):
            labels[index] = mask
    return labels


def assert_same_weights(first, second):
    """Assert that two fitted segmenters have the same network, bit for bit."""
    states = first.module_.state_dict(), second.module_.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
