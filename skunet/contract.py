"""What the checks of an image estimator share: small data, estimators made ready, comparisons of predictions.

A check is a function `check_...(estimator, data)` of an unfitted estimator and a `ContractData`. It works on clones,
raises AssertionError where the promise is broken, and SkipTest where the estimator does not offer what it needs. The
first line of its docstring says why the check exists.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from typing import Any, NoReturn
from unittest import SkipTest

import joblib
import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import get_tags
from sklearn.utils.validation import has_fit_parameter

from skunet.datasets import make_cells

__all__ = [
    "ContractData",
    "Outputs",
    "expect",
    "expect_error",
    "expect_same_outputs",
    "expect_same_parameters",
    "fit_fresh",
    "make_contract_data",
    "make_fresh",
    "need_fit_argument",
    "need_method",
    "need_parameter",
    "predict_all",
]

N_IMAGES = 6
# Sides differ, so that swapped axes show.
SIZES = {2: (16, 20), 3: (8, 16, 20)}
# Probabilities that differ in the order of summation only, also at 8 bits of precision, are closer than this.
TOLERANCE = 2e-3


@dataclass(frozen=True)
class ContractData:
    """Images and masks to check an estimator on: read-only, the same in each run.

    Attributes
    ----------
    spatial_ndim : {2, 3}
    X : ndarray of shape (6, *S), uint8
    X_colour : ndarray of shape (6, *S, 2), uint8
    y : ndarray of shape (6, *S), uint8
        Both 0 and 1 in each mask.
    y_three : ndarray of shape (6, *S), uint8
        0, 1 and 2; 2 is a part of the 1 of `y`.
    block : tuple of slice
        A few pixels of each image, to ignore or to give no weight.
    """

    spatial_ndim: int
    X: np.ndarray
    X_colour: np.ndarray
    y: np.ndarray
    y_three: np.ndarray
    block: tuple[slice, ...]

    def sizes(self) -> list[tuple[int, ...]]:
        """Return sizes that no network divides evenly, down to one pixel, none above that of `X`."""
        full = SIZES[self.spatial_ndim]
        odd = tuple(side // 2 - 1 for side in full)
        return [full, odd, (*full[:-1], 7), (5, *full[1:]), (1,) * self.spatial_ndim]

    def crop(self, arrays: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Return the first pixels along each spatial axis, (N, *size) or (N, *size, C)."""
        window: Any = (slice(None), *(slice(side) for side in size))
        return np.ascontiguousarray(arrays[window])


@lru_cache
def make_contract_data(spatial_ndim: int) -> ContractData:
    """Return the images and masks for an estimator of images (2) or of volumes (3)."""
    size = SIZES[spatial_ndim]
    drawn = tuple(max(side, 16) for side in size)
    cut: Any = (slice(None), *(slice((n - side) // 2, (n + side) // 2) for n, side in zip(drawn, size, strict=True)))
    X, y = make_cells(N_IMAGES, size=drawn, spatial_ndim=spatial_ndim, random_state=0)
    X_colour, _ = make_cells(N_IMAGES, size=drawn, spatial_ndim=spatial_ndim, n_channels=2, random_state=0)
    X, y, X_colour = (np.ascontiguousarray(array[cut]) for array in (X, y, X_colour))
    y_three = y.copy()
    y_three[..., : size[-1] // 2] *= 2
    for array in (X, y, X_colour, y_three):
        array.flags.writeable = False
    return ContractData(
        spatial_ndim=spatial_ndim,
        X=X,
        X_colour=X_colour,
        y=y,
        y_three=y_three,
        block=(slice(None), *(slice(2, 6),) * spatial_ndim),
    )


def make_fresh(estimator: Any, **parameters: Any) -> Any:
    """Return a silent clone with fixed seeds, those of its parts included, and the given parameters."""
    copy = clone(estimator)
    seeds, silence = {}, {}
    for name, value in copy.get_params().items():
        own_name = name.rpartition("__")[2]
        if own_name == "random_state":
            seeds[name] = 0
        if own_name == "verbose" and isinstance(value, int):
            silence[name] = type(value)(0)  # of a bool, False
    return copy.set_params(**(seeds | silence | parameters))


def fit_fresh(estimator: Any, X: Any, y: Any, **fit_params: Any) -> Any:
    """Return a fresh clone, fitted; what `fit` returns is left to a check of its own."""
    copy = make_fresh(estimator)
    copy.fit(X, y, **fit_params)
    return copy


def need_parameter(estimator: Any, name: str) -> None:
    """Skip the check where the estimator lacks a hyperparameter."""
    if name not in estimator.get_params(deep=False):
        _skip(estimator, f"has no parameter {name}")


def need_method(estimator: Any, name: str) -> None:
    """Skip the check where the estimator lacks a method."""
    if not hasattr(estimator, name):
        _skip(estimator, f"has no method {name}")


def need_many_classes(estimator: Any) -> None:
    """Skip the check where the estimator says in its tags that it takes two classes only."""
    tags = get_tags(estimator).classifier_tags
    if tags is not None and not tags.multi_class:
        _skip(estimator, "takes two classes only")


def need_fit_argument(estimator: Any, name: str, *, method: str = "fit") -> None:
    """Skip the check where a method does not name an argument in its signature."""
    need_method(estimator, method)
    is_named = has_fit_parameter(estimator, name) if method == "fit" else name in _arguments(estimator, method)
    if not is_named:
        _skip(estimator, f"takes no {name} in {method}")


def _arguments(estimator: Any, method: str) -> list[str]:
    return list(signature(getattr(estimator, method)).parameters)


def _skip(estimator: Any, reason: str) -> NoReturn:
    raise SkipTest(f"{type(estimator).__name__} {reason}.")


@dataclass(frozen=True)
class Outputs:
    """What an estimator says of each image.

    Attributes
    ----------
    labels : list of ndarray of shape (*S)
    probabilities : list of ndarray of shape (K, *S), or None without `predict_proba`
        They tell predictions apart whose labels are equal.
    """

    labels: list[np.ndarray]
    probabilities: list[np.ndarray] | None

    def select(self, indices: Any) -> "Outputs":
        """Return what is said of the images at `indices`."""
        labels = [self.labels[index] for index in indices]
        if self.probabilities is None:
            return Outputs(labels, None)
        return Outputs(labels, [self.probabilities[index] for index in indices])


def predict_all(estimator: Any, X: Any) -> Outputs:
    """Return labels and, where offered, probabilities of images in any container."""
    probabilities = list(estimator.predict_proba(X)) if hasattr(estimator, "predict_proba") else None
    return Outputs(list(estimator.predict(X)), probabilities)


def expect(is_kept: Any, message: str) -> None:
    """Raise AssertionError where a promise is not kept; unlike `assert`, also under `python -O`."""
    if not is_kept:
        raise AssertionError(message)


def expect_same_outputs(first: Outputs, second: Outputs, promise: str, *, tolerance: float = 0.0) -> None:
    """Expect the same predictions, bit for bit or within a tolerance.

    Parameters
    ----------
    first, second : Outputs
    promise : str
        What an error says first.
    tolerance : float, default=0.0
        Of probabilities; labels may then differ where two probabilities are as close. Labels of an estimator without
        probabilities must be equal.
    """
    expect(
        len(first.labels) == len(second.labels),
        f"{promise}: {len(first.labels)} results for one, {len(second.labels)} for the other.",
    )
    for index, (one, other) in enumerate(zip(first.labels, second.labels, strict=True)):
        expect(
            (one.shape, one.dtype) == (other.shape, other.dtype),
            f"{promise}: labels of image {index} have {one.dtype} {one.shape} and {other.dtype} {other.shape}.",
        )
        is_clear: Any = True
        if first.probabilities is not None and second.probabilities is not None:
            pair = first.probabilities[index], second.probabilities[index]
            worst = np.abs(pair[0] - pair[1]).max()
            expect(worst <= tolerance, f"{promise}: probabilities of image {index} differ by up to {worst:.2g}.")
            ordered = np.sort(pair[0], axis=0)
            is_clear = ordered[-1] - ordered[-2] >= 2 * tolerance  # (*S)
        n_different = int(np.sum((one != other) & is_clear))
        expect(n_different == 0, f"{promise}: labels of image {index} differ at {n_different} of {one.size} pixels.")


def expect_same_parameters(first: dict[str, Any], second: dict[str, Any], promise: str) -> None:
    """Expect the same parameters, of the same values."""
    names = sorted(set(first) ^ set(second))
    expect(not names, f"{promise}: {names} are there only once.")
    changed = [name for name in first if not _is_same_value(first[name], second[name])]
    expect(not changed, f"{promise}: {changed} changed.")


def _is_same_value(one: Any, other: Any) -> bool:
    """Whether two parameters are the same; of parts that are estimators, whether theirs are."""
    if one is other or type(one) is not type(other):
        return one is other
    if isinstance(one, BaseEstimator):
        return _is_same_value(one.get_params(deep=False), other.get_params(deep=False))
    if isinstance(one, dict):
        return list(one) == list(other) and all(_is_same_value(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same_value, one, other))
    try:
        return bool(joblib.hash(one) == joblib.hash(other))
    except Exception:  # what cannot be hashed, such as a local function, has no better description
        return repr(one) == repr(other)


def expect_error(
    call: Callable[[], Any], rule: str, kinds: type[Exception] | tuple[type[Exception], ...] = ValueError
) -> None:
    """Expect a call to raise one of the kinds of error, with a message."""
    wanted = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    try:
        call()
    except kinds as error:
        expect(str(error).strip(), f"{rule} must raise {wanted} with a message; it is empty.")
    except Exception as error:
        raise AssertionError(f"{rule} must raise {wanted}; got {type(error).__name__}: {error}") from error
    else:
        raise AssertionError(f"{rule} must raise {wanted}; nothing was raised.")
