import subprocess
import sys

import pytest
import torch
from conftest import make_segmenter
from skorch.callbacks import Callback

from skunet.hardware import exact_float32, resolve_device, resolve_precision


def test_auto_takes_cuda_then_mps_then_cpu(monkeypatch):
    for has_cuda, has_mps, expected in [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda value=has_cuda: value)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda value=has_mps: value)
        assert resolve_device("auto") == expected
    assert resolve_device("cuda:1") == "cuda:1"
    assert resolve_device(torch.device("cpu")) == "cpu"


@pytest.mark.parametrize("has_instructions", [True, False])
def test_the_processor_is_asked_for_bfloat16(monkeypatch, has_instructions):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has_instructions)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert resolve_precision("auto", "cpu") == ("bfloat16" if has_instructions else "float32")
    assert resolve_precision("float32", "cpu") == "float32"
    assert resolve_precision("auto", "mps") == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"),
    [((6, 1), "float32"), ((7, 5), "float16"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")],
)
def test_gpus_are_asked_for_their_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_precision("auto", "cuda:0") == expected


backends = torch.backends


def rounding():
    """Return all that says how kernels may round float32; "mixed" where torch's two kinds of settings disagree."""
    operations = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
    values = [operation.fp32_precision for operation in operations]
    for read in (lambda: backends.cudnn.allow_tf32, torch.get_float32_matmul_precision):
        try:
            values.append(read())
        except RuntimeError:
            values.append("mixed")
    return values


def is_exact():
    return not {"tf32", "bf16", True, "high", "medium"} & set(rounding())


def allow_nothing():
    pass


def allow_by_older_settings():
    torch.set_float32_matmul_precision("medium")


def allow_on_gpus():
    backends.cuda.matmul.allow_tf32 = True


def allow_by_operation():
    backends.mkldnn.matmul.fp32_precision = "bf16"
    backends.mkldnn.conv.fp32_precision = "tf32"


@pytest.fixture(params=[allow_nothing, allow_by_older_settings, allow_on_gpus, allow_by_operation])
def rounded_by_user(request):
    request.param()
    yield rounding()
    backends.mkldnn.conv.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    backends.cuda.matmul.fp32_precision = backends.mkldnn.matmul.fp32_precision = "none"


def test_float32_is_not_rounded_to_fewer_bits(rounded_by_user):
    assert not is_exact()  # as GPUs round in convolutions by default
    with exact_float32("float32"):
        assert is_exact()
        with exact_float32("float32"):
            pass
        assert is_exact()
    with exact_float32("bfloat16"):
        assert rounding() == rounded_by_user
    assert rounding() == rounded_by_user


GENERAL = """
import torch
from skunet.hardware import exact_float32
backends = torch.backends
backends.fp32_precision = "tf32"
operations = (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.conv, backends.mkldnn.matmul)
with exact_float32("float32"):
    assert {operation.fp32_precision for operation in operations} <= {"ieee", "none"}
assert {operation.fp32_precision for operation in operations} == {"tf32"}
backends.fp32_precision = "ieee"
assert {operation.fp32_precision for operation in operations} == {"ieee"}
"""


def test_what_follows_the_general_setting_follows_it_again():
    subprocess.run([sys.executable, "-c", GENERAL], check=True)  # torch cannot be brought back to where it began


class Rounding(Callback):
    """Records whether float32 is exact while the network trains."""

    def on_batch_end(self, net, **kwargs):
        self.was_exact_ = is_exact()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit_and_predict_leave_the_settings_as_they_were(cells, rounded_by_user, precision):
    X, y = cells
    segmenter = make_segmenter(precision=precision, callbacks=[("rounding", Rounding())]).fit(X, y)
    assert dict(segmenter.callbacks_)["rounding"].was_exact_ == (precision == "float32")
    seen = []
    segmenter.module_.register_forward_pre_hook(lambda *_: seen.append(is_exact()))
    segmenter.predict(X[:1])
    assert seen == [precision == "float32"]
    assert rounding() == rounded_by_user
