"""U-Net image segmentation as a scikit-learn estimator."""

from skunet.network import UNet
from skunet.segmenter import UNetSegmenter

__all__ = ["UNet", "UNetSegmenter"]
__version__ = "0.1.0.dev0"
