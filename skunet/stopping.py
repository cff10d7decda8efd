"""When training ends before its last epoch."""

import warnings
from collections.abc import Callable, Iterable, Iterator
from numbers import Integral, Real
from time import monotonic
from typing import Any

import skorch.callbacks
from skorch.callbacks import Callback
from tqdm.auto import tqdm

from skunet.components import plain_name

__all__ = ["EarlyStopping", "TimeLimit"]


class EarlyStopping(skorch.callbacks.EarlyStopping):  # type: ignore[misc]  # skorch is not typed
    """Stop when the validation score no longer improves, and restore the best weights.

    The best weights are kept in memory. Without validation images it does nothing.

    Parameters
    ----------
    monitor : str
    patience : int
        Epochs without improvement.
    lower_is_better : bool or None
        None is whether the monitor's name ends with "loss".
    load_best : bool
    loss : str or None
        A record that gives training more time while it falls: then only epochs count in which neither improved. The
        weights to restore are those of the monitor all the same.
    **kwargs
        As in `skorch.callbacks.EarlyStopping`.
    """

    best_model_weights_: dict[str, Any] | None = None

    def __init__(
        self,
        monitor: str = "valid_iou",
        patience: int = 15,
        lower_is_better: bool | None = None,
        load_best: bool = True,
        threshold: float = 0.0,
        threshold_mode: str = "abs",
        sink: Callable[[str], None] = tqdm.write,
        loss: str | None = None,
    ) -> None:
        super().__init__(
            monitor=monitor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            lower_is_better=lower_is_better,
            sink=sink,
            load_best=load_best,
        )
        self.loss = loss

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        """Check the patience, and forget what was best in an earlier fit.

        Raises
        ------
        ValueError
            If the patience is no whole number of at least 1.
        """
        if isinstance(self.patience, bool) or not isinstance(self.patience, Integral) or self.patience < 1:
            raise ValueError(
                f"EarlyStopping.patience must be a whole number of epochs, at least 1; got {self.patience!r}."
            )
        super().on_train_begin(net, **kwargs)
        is_loss = self.monitor.endswith("loss")
        self.is_lower_better_ = is_loss if self.lower_is_better is None else bool(self.lower_is_better)
        self.dynamic_threshold_ = float("inf") if self.is_lower_better_ else -float("inf")
        self.has_warned_ = False
        self.lowest_ = float("inf")

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Compare the score with the best so far."""
        loss = net.history[-1].get(self.loss, float("inf"))
        if loss < self.lowest_:
            self.lowest_, self.misses_ = float(loss), -1  # one is added where the score is no better
        if self.monitor in net.history[-1]:
            super().on_epoch_end(net, **kwargs)
        elif "valid_batch_count" in net.history[-1] and not self.has_warned_:
            self.has_warned_ = True
            warnings.warn(
                f"EarlyStopping.monitor must name a record of the history; got {self.monitor!r}, so that training "
                "is not stopped. Either no callback makes it, or no pixel of the validation images has a label: hold "
                f"out others, e.g. by groups. There are {', '.join(sorted(set(net.history[-1])))}.",
                UserWarning,
                stacklevel=2,
            )

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Restore the best weights."""
        weights = self.best_model_weights_
        if weights is not None:
            # Names have a prefix where the module is compiled, as it need not have been before it was resumed.
            plain = {plain_name(name): weight for name, weight in weights.items()}
            self.best_model_weights_ = {name: plain[plain_name(name)] for name in net.module_.state_dict()}
        if net.history:
            super().on_train_end(net, **kwargs)
        self.best_model_weights_ = None

    def _is_score_improved(self, score: float) -> bool:
        return bool(score < self.dynamic_threshold_ if self.is_lower_better_ else score > self.dynamic_threshold_)

    def _calc_new_threshold(self, score: float) -> float:
        margin = self.threshold * score if self.threshold_mode == "rel" else self.threshold
        return float(score - margin if self.is_lower_better_ else score + margin)

    def _sink(self, text: str, verbose: int) -> None:
        if verbose:
            self.sink(text)


class TimeLimit(Callback):  # type: ignore[misc]  # skorch is not typed
    """End training in time, validation included, within an epoch if it must.

    The last epoch ends early enough that validation still fits, for which it is taken to last as long as after the
    epoch before, or in the first epoch half as long as training on as many images. The steps until then count:
    the epoch is validated and recorded like any other, and early stopping restores the best weights. At least one
    step is taken. Each call of `partial_fit` has the whole time; a fit that is resumed has what is left of it.

    Parameters
    ----------
    seconds : float
        More than 0; from the start of training, when the images have been read once and checked. Time outside of
        `fit` does not count.

    Attributes
    ----------
    elapsed_ : float
        Seconds trained.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> segmenter = UNetSegmenter(max_epochs=10000, callbacks=[TimeLimit(seconds=600)])
    """

    elapsed_: float  # when the clock was last read
    step_: float  # the last training step
    rest_: float | None  # validation and all else after the training steps of an epoch
    trained_: float | None  # elapsed when the last training steps ended

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Start the clock.

        Raises
        ------
        ValueError
            If `seconds` is no number of more than 0.
        """
        seconds: Any = self.seconds
        if not isinstance(seconds, Real) or not float(seconds) > 0:
            raise ValueError(f"TimeLimit.seconds must be a number of more than 0; got {seconds!r}.")
        self.load_state_dict({"elapsed": 0.0, "step": 0.0, "rest": None})

    def on_epoch_begin(self, net: Any, dataset_train: Any = None, dataset_valid: Any = None, **kwargs: Any) -> None:  # noqa: ARG002
        """Note how long all but training lasted in the epoch before."""
        self._note_rest()
        self.valid_share_ = 0.0 if dataset_valid is None else len(dataset_valid) / len(dataset_train)

    def cut(self, batches: Iterable[Any], batches_per_pass: int) -> Iterator[Any]:
        """Yield the training batches of an epoch for which there is time, at least one.

        Those of one pass take each pixel about once, as validation does; an epoch may have more, or fewer.
        """
        begin = self._read_clock()
        is_guessing, shortest = self.rest_ is None, float("inf")
        for number, batch in enumerate(batches):
            yield batch
            self.step_ = self._read_clock() - begin
            begin = self.elapsed_
            if is_guessing and number > 0:  # the very first step is slow, and says nothing
                shortest = min(shortest, self.step_)
                self.rest_ = shortest * batches_per_pass * self.valid_share_ / 2
            if not self.has_time():
                break
        self.trained_ = self.elapsed_

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """End training when there is no time for another step and its validation."""
        self._note_rest()
        if self.has_time():
            return
        if net.verbose:
            tqdm.write(f"Stopping since the time limit of {self.seconds:g} seconds is reached.")
        raise KeyboardInterrupt

    def share(self) -> float:
        """Return how much of the time for training is over, in 0..1."""
        available = self.seconds - (self.rest_ or 0.0)
        return min(self._read_clock() / available, 1.0) if available > 0 else 1.0

    def state_dict(self) -> dict[str, float | None]:
        """Return the seconds of training, of the last step, and of all but training in an epoch."""
        return {"elapsed": self._read_clock(), "step": self.step_, "rest": self.rest_}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        """Go on from what `state_dict` returned, by the clock of this process."""
        self.clock_ = monotonic()
        self.elapsed_ = state["elapsed"] or 0.0
        self.step_ = state["step"] or 0.0
        self.rest_ = state["rest"]
        self.trained_ = None

    def _read_clock(self) -> float:
        now = monotonic()
        self.elapsed_ += now - self.clock_
        self.clock_ = now
        return self.elapsed_

    def _note_rest(self) -> None:
        if self.trained_ is not None:
            self.rest_ = self._read_clock() - self.trained_

    def has_time(self) -> bool:
        """Return whether another step and the validation of its epoch fit."""
        return self.elapsed_ + self.step_ + (self.rest_ or 0.0) <= self.seconds
