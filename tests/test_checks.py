"""The conformance suite: it passes sound estimators, and each of its checks catches a broken one."""

import os
import warnings
from unittest import SkipTest

import numpy as np
import pytest
import torch
from broken_segmenters import BROKEN
from conftest import make_segmenter
from pixel_classifier import PixelClassifier
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import EstimatorCheckFailedWarning

from skunet import UNetSegmenter
from skunet.checks import check_image_estimator, image_checks, parametrize_with_image_checks
from skunet.contract import make_contract_data

# The suite must never shrink unnoticed: whoever adds a check raises this number.
N_CHECKS = 89
KEYS = {
    *("estimator", "check_name", "exception", "status", "expected_to_fail", "expected_to_fail_reason"),
    "reason",
}
REASONS = {
    parameter.values[1].name: parameter.values[1].reason
    for parameter in parametrize_with_image_checks([PixelClassifier()]).args[1]
}


class Bare(BaseEstimator):
    """Has nothing but fit and predict."""

    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(np.shape(X)[:3], self.classes_[0])


class Threshold(ClassifierMixin, BaseEstimator):
    """Has neither parameters nor a constructor: calls bright what is brighter than the mean."""

    def fit(self, X, y):
        self.classes_, self.level_ = np.unique(y), np.mean(X)
        return self

    def predict(self, X):
        return self.classes_[(np.asarray(X) > self.level_).astype(int)]


def test_an_estimator_without_a_constructor_passes_the_checks_of_parameters():
    results = check_image_estimator(Threshold(), on_fail=None)
    of_parameters = [
        result
        for result in results
        if result["check_name"] in ("check_constructor_only_stores", "check_clone", "check_set_params")
    ]
    assert [result["status"] for result in of_parameters] == ["passed"] * 3


@parametrize_with_image_checks([make_segmenter(filters=2), PixelClassifier()])
def test_sound_estimators_pass_every_check_and_none_is_skipped(estimator, check):
    try:
        check(estimator)
    except SkipTest as lack:
        pytest.fail(f"skipped: {lack}")


def test_the_number_of_checks_is_pinned():
    names = image_checks()
    assert len(names) == len(set(names)) == N_CHECKS
    assert len(check_image_estimator(Bare(), on_fail=None)) == N_CHECKS


@pytest.fixture
def restored_process():
    """Undo what estimators that are broken on purpose do to the process."""
    n_threads, state, environment = torch.get_num_threads(), torch.get_rng_state(), dict(os.environ)
    with warnings.catch_warnings():
        yield
    torch.set_num_threads(n_threads)
    torch.set_rng_state(state)
    for name in set(os.environ) - set(environment):
        del os.environ[name]


@parametrize_with_image_checks([PixelClassifier()], spatial_ndim=[2])
def test_every_check_catches_a_broken_estimator(estimator, check, restored_process):
    # An AssertionError comes from the check itself, not from an accident on the way.
    with pytest.raises(AssertionError, match=r"must|lack|influence"):
        check(BROKEN[check.name])


@pytest.mark.parametrize(
    "name", ["check_warning_filters_untouched", "check_thread_counts_untouched", "check_global_settings_untouched"]
)
def test_what_an_estimator_does_to_the_process_shows_in_a_whole_run(name, restored_process):
    results = {result["check_name"]: result for result in check_image_estimator(BROKEN[name], on_fail=None)}
    assert results[name]["status"] == "failed"


def test_there_are_no_broken_estimators_for_what_is_no_check():
    assert set(BROKEN) == set(image_checks())


def test_results_are_those_of_scikit_learn_and_the_reason():
    estimator = PixelClassifier()
    results = check_image_estimator(estimator)
    assert all(set(result) == KEYS for result in results)
    assert [result["check_name"] for result in results] == image_checks()
    assert {result["status"] for result in results} == {"passed"}
    assert all(result["estimator"] is estimator for result in results)
    assert all(result["exception"] is None and not result["expected_to_fail"] for result in results)
    assert {result["check_name"]: result["reason"] for result in results} == REASONS


@pytest.mark.parametrize("name", image_checks())
def test_every_check_has_a_reason_of_its_own_in_a_sentence(name):
    reason = REASONS[name]
    assert reason.endswith(".")
    assert 40 < len(reason) < 120
    assert list(REASONS.values()).count(reason) == 1


def test_checks_leave_the_estimator_and_the_data_alone():
    estimator, data = PixelClassifier(random_state=None), make_contract_data(2)
    before, X = dict(vars(estimator)), data.X.copy()
    check_image_estimator(estimator)
    assert vars(estimator) == before
    assert not any(array.flags.writeable for array in (data.X, data.X_colour, data.y, data.y_three))
    np.testing.assert_array_equal(data.X, X)


def test_the_data_are_the_same_in_every_run_and_hold_every_class():
    data = make_contract_data(2)
    assert data is make_contract_data(2)
    assert all(set(np.unique(mask)) == {0, 1} for mask in data.y)
    assert set(np.unique(data.y_three)) == {0, 1, 2}
    assert data.X_colour.shape == (*data.X.shape, 2)
    assert make_contract_data(3).X.ndim == 4


def test_what_an_estimator_lacks_is_skipped_with_the_reason():
    results = {result["check_name"]: result for result in check_image_estimator(Bare(), on_fail=None)}
    lacks = {
        "check_partial_fit": "no method partial_fit",
        "check_proba_form": "no method predict_proba",
        "check_score": "no method score",
        "check_score_sample_weight": "no method score",
        "check_unit_weights": "no sample_weight in fit",
        "check_bad_groups_raise": "no groups in fit",
        "check_groups_reach_train_split": "no groups in fit",
        "check_same_seed_same_result": "no parameter random_state",
        "check_ignore_label_is_any": "no parameter ignore_label",
        "check_listed_classes": "no parameter classes",
        "check_zero_epochs": "no parameter max_epochs",
        "check_predict_batch_size": "no parameter batch_size",
        "check_set_params_waits_for_fit": "no parameter depth",
        "check_impossible_parameters_raise": "no parameter depth or filters or max_epochs or batch_size",
    }
    for name, reason in lacks.items():
        assert results[name]["status"] == "skipped", name
        assert reason in str(results[name]["exception"])


def test_on_fail_raise_stops_at_the_first_failure_and_names_the_check():
    with pytest.raises(AssertionError, match="must leave other parameters alone") as error:
        check_image_estimator(BROKEN["check_set_params"])
    assert error.value.__notes__ == ["check_set_params: " + REASONS["check_set_params"]]


def test_on_fail_warn_warns_of_each_failure():
    with pytest.warns(EstimatorCheckFailedWarning, match="check_is_classifier") as caught:
        results = check_image_estimator(BROKEN["check_is_classifier"], on_fail="warn")
    failed = [result["check_name"] for result in results if result["status"] == "failed"]
    assert [warning.message.check_name for warning in caught] == failed
    assert "check_is_classifier" in failed


def test_expected_failures_are_marked_and_do_not_raise():
    expected = {"check_is_classifier": "is none", "check_clone": "passes all the same"}
    results = check_image_estimator(BROKEN["check_is_classifier"], expected_failed_checks=expected)
    by_name = {result["check_name"]: result for result in results}
    assert by_name["check_is_classifier"]["status"] == "xfail"
    assert by_name["check_is_classifier"]["expected_to_fail_reason"] == "is none"
    assert by_name["check_clone"]["status"] == "passed"
    assert by_name["check_clone"]["expected_to_fail"]
    assert "failed" not in {result["status"] for result in results}


def test_the_callback_gets_every_result():
    received = []
    results = check_image_estimator(Bare(), on_fail=None, callback=lambda **result: received.append(result))
    assert received == results


def test_arguments_out_of_range_raise():
    estimator = PixelClassifier()
    with pytest.raises(ValueError, match=r"got \['check_nothing'\]"):
        check_image_estimator(estimator, expected_failed_checks={"check_nothing": "no such check"})
    with pytest.raises(ValueError, match="callback must be None"):
        check_image_estimator(estimator, callback=print)
    with pytest.raises(ValueError, match="on_fail must be"):
        check_image_estimator(estimator, on_fail="ignore")
    with pytest.raises(ValueError, match="spatial_ndim must be 2 for images or 3 for volumes; got 4"):
        check_image_estimator(estimator, spatial_ndim=4)


def test_what_is_no_estimator_raises():
    with pytest.raises(TypeError, match="must be an instance; got the class UNetSegmenter"):
        check_image_estimator(UNetSegmenter)
    with pytest.raises(TypeError, match=r"lacks \['fit', 'predict'\]"):
        check_image_estimator(BaseEstimator())


def test_parametrised_tests_have_legible_names_and_marks():
    marks = parametrize_with_image_checks(
        [PixelClassifier(), Bare(), PixelClassifier(depth=2)],
        expected_failed_checks=lambda estimator: {"check_clone": "why"} if isinstance(estimator, Bare) else {},
    )
    names, parameters = marks.args
    assert names == ("estimator", "check")
    ids = [parameter.id for parameter in parameters]
    assert len(ids) == len(set(ids)) == 3 * 2 * N_CHECKS
    assert {"PixelClassifier1-2d-check_clone", "Bare-3d-check_clone", "PixelClassifier2-3d-check_clone"} <= set(ids)
    marked = {parameter.id: parameter.marks[0] for parameter in parameters if parameter.marks}
    assert set(marked) == {"Bare-2d-check_clone", "Bare-3d-check_clone"}
    assert marked["Bare-2d-check_clone"].name == "xfail"
    assert marked["Bare-2d-check_clone"].kwargs == {"reason": "why"}


def test_parametrised_tests_can_be_of_images_only():
    marks = parametrize_with_image_checks([Bare()], spatial_ndim=[2])
    assert {parameter.values[1].spatial_ndim for parameter in marks.args[1]} == {2}
