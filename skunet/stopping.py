"""When training ends before its last epoch."""

from collections.abc import Callable
from typing import Any

import skorch.callbacks
from tqdm.auto import tqdm

__all__ = ["EarlyStopping"]


class EarlyStopping(skorch.callbacks.EarlyStopping):  # type: ignore[misc]  # skorch is not typed
    """Stop when the validation score no longer improves, and restore the best weights.

    The best weights are kept in memory. Without validation images it does nothing.

    Parameters
    ----------
    monitor : str
    patience : int
        Epochs without improvement.
    lower_is_better : bool
    load_best : bool
    **kwargs
        As in `skorch.callbacks.EarlyStopping`.
    """

    def __init__(
        self,
        monitor: str = "valid_iou",
        patience: int = 15,
        lower_is_better: bool = False,
        load_best: bool = True,
        threshold: float = 0.0,
        threshold_mode: str = "abs",
        sink: Callable[[str], None] = tqdm.write,
    ) -> None:
        super().__init__(
            monitor=monitor,
            patience=patience,
            threshold=threshold,
            threshold_mode=threshold_mode,
            lower_is_better=lower_is_better,
            sink=sink,
            load_best=load_best,
        )

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Compare the score with the best so far."""
        if self.monitor in net.history[-1]:
            super().on_epoch_end(net, **kwargs)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:
        """Restore the best weights."""
        if net.history:
            super().on_train_end(net, **kwargs)
        self.best_model_weights_ = None

    def _sink(self, text: str, verbose: int) -> None:
        if verbose:
            self.sink(text)
