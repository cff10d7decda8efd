"""Checks of an image estimator's fit: what it returns, learns, forgets and leaves alone."""

import io
import warnings
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import numpy as np
from sklearn.base import is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skunet.contract import (
    ContractData,
    expect,
    expect_error,
    expect_same_outputs,
    fit_fresh,
    make_fresh,
    need_fit_argument,
    need_many_classes,
    need_method,
    need_parameter,
    predict_all,
)


def check_fit_returns_self(estimator: Any, data: ContractData) -> None:
    """`estimator.fit(X, y).predict(X)` is how everybody writes it, so that fit must return the estimator."""
    fresh = make_fresh(estimator)
    expect(fresh.fit(data.X, data.y) is fresh, "fit must return the estimator itself.")


def check_fit_twice(estimator: Any, data: ContractData) -> None:
    """Fitting again on the same images must give the same predictions, or no result could be repeated."""
    fitted = fit_fresh(estimator, data.X, data.y)
    first = predict_all(fitted, data.X)
    fitted.fit(data.X, data.y)
    expect_same_outputs(first, predict_all(fitted, data.X), "A second fit on the same data must give the same")


def check_refit_forgets(estimator: Any, data: ContractData) -> None:
    """Each fit starts anew: images of other channels and masks of other labels seen before must leave no trace."""
    need_many_classes(estimator)
    if make_fresh(estimator).get_params().get("warm_start"):
        need_parameter(estimator, "warm_start=False")
    fitted = fit_fresh(estimator, data.X_colour, data.y_three)
    fitted.fit(data.X, data.y)
    anew = fit_fresh(estimator, data.X, data.y)
    expect_same_outputs(predict_all(anew, data.X), predict_all(fitted, data.X), "fit must forget an earlier fit")


def check_fit_keeps_images(estimator: Any, data: ContractData) -> None:
    """Images and masks belong to the user, so that fit must not write into them."""
    X, y = data.X.copy(), data.y.copy()
    fit_fresh(estimator, X, y)
    expect(np.array_equal(X, data.X), "fit must not change X.")
    expect(np.array_equal(y, data.y), "fit must not change y.")


def check_fit_keeps_sample_weight(estimator: Any, data: ContractData) -> None:
    """Weights belong to the user, so that fit must not write into them."""
    need_fit_argument(estimator, "sample_weight")
    weights = np.linspace(0.5, 2, len(data.X)), np.linspace(0.5, 2, data.y.size).reshape(data.y.shape)
    for weight in weights:
        before = weight.copy()
        fit_fresh(estimator, data.X, data.y, sample_weight=weight)
        expect(np.array_equal(weight, before), f"fit must not change sample_weight of shape {weight.shape}.")


def check_fitted_attributes(estimator: Any, data: ContractData) -> None:
    """scikit-learn tells fitted from unfitted by attributes that end in an underscore."""
    fresh = make_fresh(estimator)
    before = set(vars(fresh))
    fresh.fit(data.X, data.y)
    learned = [name for name in set(vars(fresh)) - before if not name.startswith("_")]
    others = sorted(name for name in learned if not name.endswith("_"))
    expect(not others, f"What fit learns must end in an underscore; got {others}.")


def check_not_fitted_error(estimator: Any, data: ContractData) -> None:
    """Predicting before fit must say so by NotFittedError, which tools and users catch."""
    fresh = make_fresh(estimator)
    expect_error(lambda: fresh.predict(data.X), "predict before fit", NotFittedError)
    if hasattr(fresh, "predict_proba"):
        expect_error(lambda: fresh.predict_proba(data.X), "predict_proba before fit", NotFittedError)
    if hasattr(fresh, "score"):
        expect_error(lambda: fresh.score(data.X, data.y), "score before fit", NotFittedError)


def check_is_fitted_is_told(estimator: Any, data: ContractData) -> None:
    """scikit-learn's check_is_fitted must tell a fitted estimator from one that is not."""
    fresh = make_fresh(estimator)
    expect_error(lambda: check_is_fitted(fresh), "check_is_fitted before fit", NotFittedError)
    fresh.fit(data.X, data.y)
    try:
        check_is_fitted(fresh)
    except NotFittedError as error:
        raise AssertionError(f"check_is_fitted must be silent after fit; got {error}") from error


def check_fit_is_silent(estimator: Any, data: ContractData) -> None:
    """On sound data there is nothing to warn of, and with verbose=0 nothing to print."""
    printed = io.StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stdout(printed), redirect_stderr(printed):
        warnings.simplefilter("always")
        for category in (DeprecationWarning, PendingDeprecationWarning):  # for developers, not for users
            warnings.simplefilter("ignore", category)
        predict_all(fit_fresh(estimator, data.X, data.y), data.X)
    expect(not caught, f"fit and predict must not warn; got {[str(warning.message) for warning in caught]}.")
    expect(not printed.getvalue(), f"fit and predict must not print; got {printed.getvalue()[:200]!r}.")


def check_is_classifier(estimator: Any, data: ContractData) -> None:  # noqa: ARG001
    """Scorers of probabilities take the map of the positive class only from what is tagged a classifier."""
    expect(is_classifier(make_fresh(estimator)), "scikit-learn's is_classifier must be true. Inherit ClassifierMixin.")


def check_learned_shape(estimator: Any, data: ContractData) -> None:
    """Rank and channels settle which axis is which, so that fit must learn them from the shapes of X and y."""
    for X, n_channels in ((data.X, 1), (data.X_colour, 2)):
        fitted = fit_fresh(estimator, X, data.y)
        for name, value in (("spatial_ndim_", data.spatial_ndim), ("n_channels_in_", n_channels)):
            learned = getattr(fitted, name, None)
            expect(learned == value, f"{name} must be {value} after fit on X of shape {X.shape}; got {learned}.")


def check_zero_epochs(estimator: Any, data: ContractData) -> None:
    """Fitting for 0 epochs readies an estimator for weights from elsewhere: all else must be learned."""
    need_parameter(estimator, "max_epochs")
    fitted = make_fresh(estimator, max_epochs=0)
    fitted.fit(data.X, data.y)
    labels = fitted.predict(data.X)
    expect(np.shape(labels) == data.y.shape, f"predict after 0 epochs must have shape {data.y.shape}.")


def check_partial_fit(estimator: Any, data: ContractData) -> None:
    """Images that come in parts rarely show every class, so that partial_fit must keep those of its first call."""
    need_method(estimator, "partial_fit")
    need_many_classes(estimator)
    fresh = make_fresh(estimator)
    expect(fresh.partial_fit(data.X, data.y_three, classes=[0, 1, 2]) is fresh, "partial_fit must return self.")
    fresh.partial_fit(data.X[:2], np.zeros_like(data.y[:2]))
    expect(list(fresh.classes_) == [0, 1, 2], f"partial_fit must keep classes_; got {list(fresh.classes_)}.")
    expect(np.shape(fresh.predict(data.X)) == data.y.shape, "predict must run after partial_fit.")


def check_partial_fit_refuses_new_labels(estimator: Any, data: ContractData) -> None:
    """A label that the first call did not know has no place in the output, and must not be taken for another."""
    need_method(estimator, "partial_fit")
    fresh = make_fresh(estimator)
    fresh.partial_fit(data.X, data.y, classes=[0, 1])
    expect_error(lambda: fresh.partial_fit(data.X, data.y_three), "partial_fit with a new label")
