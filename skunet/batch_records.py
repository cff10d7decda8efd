"""Rows of the history that do not wait for the device which still computes what they hold."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor

__all__ = ["BatchRecord", "settle"]


class BatchRecord(dict[str, Any]):
    """What is recorded of a batch: tensors of one number become floats when somebody asks for them.

    Reading such a number halts the program until a GPU has done all its work, which at each step costs speed.

    Examples
    --------
    >>> import torch
    >>> record = BatchRecord(train_loss=torch.tensor(0.5))
    >>> record["train_loss"]
    0.5
    """

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        if isinstance(value, Tensor):
            self[key] = value = value.item()
        return value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value, or the default where there is none."""
        if key not in self:
            return default
        return self[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())  # its own, so that `dict(record)` asks for each value

    def values(self) -> Any:
        """Return the values."""
        return [self[key] for key in self.keys()]

    def items(self) -> Any:
        """Return pairs of names and values."""
        return [(key, self[key]) for key in self.keys()]


def settle(rows: list[Any], *, start: int) -> None:
    """Make plain rows of those from `start` on, in place."""
    rows[start:] = [dict(row) for row in rows[start:]]
