"""Images and masks in files: read whole, or opened to read parts of."""

import os
import re
import warnings
import weakref
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from PIL import Image, ImageSequence, UnidentifiedImageError

from skunet.interruption import is_in_search

__all__ = ["check_order", "open_array", "read_image", "read_mask"]

TIFF = (".tif", ".tiff")
PHOTOS = (".jpg", ".jpeg")
# Of the modes of Pillow that masks saved in colour have.
N_CHANNELS = {"RGB": 3, "RGBA": 4, "LA": 2}
# Where a PNG file has its number of bits, and its kind of pixels: 0 is grey.
PNG_BITS, PNG_KIND = 24, 25


def check_order(images: Any, masks: Any) -> None:
    """Look at the names of files that are paired by their order, if both sides are lists of paths.

    In a search it does not, as there are tests that permute masks.

    Raises
    ------
    ValueError
        If the names, without extension and what all of a side begin and end with, are the same on both sides, in
        another order.

    Warns
    -----
    UserWarning
        If an image is paired with the mask of another, by the names, but not all names are the same.

    Examples
    --------
    >>> check_order(["image/1.tif", "image/2.tif"], ["mask/2.png", "mask/1.png"])
    Traceback (most recent call last):
        ...
    ValueError: X and y are paired by their order; got image/1.tif with mask/2.png, ...
    """
    sides = (images, masks)
    if is_in_search() or not all(isinstance(side, list | np.ndarray) for side in sides):
        return
    if not all(isinstance(path, str | Path) for side in sides for path in side):
        return
    names, known = (_distinct_parts([Path(path).stem for path in side]) for side in sides)
    place = {name: index for index, name in enumerate(known)}
    wrong = next((i for i, name in enumerate(names) if name != known[i] and name in place), None)
    if wrong is None:
        return
    message = (
        f"X and y are paired by their order; got {images[wrong]} with {masks[wrong]}, though there is "
        f"{masks[place[names[wrong]]]}. Pair them by name with skunet.files.pair_files."
    )
    if sorted(names) == sorted(known):
        raise ValueError(message)
    warnings.warn(message, UserWarning, stacklevel=2)


def _distinct_parts(names: list[str]) -> list[str]:
    """Return names without what all begin with, and what all end with."""
    for _ in range(2):
        low, high = min(names), max(names)
        n_common = next((i for i, pair in enumerate(zip(low, high, strict=False)) if pair[0] != pair[1]), len(low))
        names = [name[n_common:][::-1] for name in names]  # then from the other end
    return names


def open_array(path: str | Path) -> Any | None:
    """Open a TIFF file or a zarr array, to read parts of it.

    Parameters
    ----------
    path : str or path
        Of a TIFF file, whose first series is meant, or of the folder of a zarr array.

    Returns
    -------
    array-like or None
        With `shape`, `dtype` and slices that read. None if this is none of both, or if it takes a package that is not
        installed: compressed TIFF needs tifffile and zarr.

    Raises
    ------
    OSError
        If the file is not there, or broken.
    ValueError
        If the folder is a zarr group.
    """
    suffix = Path(path).suffix.lower()
    if suffix in (*TIFF, ".zarr") and not Path(path).exists():
        raise FileNotFoundError(f"There is no {path}.")
    if _is_zarr(Path(path)):
        return _open_zarr(Path(path))
    if suffix not in TIFF:
        return None
    try:
        return _open_tiff(path)
    except Exception as error:
        raise _unreadable(path, error) from error


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))


def _open_zarr(path: Path) -> Any:
    try:
        import zarr
    except ImportError as error:
        raise ImportError(f"To read {path}: pip install 'skunet[zarr]'.") from error
    array = zarr.open(str(path), mode="r")
    if not hasattr(array, "dtype"):
        names = sorted(array.keys())
        raise ValueError(f"{path} is a zarr group of {names}. Give the path of an array in it, {path / '...'}.")
    return array


def _open_tiff(path: str | Path) -> Any | None:
    try:
        import tifffile
    except ImportError:
        return None
    try:
        return tifffile.memmap(path, mode="r", series=0)
    except ValueError:
        pass  # it is compressed, or in tiles
    if find_spec("zarr") is None:
        return None
    parts = _TiffParts(path)
    try:
        parts[tuple(slice(0, 1) for _ in parts.shape)]
    except OSError:
        return None  # e.g. compressed in a way that Pillow knows and tifffile alone does not
    return parts


class _TiffParts:
    """A compressed or tiled TIFF file, with errors that name it; each process, also a forked one, opens it anew."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._open()
        self.shape, self.dtype = self.array.shape, self.array.dtype

    def _open(self) -> None:
        import tifffile
        import zarr

        file = tifffile.TiffFile(self.path)
        try:
            self.array = zarr.open(file.aszarr(series=0, level=0), mode="r")
        except Exception:
            file.close()
            raise
        weakref.finalize(self, file.close)
        self.process = os.getpid()

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> np.ndarray:
        if self.process != os.getpid():
            self._open()
        try:
            return np.asarray(self.array[index])
        except (MemoryError, IndexError):
            raise
        except Exception as error:
            raise _unreadable(self.path, error) from error

    def __reduce__(self) -> Any:
        return type(self), (self.path,)


def _unreadable(path: str | Path, error: Exception) -> OSError:
    reason = re.sub(r"`<.*?>``", "it", str(error))
    return OSError(f"{path} could not be read as an image: {reason}. Is the file complete?")


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file, or a zarr array, in its own dtype, channels last; photos upright, as their camera noted it.

    Raises
    ------
    OSError
        If the file cannot be read; names the path.
    ValueError
        If the file is a PNG in colour with 16 bits, of which no more than 8 can be read.
    """
    if _is_zarr(Path(path)):
        return np.asarray(open_array(path))
    try:
        with open(path, "rb") as file:  # imageio leaves files open that are no images
            # Formats go by the suffix: pages of TIFF are a volume, which its first bytes do not tell.
            suffix: Any = Path(path).suffix.lower() or None
            head = file.read(PNG_KIND + 1)
            file.seek(0)
            image = _read(file, suffix)
    except FileNotFoundError:
        raise
    except Image.DecompressionBombError as error:
        raise OSError(
            f"{path} must have fewer pixels for Pillow, which takes it for an attack: {error} Set "
            "PIL.Image.MAX_IMAGE_PIXELS to None where you trust it, or keep it as TIFF."
        ) from error
    except Exception as error:
        raise _unreadable(path, error) from error
    if head[:4] == b"\x89PNG" and head[PNG_BITS] == 16 and head[PNG_KIND] != 0:
        raise ValueError(
            f"A PNG file must have one channel of 16 bits, or several of 8; {path} has several of 16, of which no more "
            "than 8 can be read. Save it as TIFF."
        )
    is_still = str(path).lower().endswith(".gif") and len(image) == 1
    return image[0] if is_still else image


def _read(file: Any, suffix: Any) -> np.ndarray:
    try:
        # Photos the way up that their camera noted, as viewers and drawing programs show them.
        upright: dict[str, Any] = {"rotate": True} if suffix in PHOTOS else {}
        return np.asarray(iio.imread(file, extension=suffix, **upright))
    except Exception:
        if suffix not in TIFF:
            raise
        file.seek(0)
        try:  # Pillow knows compressions for which tifffile needs another package
            pages = np.stack(list(iio.imiter(file, plugin="pillow")))
        except Exception:
            pages = np.empty(0)
        if not pages.size:
            raise
        return pages[0] if len(pages) == 1 else pages


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
            n_pages = getattr(file, "n_frames", 1) if Path(path).suffix.lower() in TIFF else 1
            pages = [np.asarray(page) for page in islice(ImageSequence.Iterator(file), n_pages)]
        return np.stack(pages) if n_pages > 1 else pages[0]
    # TIFF files may have their planes first, and volumes of three slices may pass for these.
    if mode not in N_CHANNELS or mask.ndim < 3 or mask.shape[-1] != N_CHANNELS[mode]:
        return mask
    if mode != "LA" and (mask[..., :3] != mask[..., :1]).any():
        raise ValueError(f"A mask must hold one label per pixel; {path} is in colour, shape {mask.shape}.")
    return mask[..., 0]


def _pixel_mode(path: str | Path) -> str | None:
    """Return what Pillow calls the kind of pixels; None for files that are not for Pillow."""
    if _is_zarr(Path(path)):
        return None
    try:
        ignored = warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning)
        with ignored, Image.open(path) as file:
            return file.mode
    except (UnidentifiedImageError, Image.DecompressionBombError):  # which TIFF files of any size may be for it
        return None
