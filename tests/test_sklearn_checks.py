"""scikit-learn's own checks of estimators, fed with images one by one, and whole through a tabular face."""

import functools
from collections import Counter
from importlib.util import find_spec
from unittest import SkipTest

import pytest
from conftest import make_segmenter
from image_hooks import apply_on_subsets, as_images, as_masks, as_tables
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.utils import estimator_checks, get_tags
from tabular_face import TabularFace
from tampered_segmenters import TAMPERED

from skunet import UNetSegmenter

RUN = {
    "check_all_zero_sample_weights_error",
    "check_array_api_input",
    "check_classifiers_regression_target",
    "check_complex_data",
    "check_decision_proba_consistency",
    "check_dict_unchanged",
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_dont_overwrite_parameters",
    "check_dtype_object",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_sparse_array",
    "check_estimator_sparse_matrix",
    "check_estimator_sparse_tag",
    "check_estimator_tags_renamed",
    "check_estimators_dtypes",
    "check_estimators_empty_data_messages",
    "check_estimators_fit_returns_self",
    "check_estimators_nan_inf",
    "check_estimators_overwrite_params",
    "check_estimators_partial_fit_n_features",
    "check_estimators_pickle",
    "check_estimators_unfitted",
    "check_f_contiguous_array_estimator",
    "check_fit1d",
    "check_fit2d_1feature",
    "check_fit2d_1sample",
    "check_fit2d_predict1d",
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_fit_score_takes_y",
    "check_get_params_invariance",
    "check_methods_sample_order_invariance",
    "check_methods_subset_invariance",
    "check_mixin_order",
    "check_n_features_in_after_fitting",
    "check_non_transformer_estimators_n_iter",
    "check_parameters_default_constructible",
    "check_pipeline_consistency",
    "check_positive_only_tag_during_fit",
    "check_readonly_memmap_input",
    "check_requires_y_none",
    "check_sample_weights_list",
    "check_set_params",
    "check_supervised_y_no_nan",
    "check_valid_tag_types",
}
# Of those run, the checks that never reach fit or predict: the first of constructor, parameters and tags, ...
WITHOUT_DATA = {
    "check_do_not_raise_errors_in_init_or_set_params",
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_estimator_tags_renamed",
    "check_get_params_invariance",
    "check_mixin_order",
    "check_parameters_default_constructible",
    "check_set_params",
    "check_valid_tag_types",
}
# ... the others for want of what they look at; the tabular face has columns, and checks the second in earnest.
WITHOUT_SUBJECT = {
    "check_decision_proba_consistency": "there is no decision_function",
    "check_n_features_in_after_fitting": "it returns at once for estimators that take no tables",
    "check_non_transformer_estimators_n_iter": "there is no max_iter",
}
LEFT_OUT = {
    "check_class_weight_classifiers": "its X is a table (n, 2), made past the hooks",
    "check_classifier_data_not_an_array": "it puts X into a pandas DataFrame, which has two axes",
    "check_classifiers_classes": "its y holds one label per sample, made past the hooks",
    "check_classifiers_one_label": "its y holds one label per sample, made past the hooks",
    "check_classifiers_one_label_sample_weights": "its X is a table and its y 1-D, both made past the hooks",
    "check_classifiers_train": "it wants predictions of shape (n_samples,)",
    "check_n_features_in": "images have no n_features_in_: X.shape[1] is their height, which may differ",
    "check_no_attributes_set_in_init": "skorch's constructor sets history_, initialized_ and virtual_params_",
    "check_sample_weight_equivalence_on_dense_data": "its X is a table, made past the hooks",
    "check_sample_weights_not_an_array": "its y holds one label per sample, made past the hooks",
    "check_sample_weights_not_overwritten": "its X is a table (16, 2), made past the hooks",
    "check_sample_weights_pandas_series": "it puts X into a pandas DataFrame, which has two axes",
    "check_sample_weights_shape": "its X is a table (16, 2), made past the hooks",
    "check_supervised_y_2d": "it wants y[:, None] to be taken for y; masks with one more axis are volumes",
}
FAILS_ON_TABLES = {
    "check_no_attributes_set_in_init": "skorch's constructor sets history_, initialized_ and virtual_params_",
    "check_sample_weight_equivalence_on_dense_data": "an image given twice is trained on twice as often, in batches of "
    "other images, so that stochastic gradient descent ends elsewhere than with a weight of two",
}
NEEDS_PANDAS = {"check_classifier_data_not_an_array", "check_sample_weights_pandas_series"}


class ClaimsTables(UNetSegmenter):
    """Says that it takes tables, so that scikit-learn lists all checks of a classifier."""

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        return tags


def name_of(check):
    return check.func.__name__


def describe(check):
    keywords = ",".join(f"{key}={value}" for key, value in check.keywords.items())
    return name_of(check) + (f"({keywords})" if keywords else "")


CHECKS = [check for _, check in estimator_checks.estimator_checks_generator(ClaimsTables())]
CHECKS_RUN = [check for check in CHECKS if name_of(check) in RUN]


# ---- fed with images one by one


@pytest.fixture
def on_images(monkeypatch):
    """Run a check of scikit-learn on images; nothing of the estimator is changed or wrapped."""

    def run(check, estimator):
        hook = as_tables if "sparse" in name_of(check) else as_images
        monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", hook)
        monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_y", as_masks)
        monkeypatch.setattr(estimator_checks, "_apply_on_subsets", apply_on_subsets)
        monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else check_array_api_input is skipped
        try:
            check(estimator)
        except SkipTest as reason:
            pytest.fail(f"{name_of(check)} was skipped: {reason}")

    return run


def test_each_check_of_scikit_learn_is_run_or_left_out_with_a_reason():
    assert {name_of(check) for check in CHECKS} == RUN | set(LEFT_OUT)
    assert not RUN & set(LEFT_OUT)
    assert WITHOUT_DATA | set(WITHOUT_SUBJECT) <= RUN


def test_the_number_of_checks_run_on_images_does_not_shrink():
    assert len(CHECKS_RUN) >= 47
    assert len([check for check in CHECKS_RUN if name_of(check) not in WITHOUT_SUBJECT]) >= 44


@pytest.mark.parametrize("check", CHECKS_RUN, ids=describe)
def test_checks_of_scikit_learn_pass_on_images(check, on_images, monkeypatch):
    calls = Counter()

    def counted(method):
        @functools.wraps(method)
        def call(*args, **kwargs):
            calls[method.__name__] += 1
            return method(*args, **kwargs)

        return call

    for method in ("fit", "partial_fit", "predict"):
        monkeypatch.setattr(UNetSegmenter, method, counted(getattr(UNetSegmenter, method)))
    on_images(check, make_segmenter(filters=2))
    is_without = name_of(check) in WITHOUT_DATA | set(WITHOUT_SUBJECT)
    assert bool(calls) != is_without, calls


def test_check_estimator_alone_runs_a_single_check():
    with pytest.warns(SkipTestWarning, match="Can't test estimator UNetSegmenter"):
        results = estimator_checks.check_estimator(UNetSegmenter())
    assert [result["check_name"] for result in results] == ["check_estimator_cloneable"]


def test_tags_say_what_is_taken():
    tags = get_tags(UNetSegmenter())
    taken = {name for name in tags.input_tags.__slots__ if getattr(tags.input_tags, name)}
    assert taken == {"three_d_array"}
    assert tags.estimator_type == "classifier"
    assert tags.classifier_tags.multi_class
    assert tags.target_tags.required
    assert tags.requires_fit
    assert not any([tags.non_deterministic, tags.no_validation, tags.array_api_support])


# ---- that the checks can fail on images


@pytest.mark.parametrize(
    ("name", "tampered", "message"), TAMPERED, ids=[f"{name}-{cls.__name__}" for name, cls, _ in TAMPERED]
)
def test_checks_of_scikit_learn_fail_on_images_where_the_estimator_is_tampered(name, tampered, message, on_images):
    check = next(check for check in CHECKS_RUN if name_of(check) == name)
    estimator = tampered(**make_segmenter(filters=2).get_params(deep=False))
    with pytest.raises((AssertionError, ValueError, NotFittedError), match=message):
        on_images(check, estimator)


# ---- whole, through a tabular face


@pytest.fixture(scope="module")
def results_on_tables():
    face = TabularFace(
        depth=0,
        scaling="dataset",  # of one row alone nothing is left that tells it from others
        filters=8,
        max_epochs=8,
        batch_size=32,
        lr=0.05,
        augment=None,
        train_split=None,
        precision="float32",
        device="cpu",
        random_state=0,
        verbose=0,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SCIPY_ARRAY_API", "1")  # else check_array_api_input is skipped
        return estimator_checks.check_estimator(
            face, expected_failed_checks=FAILS_ON_TABLES, on_fail=None, on_skip=None
        )


def names(results, status):
    return [result["check_name"] for result in results if result["status"] == status]


def test_check_estimator_passes_whole_through_a_tabular_face(results_on_tables):
    assert not {str(result["exception"]) for result in results_on_tables if result["status"] == "failed"}
    assert set(names(results_on_tables, "xfail")) == set(FAILS_ON_TABLES)
    skipped = set(names(results_on_tables, "skipped"))
    assert skipped == (set() if find_spec("pandas") else NEEDS_PANDAS)
    assert len(names(results_on_tables, "passed")) + len(skipped) >= 61


def test_what_is_left_out_on_images_passes_on_tables(results_on_tables):
    passed = set(names(results_on_tables, "passed")) | set(names(results_on_tables, "skipped"))
    assert set(LEFT_OUT) - passed == set(FAILS_ON_TABLES)
