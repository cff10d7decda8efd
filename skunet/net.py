"""skorch's NeuralNet with its named steps bent to images: data sets, batches, inference, loss, parameters."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import numpy as np
import skorch.callbacks
import skorch.dataset
import torch
from sklearn.base import BaseEstimator
from skorch import NeuralNet
from skorch.exceptions import NotInitializedError
from skorch.dataset import unpack_data
from skorch.utils import is_dataset
from torch import Tensor, nn
from torch.utils.data import Subset

from skunet.callbacks import EarlyStopping, EpochLog, EpochLoss, IoUScoring, ProgressBar
from skunet.components import accepted, class_weights, criterion_arguments, weighted_loss
from skunet.containers import open_container
from skunet.hardware import resolve_device, resolve_precision
from skunet.images import Images, as_tensor, open_images
from skunet.labels import LabelCodec
from skunet.model_selection import hold_out
from skunet.patches import (
    EvaluationBatches,
    PatchBatches,
    PatchSampler,
    choose_patch_size,
    count_patches,
    group_equal_sizes,
    unpack_inputs,
)
from skunet.randomness import WEIGHTS, seeded_torch
from skunet.scaling import fit_scaling, image_scaling, image_statistics, scale
from skunet.tiling import AUTO_WHOLE, Geometry, PlainGeometry, Window, assemble, choose_tile_size, predict_tiles
from skunet.training_set import TrainingSet, open_training_set

__all__ = ["ImageDataset", "SegmentationNet"]


class ImageDataset(skorch.dataset.Dataset):  # type: ignore[misc]  # skorch is not typed
    """Opened images, with masks at fit, as the data set that skorch's loop and callbacks see.

    Parameters
    ----------
    data : TrainingSet or Images

    Attributes
    ----------
    X, y : array-like
        As the user gave them, so that skorch's scoring callbacks find labels.
    """

    def __init__(self, data: TrainingSet | Images) -> None:
        self.data = data
        images = data.images if isinstance(data, TrainingSet) else data
        self.X = images.container.as_user_array()
        self.y = data.masks.as_user_array() if isinstance(data, TrainingSet) else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        if isinstance(self.data, Images):
            return as_tensor(self.data[index]), torch.zeros(1)
        return as_tensor(self.data.images[index]), self.data.codec.to_tensor(self.data.masks[index])


def _as_is(batch: Any) -> Any:
    """Collate a batch that was assembled at once."""
    return batch


class SegmentationNet(NeuralNet):  # type: ignore[misc]  # skorch is not typed
    """The steps of skorch's training and prediction loops, on images.

    `UNetSegmenter` gives it its parameters and its story; nothing here is called by users alone.
    """

    # ---- parameters

    def _get_param_names(self) -> list[str]:
        # Whatever does not end in "_" is taken for a parameter, skorch's own bookkeeping included.
        return [name for name in super()._get_param_names() if not name.startswith("_")]

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        """Return the arguments of a component: the user's, and those that follow from parameters and data."""
        given: dict[str, Any] = super().get_params_for(prefix)
        if prefix == "module" and not isinstance(self.module, nn.Module):
            return accepted(self.module, self._module_arguments()) | given
        if prefix == "criterion":
            return criterion_arguments(self.criterion, self._class_weights()) | given
        return given

    def _module_arguments(self) -> dict[str, Any]:
        classes = getattr(self, "classes_", self.classes)
        return {
            "in_channels": getattr(self, "n_channels_in_", 1),
            "n_classes": 2 if classes is None else len(classes),
            "spatial_ndim": getattr(self, "spatial_ndim_", 2),
            "depth": self.depth,
            "filters": self.filters,
        }

    def _class_weights(self) -> list[float] | None:
        if not hasattr(self, "codec_"):
            return None
        weights: list[float] | None = class_weights(self.class_weight, self.codec_, self.class_counts_)
        return weights

    @property
    def _default_callbacks(self) -> list[tuple[str, Any]]:
        return [
            ("epoch_timer", skorch.callbacks.EpochTimer()),
            ("train_loss", EpochLoss("train_loss", on_train=True)),
            ("valid_loss", EpochLoss("valid_loss")),
            ("iou", IoUScoring()),
            ("early_stopping", EarlyStopping()),
            ("progress", ProgressBar()),
            ("print_log", EpochLog()),
        ]

    # ---- building and keeping the network

    @contextmanager
    def _resolved_device(self) -> Iterator[None]:
        """Let skorch's own code, which hands `self.device` to torch, see the device that "auto" stands for."""
        device = self.device
        self.device = self.device_ = resolve_device(device)
        try:
            yield
        finally:
            self.device = device

    def _initialize_module(self, reason: str | None = None) -> Any:
        with self._resolved_device():
            return super()._initialize_module(reason)

    def _initialize_criterion(self, reason: str | None = None) -> Any:
        with self._resolved_device():
            return super()._initialize_criterion(reason)

    def initialize_module(self) -> Any:
        """Build the network from the seed; an instance that was given is taken as it is."""
        with seeded_torch(self.seed_, *WEIGHTS):
            super().initialize_module()
        self.built_with_ = self.get_params_for("module")
        self.is_trained_ = False
        return self

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        """Load weights, optimizer or history from files; see `skorch.NeuralNet.load_params`."""
        with self._resolved_device():
            super().load_params(*args, **kwargs)
        self.is_trained_ = True

    def __setstate__(self, state: dict[str, Any]) -> None:
        device = state["device"]
        super().__setstate__(state | {"device": resolve_device(device)})
        if device == "auto":
            self.device = device

    def check_is_fitted(self, attributes: Any = None, *args: Any, **kwargs: Any) -> None:
        """Raise NotFittedError before fit, and after a parameter replaced the trained network."""
        super().check_is_fitted(attributes, *args, **kwargs)
        if attributes is None and not self.is_trained_:
            raise NotInitializedError(
                f"This {type(self).__name__} instance is not fitted yet: its network has random weights. "
                "Call fit, partial_fit or load_params first."
            )

    # ---- data sets and batches

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """Return opened images as they are; open what a user hands to `forward` or `forward_iter`."""
        if is_dataset(X):
            return X
        if self.dataset is not ImageDataset:
            return super().get_dataset(X, y)
        return ImageDataset(self._open_images(X))

    def _open_images(self, X: Any) -> Images:
        """Open images for prediction; rank and channels must be those of fit."""
        return open_images(open_container(X, "X"), spatial_ndim=self.spatial_ndim_, n_channels=self.n_channels_in_)

    def _opened(self, dataset: Any) -> TrainingSet | Images:
        """Return what a data set of skorch's loop holds: ours, a part of ours, or somebody else's pairs."""
        if isinstance(dataset, Subset):
            data = self._opened(dataset.dataset)
            return data.select(np.asarray(dataset.indices))
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
        train, valid = self._split(X)
        if not hasattr(self, "scaling_constants_"):
            self.scaling_constants_ = fit_scaling(self.scaling, self._opened(train).statistics)
        return train, valid

    def _split(self, dataset: ImageDataset) -> tuple[Any, Any]:
        groups = dataset.data.groups
        if not self.train_split:
            return dataset, None
        if callable(self.train_split):
            return self.train_split(dataset, dataset.y, **({} if groups is None else {"groups": groups}))
        parts = hold_out(len(dataset), self.train_split, groups=groups, seed=self.seed_)
        if parts is None:
            self._note("Too few images or groups to hold any out for validation: training on all of them.")
            return dataset, None
        return Subset(dataset, parts[0]), Subset(dataset, parts[1])

    def _note(self, text: str) -> None:
        if self.verbose:
            print(text)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return the batches of an epoch."""
        arguments = {"batch_size": self.batch_size}
        arguments |= self.get_params_for("iterator_train" if training else "iterator_valid")
        data = self._opened(dataset)
        if arguments["batch_size"] == -1:
            arguments["batch_size"] = len(data)
        # A generator of its own: the loader would draw a base seed from torch's global one.
        arguments = {"collate_fn": _as_is, "generator": torch.Generator()} | arguments
        return self._training_batches(data, arguments) if training else self._evaluation_batches(data, arguments)

    def _training_batches(self, data: TrainingSet, arguments: dict[str, Any]) -> Any:
        multiple = self._geometry().size_multiple
        patch_size = choose_patch_size(self.patch_size, data.sizes, size_multiple=multiple)
        n_patches = count_patches(data.sizes, patch_size)
        self.patches_per_epoch_ = int(n_patches.sum())
        order = {name: arguments.pop(name) for name in ("batch_size", "shuffle", "drop_last") if name in arguments}
        batches = PatchBatches(
            data,
            patch_size=patch_size,
            scaling=self.scaling,
            constants=self.scaling_constants_,
            augment=self.augment,
            seed=self.seed_,
            device="cpu" if arguments.get("num_workers") else self.device_,
        )
        sampler = PatchSampler(n_patches, seed=self.seed_, first_epoch=len(self.history), **order)
        return self.iterator_train(batches, batch_sampler=sampler, **arguments)

    def _evaluation_batches(self, data: TrainingSet | Images, arguments: dict[str, Any]) -> Any:
        images = data.images if isinstance(data, TrainingSet) else data
        sizes = [images.size(index) for index in range(len(images))]
        batches = group_equal_sizes(
            sizes, batch_size=arguments.pop("batch_size"), largest=AUTO_WHOLE[self.spatial_ndim_]
        )
        return self.iterator_valid(EvaluationBatches(data), batch_sampler=batches, **arguments)

    # ---- steps

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """Compute loss and gradients of a batch; random layers draw from the seed of epoch and batch."""
        self._set_training(True)
        inputs, labels = unpack_data(batch)
        epoch, step = len(self.history) - 1, len(self.history[-1]["batches"]) - 1
        with seeded_torch(self.seed_, epoch, step, device=self.device_):
            logits = self.infer(inputs, **fit_params)
            loss = self.get_loss(logits, labels, X=inputs, training=True)
        self.scaler_.scale(loss).backward()
        return {"loss": loss, "y_pred": logits}

    def _step_optimizer(self, step_fn: Any) -> None:
        if not self.scaler_.is_enabled():
            super()._step_optimizer(step_fn)
            return
        step_fn()  # float16 gradients are scaled up: the scaler steps, or skips where they overflowed
        self.scaler_.step(self.optimizer_)
        self.scaler_.update()

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False) -> Tensor:  # noqa: ARG002
        """Return the loss of logits against a batch of labels."""
        target = self.codec_.encode_tensor(torch.as_tensor(y_true).to(y_pred.device))  # (B, *S)
        weights = unpack_inputs(X)[2] if X is not None else None
        return weighted_loss(self.criterion_, y_pred, target, None if weights is None else weights.to(y_pred.device))

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        """Return the logits (B, K, *S) of a batch: of training patches in one piece, of raw images in tiles."""
        fit_params.pop("groups", None)
        images, is_scaled, _ = unpack_inputs(x)
        if not is_scaled:
            return assemble(self._predict_tiles(images, **fit_params), images.shape[2:])
        forward = partial(self._forward, **fit_params)
        patches = images.to(self.device_)
        return assemble(predict_tiles(patches, forward, tile_size=None, geometry=self._geometry()), images.shape[2:])

    def _predict_tiles(self, images: Tensor, **fit_params: Any) -> Iterator[tuple[Window, Tensor]]:
        """Yield windows of raw images (B, C, *S) with their logits."""
        self._place_network()
        constants = self._scaling_of(images)
        geometry = self._geometry()
        tile_size = choose_tile_size(self.tile_size, images.shape[2:], size_multiple=geometry.size_multiple)
        if tile_size is not None and not geometry.is_exactly_tileable:
            self._warn_of_blending()
        return predict_tiles(
            images,
            lambda tile: self._forward(scale(tile.to(self.device_), constants), **fit_params),
            tile_size=tile_size,
            geometry=geometry,
        )

    def _scaling_of(self, images: Tensor) -> Tensor:
        """Return offset and divisor of raw images, from the whole of each before any tiling."""
        constants = self.scaling_constants_
        if constants is None:
            constants = image_scaling(
                self.fitted_scaling_, np.stack([image_statistics(image.numpy()) for image in images.cpu()])
            )
        return torch.from_numpy(np.array(constants))

    def _warn_of_blending(self) -> None:
        if getattr(self, "has_warned_of_blending_", False):
            return
        self.has_warned_of_blending_ = True
        warnings.warn(
            "Tiles are blended where they overlap, and may differ from the whole image: the network's layers look "
            "beyond their neighbourhood (instance or group normalization), or are not known. Use "
            'module__normalization="batch", or tile_size=None where the memory holds the whole image.',
            UserWarning,
            stacklevel=4,
        )

    def _place_network(self) -> None:
        """Move the network to where `device` now says, and note the precision."""
        with self._resolved_device():
            self.precision_ = resolve_precision(self.precision, self.device_)
            if next(self.module_.parameters(), torch.empty(0, device=self.device_)).device != torch.device(
                self.device_
            ):
                self.module_.to(self.device_)

    def _forward(self, images: Tensor, **fit_params: Any) -> Tensor:
        """Return float32 logits (N, K, *T) of scaled images; a single logit z becomes the pair (0, z)."""
        layout = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
        device_type = torch.device(self.device_).type
        is_mixed = self.precision_ != "float32"
        mixed = torch.autocast(device_type, getattr(torch, self.precision_)) if is_mixed else nullcontext()
        with mixed:
            logits = self.module_(images.contiguous(memory_format=layout), **fit_params)
        logits = (logits[0] if isinstance(logits, tuple) else logits).float()
        if logits.shape[1] == 1 and len(self.classes_) == 2:
            logits = torch.cat([torch.zeros_like(logits), logits], dim=1)  # (N, 2, *T)
        if logits.shape[1] != len(self.classes_):
            raise ValueError(
                f"module must give one map of logits per class, (N, {len(self.classes_)}, ...); "
                f"got shape {tuple(logits.shape)}. It is called with n_classes={len(self.classes_)}."
            )
        return logits

    def _geometry(self) -> Geometry:
        module = getattr(self.module_, "_orig_mod", self.module_)  # compiled modules wrap the one they were made of
        if hasattr(module, "receptive_field"):
            return module  # type: ignore[no-any-return]
        return PlainGeometry(getattr(module, "size_multiple", 2**self.depth))

    def _get_predict_nonlinearity(self) -> Any:
        # skorch's own "auto" takes the softmax over the last axis, which is image width.
        if self.predict_nonlinearity == "auto":
            return partial(torch.softmax, dim=1)
        return super()._get_predict_nonlinearity()

    __repr__ = BaseEstimator.__repr__
