"""Checks of labels: the values that the user's masks hold are those that come back."""

from typing import Any

import numpy as np

from skunet.contract import (
    ContractData,
    expect,
    expect_error,
    expect_same_outputs,
    fit_fresh,
    make_fresh,
    need_fit_argument,
    need_many_classes,
    need_method,
    need_parameter,
    predict_all,
)


def check_bool_labels(estimator: Any, data: ContractData) -> None:
    """A comparison such as `image > 7` gives bool masks, which must come back as bool."""
    _check_labels(estimator, data, np.array([False, True]))


def check_byte_labels(estimator: Any, data: ContractData) -> None:
    """Mask files hold 0 and 255, and labels that come back as 0 and 1 would not compare with them."""
    _check_labels(estimator, data, np.array([0, 255], dtype=np.uint8))


def check_gapped_labels(estimator: Any, data: ContractData) -> None:
    """Labels are names, not indices: any gap between them must be kept."""
    _check_labels(estimator, data, np.array([7, 900], dtype=np.int32))


def check_negative_labels(estimator: Any, data: ContractData) -> None:
    """Labels are names, not indices: negative ones must be kept."""
    _check_labels(estimator, data, np.array([-3, -1]))


def check_float_labels(estimator: Any, data: ContractData) -> None:
    """Arithmetic turns masks into floats: whole ones are labels, and come back as floats."""
    _check_labels(estimator, data, np.array([1.0, 4.0], dtype=np.float32))


def check_text_labels(estimator: Any, data: ContractData) -> None:
    """scikit-learn's classifiers take classes by name, and so must those of pixels."""
    _check_labels(estimator, data, np.array(["background", "cell"]))


def _check_labels(estimator: Any, data: ContractData, labels: np.ndarray) -> None:
    """Expect that other names of the classes change nothing but the names."""
    plain = fit_fresh(estimator, data.X, data.y).predict(data.X)
    named = fit_fresh(estimator, data.X, labels[data.y])
    expect(
        np.array_equal(named.classes_, labels), f"classes_ must be {labels.tolist()}; got {named.classes_.tolist()}."
    )
    result = np.asarray(named.predict(data.X))
    expect(result.dtype == labels.dtype, f"predict must return labels as {labels.dtype}, as in y; got {result.dtype}.")
    expected = labels[np.asarray(plain).astype(int)]
    expect(np.array_equal(result, expected), f"With labels {labels.tolist()} predict must differ in names only.")


def check_classes(estimator: Any, data: ContractData) -> None:
    """`classes_` says what each probability belongs to: the labels of y, sorted, each once."""
    need_many_classes(estimator)
    names = np.array([40, 10, 30])
    fitted = fit_fresh(estimator, data.X, names[data.y_three])
    expect(isinstance(fitted.classes_, np.ndarray), "classes_ must be an ndarray.")
    expect(list(fitted.classes_) == [10, 30, 40], f"classes_ must be the sorted labels; got {list(fitted.classes_)}.")
    foreign = set(np.unique(fitted.predict(data.X)).tolist()) - {10, 30, 40}
    expect(not foreign, f"predict must return labels of classes_ only; got {sorted(foreign)}.")


def check_listed_classes(estimator: Any, data: ContractData) -> None:
    """A fold may lack a class: one that is listed keeps its place, so that probabilities of folds fit together."""
    need_parameter(estimator, "classes")
    need_many_classes(estimator)
    fresh = make_fresh(estimator, classes=[0, 1, 2])
    fresh.fit(data.X, data.y * np.uint8(2))
    expect(list(fresh.classes_) == [0, 1, 2], f"classes_ must be those listed; got {list(fresh.classes_)}.")
    if hasattr(fresh, "predict_proba"):
        shape = np.shape(fresh.predict_proba(data.X))
        expect(shape[1] == 3, f"predict_proba must have an entry for each listed class, 3; got shape {shape}.")


def check_unlisted_label_raises(estimator: Any, data: ContractData) -> None:
    """A label that is not listed is a mistake in the masks, and must not be taken for another."""
    need_parameter(estimator, "classes")
    expect_error(lambda: make_fresh(estimator, classes=[0, 2]).fit(data.X, data.y_three), "A label not in classes")


def check_ignore_label_is_no_class(estimator: Any, data: ContractData) -> None:
    """What counts nowhere must not be in classes_ and never be predicted."""
    need_parameter(estimator, "ignore_label")
    fitted = _fit_ignoring(estimator, data, label=255)
    expect(list(fitted.classes_) == [0, 1], f"classes_ must be [0, 1], without 255; got {list(fitted.classes_)}.")
    expect(not np.any(np.asarray(fitted.predict(data.X)) == 255), "predict must not return ignore_label.")


def check_ignore_label_is_any(estimator: Any, data: ContractData) -> None:
    """Which value marks pixels to ignore is the user's choice, also one between the labels."""
    need_parameter(estimator, "ignore_label")
    results = [predict_all(_fit_ignoring(estimator, data, label=label), data.X).labels for label in (255, 1)]
    names = np.array([0, 2], dtype=np.uint8)
    same = all(np.array_equal(names[one], other) for one, other in zip(*results, strict=True))
    expect(same, "Pixels ignored as 255 or, between labels 0 and 2, as 1 must give the same predictions.")


def _fit_ignoring(estimator: Any, data: ContractData, *, label: int) -> Any:
    """Fit on masks whose block is to be ignored; their labels make room where `label` is one of them."""
    y = data.y * np.uint8(2 if label == 1 else 1)
    y[data.block] = label
    fresh = make_fresh(estimator, ignore_label=label)
    fresh.fit(data.X, y)
    return fresh


def check_ignored_pixels_have_no_influence(estimator: Any, data: ContractData) -> None:
    """An ignored pixel must act on the fit as one of weight zero does: not at all, whatever its label was."""
    need_parameter(estimator, "ignore_label")
    need_fit_argument(estimator, "sample_weight")
    ones, weights = np.ones(data.y.shape), np.ones(data.y.shape)
    weights[data.block] = 0
    y = data.y.copy()
    y[data.block] = 255
    ignored, weighted = make_fresh(estimator, ignore_label=255), make_fresh(estimator)
    ignored.fit(data.X, y, sample_weight=ones)
    weighted.fit(data.X, data.y, sample_weight=weights)
    promise = "Ignored pixels must act as those of weight zero"
    expect_same_outputs(predict_all(weighted, data.X), predict_all(ignored, data.X), promise)


def check_proba_of_ignored_problem(estimator: Any, data: ContractData) -> None:
    """Probabilities have one entry per class, and what is ignored is no class."""
    need_parameter(estimator, "ignore_label")
    need_method(estimator, "predict_proba")
    shape = np.shape(_fit_ignoring(estimator, data, label=255).predict_proba(data.X))
    expect(shape[1] == 2, f"predict_proba must have 2 entries, none for ignore_label; got shape {shape}.")
