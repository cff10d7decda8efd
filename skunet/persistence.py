"""Save fitted segmenters and load them again, without pickle."""

import os
import platform
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch

import skunet
from skunet.components import class_weights, uncompiled
from skunet.hardware import exact_float32
from skunet.hyperparameters import check_hyperparameters
from skunet.labels import LabelCodec
from skunet.randomness import PROBE, make_generator
from skunet.state_file import read_state, write_state
from skunet.stored_parameters import choose_parameters, describe_parameters

__all__ = ["Persistence"]

KIND = "segmenter"
CONTENT = {
    *("estimator", "versions", "parameters", "fitted", "ignore_label"),
    *("built_with", "weights", "history", "probe"),
}
FITTED = (
    *("classes_", "class_counts_", "n_channels_in_", "spatial_ndim_"),
    *("scaling_constants_", "fitted_scaling_", "seed_", "size_multiple_", "precision_", "flip_axes_"),
    *("batch_size_", "patch_size_"),
)
# Parameters that set_params may have changed since, for the next fit.
BUILT_WITH = ("depth", "filters")
# Least and most pixels per side of the probe.
PROBE_SIDES = {2: (16, 64), 3: (16, 32)}
# Sums in another order change float32 probabilities by some 1e-6; wrong weights, scaling or layers by 0.1.
PROBE_TOLERANCE = 1e-3


class Persistence:
    """What makes a segmenter one file, and a file a segmenter."""

    classes_: Any
    module_: Any
    history_: Any
    built_with_: dict[str, Any]
    class_weight: Any
    _default_callbacks: list[tuple[str, Any]]
    class_counts_: Any
    get_params: Callable[..., dict[str, Any]]
    initialize: Callable[[], Any]
    _check_ready: Callable[[], None]
    _get_predict_nonlinearity: Callable[[], Any]
    _inference: Callable[[], Any]
    _place_network: Callable[[], None]
    _set_training: Callable[[bool], None]
    _to_labels: Callable[[Any], np.ndarray]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fitted segmenter to one file, without pickle; `load` reads it.

        The file is in safetensors format: weights as tensors; hyperparameters, labels, scaling, history (but for the
        records of batches) and versions as JSON in its header; and a digest of it all. It holds neither callbacks nor
        the state of the optimizer. An older file is replaced in one step.

        Parameters
        ----------
        path : str or path
            Any suffix.

        Raises
        ------
        NotFittedError
            Before fit.
        ValueError
            If a parameter that was set since is out of its range.
        TypeError
            If the history, or an extra state of the network, holds what no file can hold.
        OSError
            If the file cannot be written; an older one is left as it was.

        Examples
        --------
        >>> from skunet import UNetSegmenter
        >>> from skunet.datasets import make_cells
        >>> X, y = make_cells(6, size=32, random_state=0)
        >>> segmenter = UNetSegmenter(depth=1, filters=4, max_epochs=1, verbose=0, random_state=0).fit(X, y)
        >>> segmenter.save(getfixture("tmp_path") / "cells.skunet")
        >>> loaded = UNetSegmenter.load(getfixture("tmp_path") / "cells.skunet")
        >>> bool((loaded.predict(X) == segmenter.predict(X)).all())
        True
        """
        self._check_ready()
        # What `load` would refuse.
        check_hyperparameters(self.get_params(deep=False))
        class_weights(self.class_weight, self.codec_, self.class_counts_)
        fitted = {name: getattr(self, name) for name in FITTED}
        state = {
            "estimator": type(self).__name__,
            "versions": _versions(),
            "parameters": describe_parameters(self.get_params(deep=False), seed=fitted["seed_"]),
            "fitted": fitted,
            "ignore_label": self.codec_.ignore_label,
            "built_with": {name: self.built_with_[name] for name in BUILT_WITH if name in self.built_with_},
            "weights": dict(uncompiled(self.module_).state_dict()),
            "history": [{**row, "batches": []} for row in self.history_],
            "probe": self._make_probe(),
        }
        write_state(path, state, kind=KIND)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], *, device: str | None = None, check_probe: bool = False, **parameters: Any
    ) -> Self:
        """Return the segmenter that `save` wrote; nothing in the file is executed.

        It predicts and scores as the one saved, bit for bit on the same machine. `partial_fit` goes on from its
        weights, with a fresh optimizer and fresh callbacks.

        Parameters
        ----------
        path : str or path
        device : str, optional
            The default is that of the segmenter saved where this machine has it, else "auto".
        check_probe : bool
            Whether to predict again, in float32, the small image in the file that was predicted when it was written.
        **parameters
            Parameters to use instead of those in the file. The file names classes of skunet, torch and skorch; other
            classes, functions and objects it cannot hold. Those of `module`, `module__*` and `predict_nonlinearity`
            must be passed here, e.g. `module=MyNet`; a module instance gets the weights of the file.

        Returns
        -------
        segmenter : fitted instance of the class

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If the file is cut short, altered, of a newer format, of another class, or not one of skunet; if
            something must be passed; if the weights do not fit the module; or if the probe is predicted otherwise,
            by more than 0.001 in a probability.

        Warns
        -----
        UserWarning
            If parameters that matter for training only, such as a function for `augment`, are neither in the file nor
            passed: they have their defaults.
        """
        given = parameters if device is None else parameters | {"device": device}
        check_hyperparameters(given)
        cls(**given)  # a name that is wrong here is an error of the call, not of the file
        state = read_state(path, kind=KIND)
        _check_content(state, cls.__name__, path)
        defaults = [name for name, _ in cls()._default_callbacks]
        chosen = choose_parameters(state["parameters"], given, default_callbacks=defaults, path=path, stacklevel=2)
        try:
            segmenter = cls(**chosen)
        except TypeError as error:
            raise ValueError(f"{path} has parameters that are not known here. {_compare_versions(state)}") from error
        segmenter._restore(state, path)
        if check_probe:
            segmenter._check_probe(state, path)
        return segmenter

    def _restore(self, state: dict[str, Any], path: Any) -> None:
        fitted = {name: state["fitted"][name] for name in FITTED}
        vars(self).update(fitted)
        self.codec_ = LabelCodec(self.classes_, state["ignore_label"])
        built_with = {name: state["built_with"][name] for name in BUILT_WITH if name in state["built_with"]}
        for_next_fit = {name: getattr(self, name) for name in built_with}
        vars(self).update(built_with)
        self.initialize()
        vars(self).update(for_next_fit | fitted)  # initialize draws a seed of its own
        try:
            uncompiled(self.module_).load_state_dict(state["weights"])
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds weights that do not fit the module {type(uncompiled(self.module_)).__name__}. "
                f"Pass the module that was fitted. {_compare_versions(state)}"
            ) from error
        self.history_ = type(self.history_)(state["history"])
        self.is_trained_ = True
        self._place_network()

    # ---- the probe

    def _draw_probe(self) -> np.ndarray:
        """Return a small image (C, *S) like those trained on."""
        return _draw_image(vars(self))

    def _make_probe(self) -> dict[str, np.ndarray]:
        """Return a small image (C, *S), its labels (*S) and its probabilities (K, *S)."""
        image = self._draw_probe()
        labels, probabilities = self._predict_probe(image)
        return {"image": image, "labels": labels, "probabilities": probabilities}

    def _predict_probe(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels and probabilities, in float32 and without `norm_adaptation`, so that they are portable."""
        self._set_training(False)
        with torch.inference_mode(), exact_float32("float32"):
            inference = replace(self._inference(), precision="float32", tile_size=None, adaptation=None)
            logits = inference.images(torch.from_numpy(image[None]))
            probabilities = self._get_predict_nonlinearity()(logits)[0].float().cpu().numpy()
        return self._to_labels(logits)[0], probabilities

    def _check_probe(self, state: dict[str, Any], path: Any) -> None:
        """Raise ValueError unless the probe is predicted as it was; labels may differ where two are as probable."""
        stored = state["probe"]
        labels, probabilities = self._predict_probe(stored["image"])
        difference = np.abs(probabilities - stored["probabilities"])
        lead = np.diff(np.sort(stored["probabilities"], axis=0)[-2:], axis=0)[0]
        n_changed = np.count_nonzero((labels != stored["labels"]) & ~(lead <= 2 * PROBE_TOLERANCE))
        if n_changed or not (difference <= PROBE_TOLERANCE).all():
            raise ValueError(
                f"{path} does not predict its probe as when it was saved: {n_changed} labels are others, and "
                f"probabilities differ by up to {difference.max():.2g}; at most {PROBE_TOLERANCE} is allowed. "
                f"{_compare_versions(state)}"
            )


def _draw_image(fitted: dict[str, Any]) -> np.ndarray:
    """Return noise (C, *S), float32, with mean and spread of the training images where these are known."""
    n_channels, ndim = fitted["n_channels_in_"], fitted["spatial_ndim_"]
    side = int(np.clip(2 * fitted["size_multiple_"], *PROBE_SIDES[ndim]))
    noise = make_generator(fitted["seed_"], *PROBE).normal(size=(n_channels,) + (side,) * ndim)
    constants = fitted["scaling_constants_"]
    if constants is not None:
        offset, divisor = (row.reshape((-1,) + (1,) * ndim) for row in constants)
        noise = noise * divisor + offset
    image: np.ndarray = noise.astype(np.float32)
    return image


def _versions() -> dict[str, str]:
    names = ("torch", "skorch", "scikit-learn", "numpy")
    return {"skunet": skunet.__version__, "python": platform.python_version()} | {name: version(name) for name in names}


def _compare_versions(state: dict[str, Any]) -> str:
    before, now = ({name: str(text) for name, text in item.items()} for item in (state["versions"], _versions()))
    changed = [f"{name} {before.get(name)}, now {now[name]}" for name in now if before.get(name) != now[name]]
    return f"It was written with {'; '.join(changed)}." if changed else "It was written with the versions in use here."


def _check_content(state: dict[str, Any], estimator: str, path: Any) -> None:
    if not set(state) >= CONTENT or not set(state["fitted"]) >= set(FITTED):
        raise ValueError(f"{path} lacks parts of a segmenter: it was not written by UNetSegmenter.save.")
    if state["estimator"] != estimator:
        name = state["estimator"]
        raise ValueError(f"{path} must hold a {estimator}; it holds a {name}. Call {name}.load.")
