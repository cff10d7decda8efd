import os
import pickle
import signal

import pytest
import torch
from conftest import make_segmenter
from skorch.callbacks import Callback

from skunet.callbacks import EarlyStopping, WeightAveraging
from skunet.metrics import iou_score
from skunet.splits import hold_out


def weights_of(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(one, other, *, exactly=True):
    assert list(one) == list(other)
    for name, value in one.items():
        if exactly or not value.is_floating_point():
            assert torch.equal(value, other[name]), name
        else:
            torch.testing.assert_close(value, other[name], rtol=1e-5, atol=1e-6)


class Weights(Callback):
    """Keeps the weights after each training step, and those at the end of each epoch."""

    def initialize(self):
        self.steps_, self.epochs_ = [], []
        return self

    def on_train_begin(self, net, **kwargs):
        self.first_ = weights_of(net.module_)

    def on_batch_end(self, net, training=False, **kwargs):
        if training:
            self.steps_.append(weights_of(net.module_))

    def on_epoch_end(self, net, **kwargs):
        self.epochs_.append(weights_of(net.module_))


def averaged(cells, *callbacks, decay=0.9, **parameters):
    """Return a segmenter fitted with averaging, its averaging callback, and the weights that were seen."""
    averaging, weights = WeightAveraging(decay), Weights()
    parameters = {"max_epochs": 4, "lr": 0.05, "callbacks__early_stopping": None} | parameters
    callbacks = [("weights", weights), *callbacks, ("averaging", averaging)]
    return make_segmenter(**parameters, callbacks=callbacks).fit(*cells), averaging, weights


def average_by_hand(first, steps, decay):
    average = {name: value.double() for name, value in first.items()}
    for t, step in enumerate(steps):
        d = min(decay, (1 + t) / (10 + t))
        for name, value in step.items():
            average[name] = d * average[name] + (1 - d) * value.double() if value.is_floating_point() else value
    return {name: value.to(first[name].dtype) for name, value in average.items()}


@pytest.mark.parametrize("decay", [0.3, 0.999])
def test_the_average_is_that_by_hand(cells, decay):
    segmenter, averaging, weights = averaged(cells, decay=decay)
    assert len(weights.steps_) == averaging.n_averaged_ == 12
    for epoch, state in enumerate(weights.epochs_):
        by_hand = average_by_hand(weights.first_, weights.steps_[: 3 * (epoch + 1)], decay)
        assert_same(state, by_hand, exactly=False)
    assert_same(weights_of(segmenter.module_), weights.epochs_[-1])
    assert_same(averaging.raw_weights_, weights.steps_[-1])
    assert_same(averaging.average_, weights.epochs_[-1])


def test_training_goes_on_from_the_raw_weights(cells):
    _, _, weights = averaged(cells)
    plain = Weights()
    make_segmenter(max_epochs=4, lr=0.05, callbacks__early_stopping=None, callbacks=[plain]).fit(*cells)
    for one, other in zip(weights.steps_, plain.steps_, strict=True):
        assert_same(one, other)


def test_validation_sees_the_average(cells):
    X, y = cells
    segmenter, _, _ = averaged(cells, train_split=0.5, max_epochs=2)
    _, valid = hold_out(len(X), 0.5, groups=None, seed=0)
    expected = iou_score(y[valid], segmenter.predict(X[valid]))
    assert segmenter.history[-1, "valid_iou"] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("validated", [0.2, None])
def test_the_best_average_is_restored_whatever_the_order_of_callbacks(cells, is_first, validated):
    stop = EarlyStopping(monitor="event", lower_is_better=True, patience=2)
    averaging, weights = WeightAveraging(0.9), Weights()

    class Event(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.history.record("event", abs(len(net.history) - 2))

    ordered = [stop, averaging] if is_first else [averaging, stop]
    segmenter = make_segmenter(max_epochs=6, lr=0.05, train_split=validated, callbacks=[weights, Event(), *ordered])
    segmenter.fit(*cells)
    assert segmenter.n_iter_ == 4
    assert_same(weights_of(segmenter.module_), weights.epochs_[1])
    by_hand = average_by_hand(weights.first_, weights.steps_[: len(weights.steps_) // 2], 0.9)
    assert_same(weights.epochs_[1], by_hand, exactly=False)


def test_partial_fit_goes_on_behind_the_average(cells):
    _, _, whole = averaged(cells)
    segmenter, _, parts = averaged(cells, max_epochs=2)
    segmenter.partial_fit(*cells)
    for one, other in zip(parts.steps_ + parts.epochs_, whole.steps_ + whole.epochs_, strict=True):
        assert_same(one, other)


def test_a_pickled_segmenter_goes_on_behind_the_average(cells):
    _, _, whole = averaged(cells)
    segmenter, _, _ = averaged(cells, max_epochs=2)
    segmenter = pickle.loads(pickle.dumps(segmenter)).partial_fit(*cells)
    assert_same(weights_of(segmenter.module_), whole.epochs_[-1])


def test_a_fit_that_is_taken_up_again_goes_on_behind_the_average(cells):
    class TakesUp(Callback):
        def on_train_begin(self, net, **kwargs):
            net.history_ = type(net.history)(earlier.history)
            net.module_.load_state_dict(earlier.module_.state_dict())
            net.optimizer_.load_state_dict(earlier.optimizer_.state_dict())
            averaging = dict(net.callbacks_)["averaging"]
            for name, value in state.items():  # as from a file, which knows nothing of memory layouts
                tensors = isinstance(value, dict)
                copies = (
                    {key: tensor.clone(memory_format=torch.contiguous_format) for key, tensor in value.items()}
                    if tensors
                    else value
                )
                setattr(averaging, name, copies)

    _, _, whole = averaged(cells)
    earlier, averaging, _ = averaged(cells, max_epochs=2)
    state = {name: value for name, value in vars(averaging).items() if name.endswith("_")}
    resumed, _, _ = averaged(cells, ("again", TakesUp()), max_epochs=2)
    assert_same(weights_of(resumed.module_), whole.epochs_[-1])


def test_weights_that_others_put_in_place_are_trained_on_and_averaged_anew(cells, tmp_path):
    segmenter, averaging, weights = averaged(cells, max_epochs=2)
    segmenter.save_params(f_params=tmp_path / "weights.pt")
    segmenter.partial_fit(*cells)
    segmenter.load_params(f_params=tmp_path / "weights.pt")
    segmenter.partial_fit(*cells)
    assert averaging.n_averaged_ == 6
    by_hand = average_by_hand(weights.epochs_[1], weights.steps_[12:], 0.9)
    assert_same(weights_of(segmenter.module_), by_hand, exactly=False)


def test_a_new_fit_begins_a_new_average(cells):
    once, _, _ = averaged(cells, max_epochs=2)
    twice, averaging, _ = averaged(cells, max_epochs=2)
    twice.fit(*cells)
    assert averaging.n_averaged_ == 6
    assert_same(weights_of(twice.module_), weights_of(once.module_))


def test_ctrl_c_leaves_the_average(cells):
    class CtrlC(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            if training and len(net.history) == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.warns(UserWarning, match="interrupted in epoch 2"):
        segmenter, averaging, weights = averaged(cells, ("interrupt", CtrlC()))
    assert_same(averaging.raw_weights_, weights.steps_[-1])
    assert_same(weights_of(segmenter.module_), averaging.average_)
    n_averaged = averaging.n_averaged_
    by_hand = average_by_hand(weights.first_, weights.steps_[:n_averaged], 0.9)
    assert_same(averaging.average_, by_hand, exactly=False)


def test_a_decay_out_of_range_raises(cells):
    with pytest.raises(ValueError, match=r"WeightAveraging\.decay must be at least 0 and less than 1; got 1"):
        averaged(cells, decay=1)


@pytest.mark.parametrize("given", [WeightAveraging(0.5), ("mine", WeightAveraging(0.5)), ("mine", WeightAveraging)])
def test_one_that_is_given_takes_the_place_of_the_default(cells, given):
    segmenter = make_segmenter(callbacks=[given]).fit(*cells)
    assert len(segmenter.callbacks_of(WeightAveraging)) == 1
