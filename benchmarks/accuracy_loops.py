"""Training loops for bench_accuracy as tutorials have them: PyTorch, segmentation_models_pytorch, MONAI."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from accuracy_scores import Array
from accuracy_sets import TrainingData
from torch import Tensor, nn
from torch.nn import functional

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# By the spatial rank: pixels of a training crop, crops per step, filters at full resolution, halvings.
CROP = {2: (256, 256), 3: (32, 64, 64)}
BATCH_SIZE, FILTERS, DEPTH = {2: 4, 3: 2}, {2: 32, 3: 16}, {2: 4, 3: 3}
LR = 1e-3
# What takes images (N, *S) or (N, *S, C) and returns probabilities (N, K, *S).
Predict = Callable[[Array], Array]


class Clock:
    """The time that a fit has."""

    def __init__(self, seconds: float) -> None:
        self.start, self.seconds = time.perf_counter(), seconds

    def elapsed(self) -> float:
        """Return the seconds since the start."""
        return time.perf_counter() - self.start

    def has_time_for(self, seconds: float) -> bool:
        """Return whether so many seconds more fit."""
        return self.elapsed() + seconds <= self.seconds

    def repeat(self, step: Callable[[], Any], at_most: float = float("inf")) -> int:
        """Call `step` as long as another one like the last fits, at least once; return how often."""
        n_steps, last = 0, 0.0
        while n_steps == 0 or (n_steps < at_most and self.has_time_for(last)):
            begin = self.elapsed()
            step()
            last, n_steps = self.elapsed() - begin, n_steps + 1
        return n_steps


class PlainUNet(nn.Module):
    """U-Net with batch normalization and transposed convolutions; what is one pixel short is padded."""

    def __init__(self, in_channels: int, n_classes: int, depth: int, filters: int, spatial_ndim: int) -> None:
        super().__init__()
        convolution = (nn.Conv2d, nn.Conv3d)[spatial_ndim - 2]
        normalization = (nn.BatchNorm2d, nn.BatchNorm3d)[spatial_ndim - 2]
        transposed = (nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial_ndim - 2]

        def block(n_in: int, n_out: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for n in (n_in, n_out):
                layers += [convolution(n, n_out, 3, padding=1, bias=False), normalization(n_out), nn.ReLU(inplace=True)]
            return nn.Sequential(*layers)

        widths = [filters * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(block(*pair) for pair in zip([in_channels, *widths], widths, strict=False))
        self.pool = (nn.MaxPool2d, nn.MaxPool3d)[spatial_ndim - 2](2)
        self.grow = nn.ModuleList(transposed(2 * width, width, 2, stride=2) for width in widths[-2::-1])
        self.up = nn.ModuleList(block(2 * width, width) for width in widths[-2::-1])
        self.head = convolution(filters, n_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (N, K, *S)."""
        skips = [self.down[0](images)]
        for block in self.down[1:]:
            skips.append(block(self.pool(skips[-1])))
        features = skips.pop()
        for grow, block in zip(self.grow, self.up, strict=True):
            skip = skips.pop()
            features = block(torch.cat([skip, _pad_to(grow(features), skip.shape[2:])], dim=1))
        return self.head(features)


class Padded(nn.Module):
    """A network that gets images whose sides are multiples of 32, of images of any size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of the size of the images."""
        size = images.shape[2:]
        padded = _pad_to(images, torch.Size(-(-side // 32) * 32 for side in size), mode="replicate")
        return self.network(padded)[(..., *map(slice, size))]


def _pad_to(images: Tensor, size: torch.Size, **how: Any) -> Tensor:
    """Pad the ends of the spatial axes."""
    missing = [target - side for target, side in zip(size, images.shape[2:], strict=True)]
    return functional.pad(
        images, [n for pair in zip([0] * len(missing), missing[::-1], strict=True) for n in pair], **how
    )


def fit_plain_unet(data: TrainingData, seconds: float, seed: int) -> tuple[Predict, dict[str, float]]:
    """Train a plain U-Net."""
    ndim = data.spatial_ndim

    def build(in_channels: int) -> nn.Module:
        return PlainUNet(in_channels, data.n_classes, DEPTH[ndim], FILTERS[ndim], ndim)

    return _fit(data, Clock(seconds), seed, build)


def fit_smp(data: TrainingData, seconds: float, seed: int) -> tuple[Predict, dict[str, float]]:
    """Train the U-Net of segmentation_models_pytorch on a ResNet-18 that knows nothing, in the same loop."""
    from segmentation_models_pytorch import Unet

    def build(in_channels: int) -> nn.Module:
        return Padded(Unet("resnet18", encoder_weights=None, in_channels=in_channels, classes=data.n_classes))

    return _fit(data, Clock(seconds), seed, build)


def _fit(
    data: TrainingData, clock: Clock, seed: int, build: Callable[[int], nn.Module]
) -> tuple[Predict, dict[str, float]]:
    torch.manual_seed(seed)
    ndim = data.spatial_ndim
    images = scaled(data.X, ndim)
    network = build(images.shape[1]).to(DEVICE).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LR)
    criterion = nn.CrossEntropyLoss(ignore_index=-100 if data.ignore_label is None else data.ignore_label)
    batches = draw_batches(images, data, np.random.default_rng(seed))

    def step() -> float:
        patches, masks = (torch.from_numpy(part).to(DEVICE) for part in next(batches))
        loss = criterion(network(patches), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()  # waits for a GPU, whose clock would run ahead else

    n_steps = clock.repeat(step)

    def predict(X: Array) -> Array:
        network.eval()
        with torch.inference_mode():
            logits = [network(torch.from_numpy(scaled(image[None], ndim)).to(DEVICE)) for image in X]
            return torch.cat([part.softmax(dim=1).cpu() for part in logits]).numpy()

    return predict, {"steps": n_steps, "epochs": n_steps * BATCH_SIZE[ndim] / len(images)}


def fit_monai(data: TrainingData, seconds: float, seed: int) -> tuple[Predict, dict[str, float]]:
    """Train MONAI's BasicUNet with its transforms, loss and sliding window."""
    from monai.data import CacheDataset, DataLoader
    from monai.inferers import sliding_window_inference
    from monai.networks.nets import BasicUNet
    from monai.transforms import Compose, NormalizeIntensity, NormalizeIntensityd, RandFlipd, RandSpatialCropSamplesd

    clock = Clock(seconds)
    torch.manual_seed(seed)
    ndim, keys = data.spatial_ndim, ["image", "label"]
    images = channels_first(data.X, ndim).astype(np.float32)
    items = [{"image": image, "label": mask[None]} for image, mask in zip(images, data.y, strict=True)]
    size, per_item = crop_size(data.y.shape[1:]), -(-BATCH_SIZE[ndim] // len(items))
    flips = [RandFlipd(keys, prob=0.5, spatial_axis=axis) for axis in data.flip_axes]
    crops = RandSpatialCropSamplesd(keys, roi_size=size, num_samples=per_item, random_size=False)
    transforms = Compose([NormalizeIntensityd("image", channel_wise=True), crops, *flips]).set_random_state(seed)
    loader = DataLoader(
        CacheDataset(items, transforms, progress=False), batch_size=BATCH_SIZE[ndim] // per_item, shuffle=True
    )
    network = BasicUNet(ndim, images.shape[1], data.n_classes).to(DEVICE).train()
    optimizer, criterion = torch.optim.Adam(network.parameters(), lr=LR), _monai_loss(data)
    batches = _endless(loader)

    def step() -> float:
        batch = next(batches)
        patches, masks = (batch[key].as_tensor().to(DEVICE) for key in keys)
        loss = criterion(network(patches), masks)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    n_steps = clock.repeat(step)
    scale = NormalizeIntensity(channel_wise=True)

    def predict(X: Array) -> Array:
        network.eval()
        scores = []
        with torch.inference_mode():
            for image in channels_first(X, ndim).astype(np.float32):
                inputs = torch.as_tensor(scale(image))[None].to(DEVICE)
                logits = sliding_window_inference(inputs, size, sw_batch_size=4, predictor=network, overlap=0.25)
                scores.append(logits.softmax(dim=1).cpu())
        return torch.cat(scores).numpy()

    return predict, {"steps": n_steps, "epochs": n_steps / len(loader)}


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def _monai_loss(data: TrainingData) -> Callable[[Tensor, Tensor], Tensor]:
    """Return DiceCELoss; it cannot ignore a label, where there is one its two parts do."""
    from monai.losses import DiceCELoss, MaskedDiceLoss
    from monai.networks import one_hot

    if data.ignore_label is None:
        return DiceCELoss(to_onehot_y=True, softmax=True)
    dice, cross_entropy = MaskedDiceLoss(softmax=True), nn.CrossEntropyLoss(ignore_index=data.ignore_label)

    def criterion(logits: Tensor, masks: Tensor) -> Tensor:
        is_counted = masks != data.ignore_label
        target = one_hot(masks * is_counted, data.n_classes)
        return dice(logits, target, is_counted) + cross_entropy(logits, masks[:, 0].long())

    return criterion


def channels_first(X: Array, spatial_ndim: int) -> Array:
    """Return images (N, C, *S)."""
    return X[:, None] if X.ndim == spatial_ndim + 1 else np.moveaxis(X, -1, 1)


def scaled(X: Array, spatial_ndim: int) -> Array:
    """Return images (N, C, *S) float32, each channel of each with mean 0 and standard deviation 1."""
    images = channels_first(X, spatial_ndim).astype(np.float32)
    axes = tuple(range(2, images.ndim))
    images -= images.mean(axis=axes, keepdims=True)
    images /= images.std(axis=axes, keepdims=True) + 1e-6
    return images


def draw_batches(images: Array, data: TrainingData, generator: np.random.Generator) -> Iterator[tuple[Array, Array]]:
    """Yield crops (N, C, *S) and their masks (N, *S) int64, flipped at random, epoch after epoch."""
    order = _shuffle_endlessly(len(images), generator)
    while True:
        crops = [
            _crop(images[i], data.y[i], data.flip_axes, generator) for i in islice(order, BATCH_SIZE[data.spatial_ndim])
        ]
        patches, masks = zip(*crops, strict=True)
        yield np.stack(patches), np.stack(masks).astype(np.int64)


def _shuffle_endlessly(n: int, generator: np.random.Generator) -> Iterator[int]:
    while True:
        yield from generator.permutation(n)


def _crop(image: Array, mask: Array, flip_axes: tuple[int, ...], generator: np.random.Generator) -> tuple[Array, Array]:
    sides = crop_size(mask.shape)
    corner = [generator.integers(full - side + 1) for full, side in zip(mask.shape, sides, strict=True)]
    window = tuple(slice(begin, begin + side) for begin, side in zip(corner, sides, strict=True))
    flips = [axis for axis in flip_axes if generator.random() < 0.5]
    return np.flip(image[(slice(None), *window)], [axis + 1 for axis in flips]), np.flip(mask[window], flips)


def crop_size(size: tuple[int, ...]) -> tuple[int, ...]:
    """Return the sides of training crops of images of a size."""
    return tuple(min(pair) for pair in zip(size, CROP[len(size)], strict=True))
