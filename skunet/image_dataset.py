"""Opened images as the data set that skorch's loop and callbacks see."""

import torch
from skorch.dataset import Dataset
from torch import Tensor

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
        self.X = images.container.as_user_array()
        self.y = data.masks.as_user_array() if isinstance(data, TrainingSet) else None

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return one image (C, *S) and its mask of labels (*S)."""
        if isinstance(self.data, Images):
            return as_tensor(self.data[index]), torch.zeros(1)
        return as_tensor(self.data.images[index]), self.data.codec.to_tensor(self.data.masks[index])
