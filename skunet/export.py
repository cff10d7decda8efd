"""A fitted segmenter as one ONNX file: scaling, network and softmax, for programs that know nothing of skunet."""

import json
import os
import warnings
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skunet.components import uncompiled
from skunet.engines import NetworkLevels, import_engine, to_onnx
from skunet.geometry import round_up
from skunet.inference import Inference, check_logits
from skunet.mirroring import mirror_pad
from skunet.scaling import CONSTANT, scale
from skunet.state_file import replace_file

__all__ = ["OnnxExport"]

# Sums in another order change float32 probabilities by some 1e-6; a wrong layer or scaling by 0.1.
TOLERANCE = 1e-3


class OnnxExport:
    """What makes a segmenter a file for other programs."""

    classes_: Any
    _check_ready: Callable[[], None]
    _get_predict_nonlinearity: Callable[[], Any]
    _inference: Callable[[], Inference]
    _draw_probe: Callable[[], np.ndarray]
    _set_training: Callable[[bool], None]

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write scaling, network and softmax to an ONNX file, and check there that it predicts the same.

        The file takes `images` (N, C, *S), float32, channels first, with the values that `predict` would get, and gives
        `probabilities` (N, K, *S). Sides must be multiples of `size_multiple`, which the file names in its metadata
        beside the `classes`. It computes in float32, and each image whole.

        Parameters
        ----------
        path : str or path
            An older file is replaced in one step.

        Raises
        ------
        NotFittedError
            Before fit.
        ImportError
            If onnx and onnxruntime are not installed.
        ValueError
            If the network takes no image size without a margin (`padding="valid"`), or if the file predicts otherwise
            than the segmenter, for a module whose layers depend on the size of the image; nothing is written then.

        Warns
        -----
        UserWarning
            If the segmenter adapts batch norms to each image (`norm_adaptation`), as the file does not.
        """
        self._check_ready()
        onnx, onnxruntime = (import_engine("onnxruntime", package) for package in ("onnx", "onnxruntime"))
        self._set_training(False)
        with torch.no_grad():
            inference = self._inference()
        if inference.adaptation is not None:
            warnings.warn(
                "norm_adaptation must be 0 for a file that predicts as the segmenter: batch norms in the file keep the "
                f"statistics of training, those here take a share of {inference.adaptation.share} from each image. "
                'Use module__normalization="instance" for a network that looks at each image by itself.',
                UserWarning,
                stacklevel=2,
            )
        if inference.geometry.margin:
            raise ValueError('export must have a network that keeps the size of images; got module__padding="valid".')
        probe = _fill(torch.from_numpy(self._draw_probe()[None]).float(), inference.geometry.size_multiple)
        network = _Standalone(inference, self._get_predict_nonlinearity())
        model = onnx.load_from_string(to_onnx(network, probe, is_any_size=True, output="probabilities"))
        about = {"classes": self.classes_.tolist(), "size_multiple": inference.geometry.size_multiple}
        onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
        data = model.SerializeToString()
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        for images in (probe, torch.cat([probe, probe.flip(-1)], dim=-1)):
            _compare(session.run(None, {"images": images.numpy()})[0], network, images)
        replace_file(Path(os.path.realpath(path)), data)


def _fill(images: Tensor, multiple: int) -> Tensor:
    """Return images (1, C, *S) mirrored to sides that are multiples, of two or more pixels at the lowest resolution."""
    sides = [round_up(side, multiple) for side in images.shape[2:]]
    sides[-1] = max(sides[-1], 2 * multiple)
    return mirror_pad(images, [0] * len(sides), [n - old for n, old in zip(sides, images.shape[2:], strict=True)])


def _compare(found: np.ndarray, network: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected: np.ndarray = network(images).numpy()
    difference = np.abs(found - expected).max() if found.shape == expected.shape else np.inf
    if not difference <= TOLERANCE:
        raise ValueError(
            f"The exported network must predict as the segmenter; for images of {tuple(images.shape[2:])} pixels "
            f"probabilities differ by up to {difference:.2g}. Use a module whose layers do not depend on that size."
        )


class _Standalone(nn.Module):
    """Scaling, network and softmax as one module, in float32, on the CPU."""

    def __init__(self, inference: Inference, activate: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.levels = NetworkLevels(deepcopy(uncompiled(inference.module)).cpu())
        self.scaling, self.n_classes, self.activate = inference.scaling, inference.n_classes, activate
        self.constants = None if inference.constants is None else torch.from_numpy(inference.constants).float()

    def forward(self, images: Tensor) -> Tensor:
        """Map images (N, C, *S) as they came to probabilities (N, K, *S)."""
        logits = check_logits(self.levels(scale(images, self._constants_of(images))), self.n_classes)
        return torch.as_tensor(self.activate(logits))

    def _constants_of(self, images: Tensor) -> Tensor:
        """Return offset and divisor of each channel, (2, C), or of each image too, (N, 2, C)."""
        if self.constants is not None:
            return self.constants
        axes = tuple(range(2, images.ndim))
        if self.scaling == "minmax":
            offset = images.amin(axes)
            spread = images.amax(axes) - offset
        else:
            offset = images.mean(axes)
            spread = images.var(axes, correction=0).sqrt()
        return torch.stack([offset, torch.where(spread > CONSTANT * offset.abs(), spread, 1.0)], dim=1)
