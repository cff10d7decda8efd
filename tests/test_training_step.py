"""Steps in parts, steps for which the memory is not enough, and steps without finite gradients."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
import torch
from skorch.callbacks import GradientNormClipping
from torch import nn
from tqdm import tqdm

from skunet import UNetSegmenter
from skunet.callbacks import TimeLimit
from skunet.datasets import make_cells
from skunet.losses import CrossEntropyDiceLoss, LovaszLoss


@pytest.fixture(scope="module")
def cells():
    return make_cells(6, size=32, random_state=0)


def make_segmenter(kind=UNetSegmenter, **parameters):
    usual = {
        "depth": 1, "filters": 4, "batch_size": 6, "batches_per_epoch": None, "max_epochs": 3, "train_split": None,
        "precision": "float32", "verbose": 0, "random_state": 0,
    }  # fmt: skip
    return kind(**usual | parameters)


def weights_of(segmenter):
    return torch.cat([weight.detach().flatten() for weight in segmenter.module_.parameters()])


def state_of(segmenter):
    """Return the weights together with the statistics of norms."""
    return torch.cat([value.detach().flatten() for value in segmenter.module_.state_dict().values()])


@pytest.mark.parametrize("size", [1, 2, 4, 5])
@pytest.mark.parametrize("criterion", [CrossEntropyDiceLoss, LovaszLoss, nn.CrossEntropyLoss])
def test_parts_give_the_gradients_of_the_batch(cells, size, criterion):
    """Weights of pixels differ between the parts, and the Dice is that of the batch."""
    X, y = cells
    weights = np.random.default_rng(0).random(y.shape)
    seen = []

    class Spy(UNetSegmenter):
        largest = 0

        def infer(self, x, **fit_params):
            Spy.largest = max(Spy.largest, len(x["patches"]))
            return super().infer(x, **fit_params)

    for micro_batch_size in (None, size):
        Spy.largest = 0
        segmenter = make_segmenter(
            Spy, micro_batch_size=micro_batch_size, criterion=criterion, module__normalization="instance",
            optimizer=torch.optim.SGD, lr=0.1,
        ).fit(X, y, sample_weight=weights)  # fmt: skip
        assert Spy.largest == (micro_batch_size or 6)
        seen.append((weights_of(segmenter), segmenter.history[:, "train_loss"]))
    (whole, losses), (parts, losses_of_parts) = seen
    assert torch.allclose(whole, parts, rtol=1e-4, atol=1e-6)
    assert losses == pytest.approx(losses_of_parts, rel=1e-5)


def test_random_layers_and_running_means_see_each_part_once(cells):
    X, y = cells
    segmenter = make_segmenter(micro_batch_size=2, module__dropout=0.5, max_epochs=1).fit(X, y)
    norm = next(module for module in segmenter.module_.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.num_batches_tracked == 3
    again = make_segmenter(micro_batch_size=2, module__dropout=0.5, max_epochs=1).fit(X, y)
    assert torch.equal(weights_of(segmenter), weights_of(again))


class Small(UNetSegmenter):
    """A segmenter on a machine that holds as many patches as it says."""

    room = 6

    def infer(self, x, **fit_params):
        logits = super().infer(x, **fit_params)
        if self.module_.training and len(logits) > self.room:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes.")
        return logits


def test_where_the_memory_is_not_enough_parts_give_the_same_result(cells):
    X, y = cells
    options = {"module__normalization": "instance", "optimizer": torch.optim.SGD, "lr": 0.1}
    whole = make_segmenter(Small, **options).fit(X, y)
    small = make_segmenter(Small, **options)
    small.room = 2
    with pytest.warns(UserWarning, match=r"micro_batch_size=\d saves") as caught:
        small.fit(X, y)
    assert len(caught) == 2  # 3 patches, then 1, for all steps that come
    assert torch.allclose(weights_of(whole), weights_of(small), rtol=1e-4, atol=1e-6)


def test_where_one_patch_is_too_much_the_error_stays(cells):
    segmenter = make_segmenter(Small)
    segmenter.room = 0
    with pytest.warns(UserWarning, match="memory"), pytest.raises(RuntimeError, match="can't allocate memory"):
        segmenter.fit(*cells)


class Failing(nn.Module):
    """A loss that is not finite in the steps that are named."""

    def __init__(self, steps=()):
        super().__init__()
        self.steps, self.n_calls = steps, 0

    def forward(self, logits, target):
        self.n_calls += 1
        loss = nn.functional.cross_entropy(logits, target.long())
        return loss * (float("nan") if self.n_calls - 1 in self.steps else 1.0)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.LBFGS])
def test_a_step_without_finite_gradients_changes_nothing_and_is_counted(cells, optimizer):
    X, y = cells
    weights = []

    class Spy(UNetSegmenter):
        def train_step(self, batch, **fit_params):
            step = super().train_step(batch, **fit_params)
            weights.append(state_of(self))
            return step

    options = {"optimizer__max_iter": 1} if optimizer is torch.optim.LBFGS else {}
    segmenter = make_segmenter(
        Spy, batch_size=2, max_epochs=2, lr=1e-2, criterion=Failing, criterion__steps=(1, 3), optimizer=optimizer,
        **options,
    ).fit(X, y)  # fmt: skip
    assert [bool(torch.equal(*pair)) for pair in pairwise(weights)] == [
        True, False, True, False, False,
    ]  # fmt: skip
    assert segmenter.history[:, "skipped_steps"] == [1, 1]
    assert np.isfinite(segmenter.history[:, "train_loss"]).all()


def test_training_that_diverged_ends_with_a_diagnosis(cells):
    X, y = cells
    segmenter = make_segmenter(batch_size=1, max_epochs=9, criterion=Failing, criterion__steps=range(7, 99))
    message = r"Training diverged: the loss is nan in epoch 2, and the gradients of 5 steps .* of 21 of 21 weights "
    with pytest.raises(RuntimeError, match=message) as caught:
        segmenter.fit(X, y)
    for part in ("first encoder.0", "themselves: 0", "largest logit", "pixels, scaled, -", "GradientNormClipping."):
        assert part in str(caught.value)
    assert segmenter.predict(X).shape == y.shape


def test_gradients_that_others_clip_are_those_of_the_batch(cells):
    X, y = cells
    norms = []

    class Spy(GradientNormClipping):
        def on_grad_computed(self, net, named_parameters, **kwargs):
            super().on_grad_computed(net, named_parameters, **kwargs)
            norms.append(float(nn.utils.get_total_norm([weight.grad for weight in net.module_.parameters()])))

    make_segmenter(micro_batch_size=2, max_epochs=2, callbacks=[Spy(1e-3)]).fit(X, y)
    assert norms == pytest.approx([1e-3] * 2, rel=1e-2)


@pytest.mark.parametrize("steps", [(1,), (0, 1)])
def test_a_bar_and_a_log_go_on_past_skipped_steps(cells, monkeypatch, capsys, steps):
    monkeypatch.setattr("skunet.progress._is_watched", lambda: True)
    monkeypatch.setattr("skunet.progress.tqdm", partial(tqdm, mininterval=0))
    steps = [step + 3 for step in steps]
    make_segmenter(batch_size=2, max_epochs=2, criterion=Failing, criterion__steps=steps, verbose=1).fit(*cells)
    text = capsys.readouterr().out
    assert f"{len(steps)} of 3 steps were skipped" in text
    rows = [line.split() for line in text.splitlines() if line.strip()[:1] in "12" and "steps" not in line]
    assert [row[0] for row in rows] == ["1", "2"]
    assert len(rows[0]) == len(rows[1])


@pytest.mark.parametrize("limits", [[], [TimeLimit(1e-6)]])
def test_an_epoch_of_skipped_steps_alone_ends_with_a_diagnosis(cells, limits):
    segmenter = make_segmenter(batch_size=6, criterion=Failing, criterion__steps=[0], callbacks=limits)
    with pytest.raises(RuntimeError, match="Training diverged: the loss is nan in epoch 1"):
        segmenter.fit(*cells)


def test_line_searches_go_on_past_losses_that_are_not_finite(cells):
    segmenter = make_segmenter(
        batch_size=2, criterion=Failing, criterion__steps=(4,), optimizer=torch.optim.LBFGS, lr=0.1
    )
    with pytest.raises(RuntimeError, match="Training diverged"):
        segmenter.fit(*cells)


def test_a_callback_that_is_switched_off_later_is_gone(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    segmenter.set_params(callbacks__averaging=None).partial_fit(X, y)
    assert "averaging" not in dict(segmenter.callbacks_)
