"""What transformers of images share: open any container, change image by image, give the container back."""

from abc import abstractmethod
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import Dataset

from skunet.containers import Container, object_array, open_container
from skunet.images import Images, check_pixels, open_images
from skunet.resizing import ResizedImages
from skunet.training_set import check_mask_size, open_both

__all__ = ["ImageTransformer", "check_image"]


class ImageTransformer(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """What transformers of images share: they change one image at a time, and keep the container.

    Attributes
    ----------
    spatial_ndim_ : int
        2 for images, 3 for volumes.
    n_channels_in_ : int
    """

    spatial_ndim: int | None

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn what `transform` needs.

        Parameters
        ----------
        X : array or list
            Images as `UNetSegmenter.fit` takes them, but no Dataset.
        y : array or list, optional
            Their masks, which tell channels from a third dimension. A Pipeline passes them.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If a parameter or an image is not as described, or the shapes do not settle which axis is what.
        """
        self._check_rank_parameter()
        images = self._open_alone(X) if y is None else self._open_with(X, y)
        self._learn(images)
        self.spatial_ndim_ = images.spatial_ndim
        self.n_channels_in_ = len(images[0])
        return self

    def transform(self, X: Any) -> Any:
        """Return the changed images.

        Parameters
        ----------
        X : array or list
            Images as in `fit`, of any size. Files are read one at a time.

        Returns
        -------
        ndarray, Tensor, list, object array or ResizedImages
            A stack of a stack or of a lazy array, a list of a list of arrays or paths, and so on.
        """
        check_is_fitted(self)
        images = open_images(_open(X), spatial_ndim=self.spatial_ndim_)
        results, sizes = ChangedImages(images), []
        for index, image in enumerate(images):
            check_image(image, index, n_channels=self.n_channels_in_)
            results.add(self._change(image))
            sizes.append(image.shape[1:])
        return self._wrap(results.give_back(), sizes, X)

    @abstractmethod
    def _learn(self, images: Images) -> None:
        """Check the parameters against the images, and learn from these."""

    @abstractmethod
    def _change(self, image: np.ndarray) -> np.ndarray:
        """Return the changed image (C, *S), or (*S) where channels are to go."""

    def _wrap(self, changed: Any, sizes: list[tuple[int, ...]], X: Any) -> Any:  # noqa: ARG002
        return X.with_images(changed) if isinstance(X, ResizedImages) else changed

    def _check_rank_parameter(self) -> None:
        if self.spatial_ndim not in (None, 2, 3):
            raise ValueError(f"spatial_ndim must be 2 for images, 3 for volumes, or None; got {self.spatial_ndim!r}.")

    def _open_with(self, X: Any, y: Any) -> Images:
        """Open images whose masks settle the rank."""
        _open(X)
        images, masks = open_both(X, y)
        if self.spatial_ndim not in (None, images.spatial_ndim):
            raise ValueError(
                f"spatial_ndim must be the number of axes of a mask, {images.spatial_ndim}; got {self.spatial_ndim}."
            )
        check_mask_size(images[0], masks[0], images.container.describe(0), masks.describe(0))
        return images

    def _open_alone(self, X: Any) -> Images:
        """Open images without masks: one axis more than 2 may be channels, or depth."""
        container = _open(X)
        spatial_ndim = self.spatial_ndim or self._rank_of(container.item_ndim())
        if spatial_ndim is None:
            raise ValueError(
                f"X must show which axis is what; images of shape {container[0].shape} may be 2-D with channels, or "
                "volumes. Pass the masks to fit, or spatial_ndim=2 or 3."
            )
        return open_images(container, spatial_ndim=spatial_ndim)

    def _rank_of(self, n_axes: int) -> int | None:
        return {2: 2, 4: 3}.get(n_axes)

    def set_output(self, *, transform: Any = None) -> Self:  # noqa: ARG002
        """Do nothing: images fit into no data frame. For Pipelines whose output is set as a whole."""
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags


def _open(X: Any) -> Container:
    if isinstance(X, Dataset):
        raise TypeError(
            f"X must be an array or a list of images here; got a {type(X).__name__}, whose masks a transformer would "
            "lose. Pass images as X and masks as y."
        )
    return open_container(X, "X")


def check_image(image: np.ndarray, index: int, *, n_channels: int) -> None:
    """Raise ValueError if an image (C, *S) cannot be worked on, or has other channels than the first of `fit`."""
    check_pixels(image, f"image {index}")
    if len(image) != n_channels:
        raise ValueError(
            f"Images must have {n_channels} channel(s), as the first that was fitted; image {index} has {len(image)}."
        )


class ChangedImages:
    """Changed images, gathered in the container that the images came in.

    Parameters
    ----------
    images : Images
    """

    def __init__(self, images: Images) -> None:
        self.images = images
        self.n_added = 0
        self.arrays: Any = []

    def add(self, image: np.ndarray) -> None:
        """Take the next image, (C, *S) or (*S)."""
        image = self._arrange(image)
        if self.images.container.kind == "stack":
            if self.n_added == 0:
                self.arrays = np.empty((len(self.images), *image.shape), dtype=image.dtype)
            self.arrays[self.n_added] = image
        else:
            self.arrays.append(np.array(image, order="C"))  # a copy, which keeps nothing else alive
        self.n_added += 1

    def _arrange(self, image: np.ndarray) -> np.ndarray:
        """Return an image (C, *S) with its axes as the user has them."""
        has_channels_first = image.ndim == self.images.spatial_ndim or self.images.container.channels_first
        if has_channels_first and self.images.has_channel_axis:
            return image
        return np.squeeze(image, 0) if not self.images.has_channel_axis else np.moveaxis(image, 0, -1)

    def give_back(self) -> Any:
        """Return all images."""
        container = self.images.container
        if container.kind == "stack":
            return torch.from_numpy(self.arrays) if container.channels_first else self.arrays
        arrays = [torch.from_numpy(array) for array in self.arrays] if container.channels_first else self.arrays
        return object_array(arrays) if container.kind == "object_array" else arrays
