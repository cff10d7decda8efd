"""What takes the place of skorch's nets, toy network, table of numbers, scaler and metrics: the segmenter on images."""

from functools import wraps
from itertools import pairwise

import numpy as np
import torch
from sklearn.preprocessing import StandardScaler
from torch import nn

from skunet import UNetSegmenter


class NeuralNetClassifier(UNetSegmenter):
    """`UNetSegmenter`, called as skorch's nets are and with their defaults; messages hold the name."""

    def __init__(self, module, **kwargs):
        defaults = {
            "criterion": nn.CrossEntropyLoss,
            "optimizer": torch.optim.SGD,
            "lr": 0.01,
            "max_epochs": 10,
            "batch_size": 128,
            "batches_per_epoch": None,
            "device": "cpu",
            "precision": "float32",
            "random_state": 0,
        }
        super().__init__(module=module, **(defaults | kwargs))

    @property
    def _default_callbacks(self):
        return [(name, callback) for name, callback in super()._default_callbacks if name != "early_stopping"]


class PixelLinear(nn.Conv2d):
    """A convolution of single pixels, with the attributes of `torch.nn.Linear`."""

    def __init__(self, in_features, out_features):
        super().__init__(in_features, out_features, kernel_size=1)
        self.in_features, self.out_features = in_features, out_features


class MLPModule(nn.Module):
    """A network from images (N, C, H, W) to logits (N, K, H, W), with the parameters and parts of skorch's toy."""

    size_multiple = 1  # images need no padding

    def __init__(
        self,
        in_channels=1,
        n_classes=2,
        *,
        input_units=None,
        output_units=None,
        hidden_units=10,
        num_hidden=1,
        nonlin=nn.ReLU(),  # noqa: B008  # as in skorch
        output_nonlin=None,
        dropout=0,
    ):
        super().__init__()
        self.nonlin = nonlin
        widths = [input_units or in_channels, *[hidden_units] * num_hidden, output_units or n_classes]
        layers = []
        for width, next_width in pairwise(widths):
            layers += [PixelLinear(width, next_width), nonlin, nn.Dropout(dropout)]
        self.sequential = nn.Sequential(*layers[:-2], *[output_nonlin] * (output_nonlin is not None))

    def forward(self, X):
        return self.sequential(X)


class OneLayerModule(nn.Module):
    """The smallest network, from grey images to logits of two classes, without any parameter."""

    size_multiple = 1

    def __init__(self):
        super().__init__()
        self.dense = PixelLinear(1, 2)

    def forward(self, X):
        return self.dense(X)


def make_images(n_images):
    """Return noisy grey images 4 x 6 (float32) and masks of 0 and 1, which a threshold mostly tells apart."""
    rng = np.random.default_rng(0)
    masks = rng.integers(0, 2, size=(n_images, 4, 6))
    return (masks + 0.4 * rng.normal(size=masks.shape)).astype(np.float32), masks


class PixelScaler(StandardScaler):
    """scikit-learn's scaler, with each pixel of the images for a column."""

    def fit(self, X, y=None):
        return super().fit(X.reshape(len(X), -1), y)

    def transform(self, X):
        return super().transform(X.reshape(len(X), -1)).reshape(X.shape)


def pixelwise(metric):
    """Return a metric of samples as one of pixels."""

    @wraps(metric)
    def measure(truth, predicted, **kwargs):
        predicted = np.asarray(predicted)
        if predicted.ndim == 4:  # probabilities (N, K, H, W)
            predicted = np.moveaxis(predicted, 1, -1).reshape(-1, predicted.shape[1])  # (N * H * W, K)
        else:
            predicted = predicted.ravel()
        return metric(np.ravel(truth), predicted, **kwargs)

    return measure
