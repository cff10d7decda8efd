import copy
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import zarr
from conftest import make_segmenter
from hypothesis import given
from hypothesis import strategies as st

from skunet.adaptation import NormAdaptation
from skunet.inference import Inference
from skunet.journal import Journal, file_of
from skunet.postprocessing import RemoveSmall


def memory_map(path, shape, dtype):
    return np.memmap(path / "out.raw", dtype, mode="r+" if (path / "out.raw").exists() else "w+", shape=shape)


def zarr_array(path, shape, dtype):
    # Chunks that hold several tiles, and tiles that lie in several chunks.
    return zarr.open(str(path / "out.zarr"), mode="a", shape=shape, dtype=dtype, chunks=(1, *[20] * (len(shape) - 1)))


def hdf5_data_set(path, shape, dtype):
    return h5py.File(path / "out.h5", "a").require_dataset("masks/labels", shape, dtype)


@pytest.fixture
def count_forwards(monkeypatch):
    """Return a function that lets so many forward passes be, then interrupts; and the number of those there were."""
    forward, seen = Inference._forward, []

    def limit(most):
        seen.clear()

        def counted(self, *args):
            if len(seen) == most:
                raise KeyboardInterrupt
            seen.append(args)
            return forward(self, *args)

        monkeypatch.setattr(Inference, "_forward", counted)
        return seen

    return limit


@pytest.fixture(scope="module")
def tiled(cells):
    X, y = cells
    return make_segmenter(tile_size=16, max_epochs=2).fit(X, y)


@pytest.mark.parametrize("make_out", [memory_map, zarr_array, hdf5_data_set])
@pytest.mark.parametrize("method", ["predict", "predict_proba"])
def test_what_is_written_is_not_predicted_again(cells, tiled, tmp_path, count_forwards, make_out, method):
    X, _ = cells  # four tiles each
    predict = getattr(tiled, method)
    expected = predict(X[:3])
    out = make_out(tmp_path, expected.shape, expected.dtype)
    count_forwards(6)
    with pytest.raises(KeyboardInterrupt):
        predict(X[:3], out=out)
    progress = file_of(out).with_name(file_of(out).name + ".progress")
    assert len(progress.read_text().splitlines()) == 1 + 2 + 6  # the prediction, two images, six tiles
    with progress.open("ab") as file:
        file.write(b"[1, [[16, 3\xff")  # as a process that was killed leaves it
    seen = count_forwards(1000)
    assert predict(X[:3], out=make_out(tmp_path, expected.shape, expected.dtype), resume=True) is not None
    assert len(seen) == 12 - 6
    np.testing.assert_array_equal(np.asarray(out[:]), expected)
    assert not progress.exists()


@pytest.mark.parametrize(
    "parameters",
    [
        {"module__normalization": "instance"},
        {"module__normalization": "instance", "tta": ["turn_90"]},
        {"tta": True},
        {"postprocess": RemoveSmall(5)},
        {"norm_adaptation": 1.0},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:Tiles are blended")
def test_resumed_equals_uninterrupted(cells, tmp_path, count_forwards, parameters):
    X, y = cells
    segmenter = make_segmenter(tile_size=8, **parameters).fit(X, y)
    images = [np.concatenate([X[0], X[1]]), X[2][:20]]
    expected = segmenter.predict(images)
    seen = count_forwards(10**6)
    segmenter.predict(images)
    n_forwards = len(seen)
    for most in (1, n_forwards // 2, n_forwards - 1):
        out = [
            np.memmap(tmp_path / f"{most}-{i}", labels.dtype, mode="w+", shape=labels.shape)
            for i, labels in enumerate(expected)
        ]
        count_forwards(most)
        with pytest.raises(KeyboardInterrupt):
            segmenter.predict(images, out=out)
        seen = count_forwards(10**6)
        segmenter.predict(images, out=out, resume=True)
        assert len(seen) <= n_forwards
        for found, labels in zip(out, expected, strict=True):
            np.testing.assert_array_equal(found, labels)
    assert len(seen) < n_forwards  # most was done, and not again


def test_of_a_finished_image_nothing_is_measured_again(cells, tmp_path, count_forwards, monkeypatch):
    X, y = cells
    segmenter = make_segmenter(tile_size=16, norm_adaptation=1.0, scaling="image").fit(X, y)  # four tiles each
    expected = segmenter.predict(X[:3])
    measure, measured = NormAdaptation.measure, []

    def counted(self, patches, *args):
        measured.append(patches)
        return measure(self, patches, *args)

    monkeypatch.setattr(NormAdaptation, "measure", counted)
    out = np.memmap(tmp_path / "out", expected.dtype, mode="w+", shape=expected.shape)
    count_forwards(2 * 5 + 2)  # each image is measured in one pass; of the third one tile is written
    with pytest.raises(KeyboardInterrupt):
        segmenter.predict(X[:3], out=out)
    assert len(measured) == 3
    count_forwards(10**6)
    segmenter.predict(X[:3], out=out, resume=True)
    assert len(measured) == 3 + 1
    np.testing.assert_array_equal(out, expected)


spans = st.tuples(st.integers(0, 6), st.integers(0, 6)).map(sorted)
windows = st.tuples(spans, spans).map(lambda window: tuple(slice(*span) for span in window))


@given(parts=st.lists(windows, max_size=6), window=windows)
def test_a_window_is_done_where_each_of_its_pixels_is_written(parts, window):
    journal = Journal(SimpleNamespace(out=None), dict, resume=False)
    journal.done = {3: {tuple((span.start, span.stop) for span in part): 0 for part in parts}}
    is_written = np.zeros((6, 6), dtype=bool)
    for part in parts:
        is_written[part] = True
    assert journal.is_done(3, window) == is_written[window].all()
    assert journal.is_done(4, window) == (is_written[window].size == 0)


def interrupted(segmenter, X, path, count_forwards):
    out = np.memmap(path, np.uint8, mode="w+", shape=X.shape)
    count_forwards(2)
    with pytest.raises(KeyboardInterrupt):
        segmenter.predict(X, out=out)
    count_forwards(10**6)
    return out


def test_tiles_that_no_longer_hold_what_was_written_are_predicted_again(cells, tiled, tmp_path, count_forwards):
    X = cells[0][:1]
    interrupted(tiled, X, tmp_path / "out", count_forwards)
    # A script that makes the file anew wipes what was there.
    out = np.memmap(tmp_path / "out", np.uint8, mode="w+", shape=X.shape)
    out[:] = 77
    tiled.predict(X, out=out, resume=True)
    np.testing.assert_array_equal(out, tiled.predict(X))


def test_another_prediction_is_not_gone_on_with(cells, tiled, tmp_path, count_forwards):
    X, y = cells
    out = interrupted(tiled, X[:1], tmp_path / "out", count_forwards)
    other = make_segmenter(tile_size=16, random_state=1).fit(X, y)
    with pytest.raises(ValueError, match=r"begun by another prediction, as .*out.progress says: network was"):
        other.predict(X[:1], out=out, resume=True)
    with pytest.raises(ValueError, match=r"n_images was 1, is 2"):
        tiled.predict(X[:2], out=np.memmap(tmp_path / "out", np.uint8, mode="w+", shape=(2, 32, 32)), resume=True)
    with pytest.raises(ValueError, match="norm_adaptation was"):
        copy.deepcopy(tiled).set_params(norm_adaptation=0.5).predict(X[:1], out=out, resume=True)
    np.testing.assert_array_equal(other.predict(X[:1], out=out), other.predict(X[:1]))
    assert not (tmp_path / "out.progress").exists()


def test_other_tiles_give_the_same_and_may_go_on(cells, tiled, tmp_path, count_forwards):
    X = cells[0][:1]
    out = interrupted(tiled, X, tmp_path / "out", count_forwards)  # two of four tiles of 16
    smaller = make_segmenter(tile_size=8, max_epochs=2).fit(*cells)
    seen = count_forwards(1000)
    smaller.predict(X, out=out, resume=True)
    assert len(seen) == 8
    np.testing.assert_array_equal(out, tiled.predict(X))


def test_other_images_are_not_gone_on_with(cells, tiled, tmp_path, count_forwards):
    X = cells[0]
    out = interrupted(tiled, X[:1], tmp_path / "out", count_forwards)
    with pytest.raises(ValueError, match="Image 0 is another than the one that out was begun with"):
        tiled.predict(X[1:2], out=out, resume=True)
    tiled.predict(X[:1], out=out, resume=True)
    np.testing.assert_array_equal(out, tiled.predict(X[:1]))


def test_parts_of_one_map_have_their_own_progress(cells, tiled, tmp_path, count_forwards):
    X = cells[0][:2]
    both = np.memmap(tmp_path / "out", np.uint8, mode="w+", shape=X.shape)
    for i in (0, 1):
        count_forwards(2)
        with pytest.raises(KeyboardInterrupt):
            tiled.predict(X[i : i + 1], out=both[i : i + 1])
    assert len(list(tmp_path.glob("*.progress"))) == 2
    for i in (0, 1):
        seen = count_forwards(1000)
        tiled.predict(X[i : i + 1], out=both[i : i + 1], resume=True)
        assert len(seen) == 2
    np.testing.assert_array_equal(both, tiled.predict(X))
    assert not list(tmp_path.glob("*.progress"))


def test_where_no_file_can_be_written_the_prediction_goes_on(cells, tiled, tmp_path):
    X = cells[0][:1]
    expected = tiled.predict(X)
    with h5py.File(tmp_path / "none" / "out.h5", "w", driver="core", backing_store=False) as file:
        out = file.create_dataset("labels", X.shape, np.uint8)
        np.testing.assert_array_equal(tiled.predict(X, out=out), expected)
    out = np.memmap(tmp_path / "out", np.uint8, mode="w+", shape=X.shape)
    (tmp_path / "out.progress").mkdir()  # which no file can replace
    with pytest.raises(OSError, match="progress"):
        tiled.predict(X, out=out, resume=True)


def test_to_resume_out_must_be_in_a_file(cells, tiled):
    X = cells[0][:1]
    with pytest.raises(ValueError, match=r"To resume, out must be in a file.*got ndarray"):
        tiled.predict(X, out=np.empty(X.shape, np.uint8), resume=True)
    with pytest.raises(ValueError, match="got None"):
        tiled.predict(X, resume=True)


def test_without_an_earlier_call_all_is_predicted(cells, tiled, tmp_path):
    X = cells[0][:1]
    out = np.memmap(tmp_path / "out", np.uint8, mode="w+", shape=X.shape)
    np.testing.assert_array_equal(tiled.predict(X, out=out, resume=True), tiled.predict(X))


SCRIPT = """
import os, signal, sys
import numpy as np
from skunet import UNetSegmenter
from skunet.images import Results

folder, most = sys.argv[1], int(sys.argv[2])
segmenter = UNetSegmenter.load(folder + "/segmenter")
X = np.load(folder + "/images.npy")
write, n_tiles = Results.write, 0

def write_some(self, *args):
    global n_tiles
    if n_tiles == most:
        os.kill(os.getpid(), signal.SIGKILL)
    n_tiles += 1
    write(self, *args)

Results.write = write_some
out = np.memmap(folder + "/out", np.uint8, mode="r+", shape=X.shape)
segmenter.predict(X, out=out, resume=True)
print(n_tiles)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that kills at once")
def test_a_killed_prediction_goes_on(cells, tiled, tmp_path):
    X = cells[0][:3]
    tiled.save(tmp_path / "segmenter")
    np.save(tmp_path / "images.npy", X)
    np.memmap(tmp_path / "out", np.uint8, mode="w+", shape=X.shape)

    def run(most):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(most)]
        return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})

    assert run(5).returncode == -signal.SIGKILL
    assert json.loads((tmp_path / "out.progress").read_text().splitlines()[0])["method"] == "predict"
    finished = run(1000)
    assert finished.stdout.split() == ["7"], finished.stderr
    np.testing.assert_array_equal(np.memmap(tmp_path / "out", np.uint8, mode="r", shape=X.shape), tiled.predict(X))
