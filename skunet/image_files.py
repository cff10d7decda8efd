"""Images and masks in files: read whole, or opened to read parts of."""

import re
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["read_image", "read_mask"]


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file in its own dtype, channels last.

    Raises
    ------
    OSError
        If the file cannot be read; names the path.
    """
    try:
        with open(path, "rb") as file:  # imageio leaves files open that are no images
            # Formats go by the suffix: pages of TIFF are a volume, which its first bytes do not tell.
            suffix: Any = Path(path).suffix.lower() or None
            image = np.asarray(iio.imread(file, extension=suffix))
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = re.sub(r"`<.*?>``", "it", str(error))
        raise OSError(f"{path} could not be read as an image: {reason}. Is the file complete?") from error
    is_still = str(path).lower().endswith(".gif") and len(image) == 1
    return image[0] if is_still else image


def read_mask(path: str | Path) -> np.ndarray:
    """Read a mask file: palette files give their indices, grey files saved as RGB one channel.

    Raises
    ------
    OSError
        If the file cannot be read; names the path.
    ValueError
        If the file is in colour.
    """
    mask = read_image(path)
    mode = _pixel_mode(path)
    if mode == "P":
        with Image.open(path) as file:
            return np.asarray(file)
    if mode in ("RGB", "RGBA") and (mask[..., :3] != mask[..., :1]).any():
        raise ValueError(f"A mask must hold one label per pixel; {path} is in colour, shape {mask.shape}.")
    return mask[..., 0] if mode in ("RGB", "RGBA", "LA") else mask


def _pixel_mode(path: str | Path) -> str | None:
    """Return what Pillow calls the kind of pixels; None for files that are not for Pillow."""
    try:
        with Image.open(path) as file:
            return file.mode
    except UnidentifiedImageError:
        return None
