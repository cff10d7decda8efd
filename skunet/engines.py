"""Networks in the formats of other engines: ONNX files, and prediction by OpenVINO or ONNX Runtime."""

import io
import warnings
from collections.abc import Callable
from copy import deepcopy
from importlib import import_module
from typing import Any, TypeGuard

import numpy as np
import torch
from torch import Tensor, nn

from skunet.derived import kept_for
from skunet.network import UNet
from skunet.reach import cut

__all__ = ["NetworkLevels", "computes_as_unet", "engine_logits", "import_engine", "to_onnx"]


def engine_logits(module: nn.Module, images: Tensor, *, engine: str, precision: str) -> Tensor:
    """Return what a network gives for images, computed by another engine.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode. It is compiled once for each size of images, or once for all sizes where it is a `UNet`
        that pads; what was compiled is kept, see `kept_for`.
    images : Tensor of shape (N, C, *S), float32
    engine : {"openvino", "onnxruntime"}
    precision : {"float32", "bfloat16", "float16"}
        ONNX Runtime computes in float32 whatever is said here.

    Returns
    -------
    Tensor of shape (N, K, *S), float32, on the CPU

    Raises
    ------
    ImportError
        If the engine is not installed.
    """
    compile_network = {"openvino": _compile_openvino, "onnxruntime": _compile_onnxruntime}[engine]
    size = images.shape[2:]
    if _takes_all_sizes(module):
        images = module.complete(images)  # NetworkLevels does not
    images = images.cpu().contiguous()
    key = (engine, precision, torch.get_num_threads(), None if _takes_all_sizes(module) else images.shape)
    compiled = kept_for(module, key, lambda: compile_network(_on_cpu(module), images, precision))
    logits = torch.from_numpy(compiled(images.numpy()))
    return cut(logits, [slice(0, side) for side in size]) if _takes_all_sizes(module) else logits


def computes_as_unet(module: nn.Module) -> TypeGuard[UNet]:
    """Return whether a network is a `UNet`, or one made of it whose forward pass is the same."""
    kind: Any = type(module)
    return isinstance(module, UNet) and (kind.forward, kind.levels) == (UNet.forward, UNet.levels)


def _takes_all_sizes(module: nn.Module) -> TypeGuard[UNet]:
    return computes_as_unet(module) and module.padding == "same"


def _on_cpu(module: nn.Module) -> nn.Module:
    is_there = all(tensor.device.type == "cpu" for tensor in (*module.parameters(), *module.buffers()))
    return module if is_there else deepcopy(module).cpu()


def _compile_openvino(module: nn.Module, images: Tensor, precision: str) -> Callable[[np.ndarray], np.ndarray]:
    openvino = import_engine("openvino", "openvino")
    model = openvino.Core().read_model(to_onnx(NetworkLevels(module), images, is_any_size=_takes_all_sizes(module)))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = openvino.compile_model(model, "CPU", options)
    # Its own buffer is used again at the next call.
    return lambda array: np.array(compiled(array)[0])


def _compile_onnxruntime(module: nn.Module, images: Tensor, precision: str) -> Callable[[np.ndarray], np.ndarray]:  # noqa: ARG001
    onnxruntime = import_engine("onnxruntime", "onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    model = to_onnx(NetworkLevels(module), images, is_any_size=_takes_all_sizes(module))
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(array: np.ndarray) -> np.ndarray:
        logits: np.ndarray = session.run(None, {"images": array})[0]
        return logits

    return run


def import_engine(extra: str, package: str) -> Any:
    """Return a package of an extra.

    Raises
    ------
    ImportError
        Names the extra.
    """
    try:
        import_module("onnx")  # which writes what both engines read
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} must be installed, with onnx; {error.name} is missing. Install the extra, "
            f"pip install 'skunet[{extra}]'; to predict without, use engine=\"torch\"."
        ) from error


class NetworkLevels(nn.Module):
    """A network as it can be traced for images of any size: without padding and cropping by that size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        """Map images of a size that is a multiple, or legal, to logits."""
        network = self.network
        logits = network.levels(images) if computes_as_unet(network) else network(images)
        logits = logits[0] if isinstance(logits, tuple) else logits
        return torch.as_tensor(logits).float()


def to_onnx(module: nn.Module, images: Tensor, *, is_any_size: bool, output: str = "logits") -> bytes:
    """Return a network as the content of an ONNX file.

    Parameters
    ----------
    module : torch.nn.Module
    images : Tensor of shape (N, C, *S), float32
        To trace the network with.
    is_any_size : bool
        Whether N and S may be others than those of `images`.
    output : str
        Name of what the network gives; what it takes is called "images".
    """
    axes = {0: "N"} | {axis: "DHW"[axis - images.ndim] for axis in range(2, images.ndim)}
    file = io.BytesIO()
    # Tracing warns of Python numbers, which are the same for all sizes here.
    with warnings.catch_warnings(action="ignore"), torch.inference_mode(False), torch.no_grad():
        torch.onnx.export(
            module.eval(),
            (torch.clone(images),),
            file,  # type: ignore[arg-type]  # it takes files too
            input_names=["images"],
            output_names=[output],
            dynamic_axes={"images": axes, output: axes} if is_any_size else None,
            dynamo=False,  # 0.3 s instead of 15 s, and it can write to memory
        )
    return file.getvalue()
