"""From images to labels and probabilities, tile by tile, in the containers that the images came in."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skunet.adaptation import NormStatistics
from skunet.allocation import LARGE, kept_memory
from skunet.blending import IsDone, never
from skunet.chunks import is_dask, predict_chunks
from skunet.components import uncompiled
from skunet.fingerprint import describe
from skunet.hardware import exact_float32
from skunet.images import Images, Results, check_out
from skunet.inference import Inference
from skunet.journal import Journal
from skunet.pixels import Pixels, Window, open_pixels
from skunet.progress import prediction_bar
from skunet.reach import shifted
from skunet.resizing import resize_linearly
from skunet.steps import Steps, gives_instances
from skunet.tiling import assemble
from skunet.turning import Turn, choose_turns
from skunet.workers import shared_cores

__all__ = ["ImagePrediction"]


def _as_they_are(logits: Tensor) -> Tensor:
    return logits


def _to_array(scores: Tensor) -> np.ndarray:
    array: np.ndarray = scores.detach().cpu().numpy()  # those that scores keep of training patches have gradients
    return array


@dataclass(frozen=True)
class Output:
    """What is predicted.

    Attributes
    ----------
    method : {"predict", "predict_proba"}
    dtype : dtype
    n_leading : int or None
        Length of the axis of classes; None for labels.
    activate : callable
        From logits (1, K, *T) to scores.
    finish : callable
        From scores to values in the end.
    steps : Steps
        What is done to a whole image then.
    """

    method: str
    dtype: Any
    n_leading: int | None
    activate: Callable[[Tensor], Tensor]
    finish: Callable[[Tensor], np.ndarray]
    steps: Steps

    def array(self, size: tuple[int, ...]) -> np.ndarray:
        """Return a new array for an image."""
        return np.empty((*(() if self.n_leading is None else (self.n_leading,)), *size), dtype=self.dtype)

    def put(self, values: np.ndarray, window: Window, scores: Tensor) -> None:
        """Write the scores of a window into an array for an image."""
        place: tuple[Any, ...] = (..., *window)
        values[place] = self.finish(scores)[0]


class ImagePrediction:
    """What `predict` and `predict_proba` do."""

    classes_: np.ndarray
    codec_: Any
    spatial_ndim_: int
    n_channels_in_: int
    module_: Any
    fitted_scaling_: Any
    scaling_constants_: Any
    flip_axes_: tuple[int, ...]
    precision_: str
    device_: str
    memory_limit: float | None
    tile_size: Any
    tta: Any
    engine: str
    postprocess: Any = None
    predict_nonlinearity: Any
    verbose: int
    forward_iter: Callable[..., Any]
    _get_predict_nonlinearity: Callable[[], Any]
    _inference: Callable[[], Inference]
    _open_images: Callable[[Any], Images]
    _place_network: Callable[[], None]
    _set_training: Callable[[bool], None]

    def _to_labels(self, logits: Tensor) -> np.ndarray:
        """Return the labels (N, *S) of logits (N, K, *S)."""
        # Indices cross to the CPU as bytes, where there are few enough classes.
        dtype = torch.uint8 if len(self.classes_) <= 256 else torch.int64
        labels: np.ndarray = self.codec_.decode(logits.argmax(1).to(dtype).cpu().numpy())
        return labels

    def _turns(self) -> list[Turn]:
        return choose_turns(self.tta, spatial_ndim=self.spatial_ndim_, flip_axes=self.flip_axes_)

    def _predict_labels(self, X: Any, out: Any, resume: bool) -> Any:
        output = self._output("predict")
        check_out(out, X, [] if output.steps else self.classes_)
        return self._predict_images(X, output, out=out, resume=resume)

    def _predict_probabilities(self, X: Any, out: Any, resume: bool) -> Any:
        check_out(out, X, np.float32(0.5))
        return self._predict_images(X, self._output("predict_proba"), out=out, resume=resume)

    def _output(self, method: str) -> Output:
        """Return how what `method` returns is made."""
        nonlinearity = self._get_predict_nonlinearity()
        steps = Steps(self.postprocess if method == "predict" else None, self.classes_)
        if method == "predict_proba" or steps.take_probabilities:
            return Output(method, np.float32, len(self.classes_), nonlinearity, _to_array, steps)
        is_monotonous = self.predict_nonlinearity in ("auto", None) and not self._turns()
        activate = _as_they_are if is_monotonous else nonlinearity
        return Output(method, self.classes_.dtype, None, activate, self._to_labels, steps)

    def _check_gives_labels(self) -> None:
        if gives_instances(self.postprocess):
            raise ValueError(
                "Instances are no labels to compare with those of y: postprocess numbers objects. Score with "
                "postprocess=None."
            )

    def _predict_images(self, X: Any, output: Output, *, out: Any, resume: bool) -> Any:
        """Predict one image at a time, and write each tile, activated and finished, into the results."""
        # A scoring callback may have put the logits of this epoch in the place of the method.
        if out is None and "forward_iter" in vars(self):
            batches = [output.finish(output.activate(logits)) for logits in self.forward_iter(X, device="cpu")]
            if output.steps:
                batches = [np.stack([output.steps(values) for values in batch]) for batch in batches]
            return np.concatenate(batches)
        images = self._open_images(X)
        if resume and out is None:
            raise ValueError("To resume, out must be in a file, where the earlier call wrote; got None.")
        if out is None and is_dask(images.container):
            return predict_chunks(self, images, output)
        with self._ready_inference() as inference:
            return self._write_images(images, inference, output, out=out, resume=resume)

    @contextmanager
    def _ready_inference(self) -> Iterator[Inference]:
        self._set_training(False)
        self._place_network()
        with shared_cores(), exact_float32(self.precision_), torch.inference_mode():
            yield replace(self._inference(), engine=self.engine)

    def _kept_memory(self, pixels: Pixels) -> AbstractContextManager[None]:
        return kept_memory(if_so=self.memory_limit is None and self.device_ == "cpu" and math.prod(pixels.size) > LARGE)

    def measure_norms(self, parts: Iterable[Tensor], *, constants: Any) -> NormStatistics:
        """Return what norms meet in parts (1, C, *P) of an image, with these constants of scaling."""
        with self._ready_inference() as inference:
            return inference.measure_norms(parts, torch.from_numpy(np.array(constants)), {})

    def predict_region(
        self,
        pixels: Pixels,
        region: Window | None,
        *,
        method: str,
        constants: Any,
        norm_statistics: NormStatistics | None = None,
    ) -> np.ndarray:
        """Return what `method` gives for a window of an image, or for all of it.

        With these constants of scaling, and statistics by `measure_norms` where norms adapt to images.
        """
        output = self._output(method)
        span = region or tuple(slice(0, n) for n in pixels.size)
        values = output.array(tuple(part.stop - part.start for part in span))
        starts = [part.start for part in span]
        with self._ready_inference() as inference, self._kept_memory(pixels):
            scaled = replace(inference, constants=constants, norm_statistics=norm_statistics)
            for window, scores in scaled.activated_tiles(pixels, output.activate, turns=self._turns(), region=region):
                inside = tuple(shifted(part, start) for part, start in zip(window, starts, strict=True))
                output.put(values, inside, scores)
        return output.steps(values)

    def _write_images(self, images: Images, inference: Inference, output: Output, *, out: Any, resume: bool) -> Any:
        # Steps may give labels of another dtype, which the first image shows.
        dtype = None if output.steps else output.dtype
        results = Results(images, dtype, None if output.steps else output.n_leading, out=out)
        journal = Journal(results, partial(self._describe, output, inference, len(images)), resume=resume)
        with prediction_bar(len(images), verbose=self.verbose) as bar:
            for index in range(len(images)):
                pixels = open_pixels(images, index)
                if pixels.n_channels != self.n_channels_in_:
                    raise ValueError(
                        f"Images must have {self.n_channels_in_} channel(s); {images.container.describe(index)} has "
                        f"{pixels.n_channels}."
                    )
                size = images.user_size(index, pixels.size)
                results.begin(index, size)
                journal.begin(index, pixels)
                is_done = partial(journal.is_done, index)
                # Not what holds the results, which are kept for longer.
                with self._kept_memory(pixels):
                    for window, values in self._finished_parts(pixels, inference, output, size=size, is_done=is_done):
                        results.write(index, window, values)
                        journal.note(index, window)
                        bar.update(math.prod(span.stop - span.start for span in window) / math.prod(size))
        journal.close()
        return results.give_back()

    def _describe(self, output: Output, inference: Inference, n_images: int) -> dict[str, Any]:
        """Return all that decides the values, but for the pixels."""
        norms = inference.adaptation
        description = {
            "method": output.method,
            "n_images": n_images,
            "classes": self.classes_,
            "network": uncompiled(self.module_),
            "scaling": [self.fitted_scaling_, self.scaling_constants_],
            "precision": self.precision_,
            "engine": self.engine,
            "tta": self.tta,
            "norm_adaptation": None if norms is None else [norms.share, norms.part_size, norms.patch_pixels],
            "predict_nonlinearity": self.predict_nonlinearity,
            "postprocess": self.postprocess if output.method == "predict" else None,
            # Which tiles there are makes no difference where they equal the whole.
            "tile_size": None if inference.geometry.is_exactly_tileable else self.tile_size,
        }
        return {name: describe(value) for name, value in description.items()}

    def _finished_parts(
        self, pixels: Pixels, inference: Inference, output: Output, *, size: tuple[int, ...], is_done: IsDone
    ) -> Iterator[tuple[Window, np.ndarray]]:
        """Yield windows of an image with what is written there; the whole of it where that must be there at once."""
        whole = tuple(slice(0, n) for n in size)
        is_in_parts = size == pixels.size and not output.steps
        if is_done(whole):
            return  # before the statistics of its pixels and norms are measured
        tiles = self._score_tiles(
            pixels, inference, size=size, activate=output.activate, is_done=is_done if is_in_parts else never
        )
        if not output.steps:
            yield from ((window, output.finish(scores)[0]) for window, scores in tiles)
            return
        values = output.array(size)
        for window, scores in tiles:
            output.put(values, window, scores)
        yield whole, output.steps(values)

    def _score_tiles(
        self,
        pixels: Pixels,
        inference: Inference,
        *,
        size: tuple[int, ...],
        activate: Callable[[Tensor], Tensor],
        is_done: IsDone,
    ) -> Iterator[tuple[Window, Tensor]]:
        """Yield windows with their scores (1, K, *window); of an image that had another size, probabilities at that."""
        has_own_size = size == pixels.size
        activate = activate if has_own_size else self._get_predict_nonlinearity()
        tiles = inference.activated_tiles(pixels, activate, turns=self._turns(), is_done=is_done)
        if has_own_size:
            yield from tiles
            return
        yield tuple(slice(0, n) for n in size), resize_linearly(assemble(tiles, pixels.size), size)
