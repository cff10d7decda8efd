"""Opened images as the data set that skorch's loop and callbacks see."""

from typing import Any

import numpy as np
import torch
from skorch.dataset import Dataset
from torch import Tensor

from skunet.containers import Container, PickedItems, object_array
from skunet.image_array import StackView
from skunet.images import Images, as_tensor
from skunet.training_set import TrainingSet

__all__ = ["ImageDataset"]


class ImageDataset(Dataset):  # type: ignore[misc]  # skorch is not typed
    """Opened images, with masks at fit.

    Parameters
    ----------
    data : TrainingSet or Images

    Attributes
    ----------
    X, y : array-like
        As the user gave them, so that skorch's scoring callbacks find labels; lists as object arrays.
    """

    def __init__(self, data: TrainingSet | Images) -> None:
        self.data = data
        images = data.images if isinstance(data, TrainingSet) else data
        self.X = _as_user_array(images.container)
        self.y = _as_user_array(data.masks) if isinstance(data, TrainingSet) else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image (C, *S) and its mask of labels (*S)."""
        if isinstance(self.data, Images):
            return as_tensor(self.data[index]), torch.zeros(1)
        return as_tensor(self.data.images[index]), self.data.codec.to_tensor(self.data.masks[index])


def _as_user_array(container: Container) -> Any:
    """Return the items so that an array of positions can index them; of some images of a stack a view, unread."""
    items = container.items
    if not isinstance(items, list | PickedItems):
        return items
    if container.shape is None or isinstance(items, list):
        return object_array(items)
    if isinstance(items.items, Tensor):
        return items.items[items.indices]  # a view knows no channels first
    view = StackView(items.items, items.indices)
    return np.asarray(view) if container.name == "y" else view  # scores want masks as arrays
