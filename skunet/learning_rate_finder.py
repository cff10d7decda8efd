"""The range test that finds a learning rate."""

import warnings
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from skorch.callbacks import Callback

__all__ = ["LearningRateFinder"]


class RangeTest(Callback):  # type: ignore[misc]  # skorch is not typed
    """Raise the learning rate at each step, and end training after the last, or when the loss diverges.

    Parameters
    ----------
    rates : ndarray of shape (n_steps,)
    smoothing, divergence : float
        As in `LearningRateFinder`.
    """

    def __init__(self, rates: np.ndarray, smoothing: float, divergence: float) -> None:
        self.rates = rates
        self.smoothing = smoothing
        self.divergence = divergence

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note how the rates of groups of parameters compare."""
        rates = np.array([group["lr"] for group in net.optimizer_.param_groups], dtype=float)
        self.shares_ = rates / rates.max() if rates.max() > 0 else np.ones(len(rates))
        self.mean_ = 0.0
        self.losses_: list[float] = []

    def on_batch_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Set the rate of a step."""
        for group, share in zip(net.optimizer_.param_groups, self.shares_, strict=True):
            group["lr"] = float(self.rates[len(self.losses_)] * share)

    def on_batch_end(self, net: Any, *, loss: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Record the smoothed loss."""
        if not loss.isfinite():
            raise KeyboardInterrupt
        self.mean_ = self.smoothing * self.mean_ + (1 - self.smoothing) * loss.item()
        # The mean starts from 0; this takes what it lacks into account.
        self.losses_.append(float(self.mean_ / (1 - self.smoothing ** (len(self.losses_) + 1))))
        best = min(self.losses_)
        is_diverging = best > 0 and self.losses_[-1] > self.divergence * best
        if is_diverging or len(self.losses_) == len(self.rates):
            raise KeyboardInterrupt


class LearningRateFinder(BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """Find a learning rate by training a copy of a segmenter while the rate rises (Smith 2017).

    The rate grows by the same factor at each step. As long as it is small the loss hardly moves; then it falls, and
    when the rate is too large it rises. The segmenter itself, fitted or not, stays as it is: the copy starts from
    new weights, as `fit` does, and has the segmenter's parameters except callbacks and validation.

    Parameters
    ----------
    segmenter : UNetSegmenter
    min_lr, max_lr : float, default=1e-6 and 1.0
        Rates of the first and the last step.
    n_steps : int, default=100
        Training steps, at least 2.
    smoothing : float, default=0.9
        Of the loss: how much of the mean is kept at each step, in 0..1, 1 excluded.
    divergence : float, default=4.0
        The test ends where the smoothed loss is more than this times its least value, or is not finite.

    Attributes
    ----------
    learning_rates_ : ndarray of shape (n,), float64
        Of the steps taken, at most `n_steps`.
    losses_ : ndarray of shape (n,), float64
        Smoothed training loss of these steps.
    suggestion_ : float
        The rate at which the smoothed loss has come half way down to its least value. There the descent is about
        steepest; the slope itself is too noisy to tell.

    References
    ----------
    Smith, Cyclical learning rates for training neural networks, 2017.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(8, size=32, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=4, random_state=0, precision="float32")
    >>> finder = LearningRateFinder(segmenter).fit(X, y)
    >>> bool(1e-3 < finder.suggestion_ < 0.1)
    True
    >>> segmenter = segmenter.set_params(lr=finder.suggestion_)
    """

    def __init__(
        self,
        segmenter: Any,
        *,
        min_lr: float = 1e-6,
        max_lr: float = 1.0,
        n_steps: int = 100,
        smoothing: float = 0.9,
        divergence: float = 4.0,
    ) -> None:
        self.segmenter = segmenter
        self.min_lr = min_lr
        self.max_lr = max_lr
        self.n_steps = n_steps
        self.smoothing = smoothing
        self.divergence = divergence

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Self:
        """Run the test.

        Parameters
        ----------
        X, y, **fit_params
            As in `UNetSegmenter.fit`.

        Returns
        -------
        self

        Raises
        ------
        TypeError
            If `segmenter` is something else, e.g. the class or a pipeline.
        ValueError
            If another parameter is not as described, or the loss is not finite at the first step.

        Warns
        -----
        UserWarning
            If the suggestion is less than ten times below `max_lr`, as the descent may go on there, or if the loss
            never falls.
        """
        self._check()
        rates = np.geomspace(self.min_lr, self.max_lr, self.n_steps)
        test = RangeTest(rates, self.smoothing, self.divergence)
        self._copy_with(test).fit(X, y, **fit_params)
        if not test.losses_:
            raise ValueError(f"The loss must be finite at min_lr={self.min_lr:g}. Check the images and the criterion.")
        self.losses_ = np.array(test.losses_)
        self.learning_rates_ = rates[: len(self.losses_)]
        self.suggestion_ = self._half_way_down()
        if self.losses_.argmin() == 0:
            _warn(f"The loss only rises from min_lr={self.min_lr:g} on: the suggestion is a guess. Lower min_lr.")
        elif self.suggestion_ > self.max_lr / 10:
            _warn(f"The loss may go on falling beyond max_lr={self.max_lr:g}: the suggestion is a guess. Raise max_lr.")
        return self

    def _half_way_down(self) -> float:
        half = (self.losses_[0] + self.losses_.min()) / 2
        return float(self.learning_rates_[np.argmax(self.losses_ <= half)])

    def _check(self) -> None:
        if not isinstance(self.segmenter, NeuralNet):
            raise TypeError(
                f"segmenter must be a UNetSegmenter instance; got {_describe(self.segmenter)}. "
                "Of a pipeline pass the last step, and to fit what the steps before make of X."
            )
        for name, is_valid, rule in (
            ("min_lr", lambda rate: 0 < rate < np.inf, "a number greater than 0"),
            ("max_lr", lambda rate: self.min_lr < rate < np.inf, f"a number greater than min_lr, {self.min_lr}"),
            (
                "n_steps",
                lambda number: isinstance(number, Integral) and int(number) >= 2,
                "a whole number of at least 2",
            ),
            ("smoothing", lambda share: 0 <= share < 1, "at least 0 and less than 1"),
            ("divergence", lambda factor: factor > 1, "greater than 1"),
        ):
            value = getattr(self, name)
            if not isinstance(value, Real) or not is_valid(value):
                raise ValueError(f"{name} must be {rule}; got {value!r}.")

    def _copy_with(self, test: RangeTest) -> Any:
        """Return an unfitted segmenter of the same parameters that runs nothing but the test."""
        kept = {
            name: value
            for name, value in clone(self.segmenter).get_params(deep=False).items()
            if not name.startswith("callbacks")
        }
        # An epoch has at least one step.
        others = {"callbacks": [test], "train_split": None, "max_epochs": self.n_steps, "warm_start": False}
        return type(self.segmenter)(**kept | others | {"verbose": 0})

    def plot(self, ax: Any = None) -> Any:
        """Draw the loss over the learning rate, with the suggestion.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            None makes new ones.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ImportError
            Without matplotlib.
        NotFittedError
            Before `fit`.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(
                "LearningRateFinder.plot needs the package matplotlib. "
                "Install it with the extra: pip install 'skunet[plot]'."
            ) from error
        check_is_fitted(self)
        axes = pyplot.subplots()[1] if ax is None else ax
        axes.plot(self.learning_rates_, self.losses_)
        axes.axvline(self.suggestion_, color="0.5", linestyle="--", label=f"suggestion: {self.suggestion_:.1e}")
        axes.set(xscale="log", xlabel="learning rate", ylabel="training loss, smoothed")
        axes.legend()
        return axes


def _describe(segmenter: Any) -> str:
    if isinstance(segmenter, type):
        return f"the class {segmenter.__name__}"
    return "None" if segmenter is None else f"an instance of {type(segmenter).__name__}"


def _warn(text: str) -> None:
    warnings.warn(text, UserWarning, stacklevel=3)
