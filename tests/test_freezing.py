"""Parts of a network that training leaves as they are."""

import pytest
import skorch.callbacks
import torch
from conftest import make_segmenter
from sklearn.base import clone
from skorch.callbacks import Callback
from torch import nn

from skunet.callbacks import Checkpoint, Freeze, Resume, WeightAveraging


class States(Callback):
    """Keeps the weights at the end of each epoch."""

    def initialize(self):
        self.states_ = []
        return self

    def on_train_begin(self, net, **kwargs):
        self.states_.append({name: value.clone() for name, value in net.module_.state_dict().items()})

    def on_epoch_end(self, net, **kwargs):
        self.on_train_begin(net)


def fit(cells, *callbacks, **parameters):
    """Return a segmenter, and its weights before and after each epoch."""
    states = States()
    parameters = {"max_epochs": 3, "callbacks__early_stopping": None} | parameters
    segmenter = make_segmenter(callbacks=[*callbacks, ("states", states)], **parameters).fit(*cells)
    return segmenter, states.states_


def changed(before, after, start="", end=""):
    """Return for each weight of a part whether it changed."""
    names = [n for n in before if n.removeprefix("_orig_mod.").startswith(start) and n.endswith(end)]
    return {not torch.equal(before[name], after[name]) for name in names if "num_batches" not in name}


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"optimizer": torch.optim.SGD, "optimizer__momentum": 0.9, "optimizer__weight_decay": 0.1},
        {"optimizer": torch.optim.LBFGS, "lr": 0.1},
        {"optimizer": torch.optim.RMSprop},
        {"precision": "float16"},
        {"compile": True, "compile__backend": "eager"},
        {"memory_limit": 1e9},
        {"module__normalization": "instance"},
    ],
)
def test_frozen_parts_stay_with_their_statistics_until_the_epoch(cells, parameters):
    segmenter, states = fit(cells, Freeze("encoder.*", until=3), **parameters)
    assert changed(states[0], states[2], "encoder") == {False}
    assert True in changed(states[0], states[2], "decoder")
    assert True in changed(states[2], states[3], "encoder", "weight")
    assert all(weight.requires_grad for weight in segmenter.module_.parameters())
    if "module__normalization" not in parameters:
        assert changed(states[2], states[3], "encoder", "running_mean") == {True}
    torch._dynamo.reset()


def test_without_an_end_they_stay_in_all_epochs_also_of_partial_fit(cells):
    segmenter, states = fit(cells, Freeze(["encoder.*", "head.bias"]), max_epochs=1)
    segmenter.partial_fit(*cells)
    last = segmenter.module_.state_dict()
    assert changed(states[0], last, "encoder") == {False}
    assert changed(states[0], last, "head.bias") == {False}
    assert changed(states[0], last, "head.weight") == {True}


def test_epochs_are_counted_over_partial_fits(cells):
    segmenter, states = fit(cells, Freeze("encoder.*", until=2), max_epochs=1)
    assert changed(states[0], states[1], "encoder") == {False}
    segmenter.partial_fit(*cells)
    assert True in changed(states[1], segmenter.module_.state_dict(), "encoder")


def test_norms_of_frozen_parts_predict_in_training_and_others_do_not(cells):
    modes = []

    class Modes(Callback):
        def on_batch_end(self, net, training=False, **kwargs):
            norms = [(n, m) for n, m in net.module_.named_modules() if isinstance(m, nn.BatchNorm2d)]
            modes.append((training, {(n.partition(".")[0], m.training) for n, m in norms}))

    fit(cells, Freeze("encoder.*", until=2), Modes(), max_epochs=2)
    in_training = [of for training, of in modes if training]
    assert in_training[0] == {("encoder", False), ("decoder", True)}
    assert in_training[-1] == {("encoder", True), ("decoder", True)}


@pytest.mark.parametrize(("parts", "is_held"), [("encoder.*", True), ("encoder.*.weight", False), ("encoder.0*", True)])
def test_norms_are_held_where_all_their_weights_are_frozen(cells, parts, is_held):
    _, states = fit(cells, Freeze(parts), max_epochs=1)
    assert changed(states[0], states[1], "encoder.0", "running_mean") == {not is_held}


def test_averaged_weights_of_frozen_parts_stay_too(cells):
    segmenter, states = fit(cells, Freeze("encoder.*"), WeightAveraging(0.9), lr=0.05)
    assert changed(states[0], states[-1], "encoder") == {False}
    assert True in changed(states[0], segmenter.module_.state_dict(), "decoder")


def test_a_resumed_training_is_that_of_one_piece(cells, tmp_path):
    def files():
        return Checkpoint(tmp_path), Resume(tmp_path)

    whole, _ = fit(cells, Freeze("encoder.*", until=3), max_epochs=4)
    fit(cells, Freeze("encoder.*", until=3), *files(), max_epochs=1)
    resumed, _ = fit(cells, Freeze("encoder.*", until=3), *files(), max_epochs=4)
    assert resumed.n_iter_ == 4
    assert changed(whole.module_.state_dict(), resumed.module_.state_dict()) == {False}


def test_all_is_thawed_however_training_ends(cells):
    class Failing(Callback):
        def on_batch_end(self, net, **kwargs):
            raise OSError("no space")

    segmenter = make_segmenter(callbacks=[Freeze("encoder.*"), Failing()])
    with pytest.raises(OSError, match="no space"):
        segmenter.fit(*cells)
    assert all(weight.requires_grad for weight in segmenter.module_.parameters())


def test_weights_that_the_user_froze_stay_so(cells):
    module = make_segmenter().initialize().module_
    module.head.requires_grad_(False)
    segmenter, states = fit(cells, Freeze("*", until=1), module=module)
    assert [name for name, weight in module.named_parameters() if not weight.requires_grad] == [
        "head.weight",
        "head.bias",
    ]
    assert segmenter.module_ is module
    assert changed(states[0], states[-1], "head") == {False}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("encoder",),
            r"got 'encoder', which matches none\. Parts of this network are 'encoder\.\*', 'ups",
        ),
        ((["encoder.*", "x*"],), "got 'x\\*', which matches none"),
        (([],), "Freeze.parts must match names of weights; got ''"),
        (("*",), r"Freeze.parts must leave weights to train; got"),
        (("encoder.*", 0), "Freeze.until must be None or an epoch of at least 1; got 0"),
        (("encoder.*", 1.5), r"Freeze.until must be None or an epoch of at least 1; got 1\.5"),
    ],
)
def test_patterns_and_epochs_are_checked_before_training(cells, arguments, message):
    with pytest.raises(ValueError, match=message):
        fit(cells, Freeze(*arguments))


def test_the_callbacks_of_skorch_freeze_weights_and_no_statistics(cells):
    freezer = ("freezer", skorch.callbacks.Freezer("encoder.*"))
    thaw = ("unfreezer", skorch.callbacks.Unfreezer("encoder.*", at=3))
    _, states = fit(cells, freezer, thaw)
    assert changed(states[0], states[2], "encoder", "weight") == {False}
    assert changed(states[0], states[2], "encoder", "running_mean") == {True}
    assert True in changed(states[2], states[3], "encoder", "weight")


def test_after_a_fit_it_is_cloned_and_resumed(cells, tmp_path):
    segmenter = make_segmenter(callbacks=[Freeze("encoder.*"), Checkpoint(tmp_path), Resume(tmp_path)]).fit(*cells)
    assert clone(segmenter).get_params()["callbacks"][0].parts == "encoder.*"
    n_epochs = segmenter.n_iter_
    assert segmenter.set_params(max_epochs=n_epochs + 1).fit(*cells).n_iter_ == n_epochs + 1


@pytest.mark.parametrize("parts", [3, [None]])
def test_parts_that_are_no_patterns_raise(cells, parts):
    with pytest.raises(ValueError, match=r"Freeze\.parts must be a pattern"):
        make_segmenter(callbacks=[Freeze(parts)]).fit(*cells)


def test_two_that_leave_nothing_to_train_raise(cells):
    parts = ["encoder.*", ["upsamplings.*", "decoder.*", "head.*"]]
    with pytest.raises(ValueError, match="leave weights to train"):
        make_segmenter(callbacks=[(str(i), Freeze(part)) for i, part in enumerate(parts)]).fit(*cells)
