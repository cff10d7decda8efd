"""skorch's NeuralNet with its named steps bent to images: parameters, components, training step, prediction."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.dataset import unpack_data
from skorch.exceptions import NotInitializedError
from torch import Tensor, nn

from skunet.batching import ImageBatching
from skunet.callbacks import default_callbacks
from skunet.components import accepted, class_weights, criterion_arguments, weighted_loss
from skunet.hardware import resolve_device, resolve_precision
from skunet.images import Results, as_tensor, check_pixels
from skunet.inference import Inference, channels_last, geometry_of
from skunet.labels import warn_of_rare_classes
from skunet.patches import (
    unpack_inputs,
)
from skunet.randomness import WEIGHTS, draw_seed, seeded_torch
from skunet.tiling import Geometry
from skunet.training_set import TrainingSet

__all__ = ["SegmentationNet"]


class SegmentationNet(ImageBatching):
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
        return default_callbacks()

    def initialize_callbacks(self) -> Any:
        """Build the callbacks; a name in `callbacks__NAME` that none has is an error."""
        names = [name for name, _ in self._uniquely_named_callbacks()]
        asked = {key.split("__")[1] for key in self.get_params(deep=False) if key.startswith("callbacks__")}
        if asked - set(names):
            raise ValueError(f"callbacks__* must name one of {names}; got {sorted(asked - set(names))}.")
        return super().initialize_callbacks()

    # ---- building and keeping the network

    device: Any

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

    def initialize(self) -> Self:
        """Build all components; without data for 1 channel and the labels in `classes`, or 2.

        Returns
        -------
        self
        """
        self.seed_ = draw_seed(self.random_state)
        super().initialize()
        return self

    def initialize_module(self) -> Any:
        """Build the network from the seed; an instance that was given is taken as it is."""
        with seeded_torch(self.seed_, *WEIGHTS):
            super().initialize_module()
        self._set_layout()
        self.built_with_ = self.get_params_for("module")
        self.size_multiple_ = 2**self.depth
        self.is_trained_ = False
        return self

    def initialize_criterion(self) -> Any:
        """Build the criterion, with class weights where the classes are known."""
        super().initialize_criterion()
        self.criterion_class_weight_ = self.class_weight if hasattr(self, "codec_") else None
        return self

    def _set_layout(self) -> None:
        # Convolutions of channels-last images repack weights of any other layout at each call. LBFGS, though,
        # lays gradients out flat without a copy.
        if self.module_ is not self.module and self.optimizer is not torch.optim.LBFGS:
            self.module_.to(memory_format=channels_last(getattr(self, "spatial_ndim_", 2)))

    def save_params(self, *args: Any, use_safetensors: bool = False, **kwargs: Any) -> None:
        """Save weights, optimizer or history to files; see `skorch.NeuralNet.save_params`."""
        if use_safetensors:  # it takes no channels-last tensors
            self.module_.to(memory_format=torch.contiguous_format)
        super().save_params(*args, use_safetensors=use_safetensors, **kwargs)
        self._set_layout()

    def load_params(self, *args: Any, **kwargs: Any) -> None:
        """Load weights, optimizer or history from files; see `skorch.NeuralNet.load_params`."""
        with self._resolved_device():
            super().load_params(*args, **kwargs)
        if kwargs.get("f_params") or kwargs.get("checkpoint") or args:
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

    def _is_trained(self) -> bool:
        return getattr(self, "is_trained_", False) and hasattr(self, "classes_")

    def _learn(self, data: TrainingSet, *, is_fresh: bool) -> None:
        """Take from the data what the network must know before it is built."""
        warn_of_rare_classes(data.codec, data.class_counts, stacklevel=4)
        if is_fresh or not hasattr(self, "codec_"):
            self.codec_ = data.codec
            self.classes_ = data.codec.classes
        self.class_counts_ = data.class_counts
        self.n_channels_in_ = data.n_channels
        self.spatial_ndim_ = data.images.spatial_ndim

    def _build(self, *, is_fresh: bool) -> None:
        """Build network, criterion and optimizer, unless those there are shall go on."""
        if is_fresh:
            self.initialized_ = False
            if hasattr(self, "scaling_constants_"):
                del self.scaling_constants_
        if not self.initialized_:
            self.initialize()
        elif self.built_with_ != self.get_params_for("module"):
            self._initialize_module(
                "Building the network anew, since its parameters changed: training starts from random weights."
            )
            self._initialize_criterion("Building the criterion anew.")
            self._initialize_optimizer("Building the optimizer anew.")
        elif self.class_weight != self.criterion_class_weight_:
            self._initialize_criterion("Building the criterion anew, since class_weight or the classes changed.")
        if not hasattr(self, "scaling_constants_"):
            self.fitted_scaling_ = self.scaling
        self._place_network()
        self.scaler_ = torch.amp.GradScaler(self.device_.split(":")[0], enabled=self.precision_ == "float16")
        self.is_trained_ = True

    @property
    def n_iter_(self) -> int:
        """Epochs trained."""
        if self.history_ is None:
            raise AttributeError("n_iter_ is there after fit.")
        return sum("train_batch_count" in row for row in self.history_)

    # ---- steps

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """Compute loss and gradients of a batch; random layers draw from the seed of epoch and batch."""
        self._set_training(True)
        inputs, labels = unpack_data(batch)
        epoch, step = len(self.history) - 1, len(self.history[-1]["batches"]) - 1
        with seeded_torch(self.seed_, epoch, step, device=self.device_):
            logits = self.infer(inputs, **fit_params)
            loss = self.get_loss(logits, labels, X=inputs, training=True)
        self.scaler_.scale(loss).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        if self.scaler_.is_enabled():
            self.scaler_.unscale_(self.optimizer_)  # callbacks that clip gradients see their true size
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
        """Return the logits (B, K, *S) of a batch: of scaled training patches, or of images as they came."""
        fit_params.pop("groups", None)
        images, is_scaled, _ = unpack_inputs(x)
        inference = self._inference()
        return inference.patches(images, **fit_params) if is_scaled else inference.images(images, **fit_params)

    def _inference(self) -> Inference:
        """Return the network with what its forward pass depends on, as the parameters say at this moment."""
        self._place_network()
        return Inference(
            module=self.module_,
            n_classes=len(self.classes_),
            device=self.device_,
            precision=self.precision_,
            scaling=self.fitted_scaling_,
            constants=self.scaling_constants_,
            tile_size=self.tile_size,
            geometry=self._geometry(),
        )

    def _geometry(self) -> Geometry:
        return geometry_of(self.module_, size_multiple=self.size_multiple_)

    def _place_network(self) -> None:
        """Move the network to where `device` says at this moment, and note the precision."""
        with self._resolved_device():
            self.precision_ = resolve_precision(self.precision, self.device_)
        device = torch.empty(0, device=self.device_).device  # with its index
        parameter = next(self.module_.parameters(), None)
        if parameter is None or parameter.device == device:
            return
        self.module_.to(device)
        if isinstance(self.criterion_, nn.Module):
            self.criterion_.to(device)
        self.optimizer_.load_state_dict(self.optimizer_.state_dict())  # moves its state to where the weights are

    def _get_predict_nonlinearity(self) -> Any:
        # skorch's own "auto" takes the softmax over the last axis, which is image width.
        if self.predict_nonlinearity == "auto":
            return partial(torch.softmax, dim=1)
        return super()._get_predict_nonlinearity()

    # ---- prediction

    def _check_ready(self) -> None:
        self.check_is_fitted()
        if not hasattr(self, "scaling_constants_"):
            raise NotInitializedError(
                f"This {type(self).__name__} instance is not fitted yet: it has weights, but knows neither labels nor "
                "scaling. Call fit, with max_epochs=0 and before load_params to keep loaded weights."
            )

    def _to_labels(self, logits: Tensor) -> np.ndarray:
        """Return the labels (N, *S) of logits (N, K, *S)."""
        # Indices cross to the CPU as bytes, where there are few enough classes.
        dtype = torch.uint8 if len(self.classes_) <= 256 else torch.int64
        return self.codec_.decode(logits.argmax(1).to(dtype).cpu().numpy())

    def _predict_images(self, X: Any, dtype: Any, n_leading: int | None, finish: Callable[[Tensor], np.ndarray]) -> Any:
        """Predict one image at a time, and write each tile, finished, into the results."""
        if "forward_iter" in vars(self):  # a scoring callback has put the logits of this epoch in its place
            return np.concatenate([finish(logits) for logits in self.forward_iter(X, device="cpu")])
        images = self._open_images(X)
        results = Results(images, dtype, n_leading)
        inference = self._inference()
        self._set_training(False)
        with torch.inference_mode():
            for index, image in enumerate(images):
                check_pixels(image, f"image {index}")
                if len(image) != self.n_channels_in_:
                    raise ValueError(
                        f"Images must have {self.n_channels_in_} channel(s); image {index} has {len(image)}."
                    )
                array = results.array_for(index, image.shape[1:])
                for window, logits in inference.tiles(as_tensor(image[None])):
                    place: tuple[Any, ...] = (..., *window)
                    array[place] = finish(logits)[0]
        return results.give_back()

    __repr__ = BaseEstimator.__repr__
