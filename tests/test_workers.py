import threading

import joblib
import numpy as np
import pytest
import torch
from conftest import make_segmenter
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.model_selection import cross_validate as sklearn_cross_validate
from skorch.callbacks import Callback

from skunet.datasets import make_cells
from skunet.model_selection import cross_validate
from skunet.workers import is_in_worker, shared_cores


class Threads(Callback):
    """Records how many threads torch has while it trains."""

    def on_epoch_end(self, net, **kwargs):
        net.history.record("threads", torch.get_num_threads())


def threads_in_block(_):
    with shared_cores():
        return torch.get_num_threads()


def fit_and_count(X, y):
    return make_segmenter(callbacks=[Threads()]).fit(X, y).history[-1, "threads"]


@pytest.mark.parametrize(("backend", "n_jobs"), [("loky", 2), ("threading", 2), ("threading", 3)])
def test_workers_times_threads_are_no_more_than_the_cores(cells, backend, n_jobs):
    X, y = cells
    before = torch.get_num_threads()
    with joblib.parallel_config(backend=backend):
        counts = joblib.Parallel(n_jobs=n_jobs)(joblib.delayed(fit_and_count)(X, y) for _ in range(n_jobs))
    assert all(n_jobs * count <= max(n_jobs, joblib.cpu_count()) for count in counts)
    assert torch.get_num_threads() == before


def test_outside_of_workers_threads_stay_as_the_user_set_them():
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert threads_in_block(0) == 3
        assert not is_in_worker()
        assert joblib.Parallel(n_jobs=1)(joblib.delayed(threads_in_block)(i) for i in range(2)) == [3, 3]
    finally:
        torch.set_num_threads(before)


def test_threads_that_overlap_restore_the_number_once_all_are_done():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        with joblib.parallel_config(backend="threading"):
            joblib.Parallel(n_jobs=2)(joblib.delayed(threads_in_block)(i) for i in range(20))
        assert torch.get_num_threads() == 4
        found = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert found == [4]
    finally:
        torch.set_num_threads(before)


def test_loaders_start_no_workers_inside_of_workers(cells):
    X, y = cells
    segmenter = make_segmenter(
        iterator_train__num_workers=2,
        iterator_train__persistent_workers=True,
        iterator_train__prefetch_factor=4,
        iterator_train__multiprocessing_context="spawn",
        iterator_valid__num_workers=1,
        iterator_valid__timeout=60,
    )
    scores = cross_val_score(segmenter, X, y, cv=2, n_jobs=2, error_score="raise")
    np.testing.assert_array_equal(scores, cross_val_score(make_segmenter(), X, y, cv=2, error_score="raise"))


def test_a_search_in_threads_is_that_in_sequence(cells):
    X, y = cells
    with joblib.parallel_config(backend="threading"):
        parallel = GridSearchCV(make_segmenter(), {"filters": [2, 4]}, cv=2, n_jobs=2, error_score="raise").fit(X, y)
    serial = GridSearchCV(make_segmenter(), {"filters": [2, 4]}, cv=2, error_score="raise").fit(X, y)
    np.testing.assert_allclose(
        parallel.cv_results_["mean_test_score"], serial.cv_results_["mean_test_score"], atol=5e-3
    )


class Images(Callback):
    """Records where the images that are trained on lie."""

    def on_train_begin(self, net, X=None, y=None, **kwargs):
        stack = getattr(X, "stack", X)
        self.notes_ = (type(stack).__name__, stack.nbytes)

    def on_epoch_end(self, net, **kwargs):
        net.history.record("images", self.notes_)


def test_workers_share_the_images_of_a_search(tmp_path):
    X, y = make_cells(20, size=256, random_state=0)
    segmenter = make_segmenter(depth=0, filters=2, callbacks=[Images()], augment=None)
    results = cross_validate(segmenter, X, y, cv=2, n_jobs=2, return_estimator=True, error_score="raise")
    for fitted in results["estimator"]:
        assert fitted.history[-1, "images"] == ("memmap", X.nbytes)  # all of it mapped, no fold copied
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    results = cross_validate(segmenter, mapped, y, cv=2, n_jobs=2, return_estimator=True, error_score="raise")
    for fitted in results["estimator"]:
        assert fitted.history[-1, "images"] == ("memmap", X.nbytes)
    copied = sklearn_cross_validate(segmenter, X, y, cv=2, n_jobs=2, return_estimator=True, error_score="raise")
    np.testing.assert_array_equal(results["test_score"], copied["test_score"])
