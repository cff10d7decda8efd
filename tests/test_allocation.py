import subprocess
import sys

import pytest

from skunet import allocation

# Faults of a process that makes and frees a large tensor many times, before, inside and after.
SCRIPT = """
import resource
import torch
from skunet.allocation import kept_memory

def faults(n=20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(n):
        torch.ones(10**7)  # 40 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1])

faults(2)
at_first, usual = resident(), faults()
with kept_memory(if_so=True):
    with kept_memory(if_so=True):
        faults(2)
    kept = faults()
with kept_memory(if_so=False):
    faults()
print(usual, kept, resident() - at_first)
"""


@pytest.mark.skipif(allocation._allocator is None, reason="needs glibc, with no settings of the user")
def test_memory_is_kept_inside_and_given_back_after():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    usual, kept, grown = map(int, run.stdout.split())
    assert usual > 10000  # or this system fills no pages
    assert kept < usual / 10
    assert grown < 80000  # kB: a block or two


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "MALLOC_ARENA_MAX", "LD_PRELOAD"])
def test_settings_of_the_user_are_left_alone(name, monkeypatch):
    monkeypatch.setenv(name, "1")
    assert allocation._find_allocator() is None


def test_other_systems_have_nothing_to_keep(monkeypatch):
    for replacement in (lambda _: object(), lambda _: (_ for _ in ()).throw(OSError)):
        monkeypatch.setattr("ctypes.CDLL", replacement)
        assert allocation._find_allocator() is None
