import pytest
import torch

from skunet.hardware import resolve_device, resolve_precision


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


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")])
def test_gpus_are_asked_for_their_capability(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert resolve_precision("auto", "cuda:0") == expected
