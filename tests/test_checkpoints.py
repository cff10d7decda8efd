import json
import multiprocessing
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import EpochScoring, Freezer, LRScheduler, TensorBoard
from torch.optim import lr_scheduler

from skunet import UNetSegmenter
from skunet.callbacks import (
    Checkpoint,
    EarlyStopping,
    LearningRateSchedule,
    ProgressBar,
    Resume,
    TimeLimit,
    WeightAveraging,
)
from skunet.datasets import make_cells
from skunet.state_file import read_state

FILES = {"run.json", "run.lock", "training.safetensors", "best.safetensors"}


def resumable(folder, *callbacks, **parameters):
    """Return a segmenter with dropout, momentum and files, so that there is much to restore."""
    return make_segmenter(
        **{"max_epochs": 10, "module__dropout": 0.3, "lr": 0.01} | parameters,
        callbacks=[Checkpoint(folder), *callbacks, Resume(folder)],
    )


def assert_same_training(one, other):
    """Weights, optimizer and history agree bit for bit."""
    for name, value in one.module_.state_dict().items():
        assert torch.equal(value, other.module_.state_dict()[name]), name
    states = [net.optimizer_.state_dict() for net in (one, other)]
    assert str(states[0]["param_groups"]) == str(states[1]["param_groups"])
    for index, state in states[0]["state"].items():
        for name, value in state.items():
            assert torch.equal(value, states[1]["state"][index][name]), name
    for mine, theirs in zip(one.history, other.history, strict=True):
        assert {**mine, "dur": 0} == {**theirs, "dur": 0}


SCHEDULES = {
    "constant": list,
    "step": lambda: [LRScheduler(policy=lr_scheduler.StepLR, step_size=3)],
    "milestones": lambda: [LRScheduler(policy=lr_scheduler.MultiStepLR, milestones=[2, 6])],
    "cosine": lambda: [LRScheduler(policy=lr_scheduler.CosineAnnealingLR, T_max=10)],
    "restarts": lambda: [LRScheduler(policy=lr_scheduler.CosineAnnealingWarmRestarts, T_0=4)],
    "plateau": lambda: [LRScheduler(policy=lr_scheduler.ReduceLROnPlateau, monitor="valid_loss", patience=0)],
    "one cycle": lambda: [LRScheduler(policy=lr_scheduler.OneCycleLR, max_lr=0.01, total_steps=30, step_every="batch")],
    "own": lambda: [LearningRateSchedule("one_cycle", warmup=0.2)],
    "averaging": lambda: [WeightAveraging(0.9)],
    "stopping": lambda: [EarlyStopping(monitor="valid_loss", lower_is_better=True, patience=4)],
    "scoring": lambda: [EpochScoring(_score, lower_is_better=False, name="other")],
}


def _score(net, X, y):
    return net.score(X, y)


class Crash(ProgressBar):
    """Fails in the midst of an epoch."""

    def __init__(self, epoch=None):
        self.epoch = epoch

    def on_batch_end(self, net, **kwargs):
        if len(net.history) == self.epoch:
            raise RuntimeError("the power is gone")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ten_epochs_equal_five_and_five_resumed(cells, tmp_path, schedule):
    X, y = cells
    whole = resumable(tmp_path / "whole", *SCHEDULES[schedule](), Crash()).fit(X, y)
    # The horizon of a schedule is max_epochs: the first part must know of all ten.
    first = resumable(tmp_path / "parts", *SCHEDULES[schedule](), Crash(6))
    with pytest.raises(RuntimeError, match="power"):
        first.fit(X, y)
    torch.manual_seed(99)  # what a new process has in its generators is of no matter
    second = resumable(tmp_path / "parts", *SCHEDULES[schedule](), Crash()).fit(X, y)
    assert second.n_iter_ == whole.n_iter_
    assert_same_training(second, whole)
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["run-0001"]


def test_max_epochs_is_the_total(cells, tmp_path):
    X, y = cells
    assert resumable(tmp_path, max_epochs=2).fit(X, y).n_iter_ == 2
    longer = resumable(tmp_path, max_epochs=5).fit(X, y)
    assert longer.n_iter_ == 5
    assert_same_training(longer, resumable(tmp_path / "other", max_epochs=5).fit(X, y))


def test_a_complete_run_is_restored_without_training(cells, tmp_path):
    X, y = cells
    first = resumable(tmp_path, EarlyStopping(patience=2), max_epochs=30, lr=0.05).fit(X, y)
    assert first.n_iter_ < 30
    again = resumable(tmp_path, EarlyStopping(patience=2), max_epochs=30, lr=0.05).fit(X, y)
    assert_same_training(again, first)
    np.testing.assert_array_equal(again.predict_proba(X), first.predict_proba(X))


def test_without_a_seed_a_run_goes_on_with_the_one_that_was_drawn(cells, tmp_path):
    X, y = cells
    first = resumable(tmp_path, random_state=None, max_epochs=2).fit(X, y)
    second = resumable(tmp_path, random_state=None, max_epochs=4).fit(X, y)
    assert second.seed_ == first.seed_
    whole = resumable(tmp_path / "other", random_state=first.seed_, max_epochs=4).fit(X, y)
    assert_same_training(second, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lr": 0.02}, "lr was 0.01, is 0.02"),
        ({"module__dropout": 0.5}, "module__dropout was 0.3, is 0.5"),
        ({"optimizer": torch.optim.SGD}, "optimizer was 'torch.optim.adamw.AdamW', is 'torch.optim.sgd.SGD'"),
        ({"precision": "bfloat16"}, "precision was 'float32', is 'bfloat16'"),
        ({"callbacks__early_stopping__patience": 3}, "callbacks.early_stopping.patience was 15, is 3"),
    ],
)
def test_other_parameters_are_refused(cells, tmp_path, change, message):
    X, y = cells
    resumable(tmp_path, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match=f"Resume must find a run of the same parameters and data; got .*{message}"):
        resumable(tmp_path, **({"max_epochs": 1} | change)).fit(X, y)


@pytest.mark.parametrize(
    "change",
    [
        lambda X, y: (X[::-1], y),
        lambda X, y: (X[:11], y[:11]),
        lambda X, y: (X, np.roll(y, 1, axis=1)),
        lambda X, y: (X, y * np.uint8(255)),
    ],
)
def test_other_data_are_refused(cells, tmp_path, change):
    X, y = cells
    resumable(tmp_path, max_epochs=1).fit(X, y)
    with pytest.raises(ValueError, match=r"same parameters and data; got .*run-0001: data\."):
        resumable(tmp_path, max_epochs=1).fit(*change(X, y))


def test_other_weights_and_groups_are_refused(cells, tmp_path):
    X, y = cells
    groups = np.arange(12) // 2
    resumable(tmp_path, max_epochs=1).fit(X, y, groups=groups)
    with pytest.raises(ValueError, match=r"data\.groups was "):
        resumable(tmp_path, max_epochs=1).fit(X, y, groups=groups // 2)
    resumable(tmp_path, max_epochs=2).fit(X, y, groups=groups)


def test_what_only_shows_or_speeds_up_training_may_differ(cells, tmp_path):
    X, y = cells
    resumable(tmp_path, max_epochs=1).fit(X, y)
    change = {"iterator_train__num_workers": 1, "tile_size": 16, "callbacks__print_log": None}
    assert resumable(tmp_path, max_epochs=2, **change).fit(X, y).n_iter_ == 2


def test_damaged_files_are_refused(cells, tmp_path):
    X, y = cells
    resumable(tmp_path, max_epochs=1).fit(X, y)
    path = tmp_path / "run-0001" / "training.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"training\.safetensors is cut short"):
        resumable(tmp_path, max_epochs=2).fit(X, y)


def test_partial_fit_does_not_go_back(cells, tmp_path):
    X, y = cells
    segmenter = resumable(tmp_path, max_epochs=2).fit(X, y)
    assert segmenter.partial_fit(X, y).n_iter_ == 4
    assert resumable(tmp_path / "first").partial_fit(X, y, epochs=1).n_iter_ == 1
    segmenter.set_params(callbacks__early_stopping__patience=3)  # which makes all callbacks anew
    assert segmenter.partial_fit(X, y, epochs=1).n_iter_ == 5


@pytest.mark.parametrize("method", ["partial_fit", "fit"])
def test_training_that_goes_on_from_other_weights_is_never_resumed(cells, tmp_path, method):
    X, y = cells
    segmenter = make_segmenter(max_epochs=1).fit(X, y)
    segmenter.set_params(callbacks=[Checkpoint(tmp_path), Resume(tmp_path)], warm_start=True, max_epochs=2)
    getattr(segmenter, method)(255 - X, 1 - y)
    getattr(segmenter, method)(X, y)
    fresh = make_segmenter(max_epochs=2, callbacks=[Checkpoint(tmp_path), Resume(tmp_path)]).fit(X, y)
    assert_same_training(fresh, make_segmenter(max_epochs=2).fit(X, y))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_run_longer_than_max_epochs_is_refused_and_in_a_search_begins_anew(cells, tmp_path):
    X, y = cells
    resumable(tmp_path, max_epochs=3).fit(X, y)
    with pytest.raises(ValueError, match=r"max_epochs must be at least the 3 epochs of the run to resume, .*; got 2"):
        resumable(tmp_path, max_epochs=2).fit(X, y)
    grid, scores = {"max_epochs": [6, 1]}, []
    for folder in (tmp_path / "a", tmp_path / "b"):
        segmenter = resumable(folder) if folder.name == "a" else make_segmenter(module__dropout=0.3, lr=0.01)
        search = GridSearchCV(segmenter, grid, cv=2, error_score="raise", refit=False).fit(X, y)
        scores.append(search.cv_results_["mean_test_score"])
    np.testing.assert_array_equal(*scores)


def test_a_schedule_fixes_the_number_of_epochs_and_the_time(cells, tmp_path):
    X, y = cells
    resumable(tmp_path, LearningRateSchedule("cosine"), TimeLimit(60), max_epochs=2).fit(X, y)
    with pytest.raises(ValueError, match="max_epochs was 2, is 4"):
        resumable(tmp_path, LearningRateSchedule("cosine"), TimeLimit(60), max_epochs=4).fit(X, y)
    with pytest.raises(ValueError, match=r"callbacks\.TimeLimit\.seconds was 60, is 90"):
        resumable(tmp_path, LearningRateSchedule("cosine"), TimeLimit(90), max_epochs=2).fit(X, y)


def test_a_run_that_another_fit_writes_is_left_to_it(cells, tmp_path):
    X, y = cells

    class Second(ProgressBar):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 2:
                assert resumable(tmp_path, Crash(), max_epochs=1).fit(X, y).n_iter_ == 1

    resumable(tmp_path, Second(), max_epochs=3).fit(X, y)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run-0001", "run-0002"]
    assert len(read_state(tmp_path / "run-0001" / "training.safetensors", kind="training")["history"]) == 3

    class Same(ProgressBar):
        def on_epoch_begin(self, net, **kwargs):
            make_segmenter(callbacks=[Checkpoint(tmp_path, run="mine")]).fit(X, y)

    with pytest.raises(RuntimeError, match="mine is being written to by another fit"):
        make_segmenter(callbacks=[Checkpoint(tmp_path, run="mine"), Same()]).fit(X, y)


def test_files_that_are_no_runs_are_passed_over(cells, tmp_path):
    X, y = cells
    for name, text in (("a", "[1]"), ("b", "{}")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.json").write_text(text)
    assert resumable(tmp_path, max_epochs=1).fit(X, y).n_iter_ == 1


def test_resume_without_the_checkpoint_to_resume_from_is_refused(cells, tmp_path):
    for callbacks in ([], [Checkpoint(tmp_path / "other")], [Checkpoint(tmp_path), Checkpoint(tmp_path)]):
        with pytest.raises(ValueError, match=r"Resume\.dirname must be that of the one Checkpoint"):
            make_segmenter(callbacks=[*callbacks, Resume(tmp_path)]).fit(*cells)
    assert list(tmp_path.iterdir()) == []


def test_a_random_state_object_and_odd_values_can_be_described(cells, tmp_path):
    def fit(max_epochs):
        note = ProgressBar()
        note.path, note.kind = tmp_path, torch.float32
        return resumable(tmp_path, ("note", note), random_state=np.random.RandomState(3), max_epochs=max_epochs).fit(
            *cells
        )

    fit(1)
    assert fit(2).n_iter_ == 2
    assert len(list(tmp_path.iterdir())) == 1


# ---- what is written


def test_the_best_segmenter_is_there_for_load(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(max_epochs=6, lr=0.05, callbacks=[Checkpoint(tmp_path)]).fit(X, y)
    folder = tmp_path / "run-0001"
    assert {path.name for path in folder.iterdir()} == FILES
    best = UNetSegmenter.load(folder / "best.safetensors")
    np.testing.assert_array_equal(best.predict_proba(X), segmenter.predict_proba(X))
    assert best.n_iter_ == int(np.argmax(segmenter.history[:, "valid_iou"])) + 1
    assert json.loads((folder / "run.json").read_text())["parameters"]["filters"] == 4


def test_without_validation_the_last_epoch_is_written(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(max_epochs=3, train_split=None, callbacks=[Checkpoint(tmp_path)]).fit(X, y)
    best = UNetSegmenter.load(tmp_path / "run-0001" / "best.safetensors")
    np.testing.assert_array_equal(best.predict(X), segmenter.predict(X))


def test_where_training_goes_on_the_best_is_that_of_the_call(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(max_epochs=8, lr=0.05).fit(X, y)
    segmenter.set_params(callbacks=[Checkpoint(tmp_path)], max_epochs=3, callbacks__early_stopping=None)
    segmenter.partial_fit(X, 1 - y)  # never again as good
    scores = segmenter.history[8:, "valid_iou"]
    assert max(scores) < max(segmenter.history[:8, "valid_iou"])
    assert UNetSegmenter.load(tmp_path / "run-0001" / "best.safetensors").n_iter_ == 9 + np.argmax(scores)


class Logger(TensorBoard):
    def __init__(self, folder):
        super().__init__(writer=None, close_after_train=False)
        self.folder = folder

    def on_epoch_end(self, net, **kwargs):
        pass


def test_loggers_may_write_elsewhere(cells, tmp_path):
    X, y = cells
    resumable(tmp_path, Logger("one"), max_epochs=1).fit(X, y)
    assert resumable(tmp_path, Logger("other"), max_epochs=2).fit(X, y).n_iter_ == 2


def test_a_resumed_run_begins_its_table_anew(cells, tmp_path, capsys):
    X, y = cells
    resumable(tmp_path, max_epochs=3, verbose=1).fit(X, y)
    capsys.readouterr()
    resumable(tmp_path, max_epochs=4, verbose=1).fit(X, y)
    assert "train_loss" in capsys.readouterr().out


def test_what_skorch_froze_stays_frozen(cells, tmp_path):
    X, y = cells
    whole = resumable(tmp_path / "whole", ("freezer", Freezer("encoder.*")), max_epochs=4).fit(X, y)
    for n_epochs in (2, 4):
        resumed = resumable(tmp_path / "parts", ("freezer", Freezer("encoder.*")), max_epochs=n_epochs).fit(X, y)
    assert_same_training(resumed, whole)
    assert not any(weight.requires_grad for weight in resumed.module_.encoder.parameters())


def test_several_checkpoints_write_to_a_folder_each(cells, tmp_path):
    X, y = cells
    callbacks = [
        ("best_iou", Checkpoint(tmp_path / "iou")),
        ("best_loss", Checkpoint(tmp_path / "loss", monitor="valid_loss")),
    ]
    for _ in range(2):
        make_segmenter(max_epochs=2, callbacks=callbacks).fit(X, y)
    for name in ("iou", "loss"):
        assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["run-0001", "run-0002"]
        UNetSegmenter.load(tmp_path / name / "run-0002" / "best.safetensors").predict(X)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_the_best_weights_are_restored_of_a_run_that_is_compiled_or_no_longer(cells, tmp_path, is_compiled):
    X, y = cells
    # What never changes is best in the first epoch.
    options = {"max_epochs": 3, "callbacks__early_stopping__monitor": "train_batch_count"}
    options |= {"compile__backend": "eager", "iterator_train__drop_last": True}
    torch._dynamo.reset()
    first = resumable(tmp_path, compile=not is_compiled, **options).fit(X, y)
    second = resumable(tmp_path, compile=is_compiled, **options).fit(X, y)
    torch._dynamo.reset()
    for weight, expected in zip(second.module_.parameters(), first.module_.parameters(), strict=True):
        assert torch.equal(weight, expected)


def test_each_fit_writes_to_a_folder_of_its_own(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(callbacks=[Checkpoint(tmp_path)])
    segmenter.fit(X, y)
    segmenter.fit(X, y)
    make_segmenter(callbacks=[Checkpoint(tmp_path, run="mine")]).fit(X, y)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run-0001", "run-0002"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"dirname": "file"},
            NotADirectoryError,
            "Checkpoint.dirname must be a folder or not be there yet",
        ),
        ({"dirname": None}, TypeError, "Checkpoint.dirname must be a path; got None"),
        ({"run": "../mine"}, ValueError, "Checkpoint.run must be the name of a folder in dirname; got '../mine'"),
        ({"monitor": "valid_iuo"}, ValueError, r"Checkpoint.monitor must be one of \['train_loss', 'valid_iou',"),
    ],
)
def test_places_and_records_that_cannot_be_raise(cells, tmp_path, monkeypatch, arguments, error, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(error, match=message):
        make_segmenter(callbacks=[Checkpoint(**arguments)]).fit(*cells)


@pytest.mark.parametrize("monitor", ["valid_iou", "valid_iou_best", "valid_loss", "train_loss"])
def test_the_best_epoch_is_kept_by_any_record(cells, tmp_path, monitor):
    class Ruin(ProgressBar):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 3:
                with torch.no_grad():
                    net.module_.head.bias += torch.tensor([0.0, 50.0])

    callbacks = [Ruin(), Checkpoint(tmp_path, monitor=monitor)]
    make_segmenter(max_epochs=3, callbacks=callbacks, callbacks__early_stopping=None).fit(*cells)
    assert UNetSegmenter.load(tmp_path / "run-0001" / "best.safetensors").n_iter_ < 3


def test_a_run_of_the_same_name_replaces_all_files_of_the_older_one(cells, tmp_path):
    make_segmenter(callbacks=[Checkpoint(tmp_path, run="mine")]).fit(*cells)
    make_segmenter(callbacks=[Checkpoint(tmp_path, run="mine")], max_epochs=0).fit(*cells)
    assert {path.name for path in (tmp_path / "mine").iterdir()} == {"run.json", "run.lock"}


def test_what_was_learned_until_a_file_could_not_be_written_is_kept(cells, tmp_path):
    X, y = cells

    class Lost(ProgressBar):
        def on_epoch_begin(self, net, **kwargs):
            if len(net.history) == 3:
                shutil.rmtree(tmp_path / "run-0001")

    segmenter = make_segmenter(max_epochs=5, callbacks=[Checkpoint(tmp_path), Lost()])
    with pytest.raises(OSError, match="could not be written") as caught:
        segmenter.fit(X, y)
    assert "has the weights of epoch 3" in caught.value.__notes__[0]
    assert segmenter.predict(X).shape == X.shape
    assert segmenter.set_params(callbacks=None).partial_fit(X, y).n_iter_ == 8


def test_a_full_disk_raises_and_leaves_the_last_good_file(cells, tmp_path, monkeypatch):
    X, y = cells
    resumable(tmp_path, max_epochs=2).fit(X, y)
    path = tmp_path / "run-0001" / "training.safetensors"

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            resumable(tmp_path, max_epochs=3).fit(X, y)
    assert len(read_state(path, kind="training")["history"]) == 2
    assert resumable(tmp_path, max_epochs=3).fit(X, y).n_iter_ == 3


def test_searches_do_not_share_files(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(max_epochs=2, callbacks=[Checkpoint(tmp_path)])
    search = GridSearchCV(segmenter, {"filters": [2, 4]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert len(list(tmp_path.iterdir())) == 5
    with pytest.raises(ValueError, match=r"Checkpoint\(run=\.\.\.\) must be None in a search"):
        GridSearchCV(
            make_segmenter(callbacks=[Checkpoint(tmp_path, run="shared")]), {"filters": [2]}, cv=2, error_score="raise"
        ).fit(X, y)


def test_a_search_finds_the_run_of_each_fit(cells, tmp_path):
    X, y = cells

    def search(max_epochs, filters):
        return GridSearchCV(
            resumable(tmp_path, max_epochs=max_epochs), {"filters": filters}, cv=2, n_jobs=2, error_score="raise"
        ).fit(X, y)

    search(2, [2])
    assert len(list(tmp_path.iterdir())) == 3
    assert search(3, [2, 4]).best_estimator_.n_iter_ == 3
    assert len(list(tmp_path.iterdir())) == 3 + 2 + 1 - (search(3, [2, 4]).best_params_["filters"] == 2)


# ---- processes that are killed

LENGTH = 60


def train_until_killed(folder, result=None):
    """Train as a user's script would: the same call each time."""
    torch.set_num_threads(1)
    X, y = make_cells(6, size=32, random_state=0)
    segmenter = resumable(folder, LearningRateSchedule("cosine"), max_epochs=LENGTH, callbacks__early_stopping=None)
    segmenter.fit(X, y)
    if result is not None:
        segmenter.save(result)


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tmp_path):
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["skunet", "test_checkpoints"])
    moments = random.Random(0)
    n_kills, n_with_files = 0, 0
    folder = tmp_path / "killed"
    while n_kills < 20:
        process = processes.Process(target=train_until_killed, args=(folder,))
        process.start()
        written = _last_write(folder)
        while process.is_alive() and _last_write(folder) == written:  # it trains: an epoch is in a file
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.1))
        assert process.is_alive(), "training was over before it could be killed 20 times: raise LENGTH"
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        n_kills += 1
        n_with_files += len(read_state(folder / "run-0001" / "training.safetensors", kind="training")["history"]) > 0
    assert n_with_files == 20
    for name in ("killed", "whole"):
        process = processes.Process(target=train_until_killed, args=(tmp_path / name, tmp_path / f"{name}.result"))
        process.start()
        process.join()
    killed, whole = (UNetSegmenter.load(tmp_path / f"{name}.result") for name in ("killed", "whole"))
    assert killed.n_iter_ == whole.n_iter_ == LENGTH
    for name, value in whole.module_.state_dict().items():
        assert torch.equal(value, killed.module_.state_dict()[name]), name
    assert [row["train_loss"] for row in killed.history] == [row["train_loss"] for row in whole.history]
    assert {path.name for path in (folder / "run-0001").iterdir()} == FILES


def _last_write(folder):
    path = folder / "run-0001" / "training.safetensors"
    return path.stat().st_mtime_ns if path.exists() else None
