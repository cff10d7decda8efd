"""What an epoch is judged by: losses and scores of the validation images, recorded in the history."""

from typing import Any

import numpy as np
import skorch.callbacks
from skorch.callbacks import Callback

from skunet.confusion import count_indices
from skunet.metrics import iou_from_counts
from skunet.patches import unpack_inputs

__all__ = ["EpochLoss", "IoUScoring"]


def _past(net: Any, name: str) -> list[float]:
    """Return what earlier epochs recorded under `name`, those loaded from a checkpoint included."""
    return [row[name] for row in net.history[:-1] if name in row]


class IoUScoring(Callback):  # type: ignore[misc]  # skorch is not typed
    """Record the mean IoU over all pixels of the validation images, from one confusion matrix.

    Counts are summed as batches pass, so that its memory does not depend on the number of images. What is best
    is judged against the history: a run that goes on from a checkpoint does not take its first epoch for the best.

    Parameters
    ----------
    name : str
        Of the record; `name + "_best"` says whether the epoch is the best so far.

    Attributes
    ----------
    counts_ : ndarray of shape (K, K)
        Of the epoch that ended last; rows truth, columns prediction.
    """

    def __init__(self, name: str = "valid_iou") -> None:
        self.name = name

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the counts of the epoch before."""
        self.counts_ = np.zeros((len(net.classes_), len(net.classes_)))

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count the pixels of a validation batch."""
        if training:
            return
        inputs, labels = batch
        truth = net.codec_.encode_tensor(labels).cpu().numpy()  # (B, *S)
        predicted = kwargs["y_pred"].argmax(1).cpu().numpy()  # (B, *S)
        self.counts_ += count_indices(truth, predicted, len(self.counts_), _pixel_weights(inputs, truth.shape))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Record the score, where there are validation images."""
        if not self.counts_.any():
            return
        score = float(np.nanmean(iou_from_counts(self.counts_)))
        net.history.record(self.name, score)
        net.history.record(f"{self.name}_best", score > max(_past(net, self.name), default=-np.inf))


def _pixel_weights(inputs: Any, shape: tuple[int, ...]) -> np.ndarray | None:
    _, _, weights = unpack_inputs(inputs)
    if weights is None:
        return None
    array = weights.cpu().numpy()
    return np.broadcast_to(array.reshape(array.shape + (1,) * (len(shape) - array.ndim)), shape)


class EpochLoss(skorch.callbacks.PassthroughScoring):  # type: ignore[misc]  # skorch is not typed
    """Record the mean loss of an epoch; what is best is judged against the history.

    A training loss that is not finite raises RuntimeError, as nothing can be learned from there on.
    """

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        """Record the loss."""
        self.best_score_ = min(_past(net, self.name), default=np.inf)
        super().on_epoch_end(net, **kwargs)
        if self.on_train and not np.isfinite(net.history[-1, self.name]):
            raise RuntimeError(
                f"Training diverged: the loss is {net.history[-1, self.name]} in epoch {len(net.history)}. "
                f"Lower lr (now {net.lr:g}), or clip gradients with skorch's GradientNormClipping."
            )
