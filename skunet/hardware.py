"""What the machine has: the device to compute on and the precision it is fast in."""

import torch

__all__ = ["resolve_device", "resolve_precision"]


def resolve_device(device: str | torch.device) -> str:
    """Return the device that `device` stands for; "auto" takes CUDA, then MPS, then the CPU."""
    if device != "auto":
        return str(device)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """Return the precision that `precision` stands for on a device.

    "auto" is bfloat16 where the processor has instructions for it, else float32.
    """
    if precision != "auto":
        return precision
    return "bfloat16" if _has_fast_bfloat16(torch.device(device).type) else "float32"


def _has_fast_bfloat16(device_type: str) -> bool:
    if device_type == "cuda":
        return torch.cuda.get_device_capability()[0] >= 8
    if device_type != "cpu":
        return False
    # torch asks the processor under these names; a build that lacks them is treated as without.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)
