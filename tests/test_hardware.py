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


def rounding():
    backends = torch.backends
    return [kernels.fp32_precision for kernels in (backends.cudnn.conv, backends.cuda.matmul, backends.mkldnn.matmul)]


@pytest.fixture
def rounded_by_user():
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    yield rounding()
    torch.backends.mkldnn.matmul.fp32_precision = before


def test_float32_is_not_rounded_to_fewer_bits(rounded_by_user):
    assert rounded_by_user[0] == "tf32"  # by default, on GPUs that have it
    with exact_float32("float32"):
        assert rounding() == ["ieee"] * 3
        with exact_float32("float32"):
            pass
        assert rounding() == ["ieee"] * 3
    with exact_float32("bfloat16"):
        assert rounding() == rounded_by_user
    assert rounding() == rounded_by_user


class Rounding(Callback):
    """Records how float32 is computed while the network trains."""

    def on_batch_end(self, net, **kwargs):
        self.seen_ = rounding()


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_fit_and_predict_leave_the_settings_as_they_were(cells, rounded_by_user, precision):
    X, y = cells
    expected = ["ieee"] * 3 if precision == "float32" else rounded_by_user
    segmenter = make_segmenter(precision=precision, callbacks=[("rounding", Rounding())]).fit(X, y)
    assert dict(segmenter.callbacks_)["rounding"].seen_ == expected
    seen = []
    segmenter.module_.register_forward_pre_hook(lambda *_: seen.append(rounding()))
    segmenter.predict(X[:1])
    assert seen == [expected]
    assert rounding() == rounded_by_user
