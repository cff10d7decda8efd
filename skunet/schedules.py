"""Learning rates that change while training goes on."""

from collections.abc import Callable
from math import cos, isfinite, pi
from numbers import Real
from typing import Any, Self

from skorch.callbacks import Callback

__all__ = ["LearningRateSchedule"]

# The rising part of the one-cycle policy, as a share of the horizon, and the factor that it starts from.
RISE, START = 0.3, 0.04
# Share of a time limit after which time counts for the progress.
SLACK = 0.02


def _constant(progress: float) -> float:  # noqa: ARG001
    return 1.0


def _linear(progress: float) -> float:
    return 1 - progress


def _cosine(progress: float) -> float:
    return (1 + cos(pi * progress)) / 2


def _one_cycle(progress: float) -> float:
    if progress < RISE:
        return 1 - (1 - START) * _cosine(progress / RISE)
    return _cosine((progress - RISE) / (1 - RISE))


# Each starts at 1, or rises to it, and ends at 0 when progress is 1. "poly" is a power of "linear".
POLICIES = {
    "constant": _constant,
    "linear": _linear,
    "poly": _linear,
    "cosine": _cosine,
    "one_cycle": _one_cycle,
    "plateau": _constant,  # times what the records have come to
}

RULES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("warmup", lambda share: 0 <= share < 1, "a share of the horizon, at least 0 and less than 1"),
    ("end", lambda factor: 0 <= factor <= 1, "a factor in 0..1"),
    ("power", lambda power: 0 < power < float("inf"), "a number greater than 0"),
    ("drop", lambda factor: 0 < factor < 1, "a factor between 0 and 1"),
    ("patience", lambda epochs: epochs >= 0 and epochs == int(epochs), "a whole number of at least 0"),
)


class LearningRateSchedule(Callback):  # type: ignore[misc]  # skorch is not typed
    """Set the learning rate at each training step, from how far training has come.

    The rate is `lr * factor(progress)`. Progress runs from 0 to 1 over the horizon of the fit, which is `max_epochs`
    epochs, or the time of a `TimeLimit` among the callbacks where that ends first (seconds count after the first 2 %
    of them, so that where epochs end first the rates are the same in each run). Groups of parameters with rates of
    their own keep their ratios; a rate that is set in the midst of training takes the place of `lr`. After training
    the rates are those of before. Each call of `partial_fit` has a horizon of its own, of `max_epochs` more.

    Parameters
    ----------
    policy : {"cosine", "linear", "poly", "one_cycle", "constant", "plateau"} or callable, default="cosine"
        How the factor goes after the warm-up: from 1 down to `end`, save that "one_cycle" first rises to 1 from about
        0.04, for 0.3 of its way, that "constant" stays at 1, and that "plateau" is multiplied by `drop`, never to below
        `end`, whenever the validation loss (the training loss, where nothing is held out) was not less than ever for
        `patience` epochs and another one. A callable maps progress, a float in 0..1, to the factor.
    warmup : float, default=0.0
        Share of the horizon, in 0..1, 1 excluded, in which the factor rises in a line to where the policy starts;
        what is left of the horizon is the policy's.
    end : float, default=0.0
        Factor at the end, in 0..1; a callable does not heed it.
    power : float, default=0.9
        Of "poly", more than 0.
    drop : float, default=0.1
        Of "plateau", between 0 and 1.
    patience : int, default=5
        Of "plateau", at least 0.

    Attributes
    ----------
    base_rates_ : list of float
        Learning rate of each group at factor 1.
    rates_ : list of float
        Those of the last step. After each epoch the first is recorded in the history, as `event_lr`.
    first_epoch_ : int
        Epochs trained before this fit.
    plateau_factor_ : float
        What "plateau" has come to in this fit.

    References
    ----------
    Loshchilov & Hutter, SGDR, 2017 (cosine). Chen et al., DeepLab, 2017 (poly). Smith, A disciplined approach to
    neural network hyper-parameters, 2018 (one cycle; momentum is left as it is here). Goyal et al., Accurate, large
    minibatch SGD, 2017 (warm-up).

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(4, size=32, random_state=0)
    >>> schedule = LearningRateSchedule("linear", warmup=0.2)
    >>> small = UNetSegmenter(depth=1, filters=4, batches_per_epoch=1)  # one step per epoch
    >>> segmenter = small.set_params(lr=0.01, max_epochs=5, verbose=0, callbacks=[schedule])
    >>> [round(rate, 6) for rate in segmenter.fit(X, y).history[:, "event_lr"]]
    [0.005, 0.01, 0.0075, 0.005, 0.0025]
    """

    def __init__(
        self,
        policy: str | Callable[[float], float] = "cosine",
        *,
        warmup: float = 0.0,
        end: float = 0.0,
        power: float = 0.9,
        drop: float = 0.1,
        patience: int = 5,
    ) -> None:
        self.policy = policy
        self.warmup = warmup
        self.end = end
        self.power = power
        self.drop = drop
        self.patience = patience

    def initialize(self) -> Self:
        """Forget the rates of an earlier optimizer."""
        self.base_rates_: list[float] = []
        self.rates_: list[float] = []
        self.lr_: float | None = None
        self.first_epoch_ = 0
        self.plateau_factor_ = 1.0
        self.n_waited_ = 0
        self.least_loss_ = float("inf")
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check the parameters, and note where the horizon begins.

        Raises
        ------
        ValueError
            If a parameter is not as described, or there are two schedules.
        """
        if not callable(self.policy) and self.policy not in POLICIES:
            names = ", ".join(f'"{name}"' for name in POLICIES)
            raise ValueError(f"LearningRateSchedule.policy must be one of {names}, or a callable; got {self.policy!r}.")
        for name, is_valid, rule in RULES:
            value = getattr(self, name)
            if not isinstance(value, Real) or not is_valid(float(value)):
                raise ValueError(f"LearningRateSchedule.{name} must be {rule}; got {value!r}.")
        if len(net.callbacks_of(LearningRateSchedule)) > 1:
            raise ValueError("callbacks must hold at most one LearningRateSchedule, as their factors would multiply.")
        self.first_epoch_ = len(net.history)
        self.plateau_factor_, self.n_waited_, self.least_loss_ = 1.0, 0, float("inf")

    def on_batch_begin(self, net: Any, training: bool = False, **kwargs: Any) -> None:  # noqa: ARG002
        """Set the rates of a training step."""
        if not training:
            return
        self._note_rates_set_by_others(net)
        factor = self._factor_now(net)
        self.rates_ = _set_rates(net.optimizer_, [rate * factor for rate in self.base_rates_])

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Record the rate, and judge the loss."""
        net.history.record("event_lr", self.rates_[0])
        if self.policy != "plateau":
            return
        row = net.history[-1]
        loss = row.get("valid_loss", row.get("train_loss"))
        if loss is None:
            raise ValueError(
                'LearningRateSchedule("plateau") must have a loss to judge; the history has neither valid_loss nor '
                "train_loss. Keep the callback train_loss, or hold out images with train_split."
            )
        loss = float(loss)
        self.n_waited_ = 0 if loss < self.least_loss_ else self.n_waited_ + 1
        self.least_loss_ = min(loss, self.least_loss_)
        if self.n_waited_ > self.patience:
            self.plateau_factor_ *= self.drop
            self.n_waited_ = 0

    def on_train_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Put back the rates at factor 1."""
        self._note_rates_set_by_others(net)
        self.rates_ = _set_rates(net.optimizer_, self.base_rates_)

    def _note_rates_set_by_others(self, net: Any) -> None:
        rates = [float(group["lr"]) for group in net.optimizer_.param_groups]
        if net.lr == self.lr_ and len(rates) == len(self.rates_):
            known = zip(self.base_rates_, self.rates_, rates, strict=True)
            rates = [base if rate == own else rate for base, own, rate in known]
        self.base_rates_ = rates
        self.lr_ = net.lr

    def _factor_now(self, net: Any) -> float:
        """Return the factor of the step at hand."""
        step = 1.0 / int(net.horizon_ * net.steps_per_epoch_)
        epochs = (len(net.history) - 1 - self.first_epoch_) / net.horizon_
        done = epochs + step * (len(net.history[-1]["batches"]) - 1)
        # Where epochs end first, the seconds that a first step takes must not tell in the rates.
        time = (net.time_share() - SLACK) / (1 - SLACK)
        progress = float(min(max(done, time), 1.0))
        if progress >= self.warmup:
            return self._factor((progress - self.warmup) / (1 - self.warmup))
        # Up from one step's part: a step at rate 0 would be wasted.
        return self._factor(0.0) * (progress + step) / (self.warmup + step)

    def _factor(self, progress: float) -> float:
        """Return the factor that the policy has at `progress`."""
        if not callable(self.policy):
            power = self.power if self.policy == "poly" else 1.0
            factor = self.end + (1 - self.end) * POLICIES[self.policy](progress) ** power
            return float(factor if self.policy != "plateau" else max(self.plateau_factor_, self.end))
        factor = float(self.policy(progress))
        if not (isfinite(factor) and factor >= 0):
            raise ValueError(
                f"LearningRateSchedule.policy must return a finite factor of at least 0; got {factor} "
                f"at progress {progress:g}."
            )
        return factor


def _set_rates(optimizer: Any, rates: list[float]) -> list[float]:
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return list(rates)
