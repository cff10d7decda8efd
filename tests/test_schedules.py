import math

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from skorch.callbacks import Callback, LRScheduler
from torch.optim import lr_scheduler

from skunet.callbacks import EarlyStopping, LearningRateSchedule, TimeLimit


class Rates(Callback):
    """Keeps the learning rates of each training step."""

    def initialize(self):
        self.kept_ = []
        return self

    def on_grad_computed(self, net, **kwargs):
        self.kept_.append([group["lr"] for group in net.optimizer_.param_groups])


def rates_of(cells, *callbacks, **parameters):
    """Return the learning rates of each step, (steps, groups); 5 steps per epoch, 4 epochs."""
    rates = Rates()
    parameters = {"max_epochs": 4, "batch_size": 2, "lr": 0.1} | parameters
    segmenter = make_segmenter(**parameters, callbacks=[*callbacks, rates]).fit(*cells)
    return np.array(rates.kept_), segmenter


def rates_of_torch(policy, n_steps=20, **parameters):
    """Return what one of torch's schedules gives."""
    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    schedule = policy(optimizer, **parameters)
    rates = []
    for _ in range(n_steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


@pytest.mark.parametrize(
    ("schedule", "reference"),
    [
        ({"policy": "cosine"}, (lr_scheduler.CosineAnnealingLR, {"T_max": 20})),
        ({"policy": "cosine", "end": 0.1}, (lr_scheduler.CosineAnnealingLR, {"T_max": 20, "eta_min": 0.01})),
        ({"policy": "poly"}, (lr_scheduler.PolynomialLR, {"total_iters": 20, "power": 0.9})),
        ({"policy": "poly", "power": 2.0}, (lr_scheduler.PolynomialLR, {"total_iters": 20, "power": 2.0})),
        (
            {"policy": "linear", "end": 0.2},
            (lr_scheduler.LinearLR, {"start_factor": 1.0, "end_factor": 0.2, "total_iters": 20}),
        ),
        ({"policy": "constant", "end": 0.2}, (lr_scheduler.ConstantLR, {"factor": 1.0})),
        ({"policy": lambda progress: 1 + progress}, (lr_scheduler.LambdaLR, {"lr_lambda": lambda step: 1 + step / 20})),
    ],
)
def test_policies_are_those_of_torch(cells, schedule, reference):
    rates, segmenter = rates_of(cells, LearningRateSchedule(**schedule))
    policy, parameters = reference
    expected = rates_of_torch(policy, **parameters)
    np.testing.assert_allclose(rates[:, 0], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(segmenter.history[:, "event_lr"], expected[4::5], rtol=1e-9)
    assert all(type(rate) is float for rate in segmenter.history[:, "event_lr"])


def test_one_cycle_rises_for_three_tenths_and_falls_to_the_end(cells):
    rates, _ = rates_of(cells, LearningRateSchedule("one_cycle", end=0.01), lr=1.0)
    factors = rates[:, 0]
    assert factors[0] == pytest.approx(0.01 + 0.99 * 0.04)
    assert factors[6] == pytest.approx(1.0)
    assert (np.diff(factors[:7]) > 0).all()
    assert (np.diff(factors[6:]) < 0).all()
    assert factors[13] == pytest.approx(0.01 + 0.99 / 2)  # half way down
    assert factors[19] < 0.03


def test_warm_up_rises_in_a_line_from_the_first_step(cells):
    rates, _ = rates_of(cells, LearningRateSchedule("cosine", warmup=0.25), lr=1.0)
    # A quarter of 20 steps: one sixth more each step, until the whole rate at step 5.
    np.testing.assert_allclose(rates[:6, 0], np.arange(1, 7) / 6)
    left = (np.arange(5, 20) - 5) / 15
    np.testing.assert_allclose(rates[5:, 0], (1 + np.cos(math.pi * left)) / 2)


def test_warm_up_leads_to_where_the_policy_starts(cells):
    rates, _ = rates_of(cells, LearningRateSchedule("one_cycle", warmup=0.25), lr=1.0)
    assert rates[5, 0] == pytest.approx(0.04)
    assert (np.diff(rates[:11, 0]) > 0).all()


def test_groups_keep_the_ratio_of_their_rates(cells):
    groups = [("*weight", {"lr": 0.02})]
    rates, segmenter = rates_of(cells, LearningRateSchedule("linear"), optimizer__param_groups=groups)
    assert rates[0].tolist() == [0.02, 0.1]
    np.testing.assert_allclose(rates[:, 0] / rates[:, 1], 0.2)
    assert [group["lr"] for group in segmenter.optimizer_.param_groups] == [0.02, 0.1]  # as before


class SetsRate(Callback):
    """Sets a rate at the third epoch."""

    def __init__(self, name, value):
        self.name = name
        self.value = value

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            net.set_params(**{self.name: self.value})


# The second is what the schedule itself has set last by then.
@pytest.mark.parametrize("lr", [0.3, 0.1 * (1 - 9 / 20)])
def test_lr_is_live(cells, lr):
    rates, segmenter = rates_of(cells, LearningRateSchedule("linear"), SetsRate("lr", lr))
    np.testing.assert_allclose(rates[:10, 0], 0.1 * (1 - np.arange(10) / 20))
    np.testing.assert_allclose(rates[10:, 0], lr * (1 - np.arange(10, 20) / 20))
    assert segmenter.optimizer_.param_groups[0]["lr"] == lr


def test_the_rate_of_a_group_is_live(cells):
    setter = SetsRate("optimizer__param_groups__0__lr", 0.01)
    groups = [("*weight", {"lr": 0.02})]
    rates, _ = rates_of(cells, LearningRateSchedule("constant"), setter, optimizer__param_groups=groups)
    assert rates[9].tolist() == [0.02, 0.1]
    assert rates[10].tolist() == [0.01, 0.1]


def test_partial_fit_has_a_horizon_of_its_own(cells):
    rates, segmenter = rates_of(cells, LearningRateSchedule("linear"))
    kept = dict(segmenter.callbacks_)["Rates"].kept_
    segmenter.partial_fit(*cells)
    np.testing.assert_array_equal(kept[20:], rates)
    segmenter.set_params(lr=0.2).partial_fit(*cells)
    np.testing.assert_allclose(kept[40:], 2 * rates)


def test_the_horizon_is_of_batches_not_of_patches(cells):
    rates, _ = rates_of(cells, LearningRateSchedule("linear"), iterator_train__drop_last=True, batch_size=4, lr=1.0)
    np.testing.assert_allclose(rates[:, 0], 1 - np.arange(8) / 8)


def test_the_horizon_is_time_where_that_ends_first(cells, monkeypatch):
    now = [0.0]

    class Clock(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            now[0] += training

    monkeypatch.setattr("skunet.stopping.monotonic", lambda: now[0])
    parameters = {"lr": 1.0, "train_split": None, "batch_size": 3}
    schedule = LearningRateSchedule("linear", warmup=0.2)
    rates, _ = rates_of(cells, Clock(), TimeLimit(10), schedule, **parameters, max_epochs=1000)
    # Time counts after the first 2 % of it; until then, and in the first step, epochs do.
    step = 1 / 4000
    progress = np.append(0, (np.arange(1, 10) / 10 - 0.02) / 0.98)
    expected = np.where(progress < 0.2, (progress + step) / (0.2 + step), (1 - progress) / 0.8)
    np.testing.assert_allclose(rates[:, 0], expected)
    now[0] = 0.0
    rates, _ = rates_of(cells, Clock(), TimeLimit(1000), LearningRateSchedule("linear"), **parameters)
    np.testing.assert_allclose(rates[:, 0], 1 - np.arange(16) / 16)


def test_where_epochs_end_first_the_seconds_of_each_step_do_not_tell(cells, monkeypatch):
    parameters = {"lr": 1.0, "train_split": None, "batch_size": 3, "max_epochs": 4}
    found = []
    for delays in (iter([0.0] * 99), iter([9.0, *[0.5] * 98])):
        now = [0.0]

        class Clock(Callback):
            def on_batch_begin(self, net, training=False, now=now, delays=delays, **kwargs):
                now[0] += next(delays)

        monkeypatch.setattr("skunet.stopping.monotonic", lambda now=now: now[0])
        schedule = LearningRateSchedule("one_cycle", warmup=0.1)
        found.append(rates_of(cells, Clock(), TimeLimit(600), schedule, **parameters)[0])
    np.testing.assert_array_equal(*found)


def test_two_schedules_are_refused(cells):
    schedules = [LearningRateSchedule("linear"), LearningRateSchedule("cosine")]
    with pytest.raises(ValueError, match="callbacks must hold at most one LearningRateSchedule"):
        make_segmenter(callbacks=schedules).fit(*cells)


def test_the_horizon_is_the_number_of_epochs_that_fit_is_asked_for(cells):
    rates = []

    class Note(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            rates.append(net.optimizer_.param_groups[0]["lr"])

    parameters = {"lr": 1.0, "train_split": None, "batch_size": -1, "max_epochs": 100}
    make_segmenter(callbacks=[LearningRateSchedule("linear"), Note()], **parameters).partial_fit(*cells, epochs=4)
    np.testing.assert_allclose(rates, [1, 0.75, 0.5, 0.25])


class HandsOver(Callback):
    """Ends training after some epochs, and begins another where it ended."""

    def __init__(self, last=None, earlier=None):
        self.last = last
        self.earlier = earlier

    def on_train_begin(self, net, **kwargs):
        if self.earlier is None:
            return
        net.history_ = type(net.history)(self.earlier.history)
        net.module_.load_state_dict(self.earlier.module_.state_dict())
        net.optimizer_.load_state_dict(self.earlier.optimizer_.state_dict())
        for (_, callback), (_, other) in zip(net.callbacks_, self.earlier.callbacks_, strict=True):
            state = {name: value for name, value in vars(other).items() if name.endswith("_")}
            vars(callback).update(state)

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == self.last:
            raise KeyboardInterrupt


def test_a_fit_that_is_taken_up_again_has_the_same_rates(cells):
    schedule = {"policy": "cosine", "warmup": 0.3}
    whole, _ = rates_of(cells, LearningRateSchedule(**schedule), HandsOver(last=4))
    first, earlier = rates_of(cells, LearningRateSchedule(**schedule), HandsOver(last=2))
    second, _ = rates_of(cells, LearningRateSchedule(**schedule), HandsOver(last=4, earlier=earlier))
    assert len(first) == 10
    np.testing.assert_array_equal(second, whole)  # the callback that keeps rates was handed over too


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"policy": "cosin"}, r'policy must be one of "constant", .*, or a callable; got \'cosin\''),
        ({"warmup": 5}, "warmup must be a share of the horizon, at least 0 and less than 1; got 5"),
        ({"end": -1}, r"end must be a factor in 0\.\.1; got -1"),
        ({"power": 0}, "power must be a number greater than 0; got 0"),
        ({"policy": lambda progress: float("nan")}, "policy must return a finite factor of at least 0; got nan"),
    ],
)
def test_what_is_no_schedule_raises(cells, parameters, message):
    with pytest.raises(ValueError, match=rf"LearningRateSchedule\.{message}"):
        make_segmenter(callbacks=[LearningRateSchedule(**parameters)]).fit(*cells)


# ---- torch's schedules, by skorch's callback


def test_schedules_of_torch_work_by_epoch_and_by_batch(cells):
    rates, _ = rates_of(cells, LRScheduler(policy=lr_scheduler.StepLR, step_size=2, gamma=0.5))
    np.testing.assert_allclose(rates[:, 0], [0.1] * 10 + [0.05] * 10)
    rates, _ = rates_of(
        cells, LRScheduler(policy=lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=21, step_every="batch")
    )
    np.testing.assert_allclose(rates[:, 0], rates_of_torch(lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=21))


def test_the_rate_falls_when_the_validation_score_stays(cells):
    plateau = LRScheduler(
        policy=lr_scheduler.ReduceLROnPlateau, monitor="valid_iou", mode="max", patience=0, factor=0.5, threshold=10.0
    )
    rates, segmenter = rates_of(cells, plateau)
    # No score is ten times the first: the rate is halved after each epoch but the first.
    np.testing.assert_allclose(rates[::5, 0], [0.1, 0.1, 0.05, 0.025])
    assert len(segmenter.history[:, "event_lr"]) == 4


def test_early_stopping_ends_a_schedule(cells):
    stop = EarlyStopping(monitor="epoch", patience=2, lower_is_better=True)
    _, segmenter = rates_of(cells, LearningRateSchedule(), stop, max_epochs=10)
    assert segmenter.n_iter_ == 3
    assert segmenter.optimizer_.param_groups[0]["lr"] == 0.1


def test_plateau_needs_a_loss_to_judge(cells):
    off = {"callbacks__train_loss": None, "train_split": None}
    with pytest.raises(ValueError, match="must have a loss to judge"):
        make_segmenter(callbacks=[LearningRateSchedule("plateau")], **off).fit(*cells)


@pytest.mark.parametrize(("patience", "drop", "end"), [(0, 0.1, 0.0), (2, 0.5, 0.0), (1, 0.1, 0.05)])
@pytest.mark.parametrize("record", ["valid_loss", "train_loss"])
def test_plateau_is_that_of_torch(cells, patience, drop, end, record):
    losses = [5.0, 4.0, 4.0, 4.5, 3.0, 3.0, 3.0, 3.0, 3.1, 2.0, 2.0, 2.0, 2.0, 2.0]

    class Given(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record(record, losses[len(net.history) - 1])

    optimizer = torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)
    reference = lr_scheduler.ReduceLROnPlateau(
        optimizer, patience=patience, factor=drop, min_lr=0.1 * end, threshold=0, threshold_mode="abs", eps=0
    )
    expected = []
    for loss in losses:
        expected.append(optimizer.param_groups[0]["lr"])
        reference.step(loss)
    schedule = LearningRateSchedule("plateau", patience=patience, drop=drop, end=end)
    off = {"callbacks__train_loss": None, "callbacks__valid_loss": None, "callbacks__early_stopping": None}
    segmenter = make_segmenter(max_epochs=14, lr=0.1, callbacks=[Given(), schedule], **off).fit(*cells)
    assert segmenter.history[:, "event_lr"] == pytest.approx(expected)
