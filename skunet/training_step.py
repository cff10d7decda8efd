"""One training step: gradients of a batch, in parts where the memory wants it, and what is not finite left out."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from skorch.dataset import get_len, unpack_data
from torch import Tensor, nn

from skunet.components import is_deeply_supervised, mean_over_levels, weighted_loss
from skunet.hardware import is_out_of_memory
from skunet.patches import unpack_inputs
from skunet.randomness import seeded_torch
from skunet.resuming import ResumableTraining

__all__ = ["TrainingStep"]

# Steps in a row without finite gradients, after which nothing more can be expected.
MOST_SKIPPED = 5


class NonFiniteGradientError(Exception):
    """Ends a step before the optimizer changes weights."""


class TrainingStep(ResumableTraining):
    """skorch's training step on images."""

    micro_batch_size: int | None
    micro_batch_size_: int | None = None
    n_skipped_in_a_row_ = 0
    is_skipped_ = False

    def _build(self, *, is_fresh: bool) -> None:
        super()._build(is_fresh=is_fresh)
        self.micro_batch_size_ = self.micro_batch_size
        self.n_skipped_in_a_row_ = 0

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """Run a step, and count it where it was skipped."""
        step: dict[str, Tensor] = super().train_step(batch, **fit_params)
        self.n_skipped_in_a_row_ = self.n_skipped_in_a_row_ + 1 if self.is_skipped_ else 0
        if self.is_skipped_:
            self.history.record("skipped_steps", self.history[-1].get("skipped_steps", 0) + 1)
        return step

    def check_progress(self, batch: Any, step: Mapping[str, Tensor], *, most: int = MOST_SKIPPED) -> None:
        """Raise RuntimeError after too many steps in a row that were skipped.

        After the step's callbacks, as some of them end training when the loss is not finite.
        """
        if self.n_skipped_in_a_row_ >= most:
            raise RuntimeError(self._diagnosis(batch, step))

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Tensor]:
        """Compute loss and gradients of a batch; random layers draw from the seed of epoch and batch.

        Where the memory is not enough, smaller parts of the batch are tried, for this batch and all that come.
        """
        self._set_training(True)
        inputs, labels = unpack_data(batch)
        while True:
            try:
                loss, logits = self._compute_gradients(inputs, labels, fit_params)
                break
            except (MemoryError, RuntimeError) as error:
                largest = min(self.micro_batch_size_ or get_len(inputs), get_len(inputs))
                if not is_out_of_memory(error) or largest == 1:
                    raise
            # Outside of the handler, as the error's traceback holds what filled the memory.
            self._try_smaller(largest // 2)
        if self.scaler_.is_enabled():
            self.scaler_.unscale_(self.optimizer_)  # callbacks that clip gradients see their true size
        return {"loss": loss, "y_pred": self._levels(logits)[0]}

    def _try_smaller(self, size: int) -> None:
        self.micro_batch_size_ = size
        self._zero_grad_optimizer()
        warnings.warn(
            f"The memory was not enough for the batch: {size} patches go through the network at once from now on, and "
            f"their gradients add up to those of the batch. micro_batch_size={size} saves the attempt.",
            UserWarning,
            stacklevel=2,
        )

    def _compute_gradients(self, inputs: Any, labels: Any, fit_params: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Add the gradients of a batch to those there are; return its loss and logits."""
        n_patches = get_len(inputs)
        size = self.micro_batch_size_ or n_patches
        if n_patches <= size:
            with self._seeded():
                logits = self.infer(inputs, **fit_params)
                loss = self.get_loss(logits, labels, X=inputs, training=True)
            torch.autograd.backward(self.scaler_.scale(loss))
            return loss, logits
        # Losses of batches are no means over patches: the batch Dice, and means over weights that differ. So logits
        # come first, then their gradients, which go back through the network part by part [Gao et al., 2021].
        parts = [slice(start, start + size) for start in range(0, n_patches, size)]
        before = _copy_buffers(self.module_)  # running means, say, which each forward pass moves on
        with torch.no_grad():
            logits = torch.cat([self._infer_part(inputs, part, fit_params) for part in parts])
            _put_back(before)
        logits.requires_grad_()
        loss = self.get_loss(logits, labels, X=inputs, training=True)
        torch.autograd.backward(self.scaler_.scale(loss))
        gradient: Any = logits.grad
        for part in parts:
            torch.autograd.backward(self._infer_part(inputs, part, fit_params), gradient[part])
        return loss, logits

    def _infer_part(self, inputs: Any, part: slice, fit_params: dict[str, Any]) -> Tensor:
        some = {name: value[part] for name, value in inputs.items()} if isinstance(inputs, Mapping) else inputs[part]
        with self._seeded(part.start):
            logits: Tensor = self.infer(some, **fit_params)
            return logits

    def _seeded(self, *part: int) -> Any:
        epoch, step = len(self.history) - 1, len(self.history[-1]["batches"]) - 1
        return seeded_torch(self.seed_, epoch, step, *part, device=self.device_)

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False) -> Tensor:  # noqa: ARG002
        """Return the loss of logits against a batch of labels; of several levels the weighted mean."""
        target = self.codec_.encode_tensor(torch.as_tensor(y_true).to(y_pred.device))  # (B, *S)
        weights = unpack_inputs(X)[2] if X is not None else None
        weights = None if weights is None else weights.to(y_pred.device)
        losses = []
        for logits in self._levels(y_pred):
            scores = torch.log_softmax(logits, dim=1) if isinstance(self.criterion_, nn.NLLLoss) else logits
            losses.append(weighted_loss(self.criterion_, scores, target, weights))
        return losses[0] if len(losses) == 1 else mean_over_levels(losses)

    def _levels(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (B, K, *S), and behind them those of coarser levels that a network gives in training."""
        return torch.split(logits, len(self.classes_), dim=1) if is_deeply_supervised(self.module_) else (logits,)

    # ---- the optimizer

    def _step_optimizer(self, step_fn: Any) -> None:
        """Take a step, unless gradients are not finite: such a step changes nothing, and is counted."""
        self.is_skipped_ = False
        if self.scaler_.is_enabled():
            step_fn()  # float16 gradients are scaled up: the scaler steps, or skips where they overflowed
            self.scaler_.step(self.optimizer_)
            self.scaler_.update()
        else:
            before = _copy_buffers(self.module_) if self._is_checked() else []
            try:
                super()._step_optimizer(self._checked_at_first(step_fn))
            except NonFiniteGradientError:
                _put_back(before)
                self.is_skipped_ = True
        # Fused optimizers change weights unnoticed, and what is kept for predictions would go on.
        torch.autograd.graph.increment_version(self.module_.parameters())

    def _checked_at_first(self, step_fn: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Return a closure that raises if the gradients are not finite.

        Only when it is called first: in the midst of a line search, say, weights have changed already.
        """
        n_calls = 0

        def checked() -> Tensor:
            nonlocal n_calls
            n_calls += 1
            loss = step_fn()
            if n_calls == 1 and self._is_checked() and not self._gradient_norm().isfinite():
                raise NonFiniteGradientError
            return loss

        return checked

    def _is_checked(self) -> bool:
        # To ask a GPU at each step would make it wait; there the end of the epoch tells.
        return torch.device(self.device_).type == "cpu"

    def _gradient_norm(self) -> Tensor:
        gradients = [weight.grad for group in self.optimizer_.param_groups for weight in group["params"]]
        return nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])

    def _diagnosis(self, batch: Any, step: Mapping[str, Tensor]) -> str:
        """Tell what is known of a step without finite gradients."""
        patches, _, _ = unpack_inputs(unpack_data(batch)[0])
        weights = dict(self.module_.named_parameters())
        poisoned = [name for name, weight in weights.items() if not weight.isfinite().all()]
        gradients = {name: weight.grad for name, weight in weights.items() if weight.grad is not None}
        failing = [name for name, gradient in gradients.items() if not gradient.isfinite().all()]
        remedy = "" if self.precision_ == "float32" else ', or take precision="float32"'
        return (
            f"Training diverged: the loss is {step['loss']:g} in epoch {len(self.history)}, and the gradients of "
            f"{self.n_skipped_in_a_row_} steps in a row are not finite: those of {len(failing)} of {len(weights)} "
            f"weights{_first(failing)}. Weights that are not finite themselves: {len(poisoned)}{_first(poisoned)}; "
            f"largest logit {step['y_pred'].abs().max():.3g}; pixels, scaled, {patches.min():.3g} to "
            f"{patches.max():.3g}. "
            f"Lower lr (now {self.lr:g}), or clip gradients with skorch's GradientNormClipping{remedy}."
        )


def _first(names: list[str]) -> str:
    return f" (first {names[0]})" if names else ""


def _copy_buffers(module: nn.Module) -> list[tuple[Tensor, Tensor]]:
    return [(buffer, buffer.clone()) for buffer in module.buffers()]


def _put_back(copies: list[tuple[Tensor, Tensor]]) -> None:
    for buffer, values in copies:
        buffer.copy_(values)
