"""What the machine has: the device to compute on and the precision it is fast in."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from skunet.settings import SharedSetting

__all__ = ["exact_float32", "free_memory", "is_out_of_memory", "resolve_device", "resolve_precision"]


def resolve_device(device: str | torch.device) -> str:
    """Return the device that `device` stands for; "auto" takes CUDA, then MPS, then the CPU."""
    if device != "auto":
        return str(device)
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def resolve_precision(precision: str, device: str) -> str:
    """Return the precision that `precision` stands for on a device.

    "auto" is bfloat16 where the processor or GPU has instructions for it, float16 on older GPUs that have these, and
    float32 else.
    """
    if precision != "auto":
        return precision
    device_type = torch.device(device).type
    if device_type == "cuda":
        generation = torch.cuda.get_device_capability(torch.device(device))[0]
        return "bfloat16" if generation >= 8 else "float16" if generation == 7 else "float32"
    return "bfloat16" if device_type == "cpu" and _has_bfloat16_instructions() else "float32"


def _has_bfloat16_instructions() -> bool:
    # torch asks the processor under these names; a build that lacks them is treated as without.
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in probes)


# Whether kernels may round float32 to fewer bits, as torch's older settings and as those per operation have it.
Rounding = tuple[tuple[bool, str] | None, list[str]]


def _operations() -> list[Any]:
    backends: Any = torch.backends
    return [
        backends.cudnn.conv,
        backends.cudnn.rnn,
        backends.cuda.matmul,
        backends.mkldnn.conv,
        backends.mkldnn.matmul,
    ]


def _read_rounding() -> Rounding:
    for_all: Any = torch.backends.fp32_precision  # type: ignore[attr-defined]  # which operations without their own follow
    by_operation = [operation.fp32_precision for operation in _operations()]
    by_operation = ["none" if value == for_all else value for value in by_operation]
    try:
        return (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()), by_operation
    except RuntimeError:  # the user has set single operations, which the older settings cannot express
        return None, by_operation


def _write_rounding(rounding: Rounding) -> None:
    older, by_operation = rounding
    if older is not None:
        torch.backends.cudnn.allow_tf32 = older[0]
        torch.set_float32_matmul_precision(older[1])
    for operation, value in zip(_operations(), by_operation, strict=True):
        operation.fp32_precision = value


def _without_rounding(before: Rounding) -> Rounding:
    if before[0] is None:
        return None, ["ieee"] * len(before[1])
    return (False, "highest"), ["none", "none", "ieee", "ieee", "ieee"]  # what both kinds of settings agree on


_rounding = SharedSetting(_read_rounding, _write_rounding)


@contextmanager
def exact_float32(precision: str) -> Iterator[None]:
    """Let "float32" be float32 inside the block, where torch or the user allow kernels to round it to fewer bits."""
    if precision != "float32":
        yield
        return
    with _rounding.changed(_without_rounding):
        yield


# Where Linux says how many bytes a container may take, has taken, and has taken for copies of files that it can drop:
# of its second and first version.
CGROUP = Path("/sys/fs/cgroup")
CONTAINER = [
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
]


def free_memory(device: str) -> float | None:
    """Return the bytes that are free on a device at this moment; None where the machine does not say."""
    kind = torch.device(device).type
    if kind == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    if kind == "mps":
        return float(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory())
    return _free_on_linux() if kind == "cpu" else None


def _free_on_linux() -> float | None:
    try:
        free = [1024.0 * _numbers(Path("/proc/meminfo"))["MemAvailable"]]
    except (OSError, KeyError):
        return None
    for most, taken, parts, files in CONTAINER:
        try:
            kept = float((CGROUP / taken).read_text()) - _numbers(CGROUP / parts)[files]
            free.append(float((CGROUP / most).read_text()) - kept)
        except (OSError, ValueError, KeyError):  # no such file, or "max"
            continue
    return max(min(free), 0.0)


def _numbers(path: Path) -> dict[str, int]:
    """Return the numbers of a file with a name and a number per line."""
    rows = (line.replace(":", " ").split() for line in path.read_text().splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdigit()}


def is_out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that the memory was not enough."""
    # On the CPU torch raises a plain RuntimeError.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "allocate memory" in str(error)
