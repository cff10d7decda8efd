"""Training that starts from the weights of another."""

import pickle
import re

import joblib
import numpy as np
import pytest
import torch
from conftest import make_segmenter
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from torch import nn

from skunet import UNetSegmenter
from skunet.callbacks import Checkpoint, Resume
from skunet.learning_rate_finder import LearningRateFinder
from skunet.model_selection import GridSearchCV
from skunet.network import UNet
from skunet.pretrained import Pretrained, open_pretrained, take_over


@pytest.fixture(scope="module")
def source(cells):
    """A fitted segmenter of depth 2; read-only."""
    return make_segmenter(depth=2, max_epochs=2, random_state=5).fit(*cells)


def weights_of(segmenter):
    return {name: value.clone() for name, value in segmenter.module_.state_dict().items()}


def started(cells, **parameters):
    """Return a segmenter that was built and not trained on."""
    return make_segmenter(**{"depth": 2, "max_epochs": 0} | parameters).fit(*cells)


def assert_same(one, other):
    assert list(one) == list(other)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def as_given(kind, source, folder):
    """Return the weights of a segmenter in one of the ways in which they can be handed over."""
    path, state = folder / "weights", {name: v.contiguous() for name, v in source.module_.state_dict().items()}
    match kind:
        case "segmenter":
            return source
        case "frozen":
            return FrozenEstimator(source)
        case "state dict":
            return state
        case "saved":
            source.save(path)
        case "torch":
            torch.save(state, path)
        case "safetensors":
            save_file(state, path)
    return str(path) if kind == "saved" else path


@pytest.mark.parametrize("kind", ["segmenter", "frozen", "state dict", "saved", "torch", "safetensors"])
def test_a_fit_starts_from_the_weights_however_they_are_given(cells, source, tmp_path, kind):
    given = as_given(kind, source, tmp_path)
    segmenter = started(cells, pretrained=given)
    assert_same(weights_of(segmenter), weights_of(source))
    assert segmenter.pretrained is given
    first, again = (make_segmenter(depth=2, pretrained=given).fit(*cells) for _ in range(2))
    assert_same(weights_of(first), weights_of(again))
    assert not torch.equal(weights_of(first)["head.weight"], weights_of(source)["head.weight"])


def test_new_weights_are_those_of_the_seed_and_the_first_partial_fit_starts_too(cells, source):
    given = {name: value for name, value in source.module_.state_dict().items() if name.startswith("encoder")}
    segmenter, plain = started(cells, pretrained=given), started(cells)
    for name, value in weights_of(segmenter).items():
        assert torch.equal(value, given[name] if name in given else plain.module_.state_dict()[name])
    partly = make_segmenter(depth=2, max_epochs=0, pretrained=given).partial_fit(*cells)
    assert_same(weights_of(partly), weights_of(segmenter))
    partly.set_params(max_epochs=1).partial_fit(*cells)
    trained = weights_of(partly)
    partly.set_params(max_epochs=0).partial_fit(*cells)
    assert_same(weights_of(partly), trained)  # which goes on, and does not start anew


def test_users_who_build_first_or_load_weights_keep_what_they_have(cells, source, tmp_path):
    built = make_segmenter(depth=2, max_epochs=0, pretrained=source).initialize()
    assert_same(weights_of(built.partial_fit(*cells)), weights_of(source))
    other = started(cells)
    other.save_params(f_params=tmp_path / "params")
    built = make_segmenter(depth=2, max_epochs=0, pretrained=source).initialize()
    built.load_params(f_params=tmp_path / "params")
    assert_same(weights_of(built.partial_fit(*cells)), weights_of(other))


@pytest.mark.parametrize("options", [{}, {"residual": True}])
@pytest.mark.parametrize(("there", "here"), [(1, 3), (3, 1), (4, 3)])
def test_a_first_convolution_is_adapted_so_that_sums_stay(options, there, here):
    torch.manual_seed(0)
    old, new = (UNet(channels, 2, depth=2, filters=8, **options) for channels in (there, here))
    text = take_over(new, Pretrained(dict(old.state_dict())), classes=[0, 1], built_with={})
    assert f"{1 + bool(options)} adapted, 0 new" in text
    for found, wanted in zip(new.encoder[0].parameters(), old.encoder[0].parameters(), strict=True):
        if found.shape != wanted.shape:
            torch.testing.assert_close(found.sum(1), wanted.sum(1))
            assert torch.equal(found[:, 0], found[:, -1])
    grey = torch.rand(1, 1, 1, 1).expand(1, 1, 8, 8)
    expected = old.eval()(grey.expand(1, there, 8, 8))
    torch.testing.assert_close(new.eval()(grey.expand(1, here, 8, 8)), expected)


@pytest.mark.parametrize("kind", ["segmenter", "saved"])
def test_a_head_keeps_the_maps_of_labels_that_both_know(cells, source, tmp_path, kind):
    X, y = cells
    y = np.where(np.percentile(X, 95) < X, 7, y)  # 0, 1, 7
    segmenter = started((X, 1 - y.astype(int)), pretrained=as_given(kind, source, tmp_path))  # -6, 0, 1
    plain = started((X, 1 - y.astype(int)))
    assert segmenter.classes_.tolist() == [-6, 0, 1]
    for name in ("head.weight", "head.bias"):
        found, old, new = (weights_of(item)[name] for item in (segmenter, source, plain))
        assert torch.equal(found[1:], old)
        assert torch.equal(found[0], new[0])


def test_a_head_of_labels_unknown_there_or_here_is_new(cells, source):
    X, y = cells
    others, texts = started((X, y + 5), pretrained=source), started((X, np.array(["a", "b"])[y]), pretrained=source)
    assert torch.equal(weights_of(others)["head.weight"], weights_of(started(cells))["head.weight"])
    assert torch.equal(weights_of(texts)["head.weight"], weights_of(others)["head.weight"])
    three = UNet(1, 3, depth=2, filters=4)
    text = take_over(three, Pretrained(weights_of(source)), classes=[0, 1, 2], built_with={})
    assert text.endswith("2 new (head.weight, head.bias).")


def test_other_depths_share_their_encoder_and_the_note_counts(cells, source, capsys):
    with pytest.warns(UserWarning, match="What differs: depth=2 there and 3 here"):
        segmenter = started(cells, depth=3, pretrained=source, verbose=1)
    found, old = weights_of(segmenter), weights_of(source)
    assert all(torch.equal(found[name], old[name]) for name in old if name.startswith("encoder"))
    n_weights = len(list(segmenter.module_.parameters()))
    line = re.search(
        r"Pretrained weights: (\d+) of (\d+) taken over, 0 adapted, (\d+) new \((.*)\)", capsys.readouterr().out
    )
    taken, of_all, new = map(int, line.groups()[:3])
    assert (of_all, taken + new) == (n_weights, n_weights)
    assert taken >= 3 * 6
    assert line.group(4).startswith("encoder.3.convolutions.0.weight, ")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"filters": 8}, "filters=4 there and 8 here; encoder.0.* is .4, 1, 3, 3. there and .8, 1, 3, 3. here"),
        (
            {"module": lambda in_channels, n_classes: nn.Conv2d(1, 2, 1)},
            "weights are named 'encoder.* there and 'weight'",
        ),
    ],
)
def test_what_fits_nowhere_is_told(cells, source, tmp_path, parameters, message):
    source.save(tmp_path / "file")
    for given in (source, tmp_path / "file"):
        with pytest.raises(ValueError, match=f"pretrained must hold weights that fit the network; none .*{message}"):
            started(cells, pretrained=given, **parameters)


def test_little_that_fits_is_told(cells, source):
    given = {name: value for name, value in weights_of(source).items() if name.startswith("encoder.0.")}
    with pytest.warns(UserWarning, match=r"Pretrained weights: 6 of .* What differs: the others are not there"):
        started(cells, pretrained=given)


@pytest.mark.parametrize("nested", ["state_dict", "model_state_dict", "model"])
@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod.model."])
def test_weights_in_checkpoints_of_others_are_found(cells, source, tmp_path, nested, wrapper):
    weights = {wrapper + name: value for name, value in weights_of(source).items()}
    checkpoint = {"epoch": 3, nested: weights, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    for given in (checkpoint, tmp_path / "checkpoint.pt"):
        assert_same(weights_of(started(cells, pretrained=given)), weights_of(source))


def test_planes_fit_no_volumes(volumes, source):
    with pytest.raises(ValueError, match="spatial_ndim=2 there and 3 here"):
        started(volumes, pretrained=source)


@pytest.mark.parametrize("given", [3, {}, make_segmenter(), make_segmenter().initialize()])
def test_other_things_are_refused(cells, given):
    with pytest.raises(ValueError, match="pretrained must be None, the path"):
        started(cells, pretrained=given)


def test_files_of_other_things_are_refused_and_nothing_is_run(cells, source, tmp_path):
    joblib.dump(source, tmp_path / "pickle")
    torch.save(nn.Linear(1, 1), tmp_path / "module")
    torch.save([1, 2], tmp_path / "list")
    (tmp_path / "text").write_text("no weights")
    (tmp_path / "empty").write_text("")
    (tmp_path / "broken").write_bytes(b'\x08\0\0\0\0\0\0\0{"')
    for path in sorted(tmp_path.iterdir()):
        with pytest.raises(ValueError, match=f"pretrained must be a file .* got {path}, which is damaged or holds"):
            started(cells, pretrained=path)
    with pytest.raises(ValueError, match=f"pretrained must be a file; got the folder {tmp_path}"):
        started(cells, pretrained=tmp_path)
    with pytest.raises(FileNotFoundError):
        started(cells, pretrained=tmp_path / "nowhere")


def test_files_keep_a_path_and_no_object_and_load_without_either(cells, source, tmp_path):
    source.save(tmp_path / "source")
    for given, kept in [(tmp_path / "source", str(tmp_path / "source")), (source, None), (weights_of(source), None)]:
        segmenter = started(cells, pretrained=given)
        segmenter.save(tmp_path / "file")
        loaded = UNetSegmenter.load(tmp_path / "file")
        assert loaded.pretrained == kept
        np.testing.assert_array_equal(loaded.predict(cells[0]), segmenter.predict(cells[0]))
    (tmp_path / "moved").write_bytes((tmp_path / "file").read_bytes())
    started(cells, pretrained=tmp_path / "source").save(tmp_path / "file")
    (tmp_path / "source").unlink()
    loaded = UNetSegmenter.load(tmp_path / "file")
    loaded.partial_fit(*cells)  # from the weights that it has
    with pytest.raises(FileNotFoundError):
        loaded.fit(*cells)


def test_clones_copies_and_searches_keep_the_weights(cells, source, tmp_path):
    segmenter = make_segmenter(depth=2, max_epochs=0, pretrained=source)
    assert clone(segmenter).pretrained is source
    for copied in (clone(segmenter), pickle.loads(pickle.dumps(segmenter))):
        assert_same(weights_of(copied.fit(*cells)), weights_of(source))
    source.save(tmp_path / "file")
    grid = {"pretrained": [FrozenEstimator(source), tmp_path / "file"]}
    for parameters in ({"lr": [0.1, 0.2]}, grid):
        search = GridSearchCV(segmenter, parameters, cv=2, error_score="raise").fit(*cells)
        assert_same(weights_of(search.best_estimator_), weights_of(source))
    with pytest.raises(ValueError, match="put a FrozenEstimator round them"):
        GridSearchCV(segmenter, {"pretrained": [source]}, cv=2, error_score="raise").fit(*cells)


@pytest.mark.filterwarnings("ignore:The loss")
def test_a_range_of_learning_rates_is_tried_from_the_same_weights(cells, source):
    losses = []
    for pretrained in (source, weights_of(source), None):
        finder = LearningRateFinder(make_segmenter(depth=2, pretrained=pretrained), n_steps=4).fit(*cells)
        losses.append(finder.losses_[0])
    assert losses[0] == losses[1] != losses[2]


def test_resumed_runs_started_from_the_same_weights(cells, source, tmp_path):
    callbacks = [Checkpoint(tmp_path / "runs"), Resume(tmp_path / "runs")]
    parameters = {"depth": 2, "callbacks": callbacks}
    make_segmenter(pretrained=source, **parameters).fit(*cells)
    source.save(tmp_path / "file")
    resumed = make_segmenter(pretrained=tmp_path / "file", max_epochs=2, **parameters).fit(*cells)
    whole = make_segmenter(depth=2, pretrained=source, max_epochs=2).fit(*cells)
    assert_same(weights_of(resumed), weights_of(whole))
    other = {name: 2 * value for name, value in weights_of(source).items()}
    with pytest.raises(ValueError, match=r"Resume must find a run .*: pretrained was"):
        make_segmenter(pretrained=other, max_epochs=2, **parameters).fit(*cells)


def test_compiled_networks_give_and_take_weights(cells, source):
    segmenter = started(cells, pretrained=source, compile=True, compile__backend="eager")
    assert_same(dict(segmenter.module_._orig_mod.state_dict()), weights_of(source))
    assert list(open_pretrained(segmenter).weights) == list(weights_of(source))
    assert list(open_pretrained(segmenter.module_.state_dict()).weights) == list(weights_of(source))


def test_its_own_segmenter_raises(cells):
    segmenter = make_segmenter().fit(*cells)
    segmenter.pretrained = segmenter
    with pytest.raises(ValueError, match="pretrained must be another segmenter"):
        segmenter.fit(*cells)
