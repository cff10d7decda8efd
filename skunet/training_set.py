"""Everything a fit needs of its images and masks, checked and surveyed in one pass before slow work."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from skunet.containers import Container, open_container, open_pairs, pick_items
from skunet.fingerprint import checksum, describe
from skunet.image_files import check_order
from skunet.images import Images, check_pixels, open_images, subset
from skunet.labels import LabelCodec, LabelCounts, count_labels, learn_codec
from skunet.orientation import choose_samples, find_flip_axes, sample_mask
from skunet.resizing import ResizedMasks, resize_mask
from skunet.scaling import image_statistics

__all__ = ["TrainingSet", "check_mask_size", "open_both", "open_training_set"]


@dataclass(frozen=True)
class TrainingSet:
    """Images with masks, ready for training batches.

    Attributes
    ----------
    images : Images
    masks : Container
        Of the user's labels.
    sizes : ndarray of shape (N, spatial_ndim), int
        Pixels per axis.
    statistics : ndarray of shape (N, C, 5)
        By `scaling.image_statistics`.
    codec : LabelCodec
    class_counts : ndarray of shape (K,)
        Pixels of each class that have any weight.
    weights : ndarray of shape (N,), list of N arrays (*S), or None
    groups : ndarray of shape (N,) or None
    checksum : int
        Of the pixels of all images and masks.
    flip_axes : tuple of int
        Along which the masks have no direction, by `orientation.find_flip_axes`.
    """

    images: Images
    masks: Container
    sizes: np.ndarray
    statistics: np.ndarray
    codec: LabelCodec
    class_counts: np.ndarray
    weights: Any = None
    groups: np.ndarray | None = None
    checksum: int = 0
    flip_axes: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def n_channels(self) -> int:
        """Channels of every image."""
        return int(self.statistics.shape[1])

    def size(self, index: int) -> tuple[int, ...]:
        """Return the pixels per axis of one image."""
        return tuple(int(n) for n in self.sizes[index])

    def describe(self) -> dict[str, Any]:
        """Return what tells this set from others, for a file."""
        return {
            "images": len(self),
            "classes": describe(self.codec.classes),
            "pixels": self.checksum,
            "weights": None if self.weights is None else checksum(*map(np.asarray, self.weights)),
            "groups": None if self.groups is None else checksum(np.array([str(group) for group in self.groups])),
        }

    def select(self, indices: np.ndarray) -> "TrainingSet":
        """Return the images at `indices`, without reading any."""
        return replace(
            self,
            images=subset(self.images, indices),
            masks=pick_items(self.masks, indices),
            sizes=self.sizes[indices],
            statistics=self.statistics[indices],
            weights=pick(self.weights, indices),
            groups=pick(self.groups, indices),
        )


def pick(values: Any, indices: np.ndarray) -> Any:
    """Return the values at `indices`, of an array, a list or None."""
    if values is None or isinstance(values, np.ndarray):
        return None if values is None else values[indices]
    return [values[index] for index in indices]


def open_training_set(
    X: Any,
    y: Any,
    *,
    classes: Iterable[Any] | None = None,
    ignore_label: Any = None,
    sample_weight: Any = None,
    groups: Any = None,
    spatial_ndim: int | None = None,
    n_channels: int | None = None,
) -> TrainingSet:
    """Open images and masks for training.

    Parameters
    ----------
    X, y : see `UNetSegmenter.fit`
    classes, ignore_label : see `UNetSegmenter`
    sample_weight : array-like of shape (N,) or (N, *S), list of (*S), or None
    groups : array-like of shape (N,) or None
    spatial_ndim, n_channels : int, optional
        What was fitted before; None at the first fit.

    Raises
    ------
    TypeError, ValueError
        With the index of the image, what was expected, and what to do.
    """
    opened, masks = open_both(X, y, spatial_ndim=spatial_ndim, n_channels=n_channels)
    weights, groups = _check_weights(sample_weight, len(opened)), _check_groups(groups, len(opened))
    weights = _resize_weights(weights, opened)
    keep = _weighted_images(weights, len(opened))
    if len(keep) < len(opened):
        opened, masks = subset(opened, keep), pick_items(masks, keep)
    statistics, label_counts, sizes, pixels, samples = _survey(opened, masks)
    names = [masks.describe(index) for index in range(len(masks))]
    codec, class_counts = learn_codec(label_counts, classes=classes, ignore_label=ignore_label, names=names)
    weights = pick(weights, keep)
    if isinstance(weights, np.ndarray) and (weights == 1).all():
        weights = None  # dropping the others is then the same as fitting without them, bit for bit
    _check_pixel_weights(weights, sizes, positions=keep)
    if isinstance(weights, list):
        class_counts = _count_weighted(codec, masks, weights)
    return TrainingSet(
        opened,
        masks,
        sizes,
        statistics,
        codec,
        class_counts,
        weights,
        pick(groups, keep),
        pixels,
        find_flip_axes(map(codec.encode, samples), spatial_ndim=sizes.shape[1], n_classes=len(codec.classes)),
    )


def open_both(
    X: Any, y: Any, *, spatial_ndim: int | None = None, n_channels: int | None = None
) -> tuple[Images, Container]:
    """Open images and masks, and settle from both which axis is what; see `open_training_set`."""
    images, masks = _open_containers(X, y)
    _check_mask_axes(images, masks)
    rank = _check_rank(images, masks, spatial_ndim)
    opened = open_images(images, spatial_ndim=rank, n_channels=n_channels, mask_ndim=rank)
    return opened, _resize_masks(masks, opened)


def _resize_masks(masks: Container, images: Images) -> Container:
    """Return masks of the images' size, where these were resized."""
    original_sizes = images.container.original_sizes
    if original_sizes is None:
        return masks
    sizes = [images.size(index) for index in range(len(images))]
    return replace(masks, items=ResizedMasks(masks, original_sizes, sizes), read=np.asarray, shape=None)


def _resize_weights(weights: Any, images: Images) -> Any:
    """Return weights of pixels in the images' size, where these were resized."""
    original_sizes = images.container.original_sizes
    if original_sizes is None or not isinstance(weights, list):
        return weights
    _check_pixel_weights(weights, np.array(original_sizes), positions=range(len(images)))
    return [resize_mask(weight, images.size(index)) for index, weight in enumerate(weights)]


def _open_containers(X: Any, y: Any) -> tuple[Container, Container]:
    if isinstance(X, Dataset):
        if y is not None:
            raise ValueError("y must be None where X is a Dataset, as its items are (image, mask) pairs.")
        return open_pairs(X)
    if y is None:
        raise ValueError(
            "UNetSegmenter requires y to be passed, but the target y is None. Pass the masks, one for each image."
        )
    images, masks = open_container(X, "X"), open_container(y, "y")
    if len(images) != len(masks):
        raise ValueError(
            f"X and y must have the same number of images; got {len(images)} images and {len(masks)} masks. "
            "Each image needs its mask; one image alone is X[None] with y[None]."
        )
    check_order(images.items, masks.items)
    return images, masks


def _check_rank(images: Container, masks: Container, fitted: int | None) -> int:
    rank = masks.item_ndim()
    if rank not in (2, 3):
        raise ValueError(
            f"Masks must have 2 axes (H, W) or 3 (D, H, W); got {rank} for {masks.describe(0)}. "
            "Drop a channel axis with y[..., 0]."
        )
    if fitted is not None and rank != fitted:
        raise ValueError(f"Masks must have {fitted} axes, as fitted; got {rank}. Fit again for another rank.")
    if rank == 3 and images.item_ndim() == 3 and images[0].shape == masks[0].shape:
        _warn_of_flat_volumes((len(images), *masks[0].shape))
    return rank


def _warn_of_flat_volumes(shape: tuple[int, ...]) -> None:
    """Warn where the shapes settle for volumes, but an axis looks like channels."""
    if shape[1] != 1 and shape[-1] not in (1, 3, 4):
        return
    is_last = shape[-1] in (1, 3, 4)
    warnings.warn(
        f"X and y of shape {shape} are taken for volumes of {f'width {shape[-1]}' if is_last else 'depth 1'}. "
        f"For 2-D images pass masks without a channel axis, {'y[..., 0]' if is_last else 'and X[:, 0], y[:, 0]'}.",
        UserWarning,
        stacklevel=7,
    )


def _check_mask_axes(images: Container, masks: Container) -> None:
    """Raise ValueError where masks have one axis more than their images, as grey masks in colour or maps per class."""
    if images.item_ndim() != masks.item_ndim() - 1:
        return
    size, mask = images[0].shape, masks[0]
    is_first = mask.shape[1:] == size != mask.shape[:-1]
    if mask.shape[:-1] != size and not is_first and mask.shape[-1] != 1:
        return
    channels = mask if is_first else np.moveaxis(mask, -1, 0)  # (C, *S)
    is_grey = len(channels) in (1, 3, 4) and bool((channels[:3] == channels[0]).all())
    name, axis = ("y", 1) if masks.shape is not None else ("mask", 0)
    index = ", ".join([":"] * axis + ["0"]) if is_first else "..., 0"
    remedy = f"{name}[{index}]" if is_grey else f"{name}.argmax(axis={axis if is_first else -1})"
    raise ValueError(
        f"Masks must have no {'channel' if is_grey else 'class'} axis; got {mask.shape} for {masks.describe(0)}, of an "
        f"image of {size} pixels. {'Pass' if is_grey else 'Of one map per class make labels: pass'} {remedy}"
        f"{' of each mask' if name == 'mask' else ''}."
    )


def _survey(
    images: Images, masks: Container
) -> tuple[np.ndarray, list[LabelCounts], np.ndarray, int, list[np.ndarray]]:
    """Read every image and mask once: check them, and keep what is small."""
    statistics: list[np.ndarray] = []
    counts, sizes, pixels, samples, sampled = [], [], 0, [], choose_samples(len(images))
    for index in range(len(images)):
        image, name, mask_name = images[index], images.container.describe(index), masks.describe(index)
        check_pixels(image, name)
        if statistics and len(statistics[0]) != len(image):
            raise ValueError(
                f"All images must have {len(statistics[0])} channels as the first; {name} has {len(image)}. Convert "
                "those of another kind, grey or colour."
            )
        mask = masks[index]
        check_mask_size(image, mask, name, mask_name)
        statistics.append(image_statistics(image))
        counts.append(count_labels(mask, mask_name))
        sizes.append(mask.shape)
        if index in sampled:
            samples.append(sample_mask(mask))
        if images.container.kind != "dataset":  # which may draw anew each time it is read
            pixels = checksum(image, mask, start=pixels)
    return np.stack(statistics), counts, np.array(sizes), pixels, samples


def check_mask_size(image: np.ndarray, mask: np.ndarray, name: str, mask_name: str) -> None:
    """Raise ValueError if an image (C, *S) and its mask differ in size; an error calls them by these names."""
    size = image.shape[1:]
    if mask.shape == size:
        return
    hint = "Resize one of them, masks with nearest neighbours."
    if (*size[1:], image.shape[0]) == mask.shape:
        hint = "Channels come last in arrays: pass np.moveaxis(X, 1, -1), or image by image np.moveaxis(image, 0, -1)."
    if image.shape[:-1] == mask.shape:
        hint = "Channels come first in tensors: pass X.movedim(-1, 1)."
    if mask.shape[:-1] == size[:-1] and mask.shape[-1:] != (1,):
        hint = "Of one map per class make labels: pass y.argmax(axis=-1)."
    if mask.shape[:-1] == size[:-1] and mask.shape[-1:] == (1,):
        hint = "For 2-D images pass y[..., 0]."
    raise ValueError(
        f"A mask must have the size of its image; {name} has {size} and {mask_name} has {mask.shape}. {hint}"
    )


def _check_groups(groups: Any, n_images: int) -> np.ndarray | None:
    if groups is None:
        return None
    array = np.asarray(groups)
    if array.shape != (n_images,):
        raise ValueError(f"groups must hold one value per image, shape ({n_images},); got shape {array.shape}.")
    return array


def _check_weights(sample_weight: Any, n_images: int) -> Any:
    """Return weights as float32: an array (N,), or a list of arrays (*S)."""
    if sample_weight is None:
        return None
    n_entries = len(sample_weight) if hasattr(sample_weight, "__len__") else None
    if n_entries != n_images:
        got = sample_weight if n_entries is None else n_entries
        raise ValueError(f"sample_weight must hold one entry per image, {n_images}; got {got}.")
    weights: Any
    if np.ndim(next(iter(sample_weight))) == 0:
        weights = np.asarray(sample_weight, dtype=np.float32)
    else:
        weights = [np.asarray(weight, dtype=np.float32) for weight in sample_weight]
    if not all(np.isfinite(weight).all() and (weight >= 0).all() for weight in weights):
        raise ValueError("sample_weight must be finite and at least 0; got NaN, infinity or a negative weight.")
    return weights


def _weighted_images(weights: Any, n_images: int) -> np.ndarray:
    """Return the positions of images that have any weight."""
    if weights is None:
        return np.arange(n_images)
    keep = np.flatnonzero([np.any(weight) for weight in weights])
    if len(keep) == 0:
        raise ValueError("sample_weight must not be zero for all images. Give at least one image a weight.")
    return keep


def _check_pixel_weights(weights: Any, sizes: np.ndarray, *, positions: Iterable[int]) -> None:
    if not isinstance(weights, list):
        return
    for position, weight, size in zip(positions, weights, sizes, strict=True):
        if weight.shape != tuple(size):
            raise ValueError(
                f"sample_weight must be one number per image or have the size of the mask {tuple(size.tolist())}; "
                f"got {weight.shape} for image {position}."
            )


def _count_weighted(codec: LabelCodec, masks: Container, weights: list[np.ndarray]) -> np.ndarray:
    """Return how many pixels of each class have any weight, (K,)."""
    counts = np.zeros(len(codec.classes), dtype=np.int64)
    for index, weight in enumerate(weights):
        indices = codec.encode(masks[index][weight > 0])
        counts += np.bincount(indices[indices >= 0], minlength=len(counts))
    return counts
