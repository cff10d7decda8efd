"""Synthetic images with masks, for examples, tests and benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.random import Generator, RandomState
from numpy.typing import NDArray
from scipy import ndimage

__all__ = ["make_cells"]

Array = NDArray[Any]
Arrays = Array | list[Array]
Seed = int | RandomState | Generator | None

_FULL_SCALE = {"uint8": 255, "uint16": 65535, "float32": 1}


@dataclass(frozen=True)
class _Kind:
    """How one kind of cell looks; radius in units of the base radius, light in units of a plain cell body."""

    radius: float
    elongation: float
    ruffle: float  # depth of the bulges of the outline
    bulges: float  # how many of them, roughly
    body: float
    nucleus: float
    rim: float
    stripes: float
    grain: float
    grain_size: float  # pixels


# Body, nucleus and rim are chosen so that the kinds are about equally bright on average:
# shape and texture tell them apart, a single pixel does not.
_KINDS = (
    _Kind(1.00, 1.25, 0.10, 3.0, body=0.75, nucleus=0.80, rim=0.15, stripes=0.0, grain=0.18, grain_size=1.5),
    _Kind(0.95, 2.10, 0.06, 2.0, body=0.65, nucleus=0.00, rim=0.90, stripes=0.0, grain=0.10, grain_size=1.0),
    _Kind(1.15, 1.15, 0.20, 5.5, body=1.05, nucleus=-0.30, rim=0.00, stripes=0.0, grain=0.42, grain_size=2.0),
    _Kind(0.90, 1.05, 0.03, 1.0, body=1.25, nucleus=-0.85, rim=0.00, stripes=0.0, grain=0.08, grain_size=1.0),
    _Kind(1.10, 1.60, 0.12, 3.0, body=1.00, nucleus=0.00, rim=0.00, stripes=0.45, grain=0.10, grain_size=1.0),
)
# By number of axes: cells per base radius cubed (squared), and the closest and the usual distance of two
# centres in sums of radii. A cell in a volume has more neighbours, which would crush it if they came closer.
_PACKING = {2: (0.13, 0.80, 0.88), 3: (0.10, 0.92, 0.98)}
# Like stains, each channel shows body, nucleus and rim with weights of its own; more channels repeat them.
_STAINS = ((1.0, 1.0, 1.0), (0.6, 1.9, 0.4), (0.9, 0.2, 1.8))


@dataclass(frozen=True)
class _Cell:
    """One cell before it meets its neighbours; `to_unit` maps pixel offsets to where it is a unit ball."""

    kind: int
    centre: Array  # (ndim,) pixels
    to_unit: Array  # (ndim, ndim)
    waves: Array  # (3, ndim) directions of the bulges
    phases: Array  # (3,)
    brightness: float


def make_cells(
    n_samples: int = 20,
    size: int | Sequence[int] = 128,
    *,
    n_classes: int = 2,
    n_channels: int = 1,
    spatial_ndim: int = 2,
    n_cells: int | None = None,
    noise: float = 0.1,
    dtype: str = "uint8",
    vary_size: bool = False,
    return_instances: bool = False,
    random_state: Seed = None,
) -> tuple[Arrays, ...]:
    """Make micrographs of touching cells, with their masks.

    Cells of irregular outline press against each other, parted by a gap of two pixels. Uneven illumination,
    specks of debris, haze and blobs out of focus (all background) defeat a global threshold. The kinds
    of cells differ in shape and texture and are about equally bright.

    Parameters
    ----------
    n_samples : int, default=20
        Number of images. The first images do not depend on it.
    size : int or sequence of int, default=128
        Pixels per axis, at least 16; for volumes usually `(16, 64, 64)` or the like.
    n_classes : int, default=2
        Background and kinds of cells, 2 to 6. Images of 64 pixels or more per axis hold every class.
    n_channels : int, default=1
        Number of channels. With one there is no channel axis.
    spatial_ndim : {2, 3}, default=2
        Number of spatial axes.
    n_cells : int, default=None
        Cells per image, `n_classes - 1` or more, as far as they find room; `None` covers a third of it.
    noise : float, default=0.1
        Standard deviation of the noise of a white pixel, as a fraction of full scale; 0 for none.
    dtype : {"uint8", "uint16", "float32"}, default="uint8"
        Type of the images. Integers use their full range, floats lie in 0..1.
    vary_size : bool, default=False
        Whether to draw each axis of each image between 75 % and 125 % of `size`.
    return_instances : bool, default=False
        Whether to return the masks of single cells too.
    random_state : int, RandomState, Generator or None, default=None
        Seed. The same integer gives the same bits; a RandomState or Generator gives one draw; `None` asks
        the operating system. NumPy's global state is neither read nor changed.

    Returns
    -------
    X : ndarray of shape (N, *S) or (N, *S, C), or list of ndarray
        Images; a list of N arrays when `vary_size`.
    y : ndarray of shape (N, *S), dtype uint8, or list of ndarray
        Labels, 0 for background, 1 to `n_classes - 1` for the kinds of cells.
    instances : ndarray of shape (N, *S), dtype int32, or list of ndarray
        0 for background, 1, 2, ... for the cells of an image: the connected components of `y > 0`, diagonal
        neighbours included. Only if `return_instances`.

    Examples
    --------
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(4, size=64, random_state=0)
    >>> X.shape, X.dtype, y.shape, y.dtype
    ((4, 64, 64), dtype('uint8'), (4, 64, 64), dtype('uint8'))
    """
    _check_integer("n_samples", n_samples, low=1)
    _check_integer("n_classes", n_classes, low=2, high=1 + len(_KINDS))
    _check_integer("n_channels", n_channels, low=1)
    if n_cells is not None:
        _check_integer("n_cells", n_cells, low=n_classes - 1)
    if not (np.isfinite(noise) and noise >= 0):
        raise ValueError(f"noise must be finite and not negative; got {noise}. Pass 0 for noise-free images.")
    if dtype not in _FULL_SCALE:
        raise ValueError(f"dtype must be one of {[*_FULL_SCALE]}; got {dtype!r}. Pass one of these names.")
    sizes = _check_size(size, spatial_ndim=spatial_ndim)
    radius = _base_radius(sizes)
    samples = []
    for seed in _seed_sequence(random_state).spawn(n_samples):
        rng = np.random.default_rng(seed)
        shape = rng.integers(np.maximum(16, 3 * sizes // 4), 5 * sizes // 4 + 1) if vary_size else sizes
        cells = _place_cells(rng, shape, radius=radius, n_classes=n_classes, n_cells=n_cells)
        instances, kinds, light = _paint_cells(rng, shape, cells, radius=radius)
        exposure = _expose(rng, light, is_cell=instances > 0, radius=radius, n_channels=n_channels)
        samples.append((_record(rng, exposure, noise=noise, dtype=dtype), kinds, instances))
    columns = list(zip(*samples, strict=True))[: 3 if return_instances else 2]
    return tuple(list(column) if vary_size else np.stack(column) for column in columns)


def _check_integer(name: str, value: Any, *, low: int, high: int | None = None) -> None:
    rule = f"at least {low}" if high is None else f"in {low}..{high}"
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer {rule}; got {value!r}. Pass a whole number.")
    if value < low or (high is not None and value > high):
        raise ValueError(f"{name} must be {rule}; got {value}. Pass {low if value < low else high}, the nearest.")


def _check_size(size: int | Sequence[int], *, spatial_ndim: int) -> Array:
    """Give the pixels per axis, one entry per spatial axis."""
    _check_integer("spatial_ndim", spatial_ndim, low=2, high=3)
    sizes = list(size) if isinstance(size, Sequence | np.ndarray) else [size] * spatial_ndim
    if len(sizes) != spatial_ndim:
        raise ValueError(f"size must have {spatial_ndim} entries; got {size}. Pass an int, or one per spatial axis.")
    for pixels in sizes:
        _check_integer("size", pixels, low=16)
    return np.array(sizes, dtype=int)


def _seed_sequence(random_state: Seed) -> np.random.SeedSequence:
    """Turn what users pass as a seed into the root from which each image gets a child of its own."""
    if isinstance(random_state, Generator):
        random_state = int(random_state.integers(2**32))
    elif isinstance(random_state, RandomState):
        random_state = int(random_state.randint(2**32, dtype=np.uint64))
    elif random_state is not None:
        _check_integer("random_state", random_state, low=0)
    return np.random.SeedSequence(random_state)


def _base_radius(sizes: Array) -> Array:
    """Choose the radius of a plain cell per axis, pixels; in a shallow stack the cells are flat."""
    in_plane = np.clip(sizes[-2:].min() / (11 if len(sizes) == 2 else 9), 5, 14)
    return np.array([*np.minimum(in_plane, np.maximum(4, sizes[:-2] / 4)), in_plane, in_plane])


def _place_cells(rng: Generator, shape: Array, *, radius: Array, n_classes: int, n_cells: int | None) -> list[_Cell]:
    """Grow colonies: most cells settle next to an earlier one, none where it would cover another's core."""
    extent = (shape - 1) / radius
    density, closest, usual = _PACKING[len(shape)]
    if n_cells is None:
        n_cells = max(n_classes - 1, round(float(np.prod(extent)) * density))
    cells: list[_Cell] = []
    centres, radii = np.empty((0, len(shape))), np.empty(0)
    for _ in range(n_cells):
        kind = len(cells) % (n_classes - 1)
        unit_radius = _KINDS[kind].radius * rng.uniform(0.85, 1.15)
        candidates = _candidate_centres(rng, extent, centres, apart=usual * (radii + unit_radius))
        distance = np.linalg.norm(candidates[:, None] - centres, axis=-1)  # (candidates, cells)
        is_free = (distance >= closest * (radii + unit_radius)).all(axis=1)
        if is_free.any():
            centre = candidates[is_free.argmax()]
            centres, radii = np.vstack([centres, centre]), np.append(radii, unit_radius)
            cells.append(_draw_cell(rng, kind, centre=centre * radius, radius=unit_radius * radius))
    return cells


def _candidate_centres(rng: Generator, extent: Array, centres: Array, *, apart: Array) -> Array:
    """Propose places inside the image, in units of the base radius; the first of them touch earlier cells."""
    anywhere = rng.uniform(0, extent, size=(32, len(extent)))
    if len(centres) == 0 or rng.random() < 0.2:
        return anywhere
    neighbour = rng.integers(len(centres), size=32)
    near = centres[neighbour] + apart[neighbour, None] * _unit_vectors(rng, 32, len(extent))
    is_inside = ((near >= 0) & (near <= extent)).all(axis=1)
    return np.vstack([near[is_inside], anywhere])


def _draw_cell(rng: Generator, kind: int, *, centre: Array, radius: Array) -> _Cell:
    ndim = len(centre)
    elongation = 1 + (_KINDS[kind].elongation - 1) * rng.uniform(0.8, 1.2)
    # One long axis; the others shrink so that the volume stays.
    stretch = np.array([elongation] + [1.0] * (ndim - 1)) / elongation ** (1 / ndim)
    rotation = np.linalg.qr(rng.normal(size=(ndim, ndim)))[0]
    waves, phases = _unit_vectors(rng, 3, ndim), rng.uniform(0, 2 * np.pi, size=3)
    return _Cell(kind, centre, rotation / stretch[:, None] / radius, waves, phases, rng.uniform(0.6, 1.3))


def _unit_vectors(rng: Generator, count: int, ndim: int) -> Array:
    vectors = rng.normal(size=(count, ndim))
    lengths: Array = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / lengths


def _paint_cells(rng: Generator, shape: Array, cells: list[_Cell], *, radius: Array) -> tuple[Array, ...]:
    """Give instances (*S) int32, kinds (*S) uint8, and the light of bodies, nuclei and rims, (3, *S).

    A pixel goes to the cell whose centre is nearest in the cell's own frame; then the cells are parted.
    """
    owner, nearest, light = np.zeros(shape, np.int32), np.ones(shape), np.zeros((3, *shape))
    for number, cell in enumerate(cells, start=1):
        reach = np.linalg.norm(np.linalg.inv(cell.to_unit), axis=1) * (1 + 3 * _KINDS[cell.kind].ruffle)
        box, offsets = _box(shape, cell.centre, reach)
        local = np.tensordot(cell.to_unit, offsets, axes=1)  # (ndim, *box)
        distance = _distance_to_outline(cell, local)
        wins = distance < nearest[box]
        nearest[box][wins] = distance[wins]
        owner[box][wins] = number
        light[:, *box][:, wins] = _cell_light(rng, cell, local, distance)[:, wins]
    # A shred that competition cuts off a cell is no cell: nobody would annotate it.
    instances = _part_cells(owner, min_pixels=0.35 * float(np.prod(radius)))
    kinds = np.array([0, *(cell.kind + 1 for cell in cells)], np.uint8)[np.where(instances > 0, owner, 0)]
    return instances, kinds, light * (instances > 0)


def _box(shape: Array, centre: Array, reach: Array) -> tuple[tuple[slice, ...], Array]:
    """Give the part of the image within reach of a centre, and its pixels' offsets from it, (ndim, *box)."""
    low = np.clip(np.floor(centre - reach).astype(int), 0, shape)
    high = np.clip(np.ceil(centre + reach).astype(int) + 1, low, shape)
    box = tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))
    return box, np.mgrid[box] - centre.reshape(-1, *[1] * len(centre))


def _distance_to_outline(cell: _Cell, local: Array) -> Array:
    """Measure how far out each pixel lies: 0 in the centre, 1 on the bulged outline."""
    look = _KINDS[cell.kind]
    distance: Array = np.linalg.norm(local, axis=0)
    angles = np.tensordot(cell.waves, local / np.maximum(distance, 1e-6), axes=1)  # (3, *box)
    phases = cell.phases.reshape(-1, *[1] * (local.ndim - 1))
    distance /= 1 + look.ruffle * np.cos(look.bulges * angles + phases).sum(axis=0)
    return distance


def _cell_light(rng: Generator, cell: _Cell, local: Array, distance: Array) -> Array:
    """Light up the body, the nucleus and, not yet confined to the outline, the rim of a cell, (3, *box)."""
    look = _KINDS[cell.kind]
    grain = ndimage.gaussian_filter(rng.normal(size=distance.shape), look.grain_size)
    stripes = np.sin(9 * local[0] + cell.phases[0])
    body = look.body + look.stripes * stripes + look.grain * grain / grain.std()
    nucleus = look.nucleus / (1 + (distance / 0.45) ** 6)
    return cell.brightness * np.stack([body, nucleus, np.full_like(body, look.rim)])


def _part_cells(owner: Array, *, min_pixels: float) -> Array:
    """Clear pixels that touch another cell, drop shreds, and number what is left, int32."""
    highest = ndimage.maximum_filter(owner, size=3)
    lowest = ndimage.minimum_filter(np.where(owner == 0, np.iinfo(owner.dtype).max, owner), size=3)
    is_cell = (owner > 0) & (highest == owner) & (lowest == owner)
    components = ndimage.label(is_cell, structure=np.ones((3,) * owner.ndim))[0]
    is_kept = np.bincount(components.ravel()) >= min_pixels
    is_kept[0] = False
    instances: Array = np.where(is_kept, np.cumsum(is_kept), 0).astype(np.int32)[components]
    return instances


def _expose(rng: Generator, light: Array, *, is_cell: Array, radius: Array, n_channels: int) -> Array:
    """Add stains, haze, debris, blur and uneven illumination, (*S) or (*S, C), positive, about 0..1."""
    shape = np.array(is_cell.shape)
    body, nucleus, rim = light
    membrane = rim * np.exp(-(((ndimage.distance_transform_edt(is_cell) - 1.5) / 1.2) ** 2))
    haze = np.abs(ndimage.zoom(rng.uniform(-1, 1, size=(4,) * len(shape)), shape / 4, mode="nearest"))
    debris, blur = _debris(rng, shape, radius=radius), rng.uniform(0.6, 0.9)
    channels = []
    for channel in range(n_channels):
        stain = _STAINS[channel % len(_STAINS)]
        cells = np.tensordot(stain, (body, nucleus, membrane), axes=1).clip(min=0)
        plane = 0.16 + 0.2 * haze + 0.42 * cells + rng.uniform(0.6, 1.0) * debris
        channels.append(ndimage.gaussian_filter(plane, blur) * _illumination(rng, shape))
    return channels[0] if n_channels == 1 else np.stack(channels, axis=-1)


def _debris(rng: Generator, shape: Array, *, radius: Array) -> Array:
    """Scatter bright specks and blobs out of focus, as many as the plane has room for, (*S)."""
    debris = np.zeros(shape)
    room = float(np.prod((shape / radius)[-2:]))
    speck, blob = np.minimum(1.0, radius / 3), radius
    for count, width, brightest in ((0.08 * room, speck, 0.9), (0.04 * room, blob, 0.5)):
        for _ in range(rng.poisson(count)):
            spread = rng.uniform(0.6, 1.1) * width
            # Beyond three widths a Gaussian spot is not visible.
            box, offsets = _box(shape, rng.uniform(0, shape), 3 * spread)
            squares = np.tensordot(spread**-2, offsets**2, axes=1)
            debris[box] += brightest * rng.uniform(0.35, 1.0) * np.exp(-0.5 * squares)
    return debris


def _illumination(rng: Generator, shape: Array) -> Array:
    """Draw a lamp that is off centre: a tilt across the image times a vignette, (*S), around 1."""
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, pixels) for pixels in shape), indexing="ij"))
    ramp = np.tensordot(_unit_vectors(rng, 1, len(shape))[0], grid, axes=1)
    tilt = rng.uniform(0.5, 0.75) * ramp / ramp.max()
    centre = rng.uniform(-0.4, 0.4, size=(len(shape), *[1] * len(shape)))
    lamp: Array = (1 + tilt) * np.exp(-rng.uniform(0.2, 0.5) * ((grid - centre) ** 2).sum(axis=0))
    return 1.1 * lamp


def _record(rng: Generator, exposure: Array, *, noise: float, dtype: str) -> Array:
    """Record an exposure with shot noise, which grows with the light, and camera noise, which does not."""
    if noise > 0:
        # NumPy's Poisson numbers are 64-bit integers, which finer noise would overflow.
        photons = 1 / max(0.93 * noise, 1e-6) ** 2
        exposure = rng.poisson(exposure * photons) / photons + rng.normal(0, 0.37 * noise, exposure.shape)
    scaled = exposure.clip(0, 1) * _FULL_SCALE[dtype]
    return (scaled if dtype == "float32" else np.rint(scaled)).astype(dtype)
