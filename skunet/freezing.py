"""Parts of a network that training leaves as they are."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from numbers import Integral
from typing import Any

from skorch.callbacks import Callback
from torch import nn

from skunet.components import uncompiled

__all__ = ["Freeze"]


class Freeze(Callback):  # type: ignore[misc]  # skorch is not typed
    """Leave parts of the network as they are, also the statistics of their norms, for some epochs or for all.

    For transfer learning: `UNetSegmenter(pretrained=path, callbacks=[Freeze("encoder.*", until=10)])` trains the rest
    first. Unlike skorch's `Freezer`, it keeps batch norms in evaluation mode, whose statistics would change the frozen
    layers without any gradient. Weights are frozen in training steps alone: between them, and after training, however
    it ended, the network is as without.

    Parameters
    ----------
    parts : str or list of str
        Patterns of `fnmatch` for names of weights, as in `module_.named_parameters()`, e.g. "encoder.*".
    until : int or None, default=None
        The first epoch that trains them, counted from 1 over `fit` and `partial_fit`; None for never.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> segmenter = UNetSegmenter(callbacks=[Freeze(["encoder.*", "upsamplings.0.*"], until=5)])
    """

    norms_: Sequence[nn.Module] = ()

    def __init__(self, parts: str | Sequence[str], until: int | None = None) -> None:
        self.parts = parts
        self.until = until

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Check that each pattern names weights, and that others are left to train.

        Raises
        ------
        ValueError
            If not, or if `until` is no epoch.
        """
        until: Any = self.until
        if until is not None and (isinstance(until, bool) or not isinstance(until, Integral) or until < 1):
            raise ValueError(f"Freeze.until must be None or an epoch of at least 1; got {until!r}.")
        names = [name for name, _ in uncompiled(net.module_).named_parameters()]
        if not all(isinstance(pattern, str) for pattern in self._patterns()):
            raise ValueError(f"Freeze.parts must be a pattern of names, or a list of patterns; got {self.parts!r}.")
        for pattern in self._patterns() or [""]:
            if not any(fnmatchcase(name, pattern) for name in names):
                parts = ", ".join(repr(f"{part}.*") for part in dict.fromkeys(name.partition(".")[0] for name in names))
                raise ValueError(
                    f"Freeze.parts must match names of weights; got {pattern!r}, which matches none. Parts of this "
                    f"network are {parts}."
                )
        others = [freeze for freeze in net.callbacks_of(Freeze) if freeze._is_frozen(len(net.history) + 1)]
        if all(any(freeze._is_part(name) for freeze in others) for name in names):
            given = [freeze.parts for freeze in others]
            raise ValueError(f"Freeze.parts must leave weights to train; got {given}, which match all.")

    @contextmanager
    def frozen(self, module: nn.Module, epoch: int) -> Iterator[None]:
        """Freeze the parts inside the block, if they are in this epoch.

        The estimator puts it round the training steps of an epoch, and calls `hold_norms` in each.
        """
        plain = uncompiled(module)
        weights = [weight for name, weight in plain.named_parameters() if self._is_part(name) and weight.requires_grad]
        if not self._is_frozen(epoch):
            yield
            return
        self.norms_ = [layer for name, layer in plain.named_modules() if self._is_norm_of_part(name, layer)]
        try:
            for weight in weights:
                weight.requires_grad_(False).grad = None
            yield
        finally:
            self.norms_ = ()
            for weight in weights:
                weight.requires_grad_(True)

    def hold_norms(self) -> None:
        """Put the norms of frozen parts into evaluation mode, after the network was put into training mode."""
        for norm in self.norms_:
            norm.eval()

    def _patterns(self) -> list[str]:
        parts: Any = self.parts
        return list(parts) if isinstance(parts, list | tuple | set) else [parts]

    def _is_part(self, name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in self._patterns())

    def _is_frozen(self, epoch: int) -> bool:
        return self.until is None or epoch < self.until

    def _is_norm_of_part(self, name: str, layer: nn.Module) -> bool:
        if getattr(layer, "running_mean", None) is None:
            return False
        weights = [f"{name}.{weight}" for weight, _ in layer.named_parameters(recurse=False)]
        return all(map(self._is_part, weights)) if weights else self._is_part(f"{name}.running_mean")
