"""Prediction speed and agreement, against a plain forward pass, MONAI's sliding window, OpenVINO and ONNX Runtime.

All run the same weights on the same images. The plain forward pass is that of the usual script: float32, channels
first, `torch.no_grad`, whole images one at a time, `argmax`.
"""

import copy
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import benchmark_arguments, paired_ratio, print_row, write_record

from skunet import UNetSegmenter
from skunet.datasets import make_cells
from skunet.scaling import scale

FILTERS, DEPTH = 32, 4
CASES = {"512": (4, 512), "4096": (1, 4096)}  # images, pixels per side
LARGE_REPEATS = 1  # of a pair that takes more than a minute
LARGEST_WHOLE = 1024  # pixels per side up to which the other engines get the whole image

Predict = Callable[[np.ndarray], np.ndarray]


def fit_segmenter() -> UNetSegmenter:
    """Train for a moment, so that weights and statistics are those of a network in use."""
    X, y = make_cells(8, size=128, random_state=0)
    return UNetSegmenter(depth=DEPTH, filters=FILTERS, max_epochs=2, verbose=0, random_state=0).fit(X, y)


def scaled(segmenter: UNetSegmenter, image: np.ndarray) -> torch.Tensor:
    constants = torch.from_numpy(segmenter.scaling_constants_)
    return scale(torch.from_numpy(image)[None, None], constants)  # (1, 1, H, W)


def plain(segmenter: UNetSegmenter) -> Predict:
    network = plain_network(segmenter)

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return np.stack([network(scaled(segmenter, image)).argmax(1)[0].numpy() for image in images])

    return predict


def plain_network(segmenter: UNetSegmenter) -> torch.nn.Module:
    """Return the network in float32, channels first, in evaluation mode."""
    return copy.deepcopy(segmenter.module_).to(memory_format=torch.contiguous_format).eval()


def sliding_window(segmenter: UNetSegmenter) -> Predict:
    from monai.inferers import SlidingWindowInferer

    network, infer = plain_network(segmenter), SlidingWindowInferer(roi_size=(256, 256), sw_batch_size=4, overlap=0.25)

    @torch.no_grad()
    def predict(images: np.ndarray) -> np.ndarray:
        return np.stack([infer(scaled(segmenter, image), network).argmax(1)[0].numpy() for image in images])

    return predict


def openvino(segmenter: UNetSegmenter, side: int) -> Predict:
    """Return OpenVINO's own way: a static size, and the precision that the segmenter has."""
    import openvino as ov

    shape = [1, 1, side, side]
    model = ov.convert_model(plain_network(segmenter), example_input=torch.zeros(shape), input=[shape])
    precision = {"float32": "f32", "bfloat16": "bf16"}[segmenter.precision_]
    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
    compiled = ov.compile_model(model, "CPU", options)

    def predict(images: np.ndarray) -> np.ndarray:
        return np.stack([compiled(scaled(segmenter, image).numpy())[0].argmax(1)[0] for image in images])

    return predict


def onnx_runtime(segmenter: UNetSegmenter, side: int) -> Predict:
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        torch.onnx.export(plain_network(segmenter), (torch.zeros(1, 1, side, side),), path, dynamo=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def predict(images: np.ndarray) -> np.ndarray:
        return np.stack(
            [session.run(None, {name: scaled(segmenter, image).numpy()})[0].argmax(1)[0] for image in images]
        )

    return predict


def others(segmenter: UNetSegmenter, side: int) -> dict[str, Callable[[], Predict]]:
    """Return what skunet is compared with."""
    found: dict[str, Callable[[], Predict]] = {
        "plain forward": lambda: plain(segmenter),
        "MONAI sliding window": lambda: sliding_window(segmenter),
    }
    if side <= LARGEST_WHOLE:
        found["OpenVINO"] = lambda: openvino(segmenter, side)
        if segmenter.precision_ == "float32":  # all that it has on a CPU
            found["ONNX Runtime"] = lambda: onnx_runtime(segmenter, side)
        found['engine="openvino"'] = lambda: skunet_engine(segmenter)
    return found


def skunet_engine(segmenter: UNetSegmenter) -> Predict:
    """Return skunet's own prediction, computed by OpenVINO."""
    other = copy.deepcopy(segmenter).set_params(engine="openvino")
    return lambda images: np.asarray(np.searchsorted(other.classes_, other.predict(images)))


def compare(segmenter: UNetSegmenter, images: np.ndarray, precision: str, repeats: int) -> dict[str, Any]:
    segmenter.set_params(precision=precision)
    labels = segmenter.predict(images)
    results = {}
    for name, make in others(segmenter, images.shape[1]).items():
        predict = make()
        results[name] = paired_ratio(lambda p=predict: p(images), lambda: segmenter.predict(images), repeats=repeats)
        results[name]["same_labels"] = float((segmenter.classes_[predict(images)] == labels).mean())
        print_row(f"{segmenter.precision_}: {name}", results[name])
    return results


def main() -> None:
    arguments = benchmark_arguments(__doc__.splitlines()[0], cases=CASES)
    warnings.simplefilter("ignore")  # of the exporters
    segmenter, results = fit_segmenter(), {}
    for case in arguments.cases:
        n_images, side = CASES[case]
        images = make_cells(n_images, size=side, random_state=1)[0]
        print(f"\n{n_images} of {side} x {side}, depth {DEPTH}, {FILTERS} filters")
        print(f"{'':<34} {'other':>13} {'skunet':>13} {'ratio':>10}")
        for precision in ("auto", "float32"):
            repeats = min(arguments.repeats, LARGE_REPEATS) if side > LARGEST_WHOLE else arguments.repeats
            results[f"{case}, {precision}"] = compare(segmenter, images, precision, repeats)
    write_record(arguments.out, results)


if __name__ == "__main__":
    main()
