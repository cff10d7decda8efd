import json

import numpy as np
import pytest
from conftest import make_segmenter
from sklearn.metrics import jaccard_score
from skorch.callbacks import Callback

from skunet.callbacks import IoUScoring
from skunet.splits import hold_out


class Batches(Callback):
    """Keeps truth and prediction of each training batch, as labels."""

    def initialize(self):
        self.truth_, self.predicted_ = [], []
        return self

    def on_batch_end(self, net, batch=None, training=False, y_pred=None, **kwargs):
        if training:
            self.truth_.append(batch[1].cpu().numpy().ravel())
            self.predicted_.append(net.classes_[y_pred.argmax(1).cpu().numpy().ravel()])


def test_scores_per_class_are_those_of_sklearn(cells):
    X, y = cells
    y = np.where(y == 1, 255, 7).astype(np.uint8)
    segmenter = make_segmenter(train_split=0.5, max_epochs=2, callbacks__iou__per_class=True).fit(X, y)
    _, valid = hold_out(len(X), 0.5, groups=None, seed=0)
    row = segmenter.history[-1]
    expected = jaccard_score(y[valid].ravel(), segmenter.predict(X[valid]).ravel(), labels=[7, 255], average=None)
    assert [row["valid_iou_7"], row["valid_iou_255"]] == pytest.approx(expected.tolist())
    assert row["valid_iou"] == pytest.approx(expected.mean())
    assert type(row["valid_iou_7"]) is float
    assert segmenter.history[0, "valid_iou_7_best"] is True
    assert row["valid_iou_7_best"] is (row["valid_iou_7"] > segmenter.history[0, "valid_iou_7"])


def test_the_training_score_counts_patches_as_they_are_trained_on(cells):
    X, y = cells
    batches = Batches()
    scoring = IoUScoring("train_iou", on_train=True, per_class=True)
    segmenter = make_segmenter(callbacks=[batches, scoring]).fit(X, y)
    truth, predicted = np.concatenate(batches.truth_), np.concatenate(batches.predicted_)
    assert len(truth) == 10 * 32 * 32
    expected = jaccard_score(truth, predicted, labels=[0, 1], average=None)
    row = segmenter.history[-1]
    assert [row["train_iou_0"], row["train_iou_1"]] == pytest.approx(expected.tolist())
    assert row["train_iou"] == pytest.approx(expected.mean())
    assert "valid_iou" in row


def test_scores_of_training_need_no_validation(cells):
    scoring = IoUScoring("train_iou", on_train=True)
    segmenter = make_segmenter(train_split=None, callbacks=[scoring]).fit(*cells)
    assert "train_iou" in segmenter.history[-1]
    assert "valid_iou" not in segmenter.history[-1]


class Hides(Callback):
    """Lets the third class never be predicted."""

    def on_batch_end(self, net, training=False, y_pred=None, **kwargs):
        if not training:
            y_pred[:, 2] = -float("inf")


def test_a_class_that_is_nowhere_scores_nan_and_is_never_the_best(cells, capsys, tmp_path):
    scoring = IoUScoring("score", per_class=True)
    segmenter = make_segmenter(classes=[0, 1, 9], max_epochs=2, verbose=1, callbacks=[Hides(), scoring]).fit(*cells)
    last = segmenter.history[-1]
    assert np.isnan(last["score_9"])
    assert last["score_9_best"] is False
    assert last["score"] == pytest.approx((last["score_0"] + last["score_1"]) / 2)
    header, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert "score_9" in header
    assert all("nan" in row for row in rows)
    segmenter.history.to_file(tmp_path / "history.json")
    assert np.isnan(json.loads((tmp_path / "history.json").read_text())[-1]["score_9"])


def test_a_score_after_nan_is_the_best(cells):
    class Untrue(Callback):
        """Puts NaN into the record of the first epoch."""

        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 1:
                net.history.record("valid_iou_1", float("nan"))

    segmenter = make_segmenter(max_epochs=2, callbacks=[Untrue()], callbacks__iou__per_class=True).fit(*cells)
    assert segmenter.history[1, "valid_iou_1_best"] is True


def test_the_log_shows_all_scores(cells, capsys):
    scoring = IoUScoring("train_iou", on_train=True, per_class=True)
    make_segmenter(verbose=1, callbacks=[scoring], callbacks__iou__per_class=True).fit(*cells)
    header = capsys.readouterr().out.splitlines()[0].split()
    assert {"train_iou", "train_iou_0", "train_iou_1", "valid_iou", "valid_iou_0", "valid_iou_1"} <= set(header)
