"""Checks that input which cannot be right is an error that says so, instead of a mask that means nothing."""

from functools import partial
from typing import Any

import numpy as np

from skunet.contract import ContractData, expect_error, fit_fresh, make_fresh

BAD = (ValueError, TypeError)


def _check_bad_pixels(estimator: Any, data: ContractData, X: np.ndarray, what: str) -> None:
    """Expect an error for images at fit and at prediction."""
    expect_error(lambda: fit_fresh(estimator, X, data.y), f"fit on {what}", BAD)
    fitted = fit_fresh(estimator, data.X, data.y)
    expect_error(lambda: fitted.predict(X), f"predict on {what}", BAD)


def _with_pixel(data: ContractData, value: float) -> np.ndarray:
    X = data.X.astype(np.float32)
    X[1].flat[7] = value
    return X


def check_nan_raises(estimator: Any, data: ContractData) -> None:
    """One NaN spreads through a network over the whole image, and at fit over all weights."""
    _check_bad_pixels(estimator, data, _with_pixel(data, np.nan), "NaN")


def check_infinity_raises(estimator: Any, data: ContractData) -> None:
    """One infinite pixel spreads through a network over the whole image, and at fit over all weights."""
    _check_bad_pixels(estimator, data, _with_pixel(data, np.inf), "infinity")


def check_complex_raises(estimator: Any, data: ContractData) -> None:
    """A cast to real numbers would drop half of a complex image without a word."""
    _check_bad_pixels(estimator, data, data.X.astype(np.complex64), "complex images")


def check_text_images_raise(estimator: Any, data: ContractData) -> None:
    """An array of text is no image, and a cast to numbers would hide that it was read wrongly."""
    _check_bad_pixels(estimator, data, np.full(data.X.shape, "a"), "images of text")


def check_no_images_raise(estimator: Any, data: ContractData) -> None:
    """An empty stack is a search for files that found none, and nothing can be learned from it."""
    expect_error(lambda: fit_fresh(estimator, data.X[:0], data.y[:0]), "fit on no images")
    expect_error(lambda: fit_fresh(estimator, [], []), "fit on an empty list")
    fitted = fit_fresh(estimator, data.X, data.y)
    expect_error(lambda: fitted.predict(data.X[:0]), "predict on no images")


def check_no_pixels_raise(estimator: Any, data: ContractData) -> None:
    """An image of no pixels is a crop that went wrong."""
    expect_error(lambda: fit_fresh(estimator, data.X[:, :0], data.y[:, :0]), "fit on images of no pixels")
    fitted = fit_fresh(estimator, data.X, data.y)
    expect_error(lambda: fitted.predict(data.X[:, :0]), "predict on images of no pixels")


def check_length_mismatch_raises(estimator: Any, data: ContractData) -> None:
    """Images without a mask each are paired wrongly."""
    expect_error(lambda: fit_fresh(estimator, data.X, data.y[:-1]), "fit with a mask too few")
    expect_error(lambda: fit_fresh(estimator, list(data.X[:-1]), list(data.y)), "fit with an image too few")
    fitted = fit_fresh(estimator, data.X, data.y)
    if hasattr(fitted, "score"):
        expect_error(lambda: fitted.score(data.X, data.y[:-1]), "score with a mask too few")


def check_size_mismatch_raises(estimator: Any, data: ContractData) -> None:
    """A mask of another size than its image is the mask of another image."""
    expect_error(lambda: fit_fresh(estimator, data.X, data.y[..., :-1]), "fit with masks of another size")
    y = [*data.y[:-1], data.y[-1][..., :-1]]
    expect_error(lambda: fit_fresh(estimator, list(data.X), y), "fit with one mask of another size")


def check_wrong_rank_raises(estimator: Any, data: ContractData) -> None:
    """Tables, labels per image and masks with one map per class are no images with masks."""
    table = data.X.reshape(len(data.X), -1)
    labels = np.arange(len(data.X)) % 2
    maps = np.stack([data.y == 0, data.y == 1], axis=-1)
    expect_error(lambda: fit_fresh(estimator, table, labels), "fit on a table")
    expect_error(lambda: fit_fresh(estimator, data.X, labels), "fit with one label per image")
    expect_error(lambda: fit_fresh(estimator, data.X, maps), "fit with one map per class")


def check_channels_first_raises(estimator: Any, data: ContractData) -> None:
    """Channels come last: (N, C, *S) must not be taken for images of C rows."""
    channels_first = np.moveaxis(data.X_colour, -1, 1)
    expect_error(lambda: fit_fresh(estimator, channels_first, data.y), "fit on channels first")
    fitted = fit_fresh(estimator, data.X_colour, data.y)
    expect_error(lambda: fitted.predict(channels_first), "predict on channels first")


def check_single_image_raises(estimator: Any, data: ContractData) -> None:
    """One image alone must not be taken for a stack of its rows.

    At fit, shapes cannot tell one volume with its mask from a stack of 2-D images with theirs.
    """
    if data.spatial_ndim == 2:
        expect_error(lambda: fit_fresh(estimator, data.X[0], data.y[0]), "fit on one image alone")
        expect_error(lambda: fit_fresh(estimator, data.X_colour[0], data.y[0]), "fit on one colour image alone")
    for X in (data.X, data.X_colour):
        fitted = fit_fresh(estimator, X, data.y)
        expect_error(partial(fitted.predict, X[0]), "predict on one image alone")


def check_one_class_raises(estimator: Any, data: ContractData) -> None:
    """From masks of one label nothing can be learned; as a rule the folder is the wrong one."""
    expect_error(lambda: fit_fresh(estimator, data.X, np.zeros_like(data.y)), "fit on masks of one label")


def check_fractional_mask_raises(estimator: Any, data: ContractData) -> None:
    """Masks with fractions were resized or are probabilities, and hold no labels."""
    expect_error(lambda: fit_fresh(estimator, data.X, data.y * np.float32(0.5)), "fit on fractional masks")


def check_nan_in_mask_raises(estimator: Any, data: ContractData) -> None:
    """NaN is no label: what shall not count has a label that says so."""
    y = data.y.astype(np.float32)
    y[1].flat[7] = np.nan
    expect_error(lambda: fit_fresh(estimator, data.X, y), "fit on masks with NaN")


def check_missing_masks_raise(estimator: Any, data: ContractData) -> None:
    """Segmentation is supervised: without masks there is nothing to learn."""
    expect_error(lambda: make_fresh(estimator).fit(data.X, None), "fit without masks", BAD)


def check_other_channels_raise(estimator: Any, data: ContractData) -> None:
    """What was fitted on other channels cannot predict these."""
    plain, colour = fit_fresh(estimator, data.X, data.y), fit_fresh(estimator, data.X_colour, data.y)
    three = np.concatenate([data.X_colour, data.X_colour[..., :1]], axis=-1)
    expect_error(lambda: plain.predict(data.X_colour), "predict on 2 channels after fit on 1")
    expect_error(lambda: colour.predict(data.X), "predict on 1 channel after fit on 2")
    expect_error(lambda: colour.predict(three), "predict on 3 channels after fit on 2")


def check_other_rank_raises(estimator: Any, data: ContractData) -> None:
    """What was fitted on images cannot predict volumes, nor the other way round."""
    fitted = fit_fresh(estimator, data.X, data.y)
    other = data.X[:, None, :, :, None] if data.spatial_ndim == 2 else data.X[:, 0]
    expect_error(lambda: fitted.predict(other), f"predict on X of shape {other.shape} after fit on {data.X.shape}")
