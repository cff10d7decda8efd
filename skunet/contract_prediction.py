"""Checks of an image estimator's predictions: independence of images, probabilities, score."""

from typing import Any

import numpy as np

from skunet.contract import (
    TOLERANCE,
    ContractData,
    expect,
    expect_same_outputs,
    fit_fresh,
    make_fresh,
    need_fit_argument,
    need_many_classes,
    need_method,
    need_parameter,
    predict_all,
)
from skunet.metrics import iou_score


def check_predict_order(estimator: Any, data: ContractData) -> None:
    """An image's mask must not depend on where in the stack the image is."""
    fitted = fit_fresh(estimator, data.X, data.y)
    order = np.random.default_rng(0).permutation(len(data.X))
    expect_same_outputs(
        predict_all(fitted, data.X).select(order),
        predict_all(fitted, data.X[order]),
        "Images in another order must be predicted the same",
        tolerance=TOLERANCE,
    )


def check_predict_subset(estimator: Any, data: ContractData) -> None:
    """An image's mask must not depend on which other images are predicted with it."""
    fitted = fit_fresh(estimator, data.X, data.y)
    together = predict_all(fitted, data.X)
    for index in range(len(data.X)):
        alone = predict_all(fitted, data.X[index : index + 1])
        promise = f"Image {index} must be predicted alone as among others"
        expect_same_outputs(together.select([index]), alone, promise, tolerance=TOLERANCE)


def check_predict_batch_size(estimator: Any, data: ContractData) -> None:
    """The batch size is a matter of memory: at prediction it must not show in the result."""
    need_parameter(estimator, "batch_size")
    fitted = fit_fresh(estimator, data.X, data.y)
    expected = predict_all(fitted, data.X)
    for batch_size in (1, 2, 5, len(data.X)):
        result = predict_all(fitted.set_params(batch_size=batch_size), data.X)
        promise = f"Prediction with batch_size={batch_size} must be that of fit's batch size"
        expect_same_outputs(expected, result, promise, tolerance=TOLERANCE)


def check_predict_keeps_images(estimator: Any, data: ContractData) -> None:
    """Images belong to the user, so that prediction must not write into them."""
    fitted = fit_fresh(estimator, data.X, data.y)
    X = data.X.copy()
    predict_all(fitted, X)
    expect(np.array_equal(X, data.X), "predict must not change X.")


def check_predict_changes_nothing(estimator: Any, data: ContractData) -> None:
    """Prediction only looks: a second one gives the same, bit for bit, and nothing is added to the estimator."""
    fitted = fit_fresh(estimator, data.X, data.y)
    before = set(vars(fitted))
    first = predict_all(fitted, data.X)
    expect_same_outputs(first, predict_all(fitted, data.X), "A second prediction must be that of the first")
    added = sorted(set(vars(fitted)) - before)
    expect(not added, f"Prediction must not add attributes; got {added}.")


def check_proba_form(estimator: Any, data: ContractData) -> None:
    """Scorers pick `[:, k]` as the map of `classes_[k]`: probabilities are (N, K, *S) float32, of sum 1 over axis 1."""
    need_many_classes(estimator)
    need_method(estimator, "predict_proba")
    for y, n_classes in ((data.y, 2), (data.y_three, 3)):
        proba = np.asarray(fit_fresh(estimator, data.X, y).predict_proba(data.X))
        shape = (len(data.X), n_classes, *data.X.shape[1:])
        expect(proba.shape == shape, f"predict_proba must have shape {shape}; got {proba.shape}.")
        expect(proba.dtype == np.float32, f"predict_proba must be float32; got {proba.dtype}.")
        expect(proba.min() >= 0, f"Probabilities must not be negative; got {proba.min()}.")
        error = np.abs(proba.sum(axis=1, dtype=np.float64) - 1).max()
        expect(error < 1e-4, f"predict_proba must sum to 1 over axis 1; it is off by up to {error:.2g}.")


def check_proba_agrees(estimator: Any, data: ContractData) -> None:
    """Labels and probabilities are two views of one prediction: the label is that of the largest probability."""
    need_many_classes(estimator)
    need_method(estimator, "predict_proba")
    fitted = fit_fresh(estimator, data.X, data.y_three * np.uint8(100))
    proba = np.asarray(fitted.predict_proba(data.X))
    chosen = np.searchsorted(fitted.classes_, np.asarray(fitted.predict(data.X)))
    gap = proba.max(axis=1) - np.take_along_axis(proba, chosen[:, None], axis=1)[:, 0]
    expect(gap.max() < TOLERANCE, f"predict must take the largest probability; it missed by up to {gap.max():.2g}.")


def check_score(estimator: Any, data: ContractData) -> None:
    """Searches maximise `score`: it is the mean IoU of `predict`, from one table of counts over all pixels."""
    need_many_classes(estimator)
    need_method(estimator, "score")
    fitted = fit_fresh(estimator, data.X, data.y_three)
    for y in (data.y_three, data.y, data.y_three[::-1]):
        _expect_score(fitted.score(data.X, y), iou_score(y, fitted.predict(data.X)))
    images, masks = list(data.X), list(data.y_three)
    _expect_score(fitted.score(images, masks), iou_score(masks, fitted.predict(images)))


def check_score_sample_weight(estimator: Any, data: ContractData) -> None:
    """Weights at scoring mean what they mean at fitting: how much each image or pixel counts."""
    need_fit_argument(estimator, "sample_weight", method="score")
    fitted = fit_fresh(estimator, data.X, data.y)
    labels = fitted.predict(data.X)
    for weights in (np.arange(len(data.X)), np.arange(data.y.size).reshape(data.y.shape) % 3):
        score = fitted.score(data.X, data.y, sample_weight=weights)
        _expect_score(score, iou_score(data.y, labels, sample_weight=weights))


def check_score_leaves_out_ignored(estimator: Any, data: ContractData) -> None:
    """Pixels of ignore_label count nowhere, and so not in the score."""
    need_parameter(estimator, "ignore_label")
    need_method(estimator, "score")
    y = data.y.copy()
    y[data.block] = 255
    fitted = make_fresh(estimator, ignore_label=255)
    fitted.fit(data.X, y)
    _expect_score(fitted.score(data.X, y), iou_score(y, fitted.predict(data.X), ignore_label=255))


def _expect_score(score: Any, expected: Any) -> None:
    expect(isinstance(score, float), f"score must be a float; got {type(score).__name__}.")
    expect(abs(score - expected) < 1e-9, f"score must be the mean IoU of predict, {expected:.6f}; got {score:.6f}.")
