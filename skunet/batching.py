"""How skorch's loop gets its data sets and batches, on images."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch
from scipy.sparse import issparse
from skorch import NeuralNet
from skorch.utils import is_dataset
from torch.utils.data import Subset

from skunet.augmentation import choose_augment
from skunet.blocks import ConvolutionBlock
from skunet.components import uncompiled
from skunet.containers import open_container
from skunet.image_dataset import ImageDataset
from skunet.images import Images, check_pixels, open_images
from skunet.labels import LabelCodec, count_labels
from skunet.memory import fit_step, measure_step
from skunet.patches import (
    EvaluationBatches,
    PatchBatches,
    choose_batch_size,
    choose_patch_size,
    group_equal_sizes,
)
from skunet.sampling import ClassPixels, PatchSampler, choose_batches, count_patches
from skunet.scaling import check_scaling, fit_scaling
from skunet.splits import hold_out
from skunet.tile_size import AUTO_WHOLE
from skunet.training_set import TrainingSet, open_training_set
from skunet.workers import is_in_worker

__all__ = ["ImageBatching"]

# Options of a DataLoader that only those with workers may have.
OF_WORKERS = ("num_workers", "persistent_workers", "prefetch_factor", "multiprocessing_context", "timeout")


def _as_is(batch: Any) -> Any:
    """Collate a batch that was assembled at once."""
    return batch


def check_table(data: Any, name: str) -> None:
    """Raise for what is wrong with the values of an array of 1 or 2 axes, as that says more than its rank.

    Raises
    ------
    TypeError
        If the array is sparse.
    ValueError
        If it has no columns, or holds complex numbers, NaN, infinity, or targets of a regression.

    Examples
    --------
    >>> check_table(np.array([0.5, 1.2, 3.1]), "y")
    Traceback (most recent call last):
    ValueError: Unknown label type: y must hold whole numbers; got 0.5, with 3 values in all. ...
    """
    if issparse(data):
        raise TypeError(f"Sparse data not supported: {name} must be dense images; got {type(data).__name__}.")
    if not isinstance(data, np.ndarray) or data.ndim not in (1, 2) or len(data) == 0:
        return
    if data.size == 0:
        raise ValueError(f"{name} holds 0 feature(s) (shape={data.shape}) while a minimum of 1 is required.")
    if data.dtype.kind in "fc":
        check_pixels(data, name) if name == "X" else count_labels(data, name)


class ImageBatching(NeuralNet):  # type: ignore[misc]  # skorch is not typed
    """The steps of skorch's loop that make data sets, split them, and iterate over batches."""

    compile: bool

    def _open_training_set(
        self, X: Any, y: Any, classes: Any, groups: Any, sample_weight: Any, *, is_fresh: bool
    ) -> TrainingSet:
        """Open what the user gave to fit; after the first fit rank, channels and labels must be the same."""
        if self.dataset is not ImageDataset and not is_dataset(X):
            X, y = self.get_dataset(X, y), None
        check_table(X, "X")
        check_table(y, "y")
        if not is_fresh and self.ignore_label in self.classes_.tolist():
            raise ValueError(
                f"ignore_label must be none of the labels that were trained, {self.classes_.tolist()}; got "
                f"{self.ignore_label!r}. Give these pixels sample_weight 0, or fit anew to leave the class out."
            )
        data = open_training_set(
            X,
            y,
            classes=classes if is_fresh else self.classes_,
            ignore_label=self.ignore_label,
            sample_weight=np.asarray(sample_weight) if hasattr(sample_weight, "__array__") else sample_weight,
            groups=groups,
            spatial_ndim=None if is_fresh else self.spatial_ndim_,
            n_channels=None if is_fresh else self.n_channels_in_,
        )
        check_scaling(self.scaling, data.n_channels)
        return data

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Return opened images as they are; open what a user hands to `forward` or `forward_iter`."""
        if is_dataset(X):
            return X
        if self.dataset is not ImageDataset:
            return super().get_dataset(X, y)
        return ImageDataset(self._open_images(X))

    def _open_images(self, X: Any) -> Images:
        """Open images for prediction; rank and channels must be those of fit."""
        self.check_is_fitted()
        check_table(X, "X")
        return open_images(open_container(X, "X"), spatial_ndim=self.spatial_ndim_, n_channels=self.n_channels_in_)

    def _opened(self, dataset: Any) -> Any:
        """Return what a data set of skorch's loop holds: ours, a part of ours, or somebody else's pairs."""
        if isinstance(dataset, Subset):
            return self._opened(dataset.dataset).select(np.asarray(dataset.indices))
        if isinstance(dataset, ImageDataset):
            return dataset.data
        codec: LabelCodec = self.codec_
        return open_training_set(
            dataset,
            None,
            classes=codec.classes,
            ignore_label=codec.ignore_label,
            spatial_ndim=self.spatial_ndim_,
            n_channels=self.n_channels_in_,
        )

    def get_split_datasets(self, X: Any, y: Any = None, **fit_params: Any) -> tuple[Any, Any]:  # noqa: ARG002
        """Split into training and validation images, and learn the scaling of the training images."""
        train, valid = self._split(X, fit_params)
        if not hasattr(self, "scaling_constants_"):
            self.scaling_constants_ = fit_scaling(self.fitted_scaling_, self._opened(train).statistics)
        return train, valid

    def _split(self, dataset: ImageDataset, fit_params: dict[str, Any]) -> tuple[Any, Any]:
        groups = self._opened(dataset).groups
        if not self.train_split:
            return dataset, None
        if callable(self.train_split):
            if groups is not None:
                fit_params = fit_params | {"groups": groups}
            parts: tuple[Any, Any] = self.train_split(dataset, dataset.y, **fit_params)
            return parts
        indices = hold_out(len(dataset), self.train_split, groups=groups, seed=self.seed_)
        if indices is None:
            self._note("Too few images or groups to hold any out for validation: training on all of them.")
            return dataset, None
        return Subset(dataset, indices[0].tolist()), Subset(dataset, indices[1].tolist())

    def _note(self, text: str) -> None:
        if self.verbose:
            print(text)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches of an epoch; images without masks are taken whole, also in training mode."""
        data = self._opened(dataset)
        training = training and isinstance(data, TrainingSet)
        arguments = {"batch_size": self.batch_size}
        arguments |= self.get_params_for("iterator_train" if training else "iterator_valid")
        if is_in_worker():
            # Workers of a search can start none, and have the cores already.
            arguments = {name: value for name, value in arguments.items() if name not in OF_WORKERS}
        if arguments["batch_size"] == -1:
            arguments["batch_size"] = len(data)
        # A generator of its own: the loader would draw a base seed from torch's global one.
        arguments = {"collate_fn": _as_is, "generator": torch.Generator()} | arguments
        return self._training_batches(data, arguments) if training else self._evaluation_batches(data, arguments)

    def _training_batches(self, data: TrainingSet, arguments: dict[str, Any]) -> Any:
        patch_size = choose_patch_size(self.patch_size, data.sizes, self._geometry())
        order = {name: arguments.pop(name) for name in ("batch_size", "shuffle", "drop_last") if name in arguments}
        order["batch_size"] = choose_batch_size(order["batch_size"], patch_size)
        if self.compile:
            order.setdefault("drop_last", True)  # batches of one size need one graph
        if self.memory_limit is not None:
            order["batch_size"], patch_size = self._keep_within_limit(order["batch_size"], patch_size)
        self.batch_size_, self.patch_size_ = order["batch_size"], patch_size
        batches = PatchBatches(
            data,
            patch_size=patch_size,
            scaling=self.fitted_scaling_,
            constants=self.scaling_constants_,
            augment=choose_augment(self.augment, len(data), self.spatial_ndim_, self.n_channels_in_),
            flip_axes=self.flip_axes_,
            seed=self.seed_,
            device="cpu" if arguments.get("num_workers") or arguments.get("pin_memory") else self.device_,
        )
        n_patches = count_patches(data.sizes, patch_size)
        sampler = PatchSampler(
            n_patches,
            seed=self.seed_,
            first_epoch=len(self.history),
            n_batches=choose_batches(self.batches_per_epoch, n_patches, order["batch_size"]),
            class_pixels=ClassPixels.find(data, seed=self.seed_) if self.balanced_share else None,
            balanced_share=self.balanced_share,
            **order,
        )
        self.patches_per_epoch_ = sampler.n_patches
        return self.iterator_train(batches, batch_sampler=sampler, **arguments)

    def _keep_within_limit(self, batch_size: int, patch_size: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Return the batch size and patch size of steps that `memory_limit` allows."""
        multiple = self._geometry().size_multiple
        module = deepcopy(uncompiled(self.module_)).train()
        for block in module.modules():
            if isinstance(block, ConvolutionBlock):
                block.keeps_features = True  # what is computed once more cannot be measured before
        memory = measure_step(
            lambda size: self._loss_of_blanks(module, size),
            size=(2 * multiple,) * len(patch_size),
            weights=sum(weight.nbytes for weight in module.parameters()),
            input_size=self._geometry().input_size,
        )
        at_once = min(batch_size, self.micro_batch_size or batch_size)
        fitting = fit_step(
            memory,
            self.memory_limit,
            batch_size=at_once,
            patch_size=patch_size,
            size_multiple=multiple,
            may_crop=self.patch_size is None,
        )
        if fitting != (at_once, patch_size):
            size = " x ".join(map(str, fitting[1]))
            megabytes = memory.bytes_for(*fitting) / 1e6
            self._note(f"memory_limit: {fitting[0]} patches of {size} at once take about {megabytes:,.0f} MB.")
        return batch_size if fitting[0] == at_once else fitting[0], fitting[1]

    def _evaluation_batches(self, data: TrainingSet | Images, arguments: dict[str, Any]) -> Any:
        sizes = [data.size(index) for index in range(len(data))]
        batches = group_equal_sizes(
            sizes,
            batch_size=choose_batch_size(arguments.pop("batch_size")),
            largest=AUTO_WHOLE[self.spatial_ndim_],
        )
        return self.iterator_valid(EvaluationBatches(data), batch_sampler=batches, **arguments)
