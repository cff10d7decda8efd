"""skorch's tests as tests of `UNetSegmenter`: each holds, or is recorded with the reason why it cannot."""

import ast
from pathlib import Path

import pytest
import torch

from skorch_suite import originals
from skorch_suite.recorded import LEFT_OUT, RECORDED, reason_of
from skorch_suite.substitutes import make_images

# What skorch's tests provoke by themselves, or what torch and pytest say of the way they are written.
pytestmark = [pytest.mark.slow] + [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in [
        "Module-scoped fixtures defined as instance methods",
        "The epoch parameter in `scheduler.step",
        "Checkpoint monitor parameter is set to",
        "size_average and reduce args will be deprecated",
        "Converting a tensor with requires_grad=True to a scalar",
        "`torch.jit.script_method` is deprecated",
        "The .grad attribute of a Tensor that is not a leaf Tensor",
    ]
]

# By skorch 1.4, without a GPU. What is lost of them must be recorded with its reason; what is won is noted here.
N_HOLD = 438

# They count the batches of 1000 samples; 200 do for the other tests of the net.
COUNTING = {"test_callback_is_called", "test_batch_count", "test_predefined_split_with_y"}


def all_tests(cls):
    return {name for name in dir(cls) if name.startswith("test_")}


def without(cls, names):
    """Return a class of tests without some of them."""
    return type(cls.__name__, (cls,), dict.fromkeys(names))


def images(n_images, *, fixture="classifier_data"):
    """Return a class whose fixture gives that many images to the tests that are derived from it."""

    @pytest.fixture(scope="module")
    def data(self):
        return make_images(n_images)

    return type("Images", (), {fixture: data})


TestNet = without(originals.test_net.TestNeuralNet, COUNTING)


class TestNetCounting(
    images(1000), without(originals.test_net.TestNeuralNet, all_tests(originals.test_net.TestNeuralNet) - COUNTING)
):
    pass


TestNetSparseInput = originals.test_net.TestNetSparseInput
TestTrimForPrediction = originals.test_net.TestTrimForPrediction
TestTorchCompile = originals.test_net.TestTorchCompile
TestMetadataRouting = originals.test_net.TestMetadataRouting
TestClassifier = originals.test_classifier.TestNeuralNet
TestEarlyStopping = originals.test_training.TestEarlyStopping
TestParamMapper = originals.test_training.TestParamMapper
TestReduceLROnPlateau = originals.test_lr_scheduler.TestReduceLROnPlateau
TestWarmRestartLR = originals.test_lr_scheduler.TestWarmRestartLR
TestGradientNormClipping = originals.test_regularization.TestGradientNormClipping
TestEpochScoring = originals.test_scoring.TestEpochScoring
TestBatchScoring = originals.test_scoring.TestBatchScoring
TestPassthrougScoring = originals.test_scoring.TestPassthrougScoring
TestScoringCacheGlobalControl = originals.test_scoring.TestScoringCacheGlobalControl
TestPrintLog = originals.test_logging.TestPrintLog


class TestLRCallbacks(images(500), originals.test_lr_scheduler.TestLRCallbacks):
    pass


class TestCheckpoint(images(10, fixture="data"), originals.test_training.TestCheckpoint):
    pass


class TestLoadInitState(images(10, fixture="data"), originals.test_training.TestLoadInitState):
    pass


class TestTrainEndCheckpoint(images(10, fixture="data"), originals.test_training.TestTrainEndCheckpoint):
    pass


class TestProgressBar(images(20, fixture="data"), originals.test_logging.TestProgressBar):
    pass


def name_of(item):
    return item.nodeid.split("::", 1)[-1]


@pytest.fixture
def collected(request):
    """All of skorch's tests in this file, whichever were chosen to run."""
    module = request.node.getparent(pytest.Module)
    return [item for item in request.session.genitems(module) if item.cls is not None]


def needs_gpu(item):
    is_skipped = any(mark.args[0] for mark in item.iter_markers("skipif"))
    return is_skipped or (name_of(item) == "TestNet::test_device_torch_device[cuda]" and not torch.cuda.is_available())


def test_as_many_tests_hold_as_are_claimed(collected):
    holding = [item for item in collected if reason_of(name_of(item)) is None and not needs_gpu(item)]
    assert len(holding) >= N_HOLD


def test_no_record_is_without_its_test(collected):
    names = {name_of(item) for item in collected}
    names |= {name.split("[")[0] for name in names}
    assert {test for tests in RECORDED.values() for test in tests} <= names


def test_every_class_of_tests_runs_or_is_left_out_with_a_reason():
    folder = Path(originals.test_net.__file__).parent
    files = [folder / "test_net.py", folder / "test_classifier.py", *sorted((folder / "callbacks").glob("test_*.py"))]
    there = {
        f"{file.relative_to(folder).as_posix()}::{node.name}"
        for file in files
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test")
    }
    left_out = {name for names in LEFT_OUT.values() for name in names}
    run = {
        f"{Path(base.__module__.replace('.', '/')).relative_to('skorch/tests').as_posix()}.py::{base.__name__}"
        for name, cls in globals().items()
        if name.startswith("Test")
        for base in cls.__mro__
        if base.__module__.startswith("skorch.tests.")
    }
    assert run | left_out == there
    assert not run & left_out
