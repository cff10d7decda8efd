"""Predictions of dask arrays: as lazy as these, chunk by chunk."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np

from skunet.containers import Container, object_array
from skunet.geometry import Geometry, round_up
from skunet.images import Images, can_hold, check_pixels
from skunet.pixels import ArrayPixels, PlacedPixels, Window
from skunet.scaling import image_scaling, image_statistics, merge_statistics
from skunet.steps import gives_instances
from skunet.tiling import read_window

__all__ = ["is_dask", "predict_chunks"]


def is_dask(container: Container) -> bool:
    """Return whether a container is a dask array, or a list of such."""
    if container.original_sizes is not None:
        return False
    items = [container.items] if container.kind == "stack" else container.items
    return container.kind in ("stack", "list", "object_array") and all(map(_is_dask_array, items))


def _is_dask_array(array: Any) -> bool:
    return type(array).__module__.startswith("dask.array")


def predict_chunks(segmenter: Any, images: Images, output: Any) -> Any:
    """Return predictions that are computed when they are asked for, each chunk from its pixels and those around it.

    Chunks follow those of the images, from multiples of the network's `size_multiple` on. Images of which tiles would
    be blended, or that `postprocess` takes whole, are one chunk.
    """
    import dask.array
    from dask import delayed

    frozen = deepcopy(segmenter)  # what is computed later is what was asked for now
    frozen.trim_for_prediction()
    network = delayed(frozen, pure=False, traverse=False)  # handed to each worker once
    plan = partial(_predict_image, network, frozen, images, output)
    if images.container.kind == "stack":
        stack = images.container.items
        return dask.array.stack([plan(stack[index], index) for index in range(len(images))])
    arrays = [plan(array, index) for index, array in enumerate(images.container.items)]
    if images.container.kind == "list":
        return arrays
    return object_array(arrays)


def _predict_image(network: Any, segmenter: Any, images: Images, output: Any, array: Any, index: int) -> Any:
    """Return the lazy prediction of one image, itself a dask array (*S) or (*S, C)."""
    import dask.array
    from dask import delayed

    ndim, geometry = images.spatial_ndim, segmenter._geometry()
    if array.ndim != ndim + images.has_channel_axis:
        raise ValueError(f"All images must have the axes of the first; image {index} has shape {array.shape}.")
    if np.isnan(array.shape).any():
        raise ValueError(f"The size of image {index} must be known: call compute_chunk_sizes() on it first.")
    name = f"image {index}"
    if images.has_channel_axis:
        array = array.rechunk({ndim: -1})
    size = tuple(array.shape[:ndim])
    is_one = bool(output.steps) or not geometry.is_exactly_tileable
    spans = [[slice(0, n)] for n in size] if is_one else _aligned_spans(array.chunks[:ndim], geometry)
    constants = segmenter.scaling_constants_
    if constants is None:
        statistics = [delayed(_statistics)(block, ndim, name) for block in array.to_delayed().ravel()]
        constants = delayed(_constants)(segmenter.fitted_scaling_, statistics)
    norm_statistics = _lazy_norm_statistics(network, segmenter, array, constants, size, name)
    leading = () if output.n_leading is None or output.steps else (output.n_leading,)
    dtype: Any = segmenter.classes_.dtype if output.method == "predict" else np.float32
    if gives_instances(output.steps.steps):
        dtype = np.int32

    def predict(keep: Window) -> Any:
        reads = read_window(keep, size, geometry=geometry, turns=segmenter._turns())
        block = delayed(_predict_block, pure=False)(
            network,
            output.method,
            array[reads],
            constants,
            norm_statistics=norm_statistics,
            keep=None if is_one else keep,
            starts=tuple(span.start for span in reads),
            size=size,
            dtype=dtype,
            name=name,
        )
        shape = (*leading, *(span.stop - span.start for span in keep))
        return dask.array.from_delayed(block, shape=shape, dtype=dtype)

    blocks = np.empty([len(axis) for axis in spans], dtype=object)
    for position in np.ndindex(*blocks.shape):
        blocks[position] = predict(tuple(axis[at] for axis, at in zip(spans, position, strict=True)))
    # Chunks as the images have them, which need not start at multiples.
    whole = dask.array.block(blocks.tolist())
    return whole if is_one else whole.rechunk((*((n,) for n in leading), *array.chunks[:ndim]))


def _aligned_spans(chunks: Sequence[Sequence[int]], geometry: Geometry) -> list[list[slice]]:
    """Return the chunks along each axis, moved so that they start at multiples.

    Examples
    --------
    >>> from skunet.geometry import PlainGeometry
    >>> _aligned_spans([(10, 3, 20)], PlainGeometry(8))
    [[slice(0, 16, None), slice(16, 33, None)]]
    """
    spans = []
    for axis in chunks:
        n, ends = sum(axis), np.cumsum(axis).tolist()
        starts = sorted({0, *(round_up(end, geometry.size_multiple) for end in ends[:-1])})
        starts = [start for start in starts if start < n]
        spans.append([slice(start, stop) for start, stop in zip(starts, [*starts[1:], n], strict=True)])
    return spans


def _statistics(block: np.ndarray, ndim: int, name: str) -> np.ndarray:
    channels = np.moveaxis(block, -1, 0) if block.ndim > ndim else block[None]
    check_pixels(channels, name)  # a chunk far from the one that is asked for may be the only one to hold NaN
    return image_statistics(channels)[None]  # (1, C, 5)


def _constants(scaling: Any, statistics: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(image_scaling(scaling, merge_statistics(np.stack(statistics))))


def _lazy_norm_statistics(
    network: Any, segmenter: Any, array: Any, constants: Any, size: tuple[int, ...], name: str
) -> Any:
    """Return what the norms will meet in an image; None where they adapt to none."""
    from dask import delayed

    adaptation = segmenter._adaptation()
    if adaptation is None:
        return None
    parts = [array[window] for window in adaptation.windows(size)]
    return delayed(_measure_norms, pure=False)(network, parts, constants, len(size), name)


def _measure_norms(segmenter: Any, parts: Sequence[np.ndarray], constants: Any, ndim: int, name: str) -> Any:
    pixels = [_as_pixels(part, ndim, name) for part in parts]
    whole = (part.read(tuple(slice(0, n) for n in part.size)) for part in pixels)
    return segmenter.measure_norms(whole, constants=constants)


def _as_pixels(block: np.ndarray, ndim: int, name: str) -> ArrayPixels:
    return ArrayPixels(block, tuple(block.shape[:ndim]), None, -1 if block.ndim > ndim else None, name)


def _predict_block(
    segmenter: Any,
    method: str,
    block: np.ndarray,
    constants: Any,
    *,
    norm_statistics: Any,
    keep: Window | None,
    starts: tuple[int, ...],
    size: tuple[int, ...],
    dtype: Any,
    name: str,
) -> np.ndarray:
    """Return what is predicted in a window of an image, or in all of it, from the part that begins at `starts`."""
    pixels = PlacedPixels(_as_pixels(block, len(size), name), starts, size)
    values = segmenter.predict_region(pixels, keep, method=method, constants=constants, norm_statistics=norm_statistics)
    if not can_hold(dtype, np.unique(values)):
        raise ValueError(
            f"postprocess must give labels of dtype {np.dtype(dtype)} for dask arrays; got {values.dtype}."
        )
    return np.asarray(values, dtype=dtype)
