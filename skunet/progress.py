"""What a fit shows while it runs: a bar and a line per epoch."""

import sys
from collections.abc import Callable
from typing import Any

import skorch.callbacks
from skorch.callbacks import Callback
from tqdm.auto import tqdm

__all__ = ["EpochLog", "ProgressBar", "prediction_bar"]

# Seconds before a prediction shows a bar.
PATIENCE = 2.0


class ProgressBar(Callback):  # type: ignore[misc]  # skorch is not typed
    """Show patches done and left, patches per second, time left, training loss and validation IoU.

    On standard error where that is a terminal, or in a notebook; nowhere with `verbose=0`.
    """

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the bar of an earlier fit."""
        self.bar_: Any = None

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Open the bar at the first epoch, when the number of patches is known."""
        if self.bar_ is None and net.verbose and _is_watched():
            self.bar_ = tqdm(total=net.max_epochs * net.patches_per_epoch_, unit="patch", leave=False)
            self.shown_: dict[str, str] = {}

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:  # noqa: ARG002
        """Move the bar by a training batch; the loss is asked for only as often as the bar is drawn."""
        if self.bar_ is not None and training and self.bar_.update(len(batch[1])):
            self.shown_["loss"] = f"{kwargs['loss']:.3f}"
            self.bar_.set_postfix(self.shown_, refresh=False)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Show the validation score."""
        if self.bar_ is None:
            return
        if "valid_iou" in net.history[-1]:
            self.shown_["IoU"] = f"{net.history[-1, 'valid_iou']:.3f}"
        self.bar_.set_postfix(self.shown_)

    def on_train_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Take the bar away."""
        if self.bar_ is not None:
            self.bar_.close()
        self.bar_ = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"bar_": None}  # a bar belongs to a terminal


def prediction_bar(n_images: int, *, verbose: int) -> Any:
    """Return a bar of images predicted, parts of them too, that shows itself where a prediction takes some time."""
    return tqdm(
        total=n_images,
        desc="predict",
        unit="image",
        unit_scale=True,
        leave=False,
        delay=PATIENCE,
        disable=not (verbose and _is_watched()),
    )


def _is_watched() -> bool:
    """Return whether someone sees bars: in a notebook, or where standard error is a terminal."""
    is_notebook = any(base.__name__ == "tqdm_notebook" for base in tqdm.__mro__)
    return is_notebook or sys.stderr.isatty()


class EpochLog(skorch.callbacks.PrintLog):  # type: ignore[misc]  # skorch is not typed
    """Print a line per epoch, above the progress bar; nothing with `verbose=0`."""

    def __init__(
        self,
        keys_ignored: Any = None,
        sink: Callable[[str], None] = tqdm.write,
        tablefmt: str = "simple",
        floatfmt: str = ".4f",
        stralign: str = "right",
    ) -> None:
        super().__init__(keys_ignored=keys_ignored, sink=sink, tablefmt=tablefmt, floatfmt=floatfmt, stralign=stralign)

    def initialize(self) -> Any:
        """Leave out what would shift the columns, as it is not there in each epoch."""
        super().initialize()
        self.keys_ignored_.add("skipped_steps")
        return self

    def format_row(self, row: Any, key: str, color: str) -> Any:
        """Format one number; in colour where it is the best so far and a terminal shows it."""
        if key == "event_lr":
            return f"{row[key]:.1e}"
        return super().format_row(row if sys.stdout.isatty() else {key: row[key]}, key, color)

    def _sink(self, text: str, verbose: int) -> None:
        if verbose:
            self.sink(text)
