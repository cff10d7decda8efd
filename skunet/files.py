"""Folders of images and masks: finding, pairing by name, writing."""

import os
import re
import uuid
import warnings
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PairedFiles", "find_images", "pair_files", "write_mask", "write_masks"]

Folder = str | Path
Paths = Sequence[str | Path]

_IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")
_PNG_DTYPES = (np.uint8, np.uint16)
_PILLOW_DTYPES = (*_PNG_DTYPES, np.int32)
_TIFF_DTYPES = (*_PILLOW_DTYPES, np.int64, np.uint64)


def find_images(folder: Folder) -> list[Path]:
    """Return the image files of a folder in natural order, `2.png` before `10.png`.

    Parameters
    ----------
    folder : str or Path
        Its subfolders are not searched; hidden files are left out.

    Returns
    -------
    paths : list of Path
        Files ending with png, jpg, jpeg, tif, tiff, bmp or gif, in upper or lower case; at least one.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If no image is in it.
    """
    folder = Path(folder)
    if not folder.exists():
        raise FileNotFoundError(f"The folder must exist; got {folder}. Check its name; it is read from {Path.cwd()}.")
    if not folder.is_dir():
        raise NotADirectoryError(f"The folder must be a folder; got the file {folder}. Pass the folder it is in.")
    paths = [path for path in folder.iterdir() if _is_image(path)]
    if not paths:
        kinds = ", ".join(extension[1:] for extension in _IMAGE_EXTENSIONS)
        found = sum(1 for _ in folder.iterdir())
        raise ValueError(
            f"The folder must hold image files ({kinds}); got {folder} with none among {found} entries. "
            "Subfolders are not searched: pass the folder that holds the files."
        )
    return sorted(paths, key=_natural_order)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _IMAGE_EXTENSIONS and not path.name.startswith(".") and path.is_file()


def _natural_order(path: Path) -> tuple[Any, ...]:
    """Sort digits as numbers; names that differ in case or leading zeros only, as they are."""
    parts = re.split(r"(\d+)", path.name.casefold())  # text and digits take turns, text first
    return tuple(int(part) if i % 2 else part for i, part in enumerate(parts)), path.name


@dataclass(frozen=True)
class PairedFiles:
    """Images with the masks of the same name.

    Attributes
    ----------
    images, masks : list of Path
        `masks[i]` belongs to `images[i]`; in the order of the images.
    unmatched_images, unmatched_masks : list of Path
        Files without a partner.
    """

    images: list[Path]
    masks: list[Path]
    unmatched_images: list[Path]
    unmatched_masks: list[Path]

    def __len__(self) -> int:
        return len(self.images)


def pair_files(
    images: Folder | Paths, masks: Folder | Paths, *, image_suffix: str = "", mask_suffix: str = ""
) -> PairedFiles:
    """Pair image files with mask files by their names, never by their order.

    Two files belong together if their names without extension are equal once the suffixes are taken off:
    `1.png` never matches `10.png`.

    Parameters
    ----------
    images, masks : str, Path or list of paths
        A folder, or files. One folder may hold both, told apart by a suffix.
    image_suffix, mask_suffix : str, default=""
        What the names end with, before the extension: `mask_suffix="_mask"` pairs `a.jpg` with `a_mask.png`.

    Returns
    -------
    PairedFiles
        In the order of `images`: natural order for a folder.

    Raises
    ------
    FileNotFoundError, NotADirectoryError
        If there is no such folder.
    ValueError
        If two files on one side have the same name, a file would be its own mask, or nothing matches.

    Warns
    -----
    UserWarning
        If files are left without a partner.

    Examples
    --------
    >>> from skunet.files import pair_files
    >>> paired = pair_files(["in/1.jpg", "in/10.jpg"], ["out/10_mask.png", "out/1_mask.png"], mask_suffix="_mask")
    >>> [path.name for path in paired.masks]
    ['1_mask.png', '10_mask.png']
    """
    image_paths, mask_paths = _list_files(images), _list_files(masks)
    image_of = _by_stem(image_paths, image_suffix, "images")
    mask_of = _by_stem(mask_paths, mask_suffix, "masks")
    stems = [stem for stem in image_of if stem in mask_of]
    if not stems:
        raise ValueError(_no_match_message(image_paths, mask_paths, image_suffix, mask_suffix))
    paired = [image_of[stem] for stem in stems], [mask_of[stem] for stem in stems]
    _check_own_masks(*paired)
    # In a folder that holds both sides, a matched image is no mask that lacks its image, and the reverse; what has no
    # partner counts on the side whose suffix it has.
    matched, on_both = {*paired[0], *paired[1]}, {*image_paths} & {*mask_paths}
    not_images = matched | {path for path in on_both if _is_named_as_mask(path, image_suffix, mask_suffix)}
    not_masks = matched | (on_both - not_images)
    result = PairedFiles(
        *paired, [p for p in image_paths if p not in not_images], [p for p in mask_paths if p not in not_masks]
    )
    _warn_of_unmatched(result)
    return result


def _list_files(source: Folder | Paths) -> list[Path]:
    return find_images(source) if isinstance(source, str | Path) else [Path(path) for path in source]


def _by_stem(paths: list[Path], suffix: str, side: str) -> dict[str, Path]:
    """Return the files whose stem ends with the suffix, by the stem without it."""
    found: dict[str, Path] = {}
    for path in paths:
        if not path.stem.endswith(suffix):
            continue
        stem = path.stem.removesuffix(suffix)
        if stem in found:
            raise ValueError(
                f"The names of {side} must differ in more than extension and folder; got {found[stem]} and {path}. "
                "Remove one, or pass a list of paths without it."
            )
        found[stem] = path
    return found


def _is_named_as_mask(path: Path, image_suffix: str, mask_suffix: str) -> bool:
    """Return whether the mask's suffix is what the name ends with, or says more than the image's, which it has too."""
    is_longer = len(mask_suffix) > len(image_suffix)
    return path.stem.endswith(mask_suffix) and (is_longer or not path.stem.endswith(image_suffix))


def _no_match_message(images: list[Path], masks: list[Path], image_suffix: str, mask_suffix: str) -> str:
    shown = [", ".join(repr(path.stem) for path in paths[:3]) or "no files" for paths in (images, masks)]
    return (
        f"Names of images and masks must match once image_suffix={image_suffix!r} and mask_suffix={mask_suffix!r} are "
        f"taken off; got images {shown[0]} and masks {shown[1]}. Pass what only one side's names end with, "
        "e.g. mask_suffix='_mask' for a_mask.png beside a.jpg."
    )


def _check_own_masks(images: list[Path], masks: list[Path]) -> None:
    for image, mask in zip(images, masks, strict=True):
        if image == mask:
            raise ValueError(
                f"Images and masks must be different files; got {image} as both. "
                "Pass two folders, or the suffix that tells masks from images."
            )


def _warn_of_unmatched(paired: PairedFiles) -> None:
    sides = (paired.unmatched_images, "images have no mask"), (paired.unmatched_masks, "masks have no image")
    notes = [f"{len(paths)} {what} ({_some_names(paths)})" for paths, what in sides if paths]
    if notes:
        warnings.warn(
            f"{' and '.join(notes)}; they are left out. Give both files of a pair the same name, or pass the suffix.",
            UserWarning,
            stacklevel=3,
        )


def _some_names(paths: Sequence[Path], n_shown: int = 5) -> str:
    names = ", ".join(path.name for path in paths[:n_shown])
    return names if len(paths) <= n_shown else f"{names} and {len(paths) - n_shown} more"


def write_mask(path: str | Path, mask: ArrayLike) -> None:
    """Write a mask without changing a value, or leave no file.

    `read_mask` gives back equal values, bool as 0 and 1. The file appears in one step, whole; an older one of that
    name is replaced.

    Parameters
    ----------
    path : str or Path
        Ending with .png (whole numbers 0..65535, 2-D) or .tif, .tiff (any whole numbers; volumes).
    mask : array-like of shape (H, W) or (D, H, W)
        Whole numbers or bool. A volume, or numbers beyond int32, need the package tifffile.

    Raises
    ------
    ValueError
        If the values, the shape or the file format do not allow it.
    ImportError
        If tifffile is needed and missing.
    """
    path = Path(path)
    mask = _as_whole_numbers(np.asarray(mask), path)
    content = _encode_png(mask) if path.suffix.lower() == ".png" else _encode_tiff(mask)
    _write_in_one_step(path, content)


def write_masks(folder: Folder, names: Paths, masks: Iterable[ArrayLike], *, extension: str = ".png") -> list[Path]:
    """Write one mask file per image, named after it.

    Files that are there are replaced, but never in a folder that an image came from.

    Parameters
    ----------
    folder : str or Path
        Made if it is missing.
    names : list of paths
        The images' files; `in/a.jpg` gives `folder/a.png`.
    masks : iterable of arrays, each (H, W) or (D, H, W)
        As many. An iterator is consumed one mask at a time, so that they need not all be in memory.
    extension : {".png", ".tif", ".tiff"}, default=".png"

    Returns
    -------
    paths : list of Path

    Raises
    ------
    ValueError
        If names are not unique, a file beside the images would be replaced, or names and masks differ in number; all
        before anything is written. And as by `write_mask`.
    """
    paths = [Path(folder) / f"{Path(name).stem}{extension}" for name in names]
    _by_stem([Path(name) for name in names], "", "images")
    if isinstance(masks, Collection) and len(masks) != len(paths):
        raise ValueError(f"There must be one mask per name; got {len(masks)} masks and {len(paths)} names.")
    _check_replacing(Path(folder), paths, names)
    Path(folder).mkdir(parents=True, exist_ok=True)
    for path, mask in zip(paths, masks, strict=True):
        write_mask(path, mask)
    return paths


def _check_replacing(folder: Path, paths: list[Path], names: Paths) -> None:
    """Raise ValueError if masks would replace files beside the images, which may be images or drawn masks."""
    replaced = [path for path in paths if path.exists()]
    if replaced and folder.resolve() in {Path(name).parent.resolve() for name in names}:
        raise ValueError(
            f"Masks must not replace files beside the images; {folder} already has {_some_names(replaced)}. "
            "Pass another folder."
        )


def _as_whole_numbers(mask: NDArray[Any], path: Path) -> NDArray[Any]:
    """Return the mask, if not uint8 or uint16 in the smallest dtype of the file format that holds its values."""
    if mask.dtype.kind not in "buif":
        raise ValueError(
            f"A mask file must hold numbers; got labels of dtype {mask.dtype} for {path}. "
            "Write class indices instead, e.g. np.searchsorted(segmenter.classes_, mask)."
        )
    if mask.ndim not in (2, 3) or mask.size == 0:
        raise ValueError(
            f"A mask must be (H, W) or (D, H, W) with at least 1 pixel; got shape {mask.shape} for {path}. "
            "Write the masks of a stack one by one."
        )
    if mask.dtype.kind == "f" and not (np.isfinite(mask) & (mask == np.rint(mask))).all():
        raise ValueError(
            f"A mask file must hold whole numbers; got {mask.dtype} with fractions, NaN or infinity for {path}. "
            "Round the mask, or save it with np.save."
        )
    return mask.astype(_find_dtype(mask, path), copy=False)


def _find_dtype(mask: NDArray[Any], path: Path) -> Any:
    low, high = int(mask.min()), int(mask.max())
    is_png = path.suffix.lower() == ".png"
    if not is_png and path.suffix.lower() not in (".tif", ".tiff"):
        raise ValueError(f"A mask file must end with .png, .tif or .tiff, which keep each value; got {path}.")
    if is_png and mask.ndim == 3:
        raise ValueError(f"A volume must go to a .tif file; got shape {mask.shape} for {path}. Use the extension .tif.")
    dtypes = _PNG_DTYPES if is_png else _TIFF_DTYPES
    if mask.dtype in _PNG_DTYPES:
        return mask.dtype
    for dtype in dtypes:
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return dtype
    holds, remedy = ("0..65535", "Use the extension .tif.") if is_png else ("64-bit integers", "Renumber the labels.")
    raise ValueError(f"The values of a {path.suffix} mask must be {holds}; got {low}..{high} for {path}. {remedy}")


def _encode_png(mask: NDArray[Any]) -> bytes:
    return bytes(iio.imwrite("<bytes>", mask, extension=".png", plugin="pillow"))


def _encode_tiff(mask: NDArray[Any]) -> bytes:
    if mask.ndim == 2 and mask.dtype in _PILLOW_DTYPES:
        return bytes(iio.imwrite("<bytes>", mask, extension=".tif", plugin="pillow", compression="tiff_adobe_deflate"))
    try:
        import tifffile
    except ImportError as error:
        raise ImportError(
            f"A TIFF of shape {mask.shape} and dtype {mask.dtype} needs the package tifffile. "
            "Install it with the extra: pip install 'skunet[tiff]'."
        ) from error
    content = BytesIO()
    tifffile.imwrite(content, mask, photometric="minisblack", compression="zlib")
    return content.getvalue()


def _write_in_one_step(path: Path, content: bytes) -> None:
    """Write beside the path, then rename: a full disk or Ctrl-C leaves what was there before."""
    unfinished = path.with_name(f".{uuid.uuid4().hex}.unfinished")
    try:
        unfinished.write_bytes(content)
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
