"""Training speed: `fit` against hand-written loops, plain skorch and MONAI, on the same images, epoch for epoch.

- plain loop: float32, channels first, a DataLoader of samples flipped one by one, RMSprop, `loss.item()` per step.
- channels last: the same with network and batches in that layout.
- skorch: `NeuralNet` with that network, its own data set and epoch loop.
- MONAI: BasicUNet of as many multiplications, its dictionary transforms and DataLoader.
- constant batch: skunet's own `fit` on one batch made beforehand, so that what the data cost is seen.

Ratios are of whole epochs; each side trains a network of its own that goes on from call to call.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from paired import benchmark_arguments, paired_ratio, print_row, write_record
from skorch import NeuralNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode

from skunet import UNetSegmenter
from skunet.batching import ImageBatching
from skunet.datasets import make_cells
from skunet.hardware import resolve_precision
from skunet.network import UNet
from skunet.patches import PatchBatches

N_IMAGES, BATCH_SIZE, DEPTH = 16, 4, 4
# Pixels per axis, channels, filters.
CASES = {
    "256-gray-16": ((256, 256), 1, 16),
    "256-gray-32": ((256, 256), 1, 32),
    "256-gray-64": ((256, 256), 1, 64),
    "128-rgb-32": ((128, 128), 3, 32),
    "64-volume-8": ((64, 64, 64), 1, 8),
}
PRECISIONS = ("auto", "float32")

Epoch = Callable[[], Any]


class Samples(Dataset):
    """Pairs (image, mask), channels first and float, flipped at random one by one."""

    def __init__(self, X: np.ndarray, y: np.ndarray) -> None:
        self.X, self.y = X, y
        self.generator = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, mask = self.X[index] / np.float32(255), self.y[index]
        for axis in range(mask.ndim):
            if self.generator.random() < 0.5:
                image, mask = np.flip(image, axis + 1), np.flip(mask, axis)
        return torch.from_numpy(image.copy()), torch.from_numpy(mask.astype(np.int64))


def make_data(size: tuple[int, ...], n_channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, C, *S) uint8 and masks (N, *S)."""
    X, y = make_cells(N_IMAGES, size=size, spatial_ndim=len(size), random_state=0)
    return np.stack([X] * n_channels, axis=1), y


def plain_loop(X: np.ndarray, y: np.ndarray, filters: int, layout: torch.memory_format) -> Epoch:
    network = UNet(X.shape[1], 2, depth=DEPTH, filters=filters, spatial_ndim=y.ndim - 1).to(memory_format=layout)
    loader = DataLoader(Samples(X, y), batch_size=BATCH_SIZE, shuffle=True)
    optimizer = torch.optim.RMSprop(network.parameters(), lr=1e-4, weight_decay=1e-8, momentum=0.9)
    criterion = nn.CrossEntropyLoss()

    def epoch() -> float:
        network.train()
        total = 0.0
        for images, masks in loader:
            loss = criterion(network(images.to(memory_format=layout)), masks)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    return epoch


def skorch_net(X: np.ndarray, y: np.ndarray, filters: int) -> Epoch:
    net = NeuralNet(
        UNet,
        nn.CrossEntropyLoss,
        module__in_channels=X.shape[1],
        module__n_classes=2,
        module__depth=DEPTH,
        module__filters=filters,
        module__spatial_ndim=y.ndim - 1,
        optimizer=torch.optim.Adam,
        batch_size=BATCH_SIZE,
        iterator_train__shuffle=True,
        train_split=None,
        max_epochs=1,
        verbose=0,
    ).initialize()
    data = Samples(X, y)
    return lambda: net.partial_fit(data, None)


def monai_loop(X: np.ndarray, y: np.ndarray, filters: int) -> Epoch:
    from monai.data import DataLoader as MonaiLoader
    from monai.data import Dataset as MonaiDataset
    from monai.networks.nets import BasicUNet
    from monai.transforms import Compose, RandFlipd, ScaleIntensityd, ToTensord

    ndim = y.ndim - 1
    target = count_flops(UNet(X.shape[1], 2, depth=DEPTH, filters=filters, spatial_ndim=ndim), X.shape)

    def build(first: int) -> nn.Module:
        features = [first * 2**level for level in range(DEPTH + 1)]
        return BasicUNet(ndim, X.shape[1], 2, features=(*features, first))

    candidates = [build(first) for first in range(4, 2 * filters, 2)]
    network = min(candidates, key=lambda candidate: abs(count_flops(candidate, X.shape) - target))
    flips = [RandFlipd(["image", "label"], prob=0.5, spatial_axis=axis) for axis in range(ndim)]
    keys = ["image", "label"]
    transforms = Compose([ScaleIntensityd("image"), *flips, ToTensord(keys)])
    items = [{"image": image, "label": mask[None].astype(np.int64)} for image, mask in zip(X, y, strict=True)]
    loader = MonaiLoader(MonaiDataset(items, transforms), batch_size=BATCH_SIZE, shuffle=True)
    optimizer, criterion = torch.optim.Adam(network.parameters(), lr=1e-3), nn.CrossEntropyLoss()

    def epoch() -> float:
        network.train()
        total = 0.0
        for batch in loader:
            optimizer.zero_grad()
            loss = criterion(network(batch["image"].as_tensor()), batch["label"].as_tensor()[:, 0])
            loss.backward()
            optimizer.step()
            total += loss.item()
        return total

    return epoch


def make_segmenter(filters: int, precision: str, kind: type = UNetSegmenter) -> Any:
    return kind(
        depth=DEPTH,
        filters=filters,
        precision=precision,
        batch_size=BATCH_SIZE,
        max_epochs=1,
        train_split=None,
        verbose=0,
        random_state=0,
    )


def skunet_fit(X: np.ndarray, y: np.ndarray, filters: int, precision: str, kind: type = UNetSegmenter) -> Epoch:
    images = np.moveaxis(X, 1, -1)
    segmenter = make_segmenter(filters, precision, kind).fit(images, y)
    return lambda: segmenter.partial_fit(images, y)


class ConstantBatches(PatchBatches):
    """Training batches that are all the first one."""

    def __getitems__(self, plan: Any) -> Any:
        if not hasattr(self, "batch"):
            self.batch = super().__getitems__(plan)
        return self.batch


class ConstantBatchSegmenter(UNetSegmenter):
    """A segmenter whose batches cost nothing."""

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """Return batches that are all the first one."""
        loader = ImageBatching.get_iterator(self, dataset, training)
        loader.dataset.__class__ = ConstantBatches
        return loader


def count_flops(network: nn.Module, shape: tuple[int, ...]) -> int:
    """Return the floating point operations of a forward pass of one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, *shape[1:]))
    return int(counter.get_total_flops())


def convolution_ceiling(precision: str, spatial_ndim: int, filters: int) -> float:
    """Return the GFLOP/s of a forward convolution as the network has many, alone and with all in the cache's reach."""
    side, channels = {2: 64, 3: 16}[spatial_ndim], 4 * filters
    layer, layout = {2: (nn.Conv2d, torch.channels_last), 3: (nn.Conv3d, torch.channels_last_3d)}[spatial_ndim]
    dtype = getattr(torch, precision)
    convolution = layer(channels, channels, 3, padding=1).to(dtype=dtype, memory_format=layout)
    features = torch.randn(BATCH_SIZE, channels, *[side] * spatial_ndim).to(dtype=dtype, memory_format=layout)
    flops = 2 * features.numel() * channels * 3**spatial_ndim
    with torch.inference_mode():
        seconds = []
        for _ in range(20):
            start = time.perf_counter()
            convolution(features)
            seconds.append(time.perf_counter() - start)
    return flops / min(seconds) / 1e9


def rivals(X: np.ndarray, y: np.ndarray, filters: int, precision: str) -> Iterator[tuple[str, Epoch]]:
    """Yield what `fit` is compared with."""
    last = torch.channels_last if y.ndim == 3 else torch.channels_last_3d
    yield "plain loop", plain_loop(X, y, filters, torch.contiguous_format)
    yield "channels last", plain_loop(X, y, filters, last)
    yield "skorch", skorch_net(X, y, filters)
    yield "MONAI", monai_loop(X, y, filters)
    yield "constant batch", skunet_fit(X, y, filters, precision, ConstantBatchSegmenter)


def main() -> None:
    arguments = benchmark_arguments(__doc__.splitlines()[0], cases=CASES)
    warnings.simplefilter("ignore")  # of MONAI's imports
    results: dict[str, Any] = {}
    for case in arguments.cases:
        size, n_channels, filters = CASES[case]
        X, y = make_data(size, n_channels)
        network = UNet(n_channels, 2, depth=DEPTH, filters=filters, spatial_ndim=len(size))
        flops = 3 * N_IMAGES * count_flops(network, X.shape)  # backward counts twice
        print(f"\n{case}, depth {DEPTH}\n{'':<34} {'other':>13} {'skunet':>13} {'ratio':>10}")
        for precision in PRECISIONS:
            fit = skunet_fit(X, y, filters, precision)
            ceiling = convolution_ceiling(resolve_precision(precision, "cpu"), len(size), filters)
            for name, epoch in rivals(X, y, filters, precision):
                result = paired_ratio(epoch, fit, repeats=arguments.repeats)
                result["images_per_second"] = N_IMAGES / result["b_seconds"]["median"]
                result["gigaflops"] = flops / result["b_seconds"]["median"] / 1e9
                result["share_of_ceiling"] = result["gigaflops"] / ceiling
                results[f"{case}, {precision}, {name}"] = result
                print_row(f"{precision}: {name}", result)
            print(
                f"{'':<34} {result['gigaflops']:.0f} GFLOP/s, {result['share_of_ceiling']:.0%} of a convolution alone"
            )
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
