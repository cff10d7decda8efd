"""Checks of sample_weight and groups: what counts, how much, and what stays together."""

from functools import partial
from typing import Any

import numpy as np

from skunet.contract import (
    TOLERANCE,
    ContractData,
    Outputs,
    expect,
    expect_error,
    expect_same_outputs,
    fit_fresh,
    make_fresh,
    need_fit_argument,
    need_method,
    need_parameter,
    predict_all,
)


def check_weightless_image_is_absent(estimator: Any, data: ContractData) -> None:
    """An image without any weight must leave no trace: the fit is, bit for bit, that without it."""
    need_fit_argument(estimator, "sample_weight")
    X = data.X.copy()
    X[2] = 255 - X[2]
    rest = np.arange(len(X)) != 2
    per_image, per_pixel = rest.astype(float), np.ones(data.y.shape)
    per_pixel[2] = 0
    for weights in (per_image, per_pixel):
        with_it = fit_fresh(estimator, X, data.y, sample_weight=weights)
        without = fit_fresh(estimator, X[rest], data.y[rest], sample_weight=weights[rest])
        promise = f"An image without weight must be as absent, with weights of shape {weights.shape}"
        expect_same_outputs(predict_all(without, data.X), predict_all(with_it, data.X), promise)
    plain = fit_fresh(estimator, X[rest], data.y[rest])
    with_it = fit_fresh(estimator, X, data.y, sample_weight=per_image)
    promise = "Weights of 0 and 1 must be as leaving images out"
    expect_same_outputs(predict_all(plain, data.X), predict_all(with_it, data.X), promise)


def check_weightless_pixel_has_no_influence(estimator: Any, data: ContractData) -> None:
    """A pixel of weight zero has no gradient: its label may be anything, and the fit stays the same bit for bit."""
    need_fit_argument(estimator, "sample_weight")
    weights, other = np.ones(data.y.shape), data.y.copy()
    weights[data.block] = 0
    other[data.block] = 1 - other[data.block]
    first, second = (
        predict_all(fit_fresh(estimator, data.X, y, sample_weight=weights), data.X) for y in (data.y, other)
    )
    expect_same_outputs(first, second, "Labels of pixels without weight must have no influence")


def check_unit_weights(estimator: Any, data: ContractData) -> None:
    """Weights of one are what everything weighs that is given none."""
    need_fit_argument(estimator, "sample_weight")
    plain = predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    for weights in (np.ones(len(data.X)), np.ones(data.y.shape)):
        weighted = predict_all(fit_fresh(estimator, data.X, data.y, sample_weight=weights), data.X)
        promise = f"Weights of one, shape {weights.shape}, must be as no weights"
        expect_same_outputs(plain, weighted, promise, tolerance=TOLERANCE)


def check_image_weight_is_pixel_weight(estimator: Any, data: ContractData) -> None:
    """The weight of an image is that of each of its pixels."""
    need_fit_argument(estimator, "sample_weight")
    weights = np.linspace(0.5, 2, len(data.X))
    per_pixel = np.broadcast_to(weights.reshape(-1, *[1] * data.spatial_ndim), data.y.shape)
    first, second = (
        predict_all(fit_fresh(estimator, data.X, data.y, sample_weight=weight), data.X)
        for weight in (weights, per_pixel)
    )
    expect_same_outputs(first, second, "The weight of an image must be that of its pixels", tolerance=TOLERANCE)


def check_weights_have_effect(estimator: Any, data: ContractData) -> None:
    """Weights that are taken and then forgotten would be a silent error."""
    need_fit_argument(estimator, "sample_weight")
    plain = predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    weights = np.where(data.y == 1, 1e-3, 1.0)
    weighted = predict_all(fit_fresh(estimator, data.X, data.y, sample_weight=weights), data.X)
    expect(_differ(plain, weighted), "Weights of a thousandth for one class must change the fit; they did not.")


def _differ(first: Outputs, second: Outputs) -> bool:
    pairs = list(zip(first.labels, second.labels, strict=True))
    if first.probabilities is not None and second.probabilities is not None:
        pairs += zip(first.probabilities, second.probabilities, strict=True)
    return any(not np.array_equal(*pair) for pair in pairs)


def check_bad_weights_raise(estimator: Any, data: ContractData) -> None:
    """Weights that are too few, negative, not finite or all zero mean nothing, and must be an error."""
    need_fit_argument(estimator, "sample_weight")
    n_images = len(data.X)
    is_second = np.arange(n_images) == 1
    bad = {
        "sample_weight of another length": np.ones(n_images - 1),
        "a negative sample_weight": np.where(is_second, -1.0, 1.0),
        "a sample_weight of NaN": np.where(is_second, np.nan, 1.0),
        "an infinite sample_weight": np.where(is_second, np.inf, 1.0),
        "sample_weight of zeros only": np.zeros(n_images),
        "sample_weight of other sizes than the masks": np.ones((n_images, *data.y.shape[1:-1], 2)),
    }
    for rule, weights in bad.items():
        expect_error(partial(fit_fresh, estimator, data.X, data.y, sample_weight=weights), rule)


def check_groups_stay_together(estimator: Any, data: ContractData) -> None:
    """Images of one patient on both sides of the validation split make validation worthless.

    Which images were trained on shows from outside: only their labels have an influence on what is learned. With one
    epoch, validation has nothing to choose from.
    """
    need_fit_argument(estimator, "groups")
    need_method(estimator, "predict_proba")
    single = {"max_epochs": 1} if "max_epochs" in estimator.get_params(deep=False) else {}
    groups = np.arange(len(data.X)) % 3

    def learn(y: np.ndarray) -> Outputs:
        fresh = make_fresh(estimator, **single)
        fresh.fit(data.X, y, groups=groups)
        return predict_all(fresh, data.X)

    expected = learn(data.y)
    is_trained_on = np.zeros(len(data.X), dtype=bool)
    for index in range(len(data.X)):
        y = data.y.copy()
        y[index] = 1 - y[index]
        is_trained_on[index] = _differ(expected, learn(y))
    expect(is_trained_on.any(), "The labels of some images must have an influence; those of none had.")
    for group in np.unique(groups):
        parts = is_trained_on[groups == group].tolist()
        expect(len(set(parts)) == 1, f"Images of one group must all be trained on, or none; got {parts}.")


def check_groups_reach_train_split(estimator: Any, data: ContractData) -> None:
    """A split that the user brings can keep groups together only if it is given them."""
    need_fit_argument(estimator, "groups")
    need_parameter(estimator, "train_split")
    groups = np.array(["a", "b", "c", "a", "b", "c"])
    received: list[Any] = []

    def record(dataset: Any, y: Any = None, groups: Any = None) -> tuple[Any, Any]:  # noqa: ARG001
        received.append(groups)
        return dataset, None

    make_fresh(estimator, train_split=record).fit(data.X, data.y, groups=groups)
    expect(received, "A callable train_split must be called at fit.")
    is_same = received[0] is not None and np.array_equal(received[0], groups)
    expect(is_same, f"train_split must be given the groups of fit; got {received[0]}.")


def check_bad_groups_raise(estimator: Any, data: ContractData) -> None:
    """Groups are one per image: another number of them is a mistake that would part the wrong images."""
    need_fit_argument(estimator, "groups")
    groups = np.arange(len(data.X) - 1)
    expect_error(lambda: fit_fresh(estimator, data.X, data.y, groups=groups), "groups of another length")
