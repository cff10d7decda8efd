"""Memory that is used over and over, kept by the process instead of given back to the system each time."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from skunet.settings import SharedSetting

__all__ = ["LARGE", "kept_memory"]

# Pixels of images, or batches of them, whose features are larger than the allocator keeps by itself.
LARGE = 1 << 19

# Settings of glibc's malloc (malloc.h), and the values that it gives itself in a process that has freed large blocks.
TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
USUAL = {MMAP_THRESHOLD: 1 << 25, TRIM_THRESHOLD: 1 << 26, MMAP_MAX: 1 << 16}
# No block is a mapping of its own, and none goes back.
KEEPING = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}


def _find_allocator() -> Any:
    """Return glibc, or None where there is another allocator or the user has settings for it."""
    is_set = any(name.startswith("MALLOC_") or name in ("GLIBC_TUNABLES", "LD_PRELOAD") for name in os.environ)
    try:
        library = ctypes.CDLL(None)
        return library if not is_set and library.gnu_get_libc_version and library.mallopt else None
    except (OSError, AttributeError, TypeError):  # not Linux, or another library
        return None


def _apply(settings: dict[int, int]) -> None:
    for name, value in settings.items():
        _allocator.mallopt(name, value)


def _set(is_keeping: bool) -> None:
    _apply(KEEPING if is_keeping else USUAL)
    if not is_keeping:
        _allocator.malloc_trim(0)


_allocator = _find_allocator()
_keeping = SharedSetting(lambda: False, _set)


def _restore_in_child() -> None:
    if _keeping.n_users:
        _apply(USUAL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_restore_in_child)


@contextmanager
def kept_memory(*, if_so: bool) -> Iterator[None]:
    """Let the memory of freed tensors serve the next ones, inside the block; then give back what is free.

    Blocks of more than 32 MB, such as the features of 4 patches of 512 x 512, otherwise go back to the system when they
    are freed, which fills new ones with zeros, page by page. A fit on such patches took 1.29 times as long, tiles of
    768 x 768 1.13 times (2 cores). In exchange the process takes up to 1.4 times as much while it computes. Afterwards
    glibc has the settings that it comes to by itself where large blocks are freed, and no longer adjusts them.

    Parameters
    ----------
    if_so : bool
        Whether to do anything.
    """
    with _keeping.changed(lambda _: True) if if_so and _allocator is not None else nullcontext():
        yield
