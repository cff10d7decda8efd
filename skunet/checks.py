"""Run the contract of an image estimator, as named checks, on any estimator of images."""

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from unittest import SkipTest

from sklearn.exceptions import EstimatorCheckFailedWarning

from skunet import (
    contract_containers,
    contract_copies,
    contract_errors,
    contract_fitting,
    contract_labels,
    contract_parameters,
    contract_prediction,
    contract_process,
    contract_weights,
)
from skunet.contract import ContractData, make_contract_data

__all__ = ["ImageCheck", "check_image_estimator", "image_checks", "parametrize_with_image_checks"]

ROOMS = (
    contract_process,
    contract_parameters,
    contract_fitting,
    contract_copies,
    contract_containers,
    contract_prediction,
    contract_labels,
    contract_weights,
    contract_errors,
)
# What expected_to_fail_reason says of all others, in scikit-learn's words.
NOT_EXPECTED = "Check is not expected to fail"


@dataclass(frozen=True)
class ImageCheck:
    """One check of the contract, on images or on volumes.

    Attributes
    ----------
    function : callable
        Called with an unfitted estimator and a `ContractData`.
    spatial_ndim : {2, 3}
    """

    function: Callable[[Any, ContractData], None]
    spatial_ndim: int

    @property
    def name(self) -> str:
        """Name of the check."""
        return self.function.__name__

    @property
    def reason(self) -> str:
        """Why the check exists, in a sentence."""
        return (inspect.getdoc(self.function) or "").partition("\n")[0]

    def __call__(self, estimator: Any) -> None:
        """Run the check: AssertionError where it fails, SkipTest where the estimator lacks what it needs."""
        self.function(estimator, make_contract_data(self.spatial_ndim))


def _all_checks(spatial_ndim: int) -> list[ImageCheck]:
    """Return every check function that the rooms define: what is written cannot be left off a list."""
    if spatial_ndim not in (2, 3):
        raise ValueError(f"spatial_ndim must be 2 for images or 3 for volumes; got {spatial_ndim!r}.")
    return [
        ImageCheck(member, spatial_ndim)
        for room in ROOMS
        for name, member in vars(room).items()
        if name.startswith("check_") and member.__module__ == room.__name__
    ]


def image_checks() -> list[str]:
    """Return the names of all checks, in the order in which they run.

    Returns
    -------
    list of str

    Examples
    --------
    >>> from skunet.checks import image_checks
    >>> image_checks()[:2]
    ['check_global_settings_untouched', 'check_same_seed_same_result']
    """
    return [check.name for check in _all_checks(2)]


def check_image_estimator(
    estimator: Any,
    *,
    spatial_ndim: int = 2,
    expected_failed_checks: Mapping[str, str] | None = None,
    on_fail: Literal["raise", "warn"] | None = "raise",
    callback: Callable[..., Any] | None = None,
) -> list[dict[str, Any]]:
    """Check that an estimator keeps the contract of image estimators.

    The counterpart of scikit-learn's `check_estimator`, which runs next to nothing on estimators that take no tables.

    Parameters
    ----------
    estimator : estimator
        Any with `fit(X, y)` and `predict(X)` on stacks of images. It is cloned, never fitted itself. Each check fits
        it a few times on 6 images of 16 x 20 pixels, or volumes of 8 x 16 x 20: choose parameters that make it quick.
    spatial_ndim : {2, 3}, default=2
        Check on images or on volumes.
    expected_failed_checks : mapping of str to str, optional
        Names of checks that may fail, and why.
    on_fail : {"raise", "warn"} or None, default="raise"
        Whether the first check that fails unexpectedly raises its error, or each that fails gives an
        EstimatorCheckFailedWarning, or neither.
    callback : callable, optional
        Called after each check, with the entries of its result as keyword arguments. Not with `on_fail="raise"`.

    Returns
    -------
    results : list of dict
        One per check, those skipped included, with `estimator`, `check_name`, `status` ("passed", "failed", "xfail",
        "skipped"), `exception` (the error, or what the estimator lacks, or None), `expected_to_fail`,
        `expected_to_fail_reason`, and `reason`, why the check exists.

    Raises
    ------
    TypeError
        If `estimator` is a class, or lacks a method that every check needs.
    ValueError
        If an argument is out of its range, or `expected_failed_checks` names what is no check.
    Exception
        With `on_fail="raise"`, that of the first check that fails.

    See Also
    --------
    parametrize_with_image_checks : The checks as tests of pytest.

    Examples
    --------
    An estimator of one's own, and one of the promises that it does not keep yet:

    >>> import numpy as np
    >>> from sklearn.base import BaseEstimator, ClassifierMixin
    >>> from skunet.checks import check_image_estimator
    >>> class Threshold(ClassifierMixin, BaseEstimator):
    ...     def fit(self, X, y):
    ...         self.classes_, self.threshold_ = np.unique(y), np.mean(X)
    ...         return self
    ...
    ...     def predict(self, X):
    ...         return self.classes_[(X > self.threshold_).astype(int)]
    >>> results = check_image_estimator(Threshold(), on_fail=None)
    >>> failed = {result["check_name"]: result for result in results if result["status"] == "failed"}
    >>> print(failed["check_predict_containers"]["reason"])
    The container comes back as it was given, with the same in it: stack for stack, list for list.
    >>> skipped = {result["check_name"]: result for result in results if result["status"] == "skipped"}
    >>> print(skipped["check_partial_fit"]["exception"])
    Threshold has no method partial_fit.
    """
    if on_fail not in ("raise", "warn", None):
        raise ValueError(f'on_fail must be "raise", "warn" or None; got {on_fail!r}.')
    if on_fail == "raise" and callback is not None:
        raise ValueError('callback must be None with on_fail="raise". Pass on_fail=None.')
    _check_type(estimator)
    expected = _check_names(expected_failed_checks)
    results = []
    for check in _all_checks(spatial_ndim):
        result = _run(check, estimator, expected.get(check.name))
        if on_fail == "raise" and result["status"] == "failed":
            result["exception"].add_note(f"{check.name}: {check.reason}")
            raise result["exception"]
        if on_fail == "warn" and result["status"] in ("failed", "xfail"):
            fields = {name: value for name, value in result.items() if name != "reason"}
            warnings.warn(EstimatorCheckFailedWarning(**fields), stacklevel=2)
        if callback is not None:
            callback(**result)
        results.append(result)
    return results


def _check_type(estimator: Any) -> None:
    if isinstance(estimator, type):
        raise TypeError(f"estimator must be an instance; got the class {estimator.__name__}. Call it first.")
    lacking = [name for name in ("fit", "predict", "get_params", "set_params") if not hasattr(estimator, name)]
    if lacking:
        raise TypeError(f"estimator must have fit, predict, get_params and set_params; {estimator!r} lacks {lacking}.")


def _check_names(expected_failed_checks: Mapping[str, str] | None) -> Mapping[str, str]:
    expected = expected_failed_checks or {}
    unknown = sorted(set(expected) - set(image_checks()))
    if unknown:
        raise ValueError(f"expected_failed_checks must name checks, see image_checks(); got {unknown}.")
    return expected


def _run(check: ImageCheck, estimator: Any, expected_reason: str | None) -> dict[str, Any]:
    """Run one check and say how it went."""
    exception: Exception | None = None
    status = "passed"
    try:
        check(estimator)
    except SkipTest as error:
        exception, status = error, "skipped"
    except Exception as error:  # a check finds whatever is wrong
        exception, status = error, "failed" if expected_reason is None else "xfail"
    return {
        "estimator": estimator,
        "check_name": check.name,
        "exception": exception,
        "status": status,
        "expected_to_fail": expected_reason is not None,
        "expected_to_fail_reason": NOT_EXPECTED if expected_reason is None else expected_reason,
        "reason": check.reason,
    }


def parametrize_with_image_checks(
    estimators: Sequence[Any],
    *,
    expected_failed_checks: Callable[[Any], Mapping[str, str]] | None = None,
    spatial_ndim: Sequence[int] = (2, 3),
) -> Any:
    """Make a pytest test of every check, on each of the estimators.

    Parameters
    ----------
    estimators : sequence of estimator
        As for `check_image_estimator`.
    expected_failed_checks : callable, optional
        Given an estimator, returns the names of checks that may fail, and why; their tests are marked xfail.
    spatial_ndim : sequence of {2, 3}, default=(2, 3)
        Check on images, on volumes, or on both.

    Returns
    -------
    decorator
        `pytest.mark.parametrize` of `estimator` and `check`. A test's id tells all three, as in
        `UNetSegmenter-2d-check_clone`; estimators of one class are numbered.

    Raises
    ------
    TypeError, ValueError
        As `check_image_estimator`.

    Examples
    --------
    In a test file:

    >>> from skunet import UNetSegmenter
    >>> from skunet.checks import parametrize_with_image_checks
    >>> small = UNetSegmenter(depth=1, filters=2, max_epochs=1, verbose=0)
    >>> @parametrize_with_image_checks([small])
    ... def test_segmenter_keeps_the_contract(estimator, check):
    ...     check(estimator)
    """
    import pytest

    names = _number([type(estimator).__name__ for estimator in estimators])
    parameters = []
    for estimator, name in zip(estimators, names, strict=True):
        _check_type(estimator)
        expected = _check_names(expected_failed_checks(estimator) if expected_failed_checks else None)
        for check in (check for ndim in spatial_ndim for check in _all_checks(ndim)):
            marks = [pytest.mark.xfail(reason=expected[check.name])] if check.name in expected else []
            identifier = f"{name}-{check.spatial_ndim}d-{check.name}"
            parameters.append(pytest.param(estimator, check, marks=marks, id=identifier))
    return pytest.mark.parametrize(("estimator", "check"), parameters)


def _number(names: list[str]) -> list[str]:
    """Number the names that occur more than once."""
    return [
        f"{name}{names[: index + 1].count(name)}" if names.count(name) > 1 else name for index, name in enumerate(names)
    ]
