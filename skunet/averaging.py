"""Weights averaged over the steps of training."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from numbers import Real
from typing import Any, Self

import torch
from skorch.callbacks import Callback
from torch import Tensor, nn

__all__ = ["WeightAveraging"]


class WeightAveraging(Callback):  # type: ignore[misc]  # skorch is not typed
    """Validate and predict with an exponential moving average of the weights, and train on with the weights themselves.

    After step t = 0, 1, ... the average moves to `d * average + (1 - d) * weights` with
    `d = min(decay, (1 + t) / (10 + t))`: the last tenth of the steps counts most, as long as that is less than
    1 / (1 - decay), and the random weights of the start are forgotten. It takes in parameters and floating buffers;
    whole-number buffers are copied. Validation, scores, early stopping, checkpoints and the segmenter after `fit` have
    the average, files of `save` nothing else.

    `partial_fit` goes on from the weights behind the average. Where the network holds other weights by then (the
    best ones were restored, or `load_params` was called), it goes on from those, and the average starts anew.

    Parameters
    ----------
    decay : float, default=0.999
        In 0..1, 1 excluded; about 1 / (1 - decay) steps count.

    Attributes
    ----------
    average_ : dict of str to Tensor, or None
        By the names of the module's `state_dict`; None before training.
    raw_weights_ : dict of str to Tensor, or None
        Those to train on; None before training, and within an epoch, when the network has them.
    n_averaged_ : int
        Steps taken in.

    References
    ----------
    Polyak & Juditsky, Acceleration of stochastic approximation by averaging, 1992. Tarvainen & Valpola, Mean teachers
    are better role models, 2017.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> segmenter = UNetSegmenter(callbacks=[WeightAveraging(decay=0.99)])
    """

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay

    def initialize(self) -> Self:
        """Forget the weights of an earlier network."""
        self.average_: dict[str, Tensor] | None = None
        self.raw_weights_: dict[str, Tensor] | None = None
        self.n_averaged_ = 0
        return self

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check the decay.

        Raises
        ------
        ValueError
            If it is not in 0..1, 1 excluded.
        """
        decay: Any = self.decay
        if not isinstance(decay, Real) or not 0 <= float(decay) < 1:
            raise ValueError(f"WeightAveraging.decay must be at least 0 and less than 1; got {decay!r}.")

    @contextmanager
    def raw_weights(self, module: nn.Module) -> Iterator[None]:
        """Train inside the block; after it, however it ends, the module has the average.

        The estimator puts it round the training steps of an epoch, so that whatever runs between epochs, in whatever
        order, finds the average in the network.
        """
        now = _weights_of(module)
        raw = self.raw_weights_ if _are_equal(now, self.average_) else None
        # In the layout of the network, even where it came from a file, as rounding may depend on that.
        self.average_ = {name: tensor.clone() for name, tensor in now.items()}
        if raw is None:
            self.n_averaged_ = 0
        else:
            _put(raw, now)
        self.raw_weights_ = None
        try:
            yield
        finally:
            trained = _weights_of(module)
            self.raw_weights_ = {name: tensor.clone() for name, tensor in trained.items()}
            _put(self.average_, trained)

    def on_batch_end(self, net: Any, training: bool = False, **kwargs: Any) -> None:  # noqa: ARG002
        """Take in the weights after a training step."""
        if not training or self.average_ is None:
            return
        decay = min(self.decay, (1 + self.n_averaged_) / (10 + self.n_averaged_))
        weights = _weights_of(net.module_)
        floats = [name for name, tensor in weights.items() if tensor.is_floating_point()]
        torch._foreach_lerp_([self.average_[name] for name in floats], [weights[name] for name in floats], 1 - decay)
        for name in weights.keys() - floats:
            self.average_[name].copy_(weights[name])
        self.n_averaged_ += 1

    def __getstate__(self) -> dict[str, Any]:
        # A file made on a GPU opens on machines without one.
        on_cpu = {name: _on_cpu(getattr(self, name, None)) for name in ("average_", "raw_weights_")}
        return vars(self) | on_cpu


def _weights_of(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, sharing memory; a compiled module has those of the one inside."""
    plain = getattr(module, "_orig_mod", module)
    return {name: value for name, value in plain.state_dict().items() if isinstance(value, Tensor)}


def _put(weights: Mapping[str, Tensor], target: Mapping[str, Tensor]) -> None:
    for name, tensor in target.items():
        tensor.copy_(weights[name])


def _are_equal(weights: Mapping[str, Tensor], others: Mapping[str, Tensor] | None) -> bool:
    if others is None or list(weights) != list(others):
        return False
    return all(torch.equal(tensor, others[name].to(tensor.device)) for name, tensor in weights.items())


def _on_cpu(weights: Mapping[str, Tensor] | None) -> dict[str, Tensor] | None:
    return None if weights is None else {name: tensor.cpu() for name, tensor in weights.items()}
