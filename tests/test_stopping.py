import os
import pickle
import signal
import time

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from skorch.callbacks import Callback

from skunet.callbacks import IoUScoring, TimeLimit


class Clock(Callback):
    """Time that passes only in training steps and in validation."""

    def __init__(self, step=1.0, validation=0.0):
        self.step = step
        self.validation = validation
        self.now_ = 100.0

    def __call__(self):
        return self.now_

    def on_batch_end(self, net, training=False, **kwargs):
        self.now_ += self.step if training else self.validation


@pytest.fixture
def clock(monkeypatch):
    """A fake clock; 10 of the 12 cells are trained on in 5 steps, the other 2 are validated in one."""
    clock = Clock()
    monkeypatch.setattr("skunet.stopping.monotonic", clock)
    return clock


def fit_in(seconds, clock, cells, *callbacks, **parameters):
    """Return a segmenter fitted in a time limit by a fake clock."""
    limited = [("clock", clock), ("limit", TimeLimit(seconds)), *callbacks]
    segmenter = make_segmenter(**{"max_epochs": 20, "batch_size": 2} | parameters, callbacks=limited)
    return segmenter.fit(*cells)


class Heard(Callback):
    """Counts the epochs it hears of."""

    def initialize(self):
        self.epochs_ = 0
        return self

    def on_epoch_end(self, net, **kwargs):
        self.epochs_ += 1


class Stops(Callback):
    """Ends training at the end of the second epoch, as skorch's callbacks do or as Ctrl-C does."""

    def __init__(self, how):
        self.how = how

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) < 2:
            return
        if self.how == "signal":
            os.kill(os.getpid(), signal.SIGINT)
            for _ in range(10**6):
                pass
        raise KeyboardInterrupt


class Weights(Callback):
    """Keeps the weights of each epoch."""

    def initialize(self):
        self.kept_ = []
        return self

    def on_epoch_end(self, net, **kwargs):
        self.kept_.append({name: value.clone() for name, value in net.module_.state_dict().items()})


def assert_same_weights(state, module):
    for name, value in module.state_dict().items():
        assert torch.equal(state[name], value), name


# ---- the end of an epoch


def test_callbacks_after_one_that_stops_hear_of_the_last_epoch(cells):
    before, after = Heard(), Heard()
    callbacks = [("before", before), ("stop", Stops("statement")), ("stop too", Stops("statement")), ("after", after)]
    segmenter = make_segmenter(max_epochs=5, callbacks=callbacks).fit(*cells)  # without the warning of Ctrl-C
    assert segmenter.n_iter_ == before.epochs_ == after.epochs_ == 2
    assert segmenter.is_stopping_


def test_ctrl_c_at_the_end_of_an_epoch_stops_at_once(cells):
    after = Heard()
    segmenter = make_segmenter(max_epochs=5, callbacks=[Stops("signal"), after])
    with pytest.warns(UserWarning, match="interrupted in epoch 2"):
        segmenter.fit(*cells)
    assert after.epochs_ == 1
    assert not segmenter.is_stopping_


# ---- early stopping


def test_early_stopping_on_the_score_of_one_class_restores_its_best_weights(cells):
    X, y = cells
    weights = Weights()
    segmenter = make_segmenter(
        max_epochs=8,
        lr=0.3,
        random_state=4,
        callbacks=[("weights", weights)],
        callbacks__iou__per_class=True,
        callbacks__early_stopping__monitor="valid_iou_255",
        callbacks__early_stopping__patience=3,
    ).fit(X, y * 255)
    scores = segmenter.history[:, "valid_iou_255"]
    best = int(np.argmax(scores))
    assert best < len(scores) - 1, "choose another seed: the last epoch is the best"
    assert_same_weights(weights.kept_[best], segmenter.module_)


def test_early_stopping_sees_scores_of_callbacks_that_come_later_in_the_list(cells):
    callbacks = [("mine", IoUScoring("mine"))]
    segmenter = make_segmenter(max_epochs=60, lr=0.05, callbacks=callbacks, callbacks__early_stopping__monitor="mine")
    segmenter.set_params(callbacks__early_stopping__patience=2, callbacks__early_stopping__loss=None)
    scores = segmenter.fit(*cells).history[:, "mine"]
    assert int(np.argmax(scores)) == len(scores) - 3


def test_early_stopping_on_what_is_not_recorded_warns_once(cells):
    segmenter = make_segmenter(max_epochs=2, callbacks__early_stopping__monitor="mine")
    with pytest.warns(UserWarning, match="must name a record of the history; got 'mine', .* train_loss") as caught:
        segmenter.fit(*cells)
    assert len(caught) == 1


# ---- the time limit


def test_time_ends_training_within_an_epoch_and_leaves_time_for_validation(cells, clock):
    clock.validation = 2.0
    segmenter = fit_in(17.0, clock, cells)
    # 5 + 2 seconds for the first and second epoch; then 1 step, as 15 + 1 + 2 are more than 17.
    assert segmenter.history[:, "train_batch_count"] == [5, 5, 1]
    assert segmenter.history[:, "valid_batch_count"] == [1, 1, 1]
    assert clock.now_ == 100 + 17
    assert segmenter.n_iter_ == len(segmenter.history[:, "valid_iou"]) == 3


def test_an_epoch_for_which_there_is_no_time_does_not_begin(cells, clock):
    clock.validation = 2.0
    segmenter = fit_in(9.5, clock, cells)
    assert segmenter.history[:, "train_batch_count"] == [5]


def test_the_first_validation_is_expected_to_last_half_as_long_as_training_on_as_many_images(cells, clock):
    clock.validation = 0.5
    segmenter = fit_in(4.5, clock, cells, train_split=0.5)
    # 3 steps for 6 images: 1.5 seconds for the 6 others.
    assert clock.now_ == 100 + 4.5
    assert segmenter.history[:, "train_batch_count"] == [3]
    segmenter = fit_in(4.4, clock, cells, train_split=0.5)
    assert segmenter.history[0, "train_batch_count"] == 2


def test_the_first_validation_is_expected_to_take_one_pass_however_long_the_epoch_is(cells, clock):
    clock.validation = 0.5
    segmenter = fit_in(20.0, clock, cells, train_split=0.5, batches_per_epoch=30)
    # 3 steps would take the 6 images once: again 1.5 seconds for the others, though 30 steps may come before.
    assert segmenter.history[0, "train_batch_count"] == 18


def test_a_slow_first_step_does_not_end_the_first_epoch(cells, clock):
    class Slow(Callback):
        def on_batch_begin(self, net, **kwargs):
            if len(net.history) == 1 and len(net.history[-1]["batches"]) == 1:
                clock.now_ += 20

    segmenter = fit_in(50.0, clock, cells, ("slow", Slow()), train_split=0.5, max_epochs=2)
    assert segmenter.history[:, "train_batch_count"] == [3, 3]


def test_at_least_one_step_is_taken(cells, clock):
    segmenter = fit_in(0.1, clock, cells)
    assert segmenter.history[:, "train_batch_count"] == [1]
    assert "valid_iou" in segmenter.history[-1]


def test_time_ends_training_without_validation(cells, clock):
    segmenter = fit_in(8.0, clock, cells, train_split=None)
    assert segmenter.history[:, "train_batch_count"] == [6, 2]


def test_the_best_weights_are_restored_when_time_is_up(cells, clock):
    weights = Weights()
    first_is_best = {"monitor": "epoch", "lower_is_better": True}
    parameters = {f"callbacks__early_stopping__{name}": value for name, value in first_is_best.items()}
    segmenter = fit_in(13.0, clock, cells, ("weights", weights), **parameters)
    assert segmenter.history[:, "train_batch_count"] == [5, 5, 3]
    assert_same_weights(weights.kept_[0], segmenter.module_)


class Losses(Callback):
    """Stands in for the losses of an epoch."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("other_loss", [3.0, 1.0, 2.0, 2.5, 2.0][len(net.history) - 1])


@pytest.mark.parametrize(("lower_is_better", "best"), [(None, 1), (True, 1), (False, 0)])
def test_of_a_loss_less_is_better(cells, lower_is_better, best):
    weights, stop = Weights(), {"monitor": "other_loss", "lower_is_better": lower_is_better, "patience": 3}
    parameters = {f"callbacks__early_stopping__{name}": value for name, value in stop.items()}
    parameters |= {"callbacks__early_stopping__loss": None, "max_epochs": 5}
    segmenter = make_segmenter(callbacks=[("losses", Losses()), ("weights", weights)], **parameters).fit(*cells)
    assert segmenter.n_iter_ == best + 4
    assert_same_weights(weights.kept_[best], segmenter.module_)


def test_partial_fit_has_the_whole_time_again(cells, clock):
    segmenter = fit_in(7.0, clock, cells)
    clock.now_ += 1000
    segmenter.partial_fit(*cells)
    assert segmenter.history[:, "train_batch_count"] == [5, 2, 5, 2]


def test_a_resumed_fit_has_what_is_left_of_the_time(cells, clock):
    limit = TimeLimit(10.0)
    make_segmenter(max_epochs=1, batch_size=2, callbacks=[clock, limit]).fit(*cells)
    state = limit.state_dict()
    assert state == {"elapsed": 5.0, "step": 1.0, "rest": 0.0}
    clock.now_ = 3.0  # another process, another clock
    resumed = TimeLimit(10.0)
    resumed.load_state_dict(state)
    clock.now_ += 1
    assert resumed.state_dict()["elapsed"] == 6.0
    assert pickle.loads(pickle.dumps(resumed)).elapsed_ == 6.0


def test_the_share_of_time_leaves_out_the_last_validation(cells, clock):
    clock.validation = 2.0
    shares = []

    class Shares(Callback):
        def on_batch_begin(self, net, training=False, **kwargs):
            if training:
                shares.append(net.time_share())

    fit_in(17.0, clock, cells, ("shares", Shares()))
    expected = [n / 17 for n in (0, 1)] + [n / 16.5 for n in (2, 3, 4)] + [n / 15 for n in (7, 8, 9, 10, 11, 14)]
    assert shares == pytest.approx(expected)


def test_the_limit_is_told_above_the_progress_bar(cells, clock, capsys):
    fit_in(7.0, clock, cells, verbose=1)
    assert "Stopping since the time limit of 7 seconds is reached." in capsys.readouterr().out


@pytest.mark.parametrize("seconds", [-1, 0, "10", None])
def test_a_limit_that_is_no_time_raises(cells, seconds):
    with pytest.raises(ValueError, match=rf"TimeLimit\.seconds must be a number of more than 0; got {seconds!r}"):
        make_segmenter(callbacks=[TimeLimit(seconds)]).fit(*cells)


@pytest.mark.parametrize("patience", ["3", -1, 0, 2.5, True])
def test_a_patience_that_counts_no_epochs_raises(cells, patience):
    with pytest.raises(ValueError, match=rf"EarlyStopping\.patience must be a whole number .* got {patience!r}"):
        make_segmenter(callbacks__early_stopping__patience=patience).fit(*cells)


def test_a_long_fit_ends_in_time(cells):
    begin = time.monotonic()
    segmenter = make_segmenter(max_epochs=100_000, callbacks=[TimeLimit(2)], callbacks__early_stopping=None).fit(*cells)
    assert 1.5 < time.monotonic() - begin < 20
    assert segmenter.n_iter_ > 1
