"""Segmenters in files: what comes back, what a file cannot hold, and what is wrong with a damaged one."""

import copy
import errno
import io
import os
import pickle
import subprocess
import sys
import warnings
from functools import partial

import joblib
import numpy as np
import pytest
import torch
from conftest import make_segmenter
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from skorch.callbacks import EpochScoring
from skorch.dataset import ValidSplit
from torch import nn

from skunet import UNetSegmenter
from skunet.persistence import KIND
from skunet.state_file import read_state, write_state
from skunet.stored_parameters import choose_parameters, describe_parameters


class OwnNet(nn.Module):
    """A network of a user, with a shared and a scalar tensor."""

    def __init__(self, in_channels, n_classes, width=3):
        super().__init__()
        self.first = nn.Conv2d(in_channels, width, 3, padding=1)
        self.second = nn.Conv2d(width, n_classes, 1)
        self.again = self.first
        self.register_buffer("gain", torch.tensor(2.0))

    def forward(self, images):
        return self.gain * self.second(self.first(images).relu())


class OwnOptimizer(torch.optim.SGD):
    """An optimizer of a user."""


def own_activation(logits):
    return torch.softmax(2 * logits, dim=1)


def own_augmentation(images, masks, weights, generator):
    return images, masks, weights


def round_trip(segmenter, path, **arguments):
    segmenter.save(path)
    return UNetSegmenter.load(path, **arguments)


def assert_predicts_the_same(found, expected, X):
    np.testing.assert_array_equal(found.predict_proba(X), expected.predict_proba(X))
    labels = found.predict(X)
    np.testing.assert_array_equal(labels, expected.predict(X))
    assert labels.dtype == expected.predict(X).dtype


def assert_parameters_are_equal(found, expected):
    found, expected = found.get_params(deep=False), expected.get_params(deep=False)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        np.testing.assert_equal(found[name], value, err_msg=name)


@pytest.fixture
def path(fitted, tmp_path):
    fitted.save(tmp_path / "cells.skunet")
    return tmp_path / "cells.skunet"


# ---- what comes back


def test_a_loaded_segmenter_is_as_the_one_saved(fitted, path, cells):
    X, y = cells
    loaded = UNetSegmenter.load(path, check_probe=True)
    assert_predicts_the_same(loaded, fitted, X)
    assert loaded.score(X, y) == fitted.score(X, y)
    assert_parameters_are_equal(loaded, fitted)
    assert loaded.n_iter_ == fitted.n_iter_ == 3
    assert (
        loaded.history[:, ("train_loss", "valid_iou", "dur")] == fitted.history[:, ("train_loss", "valid_iou", "dur")]
    )
    for name in ("classes_", "class_counts_"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(fitted, name))
        assert getattr(loaded, name).dtype == getattr(fitted, name).dtype
    for name in (
        "n_channels_in_",
        "spatial_ndim_",
        "seed_",
        "size_multiple_",
        "built_with_",
        "precision_",
        "device_",
        "fitted_scaling_",
    ):
        assert getattr(loaded, name) == getattr(fitted, name), name


def test_weights_come_back_in_the_layout_that_is_fast(fitted, path):
    loaded = UNetSegmenter.load(path).module_.state_dict()
    for name, weight in fitted.module_.state_dict().items():
        assert torch.equal(loaded[name], weight)
        assert loaded[name].stride() == weight.stride()


def test_another_process_predicts_the_same_bits(fitted, path, cells, tmp_path):
    X, _ = cells
    np.save(tmp_path / "X.npy", X)
    program = f"""
import numpy as np, torch
torch.set_num_threads({torch.get_num_threads()})
from skunet import UNetSegmenter
segmenter = UNetSegmenter.load({str(path)!r}, check_probe=True)
np.save({str(tmp_path / "out.npy")!r}, segmenter.predict_proba(np.load({str(tmp_path / "X.npy")!r})))
"""
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), fitted.predict_proba(X))


@pytest.mark.parametrize(
    "labels",
    [
        *(np.array([False, True]), np.array([0, 255], np.uint8), np.array([-3, 70000]), np.array([1.0, 2.0])),
        *(np.array(["background", "zelle"]), np.array([0, 40000], np.uint16)),
    ],
    ids=lambda labels: str(labels.dtype),
)
def test_labels_of_any_kind_come_back(cells, tmp_path, labels):
    X, y = cells
    segmenter = make_segmenter().fit(X[:6], labels[y[:6]])
    loaded = round_trip(segmenter, tmp_path / "file", check_probe=True)
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert loaded.classes_.dtype == labels.dtype
    assert loaded.score(X[:2], labels[y[:2]]) == segmenter.score(X[:2], labels[y[:2]])


@pytest.mark.parametrize(
    "scaling",
    ["dataset", "image", "minmax", None, (100.0, 20.0), [np.array([90.0]), [30]]],
    ids=["dataset", "image", "minmax", "no", "pair", "lists"],
)
def test_scalings_come_back(cells, tmp_path, scaling):
    X, y = cells
    segmenter = make_segmenter(scaling=scaling).fit(X[:6], y[:6])
    loaded = round_trip(segmenter, tmp_path / "file", check_probe=True)
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert_parameters_are_equal(loaded, segmenter)
    constants = segmenter.scaling_constants_
    np.testing.assert_array_equal(loaded.scaling_constants_, constants)
    assert constants is None or loaded.scaling_constants_.dtype == constants.dtype


def test_volumes_come_back(volumes, tmp_path):
    X, y = volumes
    segmenter = make_segmenter(filters=2).fit(X, y)
    assert_predicts_the_same(round_trip(segmenter, tmp_path / "file", check_probe=True), segmenter, X[:2])


def test_classes_class_weights_and_the_ignored_label_come_back(cells, tmp_path):
    X, y = cells
    masks = np.where(y[:6] == 1, 255, 7).astype(np.uint8)
    masks[:, :2] = 9
    segmenter = make_segmenter(
        classes=np.array([7, 8, 255], np.uint8), class_weight={np.uint8(7): 2.0, 255: 1}, ignore_label=9
    ).fit(X[:6], masks)
    loaded = round_trip(segmenter, tmp_path / "file", check_probe=True)
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert_parameters_are_equal(loaded, segmenter)
    assert loaded.classes_.tolist() == [7, 8, 255]
    assert torch.equal(loaded.criterion_.class_weight, segmenter.criterion_.class_weight)
    assert loaded.partial_fit(X[:6], masks).score(X[:6], masks) > 0


def test_parameters_of_components_come_back(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(
        module__normalization="instance",
        module__activation=nn.GELU,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.SGD,
        optimizer__momentum=0.5,
        callbacks__early_stopping=None,
        callbacks__print_log__sink=None,
        predict_nonlinearity="auto",
        patch_size=(16, 16),
    ).fit(X[:6], y[:6])
    loaded = round_trip(segmenter, tmp_path / "file", check_probe=True)
    assert_parameters_are_equal(loaded, segmenter)
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert isinstance(loaded.optimizer_, torch.optim.SGD)
    assert loaded.optimizer_.param_groups[0]["momentum"] == 0.5


def test_labels_of_many_channels_come_back(tmp_path):
    generator = np.random.default_rng(0)
    X, y = generator.normal(1000, 50, size=(4, 16, 16, 3)).astype(np.float32), generator.integers(0, 4, (4, 16, 16))
    segmenter = make_segmenter(filters=2).fit(X, y)
    probe = read_probe(segmenter, tmp_path / "file")
    assert probe["image"].shape == (3, 16, 16)
    assert 900 < probe["image"].mean() < 1100
    assert_predicts_the_same(UNetSegmenter.load(tmp_path / "file", check_probe=True), segmenter, X)


def read_probe(segmenter, path):
    segmenter.save(path)
    return read_state(path, kind=KIND)["probe"]


def test_parameters_set_since_fit_act_at_the_next_fit(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter().fit(X[:6], y[:6]).set_params(depth=2, filters=2, ignore_label=5)
    loaded = round_trip(segmenter, tmp_path / "file")
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert loaded.depth == 2
    assert loaded.codec_.ignore_label is None
    assert clone(loaded).fit(X[:6], y[:6]).size_multiple_ == 4


@pytest.mark.parametrize("random_state", [None, 3, np.random.RandomState(0)], ids=["none", "int", "RandomState"])
def test_the_seed_comes_back(cells, tmp_path, random_state):
    X, y = cells
    segmenter = make_segmenter(random_state=random_state).fit(X[:6], y[:6])
    state = np.random.get_state()[1].copy(), torch.get_rng_state()
    loaded = round_trip(segmenter, tmp_path / "file")
    assert loaded.seed_ == segmenter.seed_
    expected = segmenter.seed_ if isinstance(random_state, np.random.RandomState) else random_state
    assert loaded.random_state == expected
    np.testing.assert_array_equal(np.random.get_state()[1], state[0])
    assert torch.equal(torch.get_rng_state(), state[1])


def test_a_loaded_segmenter_trains_on_as_the_one_saved_with_a_fresh_optimizer(fitted, path, cells):
    X, y = cells
    expected = copy.deepcopy(fitted).set_params(max_epochs=2).initialize_optimizer()
    expected.initialize_callbacks()  # a file has the averaged weights alone
    expected.partial_fit(X, y)
    loaded = UNetSegmenter.load(path, max_epochs=2).partial_fit(X, y)
    assert loaded.n_iter_ == 5
    assert loaded.history[:, ("epoch", "train_loss")] == expected.history[:, ("epoch", "train_loss")]
    np.testing.assert_array_equal(loaded.predict_proba(X), expected.predict_proba(X))
    assert not np.array_equal(loaded.predict_proba(X), fitted.predict_proba(X))


def test_warm_start_goes_on_from_loaded_weights(path, cells):
    X, y = cells
    loaded = UNetSegmenter.load(path, warm_start=True, max_epochs=0).fit(X, y)
    np.testing.assert_array_equal(loaded.predict_proba(X), UNetSegmenter.load(path).predict_proba(X))


def test_clone_joblib_and_another_save_work_after_load(fitted, path, cells, tmp_path):
    X, y = cells
    loaded = UNetSegmenter.load(path)
    file = io.BytesIO()
    joblib.dump(loaded, file)
    file.seek(0)
    assert_predicts_the_same(joblib.load(file), fitted, X)
    assert_predicts_the_same(round_trip(loaded, tmp_path / "again", check_probe=True), fitted, X)
    refitted = clone(loaded).fit(X, y)
    np.testing.assert_array_equal(refitted.predict_proba(X), fitted.predict_proba(X))


def test_save_changes_nothing_and_can_be_called_by_a_callback_while_training(cells, tmp_path):
    X, y = cells
    plain = make_segmenter(max_epochs=3, module__dropout=0.2).fit(X, y)
    saved = []

    class Saving(EpochScoring):
        def __init__(self):
            super().__init__(lambda net, X, y: 0.0, name="nothing")

        def on_epoch_end(self, net, *args, **kwargs):
            net.save(tmp_path / str(len(net.history)))
            saved.append(len(net.history))

    saving = make_segmenter(max_epochs=3, module__dropout=0.2, callbacks=[("saving", Saving())]).fit(X, y)
    np.testing.assert_array_equal(saving.predict_proba(X), plain.predict_proba(X))
    assert saved == [1, 2, 3]
    second = UNetSegmenter.load(tmp_path / "2", check_probe=True)
    assert second.n_iter_ == 2
    last = UNetSegmenter.load(tmp_path / "3")
    assert not np.array_equal(second.predict_proba(X), last.predict_proba(X))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")  # torch's own, of its tracing
def test_compiled_networks_and_plain_ones_share_files(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(compile=True, compile__backend="eager").fit(X[:6], y[:6])
    loaded = round_trip(segmenter, tmp_path / "file", check_probe=True)
    assert not any("_orig_mod" in name for name in read_state(tmp_path / "file", kind=KIND)["weights"])
    assert hasattr(loaded.module_, "_orig_mod")
    assert_predicts_the_same(loaded, segmenter, X[:2])
    plain = UNetSegmenter.load(tmp_path / "file", compile=False)
    assert not hasattr(plain.module_, "_orig_mod")
    np.testing.assert_allclose(plain.predict_proba(X[:2]), segmenter.predict_proba(X[:2]), atol=1e-6)
    assert_predicts_the_same(round_trip(plain, tmp_path / "plain", compile=True), segmenter, X[:2])


def test_any_name_does_and_an_older_file_is_replaced(fitted, tmp_path, cells):
    for name in ("file", "file.joblib", "ünet 1.safetensors"):
        (tmp_path / name).write_text("older")
        assert fitted.save(str(tmp_path / name)) is None
        assert UNetSegmenter.load(str(tmp_path / name)).n_iter_ == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_an_unfitted_segmenter_is_not_saved(fitted, tmp_path):
    for segmenter in (make_segmenter(), make_segmenter().initialize(), clone(fitted)):
        with pytest.raises(NotFittedError):
            segmenter.save(tmp_path / "file")
    assert not list(tmp_path.iterdir())


# ---- devices


def test_a_file_of_a_machine_with_a_gpu_loads_without_one(cells, path, fitted, tmp_path):
    X, _ = cells
    state = read_state(path, kind=KIND)
    for device in ("cuda", "cuda:7", "mps", "xpu:1"):
        state["parameters"]["device"] = {"value": device}
        write_state(tmp_path / "file", state, kind=KIND)
        loaded = UNetSegmenter.load(tmp_path / "file", device="cpu")
        assert loaded.device == "cpu"
        assert_predicts_the_same(loaded, fitted, X[:2])
        if not torch.cuda.is_available() and not torch.backends.mps.is_available():
            assert UNetSegmenter.load(tmp_path / "file").device == "auto"


def test_the_device_of_the_segmenter_is_kept_where_it_is_there(cells, tmp_path):
    X, y = cells
    for device in ("auto", "cpu", torch.device("cpu")):
        segmenter = make_segmenter(device=device, max_epochs=0).fit(X[:6], y[:6])
        assert round_trip(segmenter, tmp_path / "file").device == str(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_an_error_of_the_call(path):
    with pytest.raises(ValueError, match='device must be "auto" or a device that this machine has'):
        UNetSegmenter.load(path, device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_file_predicts_the_same_on_cpu_and_gpu(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(device="cuda", max_epochs=3, depth=3, filters=16, precision="auto").fit(X, y)
    on_cpu = round_trip(segmenter, tmp_path / "file", device="cpu", check_probe=True, precision="float32")
    on_gpu = round_trip(on_cpu, tmp_path / "file", device="cuda", check_probe=True)
    np.testing.assert_allclose(on_cpu.predict_proba(X), on_gpu.predict_proba(X), atol=5e-3)
    assert next(UNetSegmenter.load(tmp_path / "file", device="auto").module_.parameters()).is_cuda


# ---- what a file cannot hold


def test_a_module_of_the_user_is_needed(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(module=OwnNet, module__width=5).fit(X[:6], y[:6])
    segmenter.save(tmp_path / "file")
    message = (
        r"file needs module='(tests\.)?test_persistence\.OwnNet', which a file cannot hold; pass module=OwnNet to load"
    )
    with pytest.raises(ValueError, match=message):
        UNetSegmenter.load(tmp_path / "file")
    loaded = UNetSegmenter.load(tmp_path / "file", module=OwnNet, check_probe=True)
    assert_parameters_are_equal(loaded, segmenter)
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert loaded.module_.again is loaded.module_.first


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (OwnNet(1, 2), r"needs module='an instance of \S*OwnNet', .* pass module=OwnNet\(...\) to load"),
        (partial(OwnNet, width=2), r"needs module='an instance of functools.partial', .* pass module=partial\(...\)"),
    ],
    ids=["instance", "partial"],
)
def test_an_object_as_module_is_needed(cells, tmp_path, module, message):
    X, y = cells
    segmenter = make_segmenter(module=module).fit(X[:6], y[:6])
    segmenter.save(tmp_path / "file")
    with pytest.raises(ValueError, match=message):
        UNetSegmenter.load(tmp_path / "file")
    fresh = OwnNet(1, 2) if isinstance(module, nn.Module) else module
    loaded = UNetSegmenter.load(tmp_path / "file", module=fresh, check_probe=True)
    assert_predicts_the_same(loaded, segmenter, X[:2])


def test_another_module_does_not_take_the_weights(path):
    with pytest.raises(
        ValueError, match=r"weights that do not fit the module OwnNet\. Pass the module that was fitted"
    ):
        UNetSegmenter.load(path, module=OwnNet)
    with pytest.raises(ValueError, match="weights that do not fit the module UNet"):
        UNetSegmenter.load(path, module__residual=True)


def test_what_predicts_is_needed_and_what_trains_has_its_default(cells, tmp_path):
    X, y = cells
    training = {
        "augment": own_augmentation,
        "optimizer": OwnOptimizer,
        "optimizer__momentum": 0.9,
        "criterion": nn.CrossEntropyLoss(),
        "callbacks": [("own", EpochScoring(lambda net, X, y: 1.0, name="own"))],
        "train_split": ValidSplit(3),
    }
    segmenter = make_segmenter(predict_nonlinearity=own_activation, callbacks__own__name="other", **training)
    segmenter.fit(X[:6], y[:6]).save(tmp_path / "file")
    with pytest.raises(
        ValueError, match=r"needs predict_nonlinearity='\S*own_activation', .* predict_nonlinearity=own_act"
    ):
        UNetSegmenter.load(tmp_path / "file")
    names = "augment, criterion, optimizer, optimizer__momentum, train_split"
    with pytest.warns(
        UserWarning, match=rf"these parameters have their defaults: {names}\. To train on, pass"
    ) as caught:
        loaded = UNetSegmenter.load(tmp_path / "file", predict_nonlinearity=own_activation, check_probe=True)
    assert caught[0].filename == __file__
    assert_predicts_the_same(loaded, segmenter, X[:2])
    assert loaded.get_params(deep=False)["train_split"] == 0.2
    assert loaded.partial_fit(X[:6], y[:6]).n_iter_ == 2
    loaded = UNetSegmenter.load(tmp_path / "file", predict_nonlinearity=own_activation, **training)
    assert loaded.partial_fit(X[:6], y[:6]).history[-1]["other"] == 1.0
    assert isinstance(loaded.optimizer_, OwnOptimizer)
    assert loaded.optimizer_.param_groups[0]["momentum"] == 0.9


def test_functions_of_torch_are_named(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(predict_nonlinearity=nn.functional.relu, max_epochs=0).fit(X[:6], y[:6])
    loaded = round_trip(segmenter, tmp_path / "file", check_probe=True)
    assert loaded.predict_nonlinearity is nn.functional.relu


def test_parameters_passed_to_load_win(path):
    loaded = UNetSegmenter.load(path, batch_size=2, optimizer=torch.optim.SGD, depth=3)
    assert (loaded.batch_size, loaded.depth, loaded.filters) == (2, 3, 4)
    assert isinstance(loaded.optimizer_, torch.optim.SGD)
    assert loaded.size_multiple_ == 2
    with pytest.raises(TypeError, match="did you mean 'depth'"):
        UNetSegmenter.load(path, dept=3)
    with pytest.raises(ValueError, match="batch_size must be"):
        UNetSegmenter.load(path, batch_size=0)


# ---- files that are damaged, or not what they say


def rewrite(path, change):
    """Write the file anew with another state and a digest that is right."""
    state = read_state(path, kind=KIND)
    change(state)
    write_state(path, state, kind=KIND)


def test_damage_has_its_message(path, tmp_path):
    data = path.read_bytes()
    header = int.from_bytes(data[:8], "little")
    cases = {
        "cut short": [data[:n] for n in (20, header // 2, header + 8, header + 20, len(data) // 2, len(data) - 1)],
        "was altered": [flipped(data, len(data) - 5), flipped(data, data.index(b"max_epochs")), data + b"\x00"],
        "not a safetensors file": [b"a few words of text\n" * 50],
        "may be a pickle": [pickle.dumps({"depth": 4}), pickle.dumps([1] * 99, protocol=5)],
        "is empty": [b""],
    }
    for message, damaged in cases.items():
        for content in damaged:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=f"cells.skunet.*{message}"):
                UNetSegmenter.load(path)
    with pytest.raises(FileNotFoundError, match=r"none\.skunet"):
        UNetSegmenter.load(tmp_path / "none.skunet")


def flipped(data, place):
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def test_a_file_of_a_newer_format_or_of_another_kind_says_so(path):
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"version":"1"', b'"version":"3"'))
    with pytest.raises(ValueError, match="written by a newer skunet, in version 3"):
        UNetSegmenter.load(path)
    write_state(path, {"a": 1}, kind="training")
    with pytest.raises(ValueError, match="must hold the state of a segmenter; it holds that of a training"):
        UNetSegmenter.load(path)
    write_state(path, {"a": 1}, kind=KIND)
    with pytest.raises(ValueError, match="lacks parts of a segmenter"):
        UNetSegmenter.load(path)


def test_a_file_of_another_class_says_so(cells, tmp_path):
    class Special(UNetSegmenter):
        pass

    X, y = cells
    segmenter = Special(depth=1, filters=2, max_epochs=0, verbose=0).fit(X[:6], y[:6])
    segmenter.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"must hold a UNetSegmenter; it holds a Special\. Call Special\.load"):
        UNetSegmenter.load(tmp_path / "file")
    assert type(Special.load(tmp_path / "file")) is Special


def test_a_parameter_of_a_later_version_says_so(path):
    def change(state):
        state["parameters"]["tta_of_tomorrow"] = {"value": True}
        state["versions"]["skunet"] = "99.0"

    rewrite(path, change)
    with pytest.raises(
        ValueError, match=r"parameters that are not known here\. It was written with skunet 99\.0, now "
    ):
        UNetSegmenter.load(path)


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        *(("module", "os.system"), ("module", "torch.nn.os.system"), ("module", "torch.nn.functional.relu")),
        *(("module", "torch.optim.SGD"), ("module", "torch.nn._reduction"), ("module", "builtins.exec")),
        ("module", f"{OwnNet.__module__}.OwnNet"),
        *(
            ("module", "subprocess.Popen"),
            ("module", "torch.nn.Missing"),
            ("module", ""),
            ("module", "skunet.__loader__"),
        ),
        *(("optimizer", "torch.nn.Linear"), ("dataset", "os.system"), ("iterator_valid", "torch.load")),
        *(("predict_nonlinearity", "torch.load"), ("augment", "torch.nn.Linear"), ("criterion", "pickle.loads")),
    ],
)
def test_a_name_that_leads_elsewhere_is_refused_and_nothing_runs(path, monkeypatch, parameter, name):
    def refuse(*args, **kwargs):
        raise AssertionError("something ran")

    monkeypatch.setattr(os, "system", refuse)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    rewrite(path, lambda state: state["parameters"].update({parameter: {"name": name}}))
    with pytest.raises(
        ValueError, match=f"names '{name}' as its {parameter}, which is not known here. Pass {parameter}"
    ):
        UNetSegmenter.load(path)


def test_nothing_is_unpickled_or_imported(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for owner, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load"), (joblib, "load")]:
        monkeypatch.setattr(owner, name, refuse)
    before = set(sys.modules)
    assert UNetSegmenter.load(path, check_probe=True).n_iter_ == 3
    assert set(sys.modules) == before


def test_a_pickle_is_never_run(path, tmp_path):
    class Payload:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    for content in (pickle.dumps(Payload()), b"PK\x03\x04" + pickle.dumps(Payload())):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="may be a pickle"):
            UNetSegmenter.load(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", ["weights", "labels", "image", "probabilities", "scaling", "constants"])
def test_what_changes_the_probe_is_found(cells, path, part):
    if part == "constants":
        make_segmenter(scaling="dataset").fit(*cells).save(path)

    def change(state):
        if part == "weights":
            next(iter(state["weights"].values())).mul_(1.5)
        elif part == "scaling":
            state["fitted"]["fitted_scaling_"] = "minmax"
        elif part == "constants":
            state["fitted"]["scaling_constants_"][1] *= 1.5
        elif part == "labels":
            state["probe"]["labels"] = 1 - state["probe"]["labels"]
        else:
            state["probe"][part] = np.roll(state["probe"][part], 1, axis=-1)

    UNetSegmenter.load(path, check_probe=True)
    rewrite(path, change)
    UNetSegmenter.load(path)
    with pytest.raises(
        ValueError, match=r"does not predict its probe as when it was saved: .* It was written with the versions"
    ):
        UNetSegmenter.load(path, check_probe=True)


def test_probabilities_that_are_no_numbers_fail_the_probe(path):
    rewrite(path, lambda state: state["probe"]["probabilities"].fill(np.nan))
    with warnings.catch_warnings(), pytest.raises(ValueError, match="does not predict its probe"):
        UNetSegmenter.load(path, check_probe=True)


def test_the_probe_holds_in_any_precision(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter(
        precision="bfloat16", tile_size=4, module__normalization="instance", train_split=None
    ).fit(X[:6], y[:6])
    segmenter.save(tmp_path / "file")
    assert UNetSegmenter.load(tmp_path / "file", precision="float32").precision_ == "float32"
    UNetSegmenter.load(tmp_path / "file", precision="float32", check_probe=True)
    assert UNetSegmenter.load(tmp_path / "file", check_probe=True).precision_ == "bfloat16"


def test_a_full_disk_leaves_the_older_file(fitted, path, monkeypatch, cells):
    X, y = cells
    other = make_segmenter(filters=2).fit(X[:6], y[:6])

    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=r"No space left on device; it could not be written: '.*cells\.skunet'"):
        other.save(path)
    monkeypatch.undo()
    assert_predicts_the_same(UNetSegmenter.load(path, check_probe=True), fitted, X[:2])
    assert list(path.parent.iterdir()) == [path]


def test_a_history_that_no_file_can_hold_is_named(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter().fit(X[:6], y[:6])
    segmenter.history.record("picture", object())
    with pytest.raises(TypeError, match=r"state\['history'\]\[0\]\['picture'\] is a object"):
        segmenter.save(tmp_path / "file")


@pytest.mark.parametrize(
    ("change", "message"), [({"lr": -1}, "lr must be a number"), ({"class_weight": {7: 2.0}}, "must name labels of y")]
)
def test_what_load_would_refuse_is_not_saved(cells, tmp_path, change, message):
    segmenter = make_segmenter(max_epochs=0).fit(*cells)
    segmenter.save(tmp_path / "cells.skunet")
    segmenter.set_params(**change)
    with pytest.raises(ValueError, match=message):
        segmenter.save(tmp_path / "cells.skunet")
    np.testing.assert_array_equal(UNetSegmenter.load(tmp_path / "cells.skunet").classes_, segmenter.classes_)


# ---- parameters of callbacks


CALLBACK_PARAMETERS = {
    "callbacks__early_stopping__patience": 4,
    "callbacks__progress": None,
    "callbacks__own__name": "other",
    "callbacks__early__patience": 1,
}


@pytest.mark.parametrize("callbacks", [[EpochScoring(len)], None])
def test_what_is_set_of_default_callbacks_is_kept_without_a_list_of_callbacks(callbacks):
    described = describe_parameters({"callbacks": callbacks, **CALLBACK_PARAMETERS}, seed=0)
    names = ["early_stopping", "progress"]
    chosen = choose_parameters(described, {}, path="a", stacklevel=1, default_callbacks=names)
    if callbacks is None:
        assert chosen == {"callbacks": None} | CALLBACK_PARAMETERS
    else:
        assert chosen == {"callbacks__early_stopping__patience": 4, "callbacks__progress": None}
    given = {"callbacks": [], "callbacks__early_stopping__patience": 9}
    chosen = choose_parameters(described, given, path="a", stacklevel=1, default_callbacks=names)
    assert chosen == CALLBACK_PARAMETERS | given
