import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler
from skorch.dataset import ValidSplit

from skunet.fingerprint import checksum, describe, differences


def test_checksums_tell_arrays_apart_and_are_those_of_their_values():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert checksum(image) == checksum(np.asfortranarray(image)) == checksum(image[::-1][::-1])
    assert checksum(image) != checksum(image[::-1])
    assert checksum(image, image) == checksum(image, start=checksum(image)) != checksum(image)
    assert checksum(np.array(["a", None], dtype=object)) != checksum(np.array(["b", None], dtype=object))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1e-3, 1e-4),
        ("dataset", None),
        ([0, 255], [0, 1]),
        (np.zeros(2), np.ones(2)),
        ({1, 2}, {1, 3}),
        (torch.optim.SGD, torch.optim.Adam),
        (np.mean, np.median),
        (StandardScaler(), StandardScaler(with_mean=False)),
        (ValidSplit(5), ValidSplit(3)),
        (partial(np.mean, axis=0), partial(np.mean, axis=1)),
        (torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)),
        (torch.nn.CrossEntropyLoss(label_smoothing=0.1), torch.nn.CrossEntropyLoss(label_smoothing=0.2)),
        (ValidSplit(KFold(2)), ValidSplit(KFold(4))),
        (ValidSplit(2).__call__, ValidSplit(4).__call__),
        (lambda x: x + 1, lambda x: x + 2),
        (SimpleNamespace(scale=(0.9, 1.1)), SimpleNamespace(scale=(0.1, 5.0))),
        (np.arange(2000), np.arange(2000)[::-1]),
        (torch.zeros(2, dtype=torch.bfloat16), torch.ones(2, dtype=torch.bfloat16)),
        (float("nan"), 0.0),
        *[
            (torch.float32, torch.float64),
            (Path("a"), Path("b")),
            (slice(1), slice(2)),
            (np.dtype("u1"), np.dtype("u2")),
        ],
    ],
)
def test_descriptions_differ_where_parameters_act_differently(one, other):
    assert differences({"name": describe(one)}, {"name": describe(other)})
    assert not differences({"name": describe(one)}, {"name": describe(one)})
    assert json.loads(json.dumps(describe(one))) == describe(one)


def test_parts_that_hold_one_another_are_described():
    one = SimpleNamespace(name="one")
    one.other = SimpleNamespace(one=one)
    assert "itself" in str(describe(one))


def test_checksums_know_shape_and_kind_but_not_the_width_of_text():
    image = np.zeros((2, 3), dtype=np.uint8)
    assert checksum(image) != checksum(image.T)
    assert checksum(image) != checksum(image.astype(np.int8))
    assert checksum(np.array(["a", "bc"])) == checksum(np.array(["a", "bc"], dtype="U9"))
    assert checksum(np.array(["a", "bc"])) == checksum(np.array(["a", "bc"], dtype=object))
    assert checksum(np.array(["a", "bc"])) != checksum(np.array(["ab", "c"]))
    assert checksum(np.arange(2000).astype(object)) != checksum(np.arange(2000)[::-1].astype(object))
    assert checksum(np.ones(2, dtype=np.longdouble)) == checksum(np.ones(2))


def test_differences_lie_where_they_are_and_are_short():
    before = {"callbacks": {"stopping": ["path.EarlyStopping", {"patience": 15, "monitor": "iou"}]}}
    now = {"callbacks": {"stopping": ["path.EarlyStopping", {"patience": 3, "monitor": "iou"}], "other": ["x" * 500]}}
    found = differences(before, now)
    assert found[0].startswith("callbacks.other was None, is ['xxx")
    assert found[1:] == ["callbacks.stopping.patience was 15, is 3"]
    assert len(found[0]) < 200


def test_differences_name_what_was_and_what_is():
    assert differences({"lr": 0.1, "depth": 2}, {"lr": 0.2, "depth": 2}) == ["lr was 0.1, is 0.2"]
    assert differences({}, {"depth": 2}) == ["depth was None, is 2"]
