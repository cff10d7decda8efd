"""What a network reads and gives, as tiling must know it."""

from dataclasses import dataclass
from typing import Protocol

__all__ = ["ENOUGH", "Geometry", "PlainGeometry", "SameSize", "round_up", "uncut_size"]

# Pixels per axis, at the lowest resolution, of which one more or less is no matter.
ENOUGH = 4


class Geometry(Protocol):
    """What tiling must know of a network; `UNet` has it."""

    @property
    def size_multiple(self) -> int:
        """Input sides are multiples of this, or differ from one by a constant."""

    @property
    def margin(self) -> int:
        """Pixels that the output is smaller than the input, on each side."""

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Pixels before and after an output pixel that can change it."""

    @property
    def is_exactly_tileable(self) -> bool:
        """Whether pixels beyond the receptive field have no influence."""

    def input_size(self, output_size: int) -> int:
        """Return the smallest legal input side with an output of at least `output_size`."""

    def output_size(self, input_size: int) -> int:
        """Return the output side of a legal input side."""


class SameSize:
    """The sizes of a network that gives as many pixels as it takes."""

    size_multiple: int

    def input_size(self, output_size: int) -> int:
        """Return the next multiple."""
        return round_up(output_size, self.size_multiple)

    def output_size(self, input_size: int) -> int:
        """Return the same size."""
        return input_size


@dataclass(frozen=True)
class PlainGeometry(SameSize):
    """A network that keeps the size and takes multiples of `size_multiple`.

    Attributes
    ----------
    size_multiple : int
    reach : (int, int) or None
        Pixels before and after an output pixel that can change it; None if not known.
    margin : int
    is_exactly_tileable : bool

    Examples
    --------
    >>> PlainGeometry(size_multiple=16).input_size(100)
    112
    """

    size_multiple: int
    reach: tuple[int, int] | None = None
    margin: int = 0
    is_exactly_tileable: bool = False

    @property
    def receptive_field(self) -> tuple[int, int]:
        """What can change a pixel; a guess, for the overlap of blended tiles, where it is not known."""
        return self.reach or (4 * self.size_multiple, 4 * self.size_multiple)


def uncut_size(geometry: Geometry, n: int) -> int:
    """Return the pixels that the network gives where `n` are asked for, before those beyond are cut off.

    Examples
    --------
    >>> uncut_size(PlainGeometry(size_multiple=16), 100)
    112
    """
    return geometry.output_size(geometry.input_size(n))


def round_up(n: int, multiple: int) -> int:
    """Return the least multiple that is not below `n`."""
    return -(-n // multiple) * multiple
