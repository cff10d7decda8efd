"""Gradients of volumes with few slices, where bfloat16 kernels read memory that nobody has written."""

import os
import platform
import subprocess
import sys

import pytest
import torch

from skunet.shallow_convolutions import sound_convolutions

# Memory that is asked for comes filled with what is huge as a float.
HUGE_GARBAGE = {"GLIBC_TUNABLES": "glibc.malloc.perturb=128:glibc.malloc.mmap_max=0"}

FIT = """
import sys
from skorch.callbacks import Callback
from skunet import UNetSegmenter
from skunet.datasets import make_cells

class Largest(Callback):
    def on_grad_computed(self, net, named_parameters=None, **kwargs):
        print(max(float(weight.grad.abs().max()) for _, weight in named_parameters))

X, y = make_cells(1, size=(16, 24, 32), spatial_ndim=3, random_state=0)
X, y = X[:, :{depth}], y[:, :{depth}]
UNetSegmenter(2, 16, max_epochs=2, precision="bfloat16", verbose=0, random_state=0, callbacks=[Largest()],
              batches_per_epoch=None, module__convolutions=1, compile={compile}).fit(X, y)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc fills memory on request")
@pytest.mark.parametrize("slices", [4, 8, 12])
def test_gradients_are_no_garbage(slices):
    script = FIT.format(depth=slices, compile=False)
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env=os.environ | HUGE_GARBAGE,
        capture_output=True,
        text=True,
        check=True,
    )
    largest = [float(line) for line in run.stdout.split()]
    assert len(largest) == 2
    assert all(value < 1e3 for value in largest), largest


@pytest.mark.parametrize(
    ("slices", "kernel", "dilation", "is_shallow"),
    [(1, 3, 1, True), (2, 3, 1, True), (3, 3, 1, False), (4, 3, 2, True), (5, 3, 2, False), (1, 1, 1, False)],
)
def test_few_slices_are_computed_in_float32(slices, kernel, dilation, is_shallow):
    layer = torch.nn.Conv3d(1, 2, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    volume = torch.zeros(1, 1, slices, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16), sound_convolutions(volume):
        output = layer(volume)
    assert output.dtype == (torch.float32 if is_shallow else torch.bfloat16)
