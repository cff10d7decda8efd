"""What happens beside the training steps: scoring, early stopping, checkpoints, progress."""

import skorch.callbacks
from skorch.callbacks import Callback

from skunet.checkpoints import Checkpoint
from skunet.progress import EpochLog, ProgressBar
from skunet.scoring import EpochLoss, IoUScoring
from skunet.stopping import EarlyStopping

__all__ = [
    "Checkpoint",
    "EarlyStopping",
    "EpochLog",
    "EpochLoss",
    "IoUScoring",
    "ProgressBar",
    "default_callbacks",
]


def default_callbacks() -> list[tuple[str, Callback]]:
    """Return the callbacks of every fit, by name."""
    return [
        ("epoch_timer", skorch.callbacks.EpochTimer()),
        ("train_loss", EpochLoss("train_loss", on_train=True)),
        ("valid_loss", EpochLoss("valid_loss")),
        ("iou", IoUScoring()),
        ("early_stopping", EarlyStopping()),
        ("progress", ProgressBar()),
        ("print_log", EpochLog()),
    ]
