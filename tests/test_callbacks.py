import io
import json
import os
import signal
import sys

import numpy as np
import pytest
import skorch.callbacks
import torch
from conftest import make_segmenter
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from tqdm.auto import tqdm

from skunet import UNetSegmenter
from skunet.callbacks import EarlyStopping, IoUScoring, WeightAveraging
from skunet.metrics import iou_score
from skunet.splits import hold_out


class Scores(Callback):
    """Pretends that validation went as told."""

    def __init__(self, scores=(), name="told"):
        self.scores = scores
        self.name = name

    def on_epoch_end(self, net, **kwargs):
        net.history.record(self.name, self.scores[len(net.history) - 1])


class Weights(Callback):
    """Keeps the weights after each epoch."""

    def initialize(self):
        self.kept_ = []
        return self

    def on_epoch_end(self, net, **kwargs):
        self.kept_.append({name: value.clone() for name, value in net.module_.state_dict().items()})


def same_state(state, module):
    return all(torch.equal(state[name], value) for name, value in module.state_dict().items())


def test_iou_comes_from_one_matrix_over_all_validation_images(cells):
    X, y = cells
    _, valid = hold_out(len(X), 0.5, groups=None, seed=0)
    scores = []
    for batch_size in (1, 2, 6):
        segmenter = make_segmenter(train_split=0.5, iterator_valid__batch_size=batch_size).fit(X, y)
        scores.append(segmenter.history[-1, "valid_iou"])
        assert scores[-1] == pytest.approx(iou_score(y[valid], segmenter.predict(X[valid])), abs=1e-9)
        assert isinstance(scores[-1], float)
    assert len(set(scores)) == 1


def test_weights_count_in_the_validation_score(cells):
    X, y = cells
    weights = np.ones(y.shape)
    weights[:, :, 16:] = 0
    segmenter = make_segmenter(train_split=0.5).fit(X, y, sample_weight=weights)
    _, valid = hold_out(len(X), 0.5, groups=None, seed=0)
    expected = iou_score(y[valid], segmenter.predict(X[valid]), sample_weight=weights[valid])
    assert segmenter.history[-1, "valid_iou"] == pytest.approx(expected)


def test_early_stopping_restores_the_best_weights(cells):
    X, y = cells
    weights = Weights()
    segmenter = make_segmenter(
        max_epochs=20,
        callbacks=[
            ("told", Scores([0.1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0])),
            ("weights", weights),
            ("stop", EarlyStopping(monitor="told", patience=3)),
        ],
    ).fit(X, y)
    assert segmenter.n_iter_ == 5
    assert same_state(weights.kept_[1], segmenter.module_)


def test_a_falling_loss_gives_more_time_and_does_not_change_what_is_best(cells):
    weights = Weights()
    segmenter = make_segmenter(
        max_epochs=20,
        callbacks=[
            ("told", Scores([0.5, 0.4, 0.3, 0.2, 0.1, 0.1, 0.1, 0.1])),
            ("loss", Scores([9, 8, 7, 6, np.nan, 6, 6.5, 6], name="loss")),
            ("weights", weights),
            ("stop", EarlyStopping(monitor="told", patience=3, loss="loss")),
        ],
    ).fit(*cells)
    assert segmenter.n_iter_ == 7
    assert same_state(weights.kept_[0], segmenter.module_)


def test_by_default_training_goes_on_while_the_validation_loss_falls(cells):
    segmenter = make_segmenter(callbacks__early_stopping__patience=3, max_epochs=1).fit(*cells)
    stopping = dict(segmenter.callbacks_)["early_stopping"]
    assert (stopping.monitor, stopping.loss) == ("valid_iou", "valid_loss")


def test_the_best_weights_are_kept_also_when_training_runs_to_its_end(cells):
    X, y = cells
    weights = Weights()
    segmenter = make_segmenter(max_epochs=6, lr=0.05, callbacks=[("weights", weights)]).fit(X, y)
    best = int(np.argmax(segmenter.history[:, "valid_iou"]))
    assert same_state(weights.kept_[best], segmenter.module_)


def test_defaults_can_be_switched_off_and_set_by_name(cells):
    X, y = cells
    segmenter = make_segmenter(callbacks__early_stopping=None, callbacks__iou=None).fit(X, y)
    assert "early_stopping" not in dict(segmenter.callbacks_)
    assert "valid_iou" not in segmenter.history[-1]
    segmenter = make_segmenter(callbacks__early_stopping__patience=3).fit(X, y)
    assert dict(segmenter.callbacks_)["early_stopping"].patience == 3
    names = [name for name, _ in segmenter.callbacks_]
    assert names == [
        *("epoch_timer", "train_loss", "valid_loss", "iou", "averaging", "progress", "early_stopping", "print_log")
    ]


def test_a_callback_that_is_not_there_raises(cells):
    with pytest.raises(ValueError, match=r"one of \['epoch_timer', .*got \['earlystop'\]"):
        make_segmenter(callbacks__earlystop=None).fit(*cells)


def test_without_validation_they_keep_silent(cells):
    X, y = cells
    segmenter = make_segmenter(train_split=None, max_epochs=2).fit(X, y)
    assert segmenter.n_iter_ == 2


# ---- what is printed


def test_verbose_0_prints_nothing(cells, capfd):
    X, y = cells
    make_segmenter().fit(X, y).predict(X)
    assert capfd.readouterr() == ("", "")


def test_verbose_1_prints_a_line_per_epoch(cells, capfd):
    X, y = cells
    make_segmenter(verbose=1, max_epochs=2).fit(X, y)
    out, err = capfd.readouterr()
    lines = out.strip().splitlines()
    assert len(lines) == 4
    assert all(name in lines[0] for name in ("epoch", "train_loss", "valid_iou", "valid_loss", "dur"))
    assert err == ""  # no bar where there is no terminal


class EagerBar(tqdm):
    """Is drawn anew at every batch, however fast they are."""

    def __init__(self, *args, **parameters):
        super().__init__(*args, mininterval=0, **parameters)


def test_a_terminal_gets_a_bar_with_loss_iou_rate_and_time_left(cells, monkeypatch):
    X, y = cells
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr("skunet.progress.tqdm", EagerBar)
    make_segmenter(verbose=1, max_epochs=3, callbacks__print_log=None).fit(X, y)
    text = terminal.getvalue()
    for part in ("loss=", "IoU=", "patch/s", "/30", "<"):
        assert part in text


# ---- Ctrl-C


class CtrlC(Callback):
    """Sends the signal that Ctrl-C sends, in the second epoch."""

    def on_batch_end(self, net, training=False, **kwargs):
        if training and len(net.history) == 2:
            os.kill(os.getpid(), signal.SIGINT)


class StopsByItself(Callback):
    """Ends training as skorch's callbacks do."""

    def on_epoch_end(self, net, **kwargs):
        raise KeyboardInterrupt


def test_ctrl_c_keeps_what_was_learned_and_says_so(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=5, callbacks=[CtrlC()])
    with pytest.warns(UserWarning, match="interrupted in epoch 2; what was learned until then is kept"):
        segmenter.fit(X, y)
    assert segmenter.n_iter_ == 1
    assert segmenter.predict(X).shape == X.shape


def test_ctrl_c_stops_a_search(cells):
    X, y = cells
    with pytest.raises(KeyboardInterrupt):
        GridSearchCV(make_segmenter(max_epochs=3, callbacks=[CtrlC()]), {"filters": [2, 4]}, cv=2).fit(X, y)


def test_callbacks_that_stop_training_stop_only_their_fit(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=5, callbacks=[StopsByItself()])
    assert segmenter.fit(X, y).n_iter_ == 1
    search = GridSearchCV(segmenter, {"filters": [2, 4]}, cv=2, error_score="raise").fit(X, y)
    assert len(search.cv_results_["mean_test_score"]) == 2
    stopper = skorch.callbacks.EarlyStopping(monitor="train_loss", patience=1, threshold=10)
    assert make_segmenter(max_epochs=9, callbacks=[stopper]).fit(X, y).n_iter_ < 9


def test_scores_survive_a_batch_of_ignored_pixels(cells):
    X, y = cells
    y = y.astype(np.int64)
    y[:] = np.where(np.arange(len(y))[:, None, None] % 2, y, 5)
    segmenter = make_segmenter(ignore_label=5, iterator_valid__batch_size=1, train_split=0.5).fit(X, y)
    assert np.isfinite(segmenter.history[-1, "valid_iou"])
    assert isinstance(dict(segmenter.callbacks_)["iou"], IoUScoring)


# ---- how callbacks are given


@pytest.mark.parametrize(
    "callbacks", [["early_stopping"], [3], (IoUScoring(),), [("a", "b", "c")], [(3, IoUScoring())]]
)
def test_what_is_no_list_of_callbacks_is_refused(cells, callbacks):
    with pytest.raises(ValueError, match=r"callbacks must be None, .* or a list of callbacks"):
        make_segmenter(callbacks=callbacks).fit(*cells)


def test_the_name_of_a_default_callback_is_refused_with_the_way_to_replace_it(cells):
    with pytest.raises(ValueError, match="duplicate user-set callback name 'iou'") as caught:
        make_segmenter(callbacks=[("iou", IoUScoring(per_class=True))]).fit(*cells)
    assert "pass callbacks__NAME=... to replace one" in caught.value.__notes__[0]
    segmenter = make_segmenter(callbacks__iou=IoUScoring(per_class=True)).fit(*cells)
    assert "valid_iou_1" in segmenter.history[-1]


def test_callbacks_set_on_a_fitted_segmenter_act_in_what_follows(cells):
    segmenter = make_segmenter(callbacks__early_stopping__patience=7).fit(*cells)
    weights = Weights()
    segmenter.set_params(callbacks=[weights], callbacks__early_stopping__monitor="valid_loss").partial_fit(*cells)
    assert len(dict(segmenter.callbacks_)["Weights"].kept_) == 1
    stopping = dict(segmenter.callbacks_)["early_stopping"]
    assert (stopping.patience, stopping.monitor) == (7, "valid_loss")


class Reporter(Callback):
    """Keeps the weights that it finds when training ends."""

    def on_train_end(self, net, **kwargs):
        self.found_ = {name: value.clone() for name, value in net.module_.state_dict().items()}


def test_callbacks_hear_of_the_end_when_the_best_weights_are_back(cells):
    reporter, weights = Reporter(), Weights()
    segmenter = make_segmenter(max_epochs=6, lr=0.05, callbacks=[reporter, weights]).fit(*cells)
    assert not same_state(weights.kept_[-1], segmenter.module_)
    assert same_state(reporter.found_, segmenter.module_)


def test_a_callback_that_takes_the_place_of_another_is_ready(cells):
    segmenter = make_segmenter().fit(*cells)
    averaging = WeightAveraging(0.5)
    segmenter.set_params(callbacks__averaging=averaging).partial_fit(*cells)
    assert dict(segmenter.callbacks_)["averaging"] is averaging
    segmenter.set_params(callbacks__averaging=None).partial_fit(*cells)
    assert "averaging" not in dict(segmenter.callbacks_)


def test_schedulers_of_torch_go_on_with_a_segmenter_from_a_file(cells, tmp_path):
    make_segmenter(max_epochs=3).fit(*cells).save(tmp_path / "model")
    schedule = LRScheduler(policy=torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1)
    segmenter = UNetSegmenter.load(tmp_path / "model", callbacks=[schedule])
    assert segmenter.partial_fit(*cells).n_iter_ == 6


def test_scores_of_training_patches_may_take_probabilities(cells):
    def surest(y, probabilities):
        return probabilities.max()

    scoring = EpochScoring(make_scorer(surest, response_method="predict_proba"), on_train=True, name="surest")
    segmenter = make_segmenter(callbacks=[scoring]).fit(*cells)
    assert 0.5 < segmenter.history[-1, "surest"] <= 1


def test_a_criterion_with_weights_draws_them_from_the_seed_of_the_fit(cells):
    class Mixed(torch.nn.CrossEntropyLoss):
        def __init__(self):
            super().__init__()
            self.mixing = torch.nn.Linear(2, 2)

    before = torch.get_rng_state()
    one, other = (make_segmenter(criterion=Mixed, max_epochs=0).fit(*cells) for _ in range(2))
    assert torch.equal(one.criterion_.mixing.weight, other.criterion_.mixing.weight)
    assert torch.equal(torch.get_rng_state(), before)


class ReadsLosses(Callback):
    """Asks for losses while batches pass, in the ways that skorch's history knows."""

    def on_batch_end(self, net, training=False, **kwargs):
        if not training:
            return
        row = net.history[-1, "batches", -1]
        self.was_read_early_ = not isinstance(dict.get(row, "train_loss"), torch.Tensor)
        self.losses_ = [row["train_loss"], row.get("train_loss"), *net.history[-1, "batches", -1:, "train_loss"]]
        self.missing_ = row.get("valid_loss", "none")
        self.as_json_ = json.loads(json.dumps(net.history))[-1]["batches"][-1]
        self.as_dict_ = dict(net.history[-1, "batches", -1])


def test_losses_of_batches_are_read_when_somebody_asks_and_are_plain_numbers_afterwards(cells, tmp_path):
    X, y = cells
    reads = ReadsLosses()
    segmenter = make_segmenter(max_epochs=1, callbacks=[reads]).fit(X, y)
    last = [row for row in segmenter.history[-1, "batches"] if "train_loss" in row][-1]
    assert not reads.was_read_early_
    assert reads.missing_ == "none"
    assert reads.as_json_["train_loss"] == reads.as_dict_["train_loss"] == last["train_loss"]
    assert reads.losses_ == [last["train_loss"]] * 3
    assert {type(row) for row in segmenter.history[-1, "batches"]} == {dict}
    assert all(isinstance(loss, float) for loss in reads.losses_)
    segmenter.history.to_file(tmp_path / "history.json")


def test_an_interrupted_epoch_leaves_plain_numbers_too(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=5, callbacks=[CtrlC()])
    with pytest.warns(UserWarning, match="interrupted"):
        segmenter.fit(X, y)
    assert {type(row) for row in segmenter.history[-1]["batches"]} == {dict}
