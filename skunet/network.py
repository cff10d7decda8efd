"""The U-Net in 2-D and 3-D: its layers, the image sizes that it takes and the pixels that it sees."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from numbers import Integral
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from skunet.blocks import AttentionGate, ConvolutionBlock
from skunet.mirroring import mirror_pad
from skunet.reach import centre_crop, cut, lost_margin, needed_windows, read_interval, shifted

__all__ = ["UNet"]

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, 0.1, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
}
INTERPOLATIONS = {("linear", 2): "bilinear", ("linear", 3): "trilinear", ("bicubic", 2): "bicubic"}
# Upsampling makes fine pixel i from the coarse pixels (i - reach) // 2 to (i + reach) // 2.
UPSAMPLING_REACH = {"transposed": 0, "nearest": 0, "linear": 1, "bicubic": 3}
# Coarser levels of the decoder that have a loss of their own, at most: the next weighs a sixteenth of the finest.
MOST_SUPERVISED = 3


class UNet(nn.Module):
    """Map images (N, C, *S) to logits (N, K, *S): the U-Net of Ronneberger, Fischer and Brox (MICCAI 2015).

    Parameters
    ----------
    in_channels, n_classes : int >= 1
        Channels C of an image; classes K.
    depth : int, 0 to 6
        How often the resolution is halved, by max pooling.
    filters : int >= 1
        Channels at full resolution; they double with each halving.
    spatial_ndim : {2, 3}
        Axes of an image: (H, W) or (D, H, W).
    activation : {"relu", "leaky_relu", "elu"} or subclass of nn.Module
        The leaky one has slope 0.1; a class is called without arguments.
    normalization : {"batch", "instance", "group", None}
        What follows each 3-wide convolution. Only the last layer has a bias then.
    padding : {"same", "valid"}
        "same" pads convolutions with zeros and takes any size: images are mirrored at their end to a multiple
        of ``2**depth``, logits cropped again. "valid" pads nothing, as in the paper: logits are made of image
        pixels alone (interpolation drops what it extrapolates), and `margin` pixels go at each side.
    upsampling : {"transposed", "nearest", "linear", "bicubic"}
        A transposed convolution of width 2, or a 1-wide convolution and interpolation; "bicubic" in 2-D only.
    convolutions : int >= 1
        3-wide convolutions per level, in the encoder as in the decoder.
    dropout : float, 0 to below 1
        Share of channels dropped in training behind the two deepest levels of the encoder, as in the paper.
    residual : bool or "encoder"
        Each level's convolutions add their input, through a 1-wide convolution where the channels differ; "encoder"
        has it there alone.
    initialization : {"kaiming", "xavier"}
        Normal weights, of variance 2 / fan-in before an activation, 1 / fan-in elsewhere (He et al. 2015), or
        of variance 2 / (fan-in + fan-out) (Glorot and Bengio 2010).
    groups : int >= 1
        Groups of "group" normalization, or their greatest common divisor with the channels.
    deep_supervision : bool
        In training, give (N, K (1 + L), *S): behind the logits those of the L <= 3 next coarser levels of the decoder,
        at full size by linear interpolation, for losses of their own (Lee et al. 2015, Dou et al. 2016). As in nnU-Net
        (Isensee et al. 2021) the coarsest level has none, nor is there any below a depth of 2.
    attention : bool
        Skip connections pass a gate that the coarser features open, pixel by pixel (Oktay et al. 2018).
    gradient_checkpointing : bool
        Keep what blocks got, and compute the rest again in the backward pass (Chen et al. 2016); not when compiled.

    Examples
    --------
    >>> UNet(in_channels=1, n_classes=2, depth=2, filters=4)(torch.zeros(1, 1, 30, 21)).shape
    torch.Size([1, 2, 30, 21])
    """

    def __init__(
        self,
        in_channels: int,
        n_classes: int,
        *,
        depth: int = 4,
        filters: int = 16,
        spatial_ndim: int = 2,
        activation: str | type[nn.Module] = "relu",
        normalization: str | None = "batch",
        padding: str = "same",
        upsampling: str = "transposed",
        convolutions: int = 2,
        dropout: float = 0.0,
        residual: bool | str = False,
        initialization: str = "kaiming",
        groups: int = 8,
        deep_supervision: bool = False,
        attention: bool = False,
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels, self.n_classes = in_channels, n_classes
        self.depth, self.filters, self.spatial_ndim = depth, filters, spatial_ndim
        self.activation, self.normalization, self.groups = activation, normalization, groups
        self.padding, self.upsampling, self.convolutions = padding, upsampling, convolutions
        self.dropout, self.residual, self.initialization = dropout, residual, initialization
        self.deep_supervision, self.attention = deep_supervision, attention
        self.gradient_checkpointing = gradient_checkpointing
        self._check_parameters()
        self._reach = UPSAMPLING_REACH[upsampling]
        lost = (convolutions, self._reach) if padding == "valid" else (0, 0)
        self._lost_by_block, self._lost_by_upsampling = lost
        channels = [filters * 2**level for level in range(depth + 1)]
        drops = [dropout if level >= depth - 1 else 0.0 for level in range(depth + 1)]
        new_encoder_block = partial(self._new_block, is_residual=bool(residual))
        self.encoder = nn.ModuleList(map(new_encoder_block, [in_channels, *channels], channels, drops))
        self.pooling = self._layer("MaxPool")(2)
        self.upsamplings = nn.ModuleList(map(self._new_upsampling, channels[:0:-1]))
        self.decoder = nn.ModuleList(map(self._new_decoder_block, channels[-2::-1]))
        self.head = self._layer("Conv")(filters, n_classes, 1)
        n_supervised = min(max(depth - 2, 1), depth - 1, MOST_SUPERVISED) if deep_supervision else 0
        self.coarse_heads = nn.ModuleList(self._layer("Conv")(n, n_classes, 1) for n in channels[1 : 1 + n_supervised])
        self._initialize_weights()

    def forward(self, images: Tensor, window: Sequence[slice] | None = None) -> Tensor:
        """Map float images (N, C, *S) to logits (N, K, *S), in "valid" networks (N, K, *(S - 2 margin)).

        With a window of these pixels, return the logits (N, K, *window); the decoder then computes little more, unless
        that would change the statistics of its norms.
        """
        sides = [self.output_size(side) for side in images.shape[2:]]
        features = images if self.padding == "valid" else self.complete(images)
        can_crop = self.padding == "same" and self.is_exactly_tileable and not self.training
        if window is not None and can_crop:
            return self.levels(features, window)
        return cut(self.levels(features), [slice(0, side) for side in sides] if window is None else window)

    def levels(self, features: Tensor, window: Sequence[slice] | None = None) -> Tensor:
        """Map images (N, C, *S) to logits where each side of S is a multiple of `size_multiple`, or is legal.

        In training, those of coarser levels follow where there is deep supervision. A window of the logits can be asked
        for where convolutions are padded.
        """
        needed = None
        if window is not None:
            layers = {"convolutions": self.convolutions, "reach": self._reach}
            needed = needed_windows(window, features.shape[2:], depth=self.depth, **layers)
        skips = []
        block: Any
        for block in self.encoder[:-1]:
            skips.append(block(features))  # (N, filters * 2**level, *S / 2**level)
            features = self.pooling(skips[-1])
        features = self.encoder[-1](features)
        if needed is not None:
            features = cut(features, needed[-1][1])
        coarse: list[Tensor] = []
        for upsample, block in zip(self.upsamplings, self.decoder, strict=True):
            if self.training and 0 < len(skips) <= len(self.coarse_heads):
                coarse.insert(0, self._coarse_logits(features, level=len(skips)))
            features = upsample(features)  # (N, filters * 2**level, *S / 2**level)
            if needed is None:
                kept = [side - 2 * self._lost_by_upsampling for side in features.shape[2:]]
                features = block.join(centre_crop(skips.pop(), kept), centre_crop(features, kept))
                continue
            coarser = needed.pop()[1]
            reads, kept_window = needed[-1]
            features = cut(features, [shifted(read, 2 * at.start) for read, at in zip(reads, coarser, strict=True)])
            features = block.join(cut(skips.pop(), reads), features)
            features = cut(features, [shifted(keep, at.start) for keep, at in zip(kept_window, reads, strict=True)])
        logits = cast(Tensor, self.head(features))  # (N, K, *S)
        if not coarse:
            return logits
        return torch.cat([logits, *(centre_crop(level, logits.shape[2:]) for level in coarse)], dim=1)

    def _coarse_logits(self, features: Tensor, level: int) -> Tensor:
        # Each layer behind loses as much at both sides, so that the middle of what is enlarged lies on the logits.
        logits = self.coarse_heads[level - 1](features)  # (N, K, *S / 2**level)
        mode = INTERPOLATIONS["linear", self.spatial_ndim]
        return functional.interpolate(logits, scale_factor=2**level, mode=mode, align_corners=False)

    @property
    def size_multiple(self) -> int:
        """Pixels that one pixel of the coarsest level covers per axis: legal sides differ by this."""
        return int(2**self.depth)

    @property
    def margin(self) -> int:
        """Pixels lost at each side of an image: output pixel p lies on input pixel p + margin."""
        return lost_margin(self.depth, self._lost_by_block, self._lost_by_upsampling)

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Most pixels before and after its own position that can change an output pixel, per axis."""
        layers = {"convolutions": self.convolutions, "reach": self._reach, "shift": self._lost_by_block}
        extents = []
        for pixel in range(self.margin, self.margin + self.size_multiple):
            first, last = read_interval((pixel, pixel), self.depth, **layers)
            extents.append((pixel - first, last - pixel))
        return max(before for before, _ in extents), max(after for _, after in extents)

    @property
    def is_exactly_tileable(self) -> bool:
        """Whether, in evaluation mode, a logit depends on its receptive field alone and on no statistics."""
        return self.normalization in (None, "batch")

    def input_size(self, output_size: int) -> int:
        """Find the smallest legal input side, in pixels, whose output side is at least `output_size`."""
        _check(output_size >= 1, "output_size", "be at least 1 pixel", output_size, "Ask for a pixel or more")
        # With one more block put round it, a legal side is a multiple: each pooling takes an even number.
        restored = output_size + 2 * self.margin + 2 * self._lost_by_block
        return -(-restored // self.size_multiple) * self.size_multiple - 2 * self._lost_by_block

    def output_size(self, input_size: int) -> int:
        """Tell the output side, in pixels, for an input side; raise ValueError if the network cannot take it."""
        higher = self.input_size(max(1, input_size - 2 * self.margin))
        lower = higher - self.size_multiple
        sizes = f"{lower} or {higher}" if lower > 2 * self.margin else f"{higher} or more"
        is_legal = input_size == higher or (self.padding == "same" and input_size > 0)
        what = f"a side of an image for padding={self.padding!r} and depth={self.depth}"
        _check(is_legal, what, "fit the network", input_size, f"Crop or pad it to {sizes} pixels")
        return input_size - 2 * self.margin

    def summary(self, size: int | Sequence[int]) -> str:
        """Tabulate channels and sides per level for images of `size` pixels, parameters, receptive field."""
        image = tuple(size) if isinstance(size, Sequence) else (size,) * self.spatial_ndim
        sides = [self.input_size(self.output_size(side)) for side in image]
        table = f"{'level':<8}{'channels':<10}{'encoder':<18}decoder\n"
        for level in range(self.depth + 1):
            margin = lost_margin(self.depth - level, self._lost_by_block, self._lost_by_upsampling)
            encoded = [side - 2 * self._lost_by_block for side in sides]
            decoded = [side - 2 * margin for side in sides] if level < self.depth else []
            table += f"{level:<8}{self.filters * 2**level:<10}{_product(encoded):<18}{_product(decoded) or '-'}\n"
            sides = [side // 2 for side in encoded]
        return table + (
            f"image             {_product(image)}, {self.in_channels} channels\n"
            f"logits            {_product(map(self.output_size, image))}, {self.n_classes} classes\n"
            f"parameters        {sum(parameter.numel() for parameter in self.parameters()):,}\n"
            "receptive field   {} pixels before, {} after".format(*self.receptive_field)
        )

    def complete(self, images: Tensor) -> Tensor:
        """Return images of a network with padding="same", mirrored behind their ends to what `levels` takes."""
        sides = [self.input_size(side) for side in images.shape[2:]]
        # torch refuses statistics of one value, so the coarsest level gets a second pixel where it needs one.
        n_values = math.prod(sides) // self.size_multiple**self.spatial_ndim
        if self.normalization == "batch":
            n_values = n_values * len(images) if self.training else 2
        if n_values == 1 and self.normalization is not None:
            sides[-1] += self.size_multiple
        pads = [side - old for side, old in zip(sides, images.shape[2:], strict=True)]
        return mirror_pad(images, [0] * self.spatial_ndim, pads)  # (N, C, *sides)

    def _layer(self, name: str) -> Any:  # "Conv" is nn.Conv2d in a 2-D network and nn.Conv3d in a 3-D one
        return getattr(nn, f"{name}{self.spatial_ndim}d")

    def _new_block(
        self, in_channels: int, out_channels: int, dropout: float = 0.0, *, is_residual: bool
    ) -> ConvolutionBlock:
        layers = self._new_convolution(in_channels, out_channels)
        for _ in range(self.convolutions - 1):
            layers += [self._new_activation(), *self._new_convolution(out_channels, out_channels)]
        shortcut: nn.Module | None = nn.Identity() if is_residual else None
        if is_residual and in_channels != out_channels:
            # The last convolution's own bias or norm already shifts the sum.
            shortcut = self._layer("Conv")(in_channels, out_channels, 1, bias=False)
        activation = self._new_activation()
        if dropout:
            activation = nn.Sequential(activation, self._layer("Dropout")(dropout))
        keeps_features = not self.gradient_checkpointing
        return ConvolutionBlock(nn.Sequential(*layers), shortcut, activation, keeps_features=keeps_features)

    def _new_decoder_block(self, channels: int) -> ConvolutionBlock:
        block = self._new_block(2 * channels, channels, is_residual=self.residual not in (False, "encoder"))
        if self.attention:
            within = max(channels // 2, 1)
            of_skip, of_coarser = (nn.Sequential(*self._new_convolution(channels, within, 1)) for _ in range(2))
            block.gate = AttentionGate(of_skip, of_coarser, self._layer("Conv")(within, 1, 1))
        return block

    def _new_convolution(self, in_channels: int, out_channels: int, width: int = 3) -> list[nn.Module]:
        # A norm would take a constant away again.
        options = {"padding": width // 2 if self.padding == "same" else 0, "bias": self.normalization is None}
        convolution = self._layer("Conv")(in_channels, out_channels, width, **options)
        if self.normalization == "batch":
            return [convolution, self._layer("BatchNorm")(out_channels)]
        if self.normalization == "instance":
            return [convolution, self._layer("InstanceNorm")(out_channels, affine=True)]
        if self.normalization == "group":
            return [convolution, nn.GroupNorm(math.gcd(self.groups, out_channels), out_channels)]
        return [convolution]

    def _new_activation(self) -> nn.Module:
        return ACTIVATIONS[self.activation]() if isinstance(self.activation, str) else self.activation()

    def _new_upsampling(self, channels: int) -> Any:
        bias = self.normalization is None  # the next block's first norm would take it away
        if self.upsampling == "transposed":
            return self._layer("ConvTranspose")(channels, channels // 2, 2, stride=2, bias=bias)
        projection = self._layer("Conv")(channels, channels // 2, 1, bias=bias)
        mode = INTERPOLATIONS.get((self.upsampling, self.spatial_ndim), "nearest")
        align_corners = None if mode == "nearest" else False
        # The two commute, and before the interpolation the projection costs a quarter, in 3-D an eighth.
        return nn.Sequential(projection, nn.Upsample(scale_factor=2, mode=mode, align_corners=align_corners))

    def _initialize_weights(self) -> None:
        slope = 0.1 if self.activation == "leaky_relu" else 0.0
        for layer in self.modules():
            if not isinstance(layer, nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
                continue
            taps = math.prod(layer.kernel_size)
            fan_in = layer.in_channels * (1 if layer.transposed else taps)  # transposed: 1 tap per output
            gain = 2 / (1 + slope**2) if layer.kernel_size[0] == 3 else 1.0  # 1 where no activation follows
            fan_sum = fan_in + layer.out_channels * taps
            variance = gain / fan_in if self.initialization == "kaiming" else 2 / fan_sum
            nn.init.normal_(layer.weight, std=math.sqrt(variance))
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _check_parameters(self) -> None:
        sizes = dict.fromkeys(["in_channels", "n_classes", "filters", "convolutions", "groups"], (1, math.inf))
        for name, (least, most) in {**sizes, "depth": (0, 6), "spatial_ndim": (2, 3)}.items():
            value = getattr(self, name)
            is_legal = isinstance(value, Integral) and least <= int(value) <= most
            _check(is_legal, name, f"be an integer from {least} to {most}", repr(value), "Pass one of these")
        _check(0 <= self.dropout < 1, "dropout", "be at least 0 and below 1", self.dropout, "Pass a share")
        is_module = isinstance(self.activation, type) and issubclass(self.activation, nn.Module)
        choices: dict[str, tuple[Any, ...]] = {
            "activation": (*ACTIVATIONS, self.activation if is_module else nn.Module),
            "normalization": ("batch", "instance", "group", None),
            **dict.fromkeys(["deep_supervision", "attention", "gradient_checkpointing"], (False, True)),
            "padding": ("same", "valid"),
            "upsampling": tuple(UPSAMPLING_REACH)[: 4 if self.spatial_ndim == 2 else 3],
            "initialization": ("kaiming", "xavier"),
            "residual": (False, True, "encoder"),
        }
        for name, allowed in choices.items():
            value = getattr(self, name)
            remedy = f"Choose one of these for spatial_ndim={self.spatial_ndim}"
            _check(value in allowed, name, f"be one of {allowed}", repr(value), remedy)


def _product(sides: Iterable[int]) -> str:
    return " x ".join(map(str, sides))


def _check(is_legal: bool, what: str, rule: str, value: object, remedy: str) -> None:
    if not is_legal:
        raise ValueError(f"{what} must {rule}; got {value}. {remedy}.")
