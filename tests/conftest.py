"""Shared data and a small, quick segmenter."""

import signal
from pathlib import Path

import hypothesis
import numpy as np
import pytest

from skunet import UNetSegmenter
from skunet.datasets import make_cells

# How long a case takes says nothing where other processes have the cores.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")
REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_interrupts():
    """Also where the tests were started in the background, with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def cells():
    """Twelve images 32 x 32 (uint8) and masks of 0 and 1; read-only."""
    X, y = make_cells(12, size=32, random_state=0)
    X.flags.writeable = y.flags.writeable = False
    return X, y


@pytest.fixture(scope="session")
def volumes():
    """Six volumes 8 x 16 x 16 and masks of 0 and 1; read-only."""
    X, y = make_cells(6, size=(16, 16, 16), spatial_ndim=3, random_state=0)
    X, y = np.ascontiguousarray(X[:, :8]), np.ascontiguousarray(y[:, :8])
    y[:, 0, 0, 0], y[:, 0, 0, 1] = 0, 1
    X.flags.writeable = y.flags.writeable = False
    return X, y


def make_segmenter(**parameters):
    """Return a segmenter that fits in a fraction of a second, in float32; an epoch takes each patch once."""
    defaults = {
        "batches_per_epoch": None,
        "depth": 1,
        "filters": 4,
        "max_epochs": 1,
        "verbose": 0,
        "random_state": 0,
        "precision": "float32",
        "device": "cpu",
    }
    return UNetSegmenter(**(defaults | parameters))


@pytest.fixture(scope="session")
def fitted(cells):
    """A segmenter fitted on `cells`; read-only."""
    X, y = cells
    return make_segmenter(max_epochs=3).fit(X, y)


def real_data(*parts):
    """Return a path of the real data, or skip the test where it is absent."""
    path = REAL_DATA.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs the real data set {'/'.join(parts)}, which is not part of the project")
    return path


def pytest_collection_modifyitems(items):
    """Run the slow tests last, so that a quick failure is seen early."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
