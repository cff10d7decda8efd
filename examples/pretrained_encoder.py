"""Train a U-Net whose encoder knows ImageNet, from segmentation_models_pytorch, on made cells.

python examples/pretrained_encoder.py
python examples/pretrained_encoder.py --weights none     # without a network connection: random weights
"""

import argparse
import os
import sys
from pathlib import Path

# Read when torch is loaded, see first_segmentation.py.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

try:
    import segmentation_models_pytorch as smp
except (ImportError, RuntimeError) as error:  # RuntimeError: of a torchvision that was built for another torch
    sys.exit(f"error: {error}. pip install segmentation-models-pytorch, with a torchvision that fits your torch")

import numpy as np

from skunet import UNetSegmenter
from skunet.callbacks import Freeze
from skunet.datasets import make_cells


def make_unet(in_channels, n_classes, encoder="resnet18", encoder_weights="imagenet"):
    """Return a network as `module=` takes it: called with channels and classes, and with any `module__*`."""
    network = smp.Unet(encoder, encoder_weights=encoder_weights, in_channels=in_channels, classes=n_classes)
    network.size_multiple = 32  # its encoder halves the resolution five times; images are mirrored to multiples
    return network


def main():
    options = read_options()
    X, y = make_cells(24, size=96, random_state=options.seed)
    # The first epochs train the decoder alone, so that its random weights do not spoil those of the encoder.
    callbacks = [Freeze("encoder.*", until=1 + options.frozen)] if options.weights else None
    segmenter = UNetSegmenter(
        module=make_unet,
        module__encoder=options.encoder,
        module__encoder_weights=options.weights,
        callbacks=callbacks,
        max_epochs=options.epochs,
        random_state=options.seed,
        verbose=0 if options.quiet else 1,
    )
    segmenter.fit(X[:20], y[:20])
    print(f"mean IoU on 4 images held out: {segmenter.score(X[20:], y[20:]):.3f}")
    save_and_reload(options.output, segmenter, X[20:])


def save_and_reload(path, segmenter, X):
    """Files hold no functions: the one that makes the network is passed again, and downloads nothing."""
    segmenter.save(path)
    again = UNetSegmenter.load(path, module=make_unet, module__encoder_weights=None)
    is_equal = np.array_equal(again.predict(X), segmenter.predict(X))
    print(f"Segmenter: {path}; loaded again, it predicts {'the same' if is_equal else 'OTHER'} labels")


def read_options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--encoder", default="resnet18", help="a name that segmentation_models_pytorch knows (default: %(default)s)")
    add("--weights", default="imagenet", help='of the encoder, downloaded once, or "none" (default: %(default)s)')
    add("--epochs", type=int, default=15, help="passes over the images (default: %(default)s)")
    add("--frozen", type=int, default=3, help="of these, without the encoder (default: %(default)s)")
    add("--output", type=Path, default="pretrained_encoder.skunet", metavar="FILE", help="default: %(default)s")
    add("--seed", type=int, default=0, help="the same seed gives the same result (default: %(default)s)")
    add("--quiet", action="store_true", help="no progress")
    options = parser.parse_args()
    if options.weights == "none":
        options.weights = None
    return options


if __name__ == "__main__":
    try:
        main()
    except OSError as error:  # of the download too
        sys.exit(f"error: {error} (without a connection: --weights none)")
    except (ValueError, KeyError) as error:  # KeyError: no such encoder
        sys.exit(f"error: {error}")
