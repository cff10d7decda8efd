"""Ways in which plain glue between skorch and scikit-learn goes silently wrong on masks; T6 and T10 are
in test_callbacks.py; T5, T8 and T9 concern persistence and distributed training."""

import numpy as np
import pytest
import skorch.callbacks
import torch
from conftest import make_segmenter, real_data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold
from skorch.callbacks import Checkpoint, EpochScoring, LoadInitState
from skorch.dataset import ValidSplit
from skorch.helper import predefined_split
from torch import nn
from torch.utils.data import TensorDataset

from skunet import UNet
from skunet.metrics import iou_scorer, pixel_accuracy


def test_t1_softmax_is_over_classes_not_image_width(cells, fitted):
    X, _ = cells
    X = X[:, :20]  # width is not height
    proba = fitted.predict_proba(X)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    assert not np.allclose(proba.sum(axis=-1), 1)
    np.testing.assert_array_equal(proba.argmax(1), fitted.forward(X).argmax(1).numpy())


def test_t1_one_logit_gives_two_probabilities(cells):
    X, y = cells

    class OneLogit(UNet):
        def __init__(self, in_channels, depth, filters):
            super().__init__(in_channels, 1, depth=depth, filters=filters)

    segmenter = make_segmenter(module=OneLogit).fit(X, y)
    proba = segmenter.predict_proba(X)
    assert proba.shape == (len(X), 2, 32, 32)
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(segmenter.predict(X), proba.argmax(axis=1))


def test_t2_defaults_fit_and_score_masks(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    assert 0 <= segmenter.score(X, y) <= 1
    assert "valid_iou" in segmenter.history[-1]


def test_t3_a_module_instance_is_used_and_keeps_its_weights(cells):
    X, y = cells
    module = UNet(1, 2, depth=2, filters=3)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    segmenter = make_segmenter(module=module, max_epochs=0).fit(X, y)
    assert segmenter.module_ is module
    assert all(torch.equal(before[name], value) for name, value in segmenter.module_.state_dict().items())


def test_t4_after_loading_a_checkpoint_the_first_epoch_is_not_the_best(cells, tmp_path):
    X, y = cells

    def fit(lr, n_epochs):
        checkpoint = Checkpoint(dirname=str(tmp_path), monitor="valid_loss_best", f_optimizer=None)
        callbacks = [checkpoint, LoadInitState(checkpoint)]
        return make_segmenter(callbacks=callbacks, max_epochs=n_epochs, lr=lr, callbacks__early_stopping=None).fit(X, y)

    first = fit(1e-3, 4)
    best = min(first.history[:, "valid_loss"])
    second = fit(10.0, 1)  # this learning rate ruins the network
    assert second.history[-1, "valid_loss"] > best
    assert not second.history[-1, "valid_loss_best"]
    assert not second.history[-1, "valid_iou_best"]
    assert not second.history[-1, "event_cp"]


def test_t7_groups_stay_on_one_side(cells):
    X, y = cells
    groups = np.repeat(["a", "b", "c", "d"], 3)
    splits = []

    class Spy(skorch.callbacks.Callback):
        def on_epoch_begin(self, net, dataset_train, dataset_valid, **kwargs):
            splits.append((set(groups[dataset_train.indices]), set(groups[dataset_valid.indices])))

    make_segmenter(callbacks=[Spy()]).fit(X, y, groups=groups)
    make_segmenter(callbacks=[Spy()], train_split=ValidSplit(GroupKFold(2))).fit(X, y, groups=groups)
    for train, valid in splits:
        assert valid
        assert not train & valid
    with pytest.raises(ValueError, match="groups"):
        make_segmenter(train_split=ValidSplit(GroupKFold(2))).fit(X, y)


def test_t7_no_car_is_on_both_sides():
    paths = sorted(real_data("carvana96", "images").glob("*.jpg"))
    from skunet.splits import hold_out

    cars = np.array([path.name.split("_")[0] for path in paths])
    for seed in range(20):
        train, valid = hold_out(len(paths), 0.2, groups=cars, seed=seed)
        assert len(valid) == 16
        assert not set(cars[train]) & set(cars[valid])


def test_t11_labels_that_were_not_there_at_fit_raise(cells, fitted):
    X, y = cells
    segmenter = make_segmenter().fit(X, y * 2)
    with pytest.raises(ValueError, match=r"mask 0 holds \[1\]"):
        segmenter.partial_fit(X, y)


def test_t11_a_fold_that_lacks_a_class(cells):
    X, y = cells
    y = y.copy()
    y[:6][y[:6] == 1] = 2  # the first half holds 0 and 2, the second 0 and 1
    search = GridSearchCV(
        make_segmenter(classes=[0, 1, 2]), {"filters": [2]}, cv=2, error_score="raise", return_train_score=True
    ).fit(X, y)
    assert search.predict_proba(X).shape[1] == 3
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_t12_shapes_that_could_be_misread_raise(cells):
    X, y = cells
    for images, masks in [(np.repeat(X[0, ..., None], 3, axis=-1), y[0]), (np.repeat(X[:, None], 3, axis=1), y)]:
        with pytest.raises(ValueError, match=r"X\[None\]|np\.moveaxis"):
            make_segmenter().fit(images, masks)


def test_t13_no_bookkeeping_among_the_parameters(cells):
    segmenter = make_segmenter(module__dropout=0.1).fit(*cells)
    names = set(segmenter.get_params(deep=False))
    assert not [name for name in names if name.startswith("_") or name.endswith("_")]
    assert "module__dropout" in names
    copy = clone(segmenter)
    assert copy.get_params(deep=False) == segmenter.get_params(deep=False)
    assert repr(copy) == repr(segmenter)
    assert "_params_to_validate" not in repr(segmenter)


def test_t14_parameter_names_are_clear_of_skorchs_prefixes(cells):
    segmenter = make_segmenter().fit(*cells)
    components = {
        "module",
        "criterion",
        "optimizer",
        "iterator_train",
        "iterator_valid",
        "callbacks",
        "dataset",
        "compile",
    }
    own = set(segmenter.get_params(deep=False)) - components
    clashes = {name for name in own for prefix in segmenter.prefixes_ if name.startswith(prefix) and "__" not in name}
    assert not clashes
    segmenter.set_params(**{name: getattr(segmenter, name) for name in own})


# ---- labels on both sides of skorch's scoring callbacks


@pytest.mark.parametrize("use_caching", [True, False])
@pytest.mark.parametrize("container", ["stack", "list"])
def test_scoring_callbacks_see_labels_on_both_sides(cells, use_caching, container):
    X, y = cells
    y = y * np.uint8(255)
    data = (X, y) if container == "stack" else (list(X), list(y))
    scorer = make_scorer(pixel_accuracy)
    segmenter = make_segmenter(
        max_epochs=2,
        callbacks=[
            ("acc", EpochScoring(scorer, lower_is_better=False, name="acc", use_caching=use_caching)),
            ("iou2", EpochScoring(iou_scorer, lower_is_better=False, name="iou2", use_caching=use_caching)),
        ],
        callbacks__early_stopping=None,
    ).fit(*data)
    assert segmenter.history[-1, "iou2"] == pytest.approx(segmenter.history[-1, "valid_iou"], abs=1e-3)
    from skunet.splits import hold_out

    _, valid = hold_out(len(X), 0.2, groups=None, seed=0)
    expected = accuracy_score(y[valid].ravel(), segmenter.predict(X[valid]).ravel())
    assert segmenter.history[-1, "acc"] == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("use_caching", [True, False])
def test_batch_scoring_hands_over_tensors(cells, use_caching):
    X, y = cells
    scoring = skorch.callbacks.BatchScoring(
        make_scorer(pixel_accuracy), lower_is_better=False, name="acc", use_caching=use_caching
    )
    segmenter = make_segmenter(callbacks=[("acc", scoring)]).fit(X, y * np.uint8(255))
    assert 0.3 < segmenter.history[-1, "acc"] <= 1


def test_a_predefined_split_is_validated_on(cells):
    X, y = cells
    valid = TensorDataset(torch.tensor(X[:3])[:, None], torch.tensor(y[:3]))
    segmenter = make_segmenter(train_split=predefined_split(valid)).fit(X[3:], y[3:])
    assert segmenter.history[-1, "valid_iou"] == pytest.approx(segmenter.score(X[:3], y[:3]), abs=1e-6)


# ---- set_params on a fitted segmenter


def test_architecture_acts_at_the_next_fit(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    before = segmenter.predict_proba(X)
    segmenter.set_params(depth=2, filters=2)
    np.testing.assert_array_equal(segmenter.predict_proba(X), before)
    segmenter.fit(X, y)
    assert segmenter.module_.depth == 2


def test_partial_fit_rebuilds_a_network_whose_parameters_changed(cells, capsys):
    X, y = cells
    segmenter = make_segmenter(verbose=1).fit(X, y)
    segmenter.set_params(depth=2).partial_fit(X, y)
    assert segmenter.module_.depth == 2
    assert "Building the network anew" in capsys.readouterr().out


def test_never_predict_from_random_weights(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    segmenter.set_params(module__dropout=0.2)
    with pytest.raises(NotFittedError, match="random weights"):
        segmenter.predict(X)
    assert segmenter.partial_fit(X, y).predict(X).shape == X.shape


def test_weights_can_be_loaded_after_the_network_was_replaced(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    before = segmenter.predict_proba(X)
    segmenter.save_params(f_params=tmp_path / "params.pt")
    segmenter.set_params(module__dropout=0.0)
    segmenter.load_params(f_params=tmp_path / "params.pt")
    np.testing.assert_array_equal(segmenter.predict_proba(X), before)
    fresh = make_segmenter(max_epochs=0).fit(X, y)
    fresh.load_params(f_params=tmp_path / "params.pt")
    np.testing.assert_array_equal(fresh.predict_proba(X), before)
    bare = make_segmenter().initialize()
    bare.load_params(f_params=tmp_path / "params.pt")
    with pytest.raises(NotFittedError, match="labels nor scaling"):
        bare.predict(X)


def test_learning_rate_is_live_and_optimizer_parameters_reach_it(cells):
    segmenter = make_segmenter(optimizer__weight_decay=0.5).fit(*cells)
    segmenter.set_params(lr=0.5)
    assert segmenter.optimizer_.param_groups[0]["lr"] == 0.5
    assert segmenter.optimizer_.param_groups[0]["weight_decay"] == 0.5


def test_optimizers_that_call_the_loss_themselves(cells):
    segmenter = make_segmenter(optimizer=torch.optim.LBFGS, lr=0.1).fit(*cells)
    assert segmenter.predict(cells[0]).shape == cells[0].shape


def test_initialize_then_partial_fit_is_an_idiom_of_skorch(cells):
    X, y = cells
    segmenter = make_segmenter().initialize()
    assert segmenter.partial_fit(X, y).predict(X).shape == X.shape
    weighted = make_segmenter(class_weight={1: 3}).initialize().partial_fit(X, y)
    assert weighted.criterion_.class_weight.tolist() == [1, 3]
    colour = np.repeat(X[..., None], 3, axis=-1)
    assert make_segmenter().initialize().partial_fit(colour, y).n_channels_in_ == 3


def test_foreign_modules_get_what_they_name(cells):
    X, y = cells

    class Pointwise(nn.Sequential):
        def __init__(self, in_channels, n_classes, width=3):
            super().__init__(nn.Conv2d(in_channels, width, 1), nn.ReLU(), nn.Conv2d(width, n_classes, 1))

    segmenter = make_segmenter(module=Pointwise, module__width=5).fit(X, y)
    assert segmenter.module_[0].out_channels == 5
    assert segmenter.predict([np.zeros((5, 7), np.uint8)])[0].shape == (5, 7)
    made = make_segmenter(module=lambda in_channels, n_classes: nn.Conv2d(in_channels, n_classes, 1)).fit(X, y)
    assert made.predict(X).shape == X.shape
    with pytest.raises(ValueError, match="one map of logits per class"):
        make_segmenter(module=lambda in_channels: nn.Conv2d(in_channels, 5, 1)).fit(X, y)


def test_fit_params_reach_the_module_but_groups_and_weights_do_not(cells):
    X, y = cells
    seen = []

    class Listening(UNet):
        def forward(self, images, **kwargs):
            seen.append(set(kwargs))
            return super().forward(images)

    make_segmenter(module=Listening).fit(X, y, groups=np.arange(len(X)), sample_weight=np.ones(len(X)), hint=1)
    assert {frozenset(names) for names in seen} == {frozenset({"hint"})}


@pytest.mark.parametrize("use_safetensors", [True, False])
def test_params_are_saved_in_both_formats(cells, tmp_path, use_safetensors):
    X, y = cells
    segmenter = make_segmenter(train_split=None).fit(X, y)
    before = segmenter.predict_proba(X)
    segmenter.save_params(f_params=tmp_path / "params", use_safetensors=use_safetensors)
    other = make_segmenter(max_epochs=0, random_state=1, train_split=None).fit(X, y)
    other.load_params(f_params=tmp_path / "params", use_safetensors=use_safetensors)
    np.testing.assert_allclose(other.predict_proba(X), before, atol=1e-6)


@pytest.mark.parametrize("labels", ["strings", "several sizes"])
def test_uncached_scoring_takes_strings_and_several_sizes(cells, labels):
    X, y = cells
    if labels == "strings":
        data = X, np.array(["cell", "wall"])[y]
    else:
        data = [image[: 20 + i] for i, image in enumerate(X)], [mask[: 20 + i] for i, mask in enumerate(y)]
    scoring = EpochScoring(iou_scorer, name="iou2", lower_is_better=False, use_caching=False)
    segmenter = make_segmenter(callbacks=[scoring]).fit(*data)
    assert segmenter.history[-1, "iou2"] == pytest.approx(segmenter.history[-1, "valid_iou"], abs=1e-6)
