"""What an epoch is judged by: losses and scores, recorded in the history."""

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
    """Record the mean IoU over all pixels of an epoch, from one confusion matrix.

    Counts are summed as batches pass, so that its memory does not depend on the number of images. What is best
    is judged against the history: a run that goes on from a checkpoint does not take its first epoch for the best.

    Parameters
    ----------
    name : str, default="valid_iou"
        Of the record; `name + "_best"` says whether the epoch is the best so far.
    on_train : bool, default=False
        Whether to count the training patches instead of the validation images: as they are trained on, augmented,
        and by the weights before each step, so that it lags behind. Where both are wanted, use two callbacks.
    per_class : bool, default=False
        Whether to record `f"{name}_{label}"` and `f"{name}_{label}_best"` for each label too. The score of a class
        that is neither in the masks nor predicted is NaN, which counts in no mean and is never the best.

    Attributes
    ----------
    counts_ : ndarray of shape (K, K)
        Of the epoch that ended last; rows truth, columns prediction.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(6, size=32, random_state=0)
    >>> scores = [("train_iou", IoUScoring("train_iou", on_train=True, per_class=True))]
    >>> segmenter = UNetSegmenter(depth=1, filters=4, max_epochs=1, verbose=0, callbacks=scores).fit(X, y)
    >>> sorted(key for key in segmenter.history[-1] if "iou" in key and "best" not in key)
    ['train_iou', 'train_iou_0', 'train_iou_1', 'valid_iou']
    """

    def __init__(self, name: str = "valid_iou", *, on_train: bool = False, per_class: bool = False) -> None:
        self.name = name
        self.on_train = on_train
        self.per_class = per_class

    def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Forget the counts of the epoch before."""
        self.counts_ = np.zeros((len(net.classes_), len(net.classes_)))

    def on_batch_end(self, net: Any, batch: Any = None, training: bool = False, **kwargs: Any) -> None:
        """Count the pixels of a batch."""
        if training != self.on_train:
            return
        inputs, labels = batch
        truth = net.codec_.encode_tensor(labels).cpu().numpy()  # (B, *S)
        predicted = kwargs["y_pred"].argmax(1).cpu().numpy()  # (B, *S)
        self.counts_ += count_indices(truth, predicted, len(self.counts_), _pixel_weights(inputs, truth.shape))

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Record the scores, where pixels were counted."""
        if not self.counts_.any():
            return
        scores = iou_from_counts(self.counts_)
        _record_score(net, self.name, float(np.nanmean(scores)))
        if self.per_class:
            for label, score in zip(net.classes_, scores, strict=True):
                _record_score(net, f"{self.name}_{label}", float(score))


def _record_score(net: Any, name: str, score: float) -> None:
    past = [other for other in _past(net, name) if not np.isnan(other)]
    net.history.record(name, score)
    net.history.record(f"{name}_best", score > max(past, default=-np.inf))


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
