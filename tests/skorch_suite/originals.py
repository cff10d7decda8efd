"""skorch's test modules, imported with the substitutes in the places from which they take names."""

import sys
from types import ModuleType

import pytest

from skorch_suite import substitutes

# One test is marked to be repeated by this package, which skorch does not bring with it.
_flaky = ModuleType("flaky")
_flaky.flaky = lambda **_: lambda test: test

with pytest.MonkeyPatch.context() as _monkeypatch:
    _monkeypatch.setitem(sys.modules, "flaky", _flaky)
    _monkeypatch.setattr("skorch.NeuralNetClassifier", substitutes.NeuralNetClassifier)
    _monkeypatch.setattr("skorch.toy.MLPModule", substitutes.MLPModule)
    from skorch.tests import conftest, test_classifier, test_net
    from skorch.tests.callbacks import (
        test_logging,
        test_lr_scheduler,
        test_regularization,
        test_scoring,
        test_training,
    )

__all__ = [
    "conftest",
    "test_classifier",
    "test_logging",
    "test_lr_scheduler",
    "test_net",
    "test_regularization",
    "test_scoring",
    "test_training",
]
