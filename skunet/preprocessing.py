"""Transformers of images, for scikit-learn Pipelines in front of a segmenter."""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch

from skunet.hyperparameters import check_hyperparameters
from skunet.image_transformer import ImageTransformer, check_image
from skunet.images import Images, as_tensor
from skunet.resizing import ResizedImages, resize_image
from skunet.scaling import check_scaling, fit_scaling, image_scaling, image_statistics, scale

__all__ = ["ChannelSelector", "ImageResizer", "ImageScaler", "ResizedImages"]


class ImageScaler(ImageTransformer):
    """Bring pixel values to a common range, per channel, as float32.

    Parameters
    ----------
    scaling : {"dataset", "image", "minmax", "percentile"} or (mean, std), default="dataset"
        "dataset": by mean and standard deviation of the images given to `fit`. "image": of each image. "minmax":
        to 0..1 by the least and largest pixel of each image. "percentile": likewise by two percentiles of each
        image, so that few outliers do not matter; what lies beyond them is not clipped. A pair of numbers, or of
        sequences with one number per channel: by these.
    percentiles : (low, high), default=(1, 99)
        0 <= low < high <= 100, for "percentile". An image for which both are the same is scaled by "minmax".
    spatial_ndim : {2, 3} or None, default=None
        2 for images, 3 for volumes; only needed where `fit` gets no masks and the shapes leave it open.

    Attributes
    ----------
    scaling_constants_ : ndarray of shape (2, C), or None
        Offset and divisor of each channel; None where each image has its own.
    spatial_ndim_, n_channels_in_ : int

    Notes
    -----
    What is constant becomes 0. `UNetSegmenter` scales by itself, with its parameter `scaling`; this class is for
    percentiles, and for other estimators.

    Examples
    --------
    >>> X = np.array([[[0, 10], [20, 40]]], dtype=np.uint8)
    >>> ImageScaler("minmax").fit_transform(X)
    array([[[0.  , 0.25],
            [0.5 , 1.  ]]], dtype=float32)
    """

    def __init__(
        self, scaling: Any = "dataset", *, percentiles: tuple[float, float] = (1, 99), spatial_ndim: int | None = None
    ) -> None:
        self.scaling = scaling
        self.percentiles = percentiles
        self.spatial_ndim = spatial_ndim

    def _learn(self, images: Images) -> None:
        first = images[0]
        self._check_parameters(len(first))
        self.scaling_constants_ = None
        if not isinstance(self.scaling, str):
            self.scaling_constants_ = fit_scaling(self.scaling, image_statistics(first)[None])
        elif self.scaling == "dataset":
            statistics = []
            for index, image in enumerate(images):
                check_image(image, index, n_channels=len(first))
                statistics.append(image_statistics(image))
            self.scaling_constants_ = fit_scaling(self.scaling, np.stack(statistics))

    def _check_parameters(self, n_channels: int) -> None:
        is_name = isinstance(self.scaling, str) and self.scaling in ("dataset", "image", "minmax", "percentile")
        if self.scaling is None or (isinstance(self.scaling, str) and not is_name):
            raise ValueError(
                'scaling must be "dataset", "image", "minmax", "percentile", or (mean, std) with std > 0; '
                f"got {self.scaling!r}."
            )
        if not is_name:
            check_hyperparameters({"scaling": self.scaling})
            check_scaling(self.scaling, n_channels)
        if not _is_pair_of_percentiles(self.percentiles):
            raise ValueError(f"percentiles must be (low, high) with 0 <= low < high <= 100; got {self.percentiles!r}.")

    def _change(self, image: np.ndarray) -> np.ndarray:
        constants = self.scaling_constants_
        if constants is None:
            constants = self._constants_of(image)
        scaled: np.ndarray = scale(as_tensor(image[None]), torch.from_numpy(constants))[0].numpy()
        return scaled

    def _constants_of(self, image: np.ndarray) -> np.ndarray:
        """Return offset and divisor (2, C) of an image that has its own."""
        if self.scaling != "percentile":
            return image_scaling(self.scaling, image_statistics(image))
        low, high = np.percentile(image.reshape(len(image), -1).astype(np.float64), self.percentiles, axis=1)  # (C,)
        of_extremes = image_scaling("minmax", image_statistics(image))
        return np.where(high > low, np.stack([low, high - low]), of_extremes)


def _is_pair_of_percentiles(value: Any) -> bool:
    try:
        low, high = (float(part) for part in value)
    except (TypeError, ValueError):
        return False
    return 0 <= low < high <= 100


class ChannelSelector(ImageTransformer):
    """Keep some channels: the last axis of arrays, the first of tensors.

    Parameters
    ----------
    channels : int, slice, or sequence of int
        As in numpy's indexing: an int leaves images without a channel axis (so that the images of one channel
        are told from volumes where they are 2-D), a slice or a sequence keeps the axis. Negative ones count
        from the end.
    spatial_ndim : {2, 3} or None, default=None
        2 for images, 3 for volumes; as there is a channel axis, the shapes tell.

    Attributes
    ----------
    spatial_ndim_, n_channels_in_ : int

    Examples
    --------
    >>> X = np.zeros((5, 32, 32, 3))
    >>> ChannelSelector(1).fit_transform(X).shape, ChannelSelector([0, 2]).fit_transform(X).shape
    ((5, 32, 32), (5, 32, 32, 2))
    """

    def __init__(self, channels: Any, *, spatial_ndim: int | None = None) -> None:
        self.channels = channels
        self.spatial_ndim = spatial_ndim

    def _rank_of(self, n_axes: int) -> int | None:
        if n_axes == 2:
            return 2  # without channels, which is an error of its own
        return n_axes - 1

    def _learn(self, images: Images) -> None:
        if not images.has_channel_axis:
            raise ValueError(
                f"X must have a channel axis to select from; got images of shape {images.container[0].shape}. "
                "Leave ChannelSelector out."
            )
        _check_channels(self.channels, len(images[0]))

    def _change(self, image: np.ndarray) -> np.ndarray:
        key = self.channels if isinstance(self.channels, Integral | slice) else list(self.channels)
        return np.asarray(image[key])


def _check_channels(channels: Any, n_channels: int) -> None:
    """Raise if `channels` selects none, or one that is not there."""
    if isinstance(channels, slice):
        selected: list[Any] = list(range(n_channels))[channels]
    else:
        selected = [channels] if not isinstance(channels, Sequence | np.ndarray) else list(channels)
    if not all(not isinstance(channel, bool) and isinstance(channel, Integral) for channel in selected):
        raise TypeError(f"channels must be an int, a slice, or a sequence of int; got {channels!r}.")
    if not selected or not all(-n_channels <= channel < n_channels for channel in selected):
        raise ValueError(f"channels must select from 0 to {n_channels - 1}, as X has {n_channels}; got {channels!r}.")


class ImageResizer(ImageTransformer):
    """Bring images to another size; a segmenter after it resizes the masks too, and undoes it in what it predicts.

    Images are interpolated linearly, and smoothed where they shrink; see `skunet.resizing.resize_linearly`.

    Parameters
    ----------
    size : int, sequence of int, or None, default=None
        Pixels per side, or one number per axis.
    factor : float, sequence of float, or None, default=None
        Multiplies the sides, for all axes or one number per axis; rounded, at least 1 pixel. Either `size` or
        `factor` must be given.
    spatial_ndim : {2, 3} or None, default=None
        2 for images, 3 for volumes; only needed where `fit` gets no masks and the shapes leave it open.

    Attributes
    ----------
    spatial_ndim_, n_channels_in_ : int

    Notes
    -----
    `transform` returns `ResizedImages`, in the dtype of the images and the container that they came in, in memory.
    `UNetSegmenter.fit` takes them with masks, and weights of pixels, of the original sizes: each pixel of a resized
    mask is that of the original at its centre (nearest neighbours). Training, validation and the scores in
    `history_` are at the new size. `predict_proba` interpolates probabilities linearly to the original sizes,
    `predict` gives the most probable label of those, and so `score` compares at the original sizes.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(6, size=48, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=4, max_epochs=1, verbose=0, random_state=0)
    >>> pipeline = make_pipeline(ImageResizer(factor=0.5), segmenter).fit(X, y)
    >>> pipeline.predict(X).shape
    (6, 48, 48)
    """

    def __init__(self, size: Any = None, *, factor: Any = None, spatial_ndim: int | None = None) -> None:
        self.size = size
        self.factor = factor
        self.spatial_ndim = spatial_ndim

    def _learn(self, images: Images) -> None:
        if (self.size is None) == (self.factor is None):
            raise ValueError(f"Either size or factor must be given; got size={self.size!r}, factor={self.factor!r}.")
        n_axes = images.spatial_ndim
        if self.size is not None and not _are_sizes(_per_axis(self.size, n_axes)):
            raise ValueError(
                f"size must be a number of pixels, at least 1, or {n_axes} of them, one per axis; got {self.size!r}."
            )
        if self.factor is not None and not _are_factors(_per_axis(self.factor, n_axes)):
            raise ValueError(
                f"factor must be a number above 0, or {n_axes} of them, one per axis; got {self.factor!r}."
            )

    def _change(self, image: np.ndarray) -> np.ndarray:
        return resize_image(image, self._size_of(image.shape[1:]))

    def _size_of(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """Return the new size of an image."""
        if self.size is not None:
            return tuple(int(n) for n in _per_axis(self.size, len(size)))
        factors = _per_axis(self.factor, len(size))
        return tuple(max(1, round(n * float(factor))) for n, factor in zip(size, factors, strict=True))

    def _wrap(self, changed: Any, sizes: list[tuple[int, ...]], X: Any) -> ResizedImages:
        return ResizedImages(changed, X.original_sizes if isinstance(X, ResizedImages) else sizes)


def _per_axis(value: Any, n_axes: int) -> list[Any]:
    """Return one value per axis; none where there are more or fewer."""
    values = [value] * n_axes if np.ndim(value) == 0 else list(value)
    return values if len(values) == n_axes else []


def _are_sizes(values: list[Any]) -> bool:
    return bool(values) and all(
        not isinstance(value, bool) and isinstance(value, Integral) and int(value) >= 1 for value in values
    )


def _are_factors(values: list[Any]) -> bool:
    return bool(values) and all(
        not isinstance(value, bool) and isinstance(value, Real) and 0 < float(value) < np.inf for value in values
    )
