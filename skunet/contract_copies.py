"""Checks of copies of a fitted image estimator: in memory, in files, and in the workers of a search."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import joblib

from skunet.contract import (
    ContractData,
    expect_same_outputs,
    expect_same_parameters,
    fit_fresh,
    predict_all,
)


def check_pickle(estimator: Any, data: ContractData) -> None:
    """Workers of a search send estimators by pickle, which must give back parameters and predictions."""
    _check_copy(estimator, data, lambda fitted: pickle.loads(pickle.dumps(fitted)), "pickle")


def check_joblib(estimator: Any, data: ContractData) -> None:
    """By joblib scikit-learn's users keep what they fitted: it must give back parameters and predictions."""
    _check_copy(estimator, data, _through_joblib, "joblib")


def check_deepcopy(estimator: Any, data: ContractData) -> None:
    """A deep copy must predict the same, and live on by itself when the original is fitted again."""
    _check_copy(estimator, data, copy.deepcopy, "deepcopy")
    fitted = fit_fresh(estimator, data.X, data.y)
    twin = copy.deepcopy(fitted)
    before = predict_all(twin, data.X)
    fitted.fit(data.X, 1 - data.y)
    expect_same_outputs(before, predict_all(twin, data.X), "A deep copy must not change with its original")


def _through_joblib(fitted: Any) -> Any:
    file = io.BytesIO()
    joblib.dump(fitted, file)
    file.seek(0)
    return joblib.load(file)


def _check_copy(estimator: Any, data: ContractData, make_copy: Callable[[Any], Any], name: str) -> None:
    fitted = fit_fresh(estimator, data.X, data.y)
    twin = make_copy(fitted)
    expect_same_parameters(
        fitted.get_params(deep=False), twin.get_params(deep=False), f"{name} must give back parameters"
    )
    expect_same_outputs(
        predict_all(fitted, data.X), predict_all(twin, data.X), f"{name} must give back predictions bit for bit"
    )
