"""Inside the workers of a parallel search: as many threads as the cores allow, and no workers of their own."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.dummy import DummyProcess

import torch
from joblib import cpu_count
from joblib.parallel import get_active_backend

from skunet.settings import SharedSetting

__all__ = ["is_in_worker", "shared_cores"]


def is_in_worker() -> bool:
    """Return whether joblib is running this in one of several workers."""
    backend, _ = get_active_backend()
    return backend.nesting_level is not None and backend.nesting_level > 0


_n_threads = SharedSetting(torch.get_num_threads, torch.set_num_threads)


@contextmanager
def shared_cores() -> Iterator[None]:
    """Let workers times torch's threads be no more than the cores, inside the block.

    joblib sees to it for workers that are processes. Workers that are threads each get their share here.
    """
    if not (is_in_worker() and isinstance(threading.current_thread(), DummyProcess)):
        yield
        return
    n_workers = sum(isinstance(thread, DummyProcess) for thread in threading.enumerate())
    share = max(1, cpu_count() // n_workers)
    with _n_threads.changed(lambda before: min(share, before)):
        yield
