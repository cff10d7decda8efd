"""skorch's training step and prediction, bent to images."""

from collections.abc import Callable, Sized
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import Tags
from skorch.callbacks import EarlyStopping
from skorch.dataset import get_len
from skorch.exceptions import NotInitializedError
from skorch.history import History
from torch import Tensor, nn

from skunet.adaptation import NormAdaptation, adaptation_of
from skunet.allocation import LARGE, kept_memory
from skunet.batch_records import BatchRecord, settle
from skunet.callbacks import Freeze, TimeLimit, WeightAveraging
from skunet.components import uncompiled
from skunet.export import OnnxExport
from skunet.folding import folded_norms
from skunet.geometry import Geometry
from skunet.hardware import exact_float32, resolve_precision
from skunet.hyperparameters import check_hyperparameters
from skunet.image_dataset import ImageDataset
from skunet.inference import Inference, geometry_of
from skunet.interruption import is_raised_by_statement
from skunet.patches import choose_batch_size, unpack_inputs
from skunet.persistence import Persistence
from skunet.prediction import ImagePrediction
from skunet.randomness import seeded_torch
from skunet.training_set import TrainingSet
from skunet.training_step import TrainingStep
from skunet.turning import choose_turns
from skunet.workers import shared_cores

__all__ = ["SegmentationNet"]


# What may be set on a fitted segmenter and acts at the next prediction.
OF_PREDICTION = ("tile_size", "tta", "postprocess", "engine", "precision", "memory_limit", "norm_adaptation")


class SegmentationNet(ImagePrediction, Persistence, OnnxExport, TrainingStep):
    """The steps of skorch's training and prediction loops, on images.

    `UNetSegmenter` gives it its parameters and its story; nothing here is called by users alone.
    """

    # Stacks are read image by image, wherever they are.
    takes_lazy_images = True
    # Groups that part the folds of a search part training and validation images too, without a request for them.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}
    __metadata_request__partial_fit: ClassVar[dict[str, bool]] = {"groups": True}

    def __sklearn_tags__(self) -> Tags:
        """Say that images are taken, and no tables, sparse data or NaN."""
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        return tags

    @property
    def n_iter_(self) -> int:
        """Epochs trained."""
        if self.history_ is None:
            raise AttributeError("n_iter_ is there after fit.")
        return sum("train_batch_count" in row for row in self.history_)

    # ---- steps

    def _check_may_train(self) -> None:
        self.check_training_readiness()
        if self.pretrained is self:
            raise ValueError(
                "pretrained must be another segmenter; got this one, whose weights are replaced. To go on from them, "
                "call partial_fit, or fit with warm_start=True."
            )
        check_hyperparameters(self.get_params(deep=False))

    def _train(self, data: TrainingSet, *, is_fresh: bool, method: str, **fit_params: Any) -> Self:
        """Build what is not there, and run the epochs that were asked for."""
        choose_turns(self.tta, spatial_ndim=data.images.spatial_ndim)  # raises for names that are none of these axes
        self._learn(data, is_fresh=is_fresh)
        self._build(is_fresh=is_fresh)
        dataset = ImageDataset(data)
        if data.groups is not None:
            fit_params["groups"] = data.groups
        asked = fit_params.pop("epochs", self.max_epochs)
        if self.history:  # schedulers of torch go on from there
            for group in self.optimizer_.param_groups:
                group.setdefault("initial_lr", group["lr"])
        self.notify("on_train_begin", X=dataset.X, y=dataset.y)
        try:
            epochs = self.begin_training(asked, is_fresh=is_fresh and method == "fit")
            with (
                shared_cores(),
                exact_float32(self.precision_),
                kept_memory(if_so=self.memory_limit is None and self.device_ == "cpu" and self._fills_memory(data)),
            ):
                self.fit_loop(dataset, epochs=epochs, **({"_routing_method": method} | fit_params))
        except KeyboardInterrupt as error:
            self.stop(error)
        except Exception as error:
            self.fail(error)
            raise
        finally:
            self.end_training()
        self.notify("on_train_end", X=dataset.X, y=dataset.y)
        return self

    def _fills_memory(self, data: TrainingSet) -> bool:
        return bool(abs(choose_batch_size(self.batch_size)) * data.sizes.prod(axis=1).max() > LARGE)

    def notify(self, method_name: str, **kwargs: Any) -> None:
        """Tell all callbacks.

        Of the end of an epoch those that come after one that ends training hear too; of the end of training none before
        the best weights are back.
        """
        if method_name == "on_train_end":
            self.on_train_end(self, **kwargs)
            for _, callback in sorted(self.callbacks_, key=lambda pair: not isinstance(pair[1], EarlyStopping)):
                callback.on_train_end(self, **kwargs)
            return
        if method_name != "on_epoch_end":
            super().notify(method_name, **kwargs)
            return
        self.on_epoch_end(self, **kwargs)
        stops: list[KeyboardInterrupt] = []
        for _, callback in self.callbacks_:
            try:
                callback.on_epoch_end(self, **kwargs)
            except KeyboardInterrupt as error:
                if not is_raised_by_statement(error):
                    raise
                # Training that ended for want of time is complete only as long as there is none.
                self.is_stopping_ |= not isinstance(callback, TimeLimit)
                stops = [error]
        if stops:
            raise stops.pop()  # popped, as its traceback holds this frame, and with it the images

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """Run the batches of an epoch: those of training on raw weights, and as long as there is time."""
        if iterator is None:
            return
        with ExitStack() as stack:
            if training:
                self.steps_per_epoch_ = max(1, len(iterator)) if isinstance(iterator, Sized) else 1
                for callback in self.callbacks_of(WeightAveraging):
                    stack.enter_context(callback.raw_weights(self.module_))
                for freeze in self.callbacks_of(Freeze):
                    stack.enter_context(freeze.frozen(self.module_, epoch=len(self.history)))
                sampler = getattr(iterator, "batch_sampler", None)
                batches_per_pass = getattr(sampler, "batches_per_pass", self.steps_per_epoch_)
                for callback in self.callbacks_of(TimeLimit):
                    iterator = callback.cut(iterator, batches_per_pass)
            n_batches = self._run_batches(iterator, training, prefix, partial(step_fn, **fit_params))
        self.history.record(f"{prefix}_batch_count", n_batches)

    def _run_batches(self, iterator: Any, training: bool, prefix: str, step_fn: Callable[[Any], Any]) -> int:
        """Run a step per batch, and return how many; losses are read at the end, or when a callback asks."""
        n_batches, n_before = 0, len(self.history[-1]["batches"])
        try:
            for n_batches, batch in enumerate(iterator, start=1):  # noqa: B007
                self.notify("on_batch_begin", batch=batch, training=training)
                rows = self.history[-1]["batches"]
                rows[-1] = BatchRecord(rows[-1])
                step = step_fn(batch)
                is_local = isinstance(self.history, History)  # others write to a store at once
                if not (training and self.is_skipped_):
                    loss = step["loss"].detach() if is_local else step["loss"].item()
                    self.history.record_batch(f"{prefix}_loss", loss)
                inputs = batch[0] if isinstance(batch, tuple | list) else batch
                self.history.record_batch(f"{prefix}_batch_size", get_len(inputs))
                self.notify("on_batch_end", batch=batch, training=training, **step)
                if training:
                    self.check_progress(batch, step)
            if training and n_batches:
                self.check_progress(batch, step, most=n_batches)  # or the epoch has no loss to record
                n_skipped = self.history[-1].get("skipped_steps", 0)
                if n_skipped:
                    self._note(f"{n_skipped} of {n_batches} steps were skipped, as their gradients are not finite.")
        finally:
            settle(self.history[-1]["batches"], start=n_before)
        return n_batches

    def time_share(self) -> float:
        """Return how much of the time for training is over, in 0..1; 0 where no callback limits it."""
        return max((callback.share() for callback in self.callbacks_of(TimeLimit)), default=0.0)

    def _set_training(self, training: bool = True) -> None:
        super()._set_training(training)
        for freeze in self.callbacks_of(Freeze):
            freeze.hold_norms()

    def evaluation_step(self, batch: Any, training: bool = False) -> Tensor:
        """Return the logits (B, K, *S) of a batch of images, in the mode that is asked for."""
        return self._levels(super().evaluation_step(batch, training))[0]

    def _loss_of_blanks(self, module: nn.Module, size: tuple[int, ...]) -> Tensor:
        """Return the loss of two patches without content, by a copy of the network."""
        patches = torch.zeros(2, self.n_channels_in_, *size)
        labels = torch.as_tensor(self.codec_.to_tensor(np.full((2, *size), self.classes_[0])))
        with seeded_torch(self.seed_, device=self.device_):
            logits = replace(self._inference(), module=module).patches(patches)
        return self.get_loss(logits.contiguous(), labels, X={"patches": patches}, training=True)

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        """Return the logits (B, K, *S) of a batch: of scaled training patches, or of images as they came.

        Of a network with deep supervision, in training mode, (B, K (1 + L), *S): `get_loss` takes them as they are.
        """
        fit_params.pop("groups", None)
        images, is_scaled, _ = unpack_inputs(x)
        inference = self._inference()
        # torch's nll_loss has no gradient for channels-last logits.
        return (inference.patches if is_scaled else inference.images)(images, **fit_params).contiguous()

    def _inference(self) -> Inference:
        """Return the network with what its forward pass depends on, as the parameters say at this moment."""
        self._place_network()
        is_training = torch.is_grad_enabled() or getattr(self.module_, "training", True)
        return Inference(
            # Compiled for patches of one size, a network would be compiled anew for each size of whole images.
            module=self.module_ if is_training else folded_norms(uncompiled(self.module_)),
            n_classes=len(self.classes_),
            device=self.device_,
            precision=self.precision_,
            scaling=self.fitted_scaling_,
            constants=self.scaling_constants_,
            tile_size=self.tile_size,
            memory_limit=self.memory_limit,
            geometry=self._geometry(),
            adaptation=None if is_training else self._adaptation(),
        )

    def _adaptation(self) -> NormAdaptation | None:
        return adaptation_of(
            uncompiled(self.module_),
            self.norm_adaptation,
            batch_size=min(self.batch_size_, self.micro_batch_size or self.batch_size_),
            patch_size=self.patch_size_,
            size_multiple=self.size_multiple_,
        )

    def _geometry(self) -> Geometry:
        return geometry_of(
            self.module_,
            size_multiple=self.size_multiple_,
            n_channels=self.n_channels_in_,
            spatial_ndim=self.spatial_ndim_,
        )

    def _place_network(self) -> None:
        """Move the network to where `device` says at this moment, and note the precision."""
        with self._resolved_device():
            self.precision_ = resolve_precision(self.precision, self.device_)
        device = torch.empty(0, device=self.device_).device  # with its index
        components = [getattr(self, f"{name}_") for name in self._modules + self._criteria]
        modules = [component for component in components if isinstance(component, nn.Module)]
        parameter = next((parameter for module in modules for parameter in module.parameters()), None)
        if parameter is None or parameter.device == device:
            return
        for module in modules:
            module.to(device)
        if self.optimizer_ is not None:  # as it is in a net trimmed for prediction
            self.optimizer_.load_state_dict(self.optimizer_.state_dict())  # moves its state to where the weights are

    def _get_predict_nonlinearity(self) -> Any:
        # skorch's own "auto" takes the softmax over the last axis, which is image width.
        if self.predict_nonlinearity == "auto":
            return partial(torch.softmax, dim=1)
        nonlinearity = super()._get_predict_nonlinearity()
        return lambda logits: torch.as_tensor(nonlinearity(logits))  # it may compute in numpy

    # ---- prediction

    def _check_ready(self) -> None:
        self.check_is_fitted()
        check_hyperparameters({name: getattr(self, name) for name in OF_PREDICTION})
        if not hasattr(self, "scaling_constants_"):
            raise NotInitializedError(
                f"This {type(self).__name__} instance is not fitted yet: it has weights, but knows neither labels nor "
                "scaling. Call fit, with max_epochs=0 and before load_params to keep loaded weights."
            )

    __repr__ = BaseEstimator.__repr__
