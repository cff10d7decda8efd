import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import make_segmenter
from torch import nn

from skunet import UNetSegmenter
from skunet.datasets import make_cells
from skunet.memory import StepMemory, fit_step, measure_step


def fit_square(limit, *, side=512, batch_size=4, may_crop=True):
    memory = StepMemory(constant=1000, per_pixel=10)
    chosen = fit_step(
        memory, limit, batch_size=batch_size, patch_size=(side, side), size_multiple=16, may_crop=may_crop
    )
    return chosen, memory.bytes_for(*chosen)


def test_patches_are_cropped_while_useful_then_batches_then_patches_again():
    assert fit_square(20e6)[0] == (4, (512, 512))
    chosen, taken = fit_square(8e6)
    assert chosen == (4, (432, 448))
    assert taken <= 8e6
    assert fit_square(2e6)[0] == (3, (256, 256))
    assert fit_square(0.4e6)[0] == (1, (192, 192))


def test_given_patches_stay_and_what_is_too_large_is_said():
    assert fit_square(6e6, may_crop=False)[0] == (2, (512, 512))
    with pytest.warns(
        UserWarning, match="memory_limit is 1 MB, and a training step on 1 patch of 512 x 512 takes about"
    ):
        assert fit_square(1e6, may_crop=False)[0] == (1, (512, 512))


def test_what_is_kept_for_the_backward_pass_is_counted():
    layer = nn.Conv2d(1, 8, 1)

    def run(size):
        return layer(torch.zeros(2, 1, *size)).square().sum()  # keeps 1 channel of input and 8 of output

    memory = measure_step(run, size=(8, 8), weights=0)
    assert memory.per_pixel == pytest.approx(1.75 * 9 * 4)


def test_fit_keeps_within_the_limit_and_says_how(capsys):
    X, y = make_cells(4, size=(160, 200), random_state=0)
    free = UNetSegmenter(depth=2, filters=4, max_epochs=1, random_state=0).fit(X, y)
    assert (free.batch_size_, free.patch_size_) == (4, (160, 200))
    capsys.readouterr()
    limited = UNetSegmenter(depth=2, filters=4, max_epochs=1, random_state=0, memory_limit=5e6).fit(X, y)
    said = capsys.readouterr().out
    size = " x ".join(map(str, limited.patch_size_))
    assert f"memory_limit: {limited.batch_size_} patches of {size} at once take about" in said
    assert limited.batch_size_ < 4
    assert limited.predict(X).shape == X.shape
    fixed = make_segmenter(memory_limit=5e6, patch_size=96, max_epochs=1).fit(X, y)
    assert fixed.patch_size_ == (96, 96)


def test_patches_that_go_through_one_by_one_take_the_memory_of_one():
    X, y = make_cells(4, size=(160, 200), random_state=0)
    segmenter = make_segmenter(depth=2, memory_limit=5e6, batch_size=4, micro_batch_size=1).fit(X, y)
    assert segmenter.batch_size_ == 4
    alone = make_segmenter(depth=2, memory_limit=5e6, batch_size=1).fit(X, y)
    assert segmenter.patch_size_ == alone.patch_size_


@pytest.mark.parametrize("limit", [1e12, 5e6])
def test_measuring_leaves_the_training_as_it_is(cells, limit):
    X, y = cells
    plain = make_segmenter(max_epochs=2, module__dropout=0.5, patch_size=16).fit(X, y)
    limited = make_segmenter(max_epochs=2, module__dropout=0.5, patch_size=16, memory_limit=limit).fit(X, y)
    np.testing.assert_array_equal(limited.predict_proba(X), plain.predict_proba(X))


@pytest.mark.parametrize("limit", [0, -1, "2 GB", float("nan")])
def test_limits_that_are_none_are_refused(cells, limit):
    with pytest.raises(ValueError, match="memory_limit must be None or a number of bytes"):
        make_segmenter(memory_limit=limit).fit(*cells)


PEAK = """
import sys
from pathlib import Path
from skunet import UNetSegmenter
from skunet.datasets import make_cells
X, y = make_cells(8, size=512, random_state=0)
tiny, large = ((X[:, :64, :64], y[:, :64, :64]), (X, y))
segmenter = UNetSegmenter(3, 16, max_epochs=1, train_split=None, verbose=0, precision=sys.argv[2], random_state=0)
segmenter.set_params(memory_limit=float(sys.argv[1]))
peaks = []
for data in (tiny, large):
    segmenter.fit(*data)
    lines = Path("/proc/self/status").read_text().splitlines()  # resource's peak begins with that of the parent
    peaks.append(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")))
print(1024 * (peaks[1] - peaks[0]))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read where Linux has them")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_process_takes_no_more_than_the_limit(precision):
    limit = 200e6
    run = subprocess.run(
        [sys.executable, "-c", PEAK, str(limit), precision], capture_output=True, text=True, check=True
    )
    assert 0.3 * limit <= float(run.stdout) <= limit
