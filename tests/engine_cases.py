"""Networks in other engines, and as ONNX files; compared with torch. Run by test_engines.py."""

import json
import sys

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from sklearn.exceptions import NotFittedError
from torch import nn

from skunet import UNetSegmenter
from skunet.network import UNet

ENGINES = ["openvino", "onnxruntime"]


class OneMap(nn.Module):
    """One map of logits for two classes, from convolutions that keep the size."""

    def __init__(self, in_channels, n_classes):
        super().__init__()
        assert n_classes == 2
        self.layers = nn.Sequential(nn.Conv2d(in_channels, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 1, 1))

    def forward(self, images):
        return self.layers(images)


class FixedSize(nn.Module):
    """Logits that depend on the size of the image in a way that a trace does not follow."""

    def __init__(self, in_channels, n_classes):
        super().__init__()
        self.layer = nn.Conv2d(in_channels, n_classes, 1)

    def forward(self, images):
        return self.layer(images) * (1 if images.shape[-1] > 16 else -1)


class Doubled(UNet):
    """A network made of `UNet`, which does something more."""

    def forward(self, images):
        return 2 * super().forward(images)


class Halved(nn.Module):
    """Volumes of sides that are multiples of 6."""

    size_multiple = 6

    def __init__(self, in_channels, n_classes):
        super().__init__()
        self.layers = nn.Sequential(
            nn.AvgPool3d(6), nn.Conv3d(in_channels, n_classes, 3, padding=1), nn.Upsample(scale_factor=6)
        )

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"module__padding": "valid"},
        {"module__normalization": "instance"},
        {"module": OneMap},
        {"module": Doubled},
        {"tile_size": 16},
        {"module__attention": True, "module__deep_supervision": True, "depth": 2},
    ],
)
def test_other_engines_predict_the_same(cells, engine, parameters):
    X, y = cells
    segmenter = make_segmenter(max_epochs=2, **parameters).fit(X, y)
    images = [X[0], X[1, :19, :30], np.pad(X[2], 20), X[3, :2, :1]]
    expected = segmenter.predict_proba(images)
    labels = segmenter.predict(images)
    segmenter.set_params(engine=engine)
    for found, wanted in zip(segmenter.predict_proba(images), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=5e-4)
    for found, wanted, probabilities in zip(segmenter.predict(images), labels, expected, strict=True):
        is_close = np.abs(np.diff(probabilities, axis=0)[0]) < 1e-4
        np.testing.assert_array_equal(found[~is_close], wanted[~is_close])


@pytest.mark.parametrize("engine", ENGINES)
def test_volumes_and_training_after_it(volumes, engine):
    X, y = volumes
    segmenter = make_segmenter(engine=engine, depth=1).fit(X, y)
    first = segmenter.predict_proba(X)
    segmenter.partial_fit(X, y)
    second = segmenter.predict_proba(X)
    assert not np.array_equal(first, second)
    np.testing.assert_allclose(second, segmenter.set_params(engine="torch").predict_proba(X), atol=1e-4)


def test_bfloat16_reaches_openvino(cells):
    X, y = cells
    segmenter = make_segmenter(engine="openvino").fit(X, y)
    exact = segmenter.predict_proba(X)
    rounded = segmenter.set_params(precision="bfloat16").predict_proba(X)
    assert np.abs(rounded - exact).max() < 0.05


def test_an_engine_that_is_not_there_raises_with_its_extra(cells, monkeypatch):
    X, y = cells
    segmenter = make_segmenter(engine="openvino").fit(X, y)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"openvino must be installed.* pip install 'skunet\[openvino\]'"):
        segmenter.predict(X)
    assert segmenter.set_params(engine="torch").predict(X).shape == X.shape


def test_an_unknown_engine_is_refused(cells):
    with pytest.raises(ValueError, match='engine must be "torch", "openvino" or "onnxruntime"; got \'tensorrt\''):
        make_segmenter(engine="tensorrt").fit(*cells)


# ---- ONNX files


def run(path, images):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images.astype(np.float32)})[0]


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"scaling": "image"},
        {"scaling": "minmax"},
        {"scaling": None},
        {"module": OneMap},
        {"module": Doubled},
    ],
)
def test_an_exported_file_takes_images_as_they_are_and_gives_probabilities(cells, tmp_path, parameters):
    import onnx

    X, y = cells
    segmenter = make_segmenter(max_epochs=2, **parameters).fit(X, y)
    segmenter.export(tmp_path / "cells.onnx")
    np.testing.assert_allclose(run(tmp_path / "cells.onnx", X[:, None]), segmenter.predict_proba(X), atol=1e-4)
    large = np.pad(X[:1], ((0, 0), (4, 12), (8, 24)), mode="reflect")
    np.testing.assert_allclose(run(tmp_path / "cells.onnx", large[:, None]), segmenter.predict_proba(large), atol=1e-4)
    about = {entry.key: json.loads(entry.value) for entry in onnx.load(tmp_path / "cells.onnx").metadata_props}
    assert about == {"classes": segmenter.classes_.tolist(), "size_multiple": segmenter.size_multiple_}


def test_volumes_are_exported(volumes, tmp_path):
    X, y = volumes
    segmenter = make_segmenter(depth=1).fit(X, y)
    segmenter.export(tmp_path / "volumes.onnx")
    sides = [side // 2 * 2 for side in X.shape[1:]]
    X = X[:, : sides[0], : sides[1], : sides[2]]
    np.testing.assert_allclose(run(tmp_path / "volumes.onnx", X[:, None]), segmenter.predict_proba(X), atol=1e-4)


@pytest.mark.parametrize(
    "parameters", [{"depth": 6, "filters": 1, "module__normalization": "instance"}, {"module": Halved}], ids=str
)
def test_volumes_are_exported_whatever_their_multiple(volumes, tmp_path, parameters):
    X, y = volumes
    segmenter = make_segmenter(max_epochs=0, **parameters).fit(X, y)
    segmenter.export(tmp_path / "volumes.onnx")
    multiple = segmenter.size_multiple_ if "depth" in parameters else Halved.size_multiple
    sides = multiple, multiple, 2 * multiple
    large = np.resize(X, (1, *sides))
    np.testing.assert_allclose(
        run(tmp_path / "volumes.onnx", large[:, None]), segmenter.predict_proba(large), atol=1e-4
    )


def test_export_changes_nothing(cells, tmp_path):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    before = {name: value.clone() for name, value in segmenter.module_.state_dict().items()}
    expected = segmenter.predict_proba(X)
    segmenter.export(tmp_path / "cells.onnx")
    assert all(torch.equal(value, before[name]) for name, value in segmenter.module_.state_dict().items())
    np.testing.assert_array_equal(segmenter.predict_proba(X), expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"module__padding": "valid"}, "export must have a network that keeps the size of images"),
        ({"module": FixedSize}, "The exported network must predict as the segmenter; for images of"),
    ],
)
def test_networks_that_a_file_cannot_hold_are_refused_and_nothing_is_written(cells, tmp_path, parameters, message):
    segmenter = make_segmenter(max_epochs=0, **parameters).fit(*cells)
    with pytest.raises(ValueError, match=message):
        segmenter.export(tmp_path / "cells.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_unfitted_segmenter_is_not_exported(tmp_path):
    with pytest.raises(NotFittedError):
        UNetSegmenter().export(tmp_path / "cells.onnx")
