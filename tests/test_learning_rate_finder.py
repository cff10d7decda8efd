import random
import sys

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from skorch.callbacks import Callback
from torch import nn

from skunet import UNet, UNetSegmenter
from skunet.callbacks import Checkpoint, TimeLimit
from skunet.learning_rate_finder import LearningRateFinder
from skunet.preprocessing import ImageScaler

# A test of a few steps is too rough for a suggestion; some look at other things.
a_few_steps = pytest.mark.filterwarnings("ignore:The loss may go on falling")


class Squares(nn.Module):
    """The mean squared error of a single logit against 0/1; on it, stochastic gradient descent has a known limit."""

    def forward(self, logits, target):
        return ((logits[:, 1] - target) ** 2).mean()


class Line(nn.Module):
    """A single logit, w * image + b."""

    def __init__(self):
        super().__init__()
        self.line = nn.Conv2d(1, 1, 1)

    def forward(self, images):
        return self.line(images)


def line(**parameters):
    defaults = {
        "module": Line,
        "criterion": Squares,
        "optimizer": torch.optim.SGD,
        "augment": None,
        "batch_size": -1,
        "callbacks__early_stopping": None,
    }
    return make_segmenter(**defaults | parameters)


def test_a_quadratic_diverges_where_theory_says(cells):
    X, y = cells
    finder = LearningRateFinder(line(), min_lr=1e-3, max_lr=100, n_steps=200, smoothing=0.0).fit(X, y)
    # Images have mean 0 and variance 1: all second derivatives are 2, and rates of less than 1 converge.
    converges = finder.learning_rates_[:-1] < 1
    assert (np.diff(finder.losses_)[converges] < 1e-6).all()
    assert np.diff(finder.losses_)[-1] > 0
    assert 1 < finder.learning_rates_[-1] < 10
    assert len(finder.losses_) < 200
    assert finder.losses_[-1] > 4 * finder.losses_.min() >= finder.losses_[-2]
    np.testing.assert_allclose(np.diff(np.log(finder.learning_rates_)), np.log(1e5) / 199)


def test_the_suggestion_trains_where_ten_times_less_and_more_do_not(cells):
    X, y = cells
    finder = LearningRateFinder(line(), min_lr=1e-4, max_lr=100).fit(X, y)
    losses = []
    for factor in (0.1, 1, 100):
        segmenter = line(lr=factor * finder.suggestion_, max_epochs=15, train_split=None).fit(X, y)
        losses.append(segmenter.history[-1, "train_loss"])
    assert losses[1] < losses[0] < losses[2]


def test_the_suggestion_is_half_way_down(cells):
    finder = LearningRateFinder(make_segmenter(), n_steps=50).fit(*cells)
    half = (finder.losses_[0] + finder.losses_.min()) / 2
    index = int(np.flatnonzero(finder.learning_rates_ == finder.suggestion_)[0])
    assert finder.losses_[index] <= half < finder.losses_[index - 1]
    assert finder.learning_rates_[0] == pytest.approx(1e-6)
    assert finder.learning_rates_[-1] == pytest.approx(1.0)


@a_few_steps
def test_losses_are_smoothed_means_of_those_of_the_steps(cells):
    raw = LearningRateFinder(make_segmenter(), n_steps=20, max_lr=0.1, smoothing=0.0).fit(*cells)
    smooth = LearningRateFinder(make_segmenter(), n_steps=20, max_lr=0.1, smoothing=0.8).fit(*cells)
    for n in range(20):
        weights = 0.8 ** np.arange(n + 1)[::-1]
        assert smooth.losses_[n] == pytest.approx(np.average(raw.losses_[: n + 1], weights=weights))


def plain(value):
    """Return nested lists and dicts that `==` compares."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def snapshot(segmenter):
    """Return what a segmenter knows and has learned, and the state of the global generators."""
    generators = (torch.get_rng_state(), np.random.get_state(), random.getstate())
    learned = segmenter.training_state() if segmenter.initialized_ else {}
    return plain([segmenter.get_params(deep=False), sorted(vars(segmenter)), learned, generators])


@a_few_steps
def test_an_unfitted_segmenter_and_global_generators_stay_as_they_are(cells):
    segmenter = make_segmenter(module__dropout=0.2)
    before = snapshot(segmenter)
    LearningRateFinder(segmenter, n_steps=5, max_lr=0.1).fit(*cells)
    assert snapshot(segmenter) == before


@a_few_steps
def test_a_fitted_segmenter_and_global_generators_stay_as_they_are(cells):
    X, y = cells
    segmenter, expected = (make_segmenter(max_epochs=2, module__dropout=0.2).fit(X, y) for _ in range(2))
    before = snapshot(segmenter)
    LearningRateFinder(segmenter, n_steps=5, max_lr=0.1).fit(X, y)
    assert snapshot(segmenter) == before
    for one in (segmenter, expected):  # training goes on as if nothing had been
        one.partial_fit(X, y)
    np.testing.assert_array_equal(segmenter.predict_proba(X), expected.predict_proba(X))


@a_few_steps
def test_a_module_instance_and_a_random_state_stay_as_they_are(cells):
    module, random_state = Line(), np.random.RandomState(0)
    before = module.line.weight.item(), random_state.get_state()[1].tolist()
    LearningRateFinder(line(module=module, random_state=random_state), n_steps=5).fit(*cells)
    assert (module.line.weight.item(), random_state.get_state()[1].tolist()) == before


@a_few_steps
def test_callbacks_do_not_run(cells, tmp_path):
    class Fails(Callback):
        def on_train_begin(self, net, **kwargs):
            raise AssertionError

    callbacks = [Fails(), Checkpoint(tmp_path), ("limit", TimeLimit(1e-9))]
    segmenter = make_segmenter(callbacks=callbacks, callbacks__limit__seconds=1e-9, callbacks__iou=None)
    assert len(LearningRateFinder(segmenter, n_steps=9, max_lr=0.1).fit(*cells).losses_) == 9
    assert not list(tmp_path.iterdir())


@a_few_steps
def test_fit_takes_weights_and_groups(cells):
    X, y = cells
    weights = np.ones(len(X))
    weights[6:] = 0
    parameters = {"n_steps": 5, "max_lr": 0.1}
    finder = LearningRateFinder(make_segmenter(), **parameters).fit(X, y, sample_weight=weights, groups=range(len(X)))
    half = LearningRateFinder(make_segmenter(), **parameters).fit(X[:6], y[:6])
    np.testing.assert_array_equal(finder.losses_, half.losses_)


@a_few_steps
def test_groups_of_parameters_keep_the_ratio_of_their_rates(cells):
    seen = []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    groups = [("*bias", {"lr": 0.1})]
    segmenter = make_segmenter(optimizer=Watched, lr=0.4, optimizer__param_groups=groups)
    finder = LearningRateFinder(segmenter, n_steps=4, min_lr=1e-3, max_lr=1.0, divergence=1e9)
    finder.fit(*cells)
    np.testing.assert_allclose(seen, np.geomspace(1e-3, 1, 4)[:, None] * [0.25, 1.0])


def test_a_test_that_ends_too_early_or_begins_too_late_says_so(cells):
    with pytest.warns(UserWarning, match=r"may go on falling beyond max_lr=0\.001.* Raise max_lr"):
        LearningRateFinder(make_segmenter(), n_steps=20, max_lr=1e-3).fit(*cells)
    with pytest.warns(UserWarning, match=r"only rises from min_lr=50 on.* Lower min_lr"):
        LearningRateFinder(line(), min_lr=50, max_lr=1e4, smoothing=0.0).fit(*cells)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"min_lr": 0}, "min_lr must be a number greater than 0; got 0"),
        ({"max_lr": 1e-7}, "max_lr must be a number greater than min_lr, 1e-06; got 1e-07"),
        ({"n_steps": 1}, "n_steps must be a whole number of at least 2; got 1"),
        ({"smoothing": 1.0}, "smoothing must be at least 0 and less than 1; got 1.0"),
        ({"divergence": 1}, "divergence must be greater than 1; got 1"),
    ],
)
def test_parameters_out_of_range_raise(cells, parameters, message):
    with pytest.raises(ValueError, match=message):
        LearningRateFinder(make_segmenter(), **parameters).fit(*cells)


@pytest.mark.parametrize(
    ("segmenter", "got"),
    [
        (UNetSegmenter, "the class UNetSegmenter"),
        (make_pipeline(ImageScaler(), UNetSegmenter()), "an instance of Pipeline"),
        (None, "None"),
        ("unet", "an instance of str"),
        (UNet(1, 2), "an instance of UNet"),
    ],
)
def test_what_is_no_segmenter_raises(cells, segmenter, got):
    with pytest.raises(TypeError, match=rf"segmenter must be a UNetSegmenter instance; got {got}\."):
        LearningRateFinder(segmenter).fit(*cells)


@pytest.mark.parametrize("name", ["min_lr", "max_lr", "n_steps", "smoothing", "divergence"])
@pytest.mark.parametrize("value", ["0.5", None, float("nan"), [0.5], np.array([0.5, 0.6])])
def test_parameters_of_another_type_raise(cells, name, value):
    with pytest.raises(ValueError, match=f"{name} must be "):
        LearningRateFinder(make_segmenter(), **{name: value}).fit(*cells)


@pytest.mark.parametrize("n_steps", [2.5, float("inf"), 20.0])
def test_a_number_of_steps_that_is_not_whole_raises(cells, n_steps):
    with pytest.raises(ValueError, match="n_steps must be a whole number of at least 2"):
        LearningRateFinder(make_segmenter(), n_steps=n_steps).fit(*cells)


def test_a_loss_that_is_never_finite_raises(cells):
    class Infinite(Squares):
        def forward(self, logits, target):
            return super().forward(logits, target) * float("inf")

    with pytest.raises(ValueError, match="loss must be finite at min_lr=1e-06"):
        LearningRateFinder(line(criterion=Infinite)).fit(*cells)


def test_it_is_an_object_of_sklearn():
    finder = LearningRateFinder(make_segmenter(), n_steps=7)
    assert clone(finder).get_params()["n_steps"] == 7
    assert finder.set_params(segmenter__filters=2).segmenter.filters == 2
    assert "LearningRateFinder" in repr(finder)


def test_the_plot_shows_losses_and_the_suggestion(cells):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    from matplotlib import pyplot

    finder = LearningRateFinder(make_segmenter(), n_steps=20)
    with pytest.raises(NotFittedError):
        finder.plot()
    axes = finder.fit(*cells).plot()
    curve, mark = axes.get_lines()
    np.testing.assert_array_equal(curve.get_xydata().T, [finder.learning_rates_, finder.losses_])
    assert mark.get_xdata()[0] == finder.suggestion_
    assert (axes.get_xscale(), axes.get_xlabel()) == ("log", "learning rate")
    own = pyplot.figure().add_subplot()
    assert finder.plot(ax=own) is own
    pyplot.close("all")


def test_without_matplotlib_the_error_names_the_extra(cells, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"pip install 'skunet\[plot\]'"):
        LearningRateFinder(make_segmenter()).plot()
