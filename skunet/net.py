"""skorch's training step and prediction, bent to images."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from skorch.dataset import unpack_data
from skorch.exceptions import NotInitializedError
from torch import Tensor, nn

from skunet.building import NetworkBuilding
from skunet.components import weighted_loss
from skunet.hardware import resolve_precision
from skunet.images import Results, as_tensor, check_pixels
from skunet.inference import Inference, geometry_of
from skunet.patches import unpack_inputs
from skunet.randomness import seeded_torch
from skunet.tiling import Geometry

__all__ = ["SegmentationNet"]


class SegmentationNet(NetworkBuilding):
    """The steps of skorch's training and prediction loops, on images.

    `UNetSegmenter` gives it its parameters and its story; nothing here is called by users alone.
    """

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
