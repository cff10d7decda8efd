from functools import partial

import numpy as np
import pytest
import torch
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
    ],
)
def test_descriptions_differ_where_parameters_act_differently(one, other):
    assert differences({"name": describe(one)}, {"name": describe(other)})
    assert not differences({"name": describe(one)}, {"name": describe(one)})


def test_differences_name_what_was_and_what_is():
    assert differences({"lr": 0.1, "depth": 2}, {"lr": 0.2, "depth": 2}) == ["lr was 0.1, is 0.2"]
    assert differences({}, {"depth": 2}) == ["depth was None, is 2"]
