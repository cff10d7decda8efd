"""What `postprocess` stands for: steps that one image goes through after the other."""

from typing import Any

import numpy as np

from skunet.connected import check_labels

__all__ = ["Steps", "gives_instances"]


def _listed(postprocess: Any) -> list[Any]:
    steps = postprocess if isinstance(postprocess, list | tuple) else [postprocess]
    return [step for step in steps if step is not None]


def gives_instances(postprocess: Any) -> bool:
    """Return whether a step numbers objects, which are no labels."""
    return any(getattr(step, "gives_instances", False) for step in _listed(postprocess))


class Steps:
    """What `postprocess` stands for, done to one image after the other.

    Parameters
    ----------
    postprocess : None, callable, transformer of masks, or a list of these
    classes : ndarray of shape (K,)

    Raises
    ------
    ValueError
        If a step that takes probabilities is not the first, or one is for labels that are no classes.
    """

    def __init__(self, postprocess: Any, classes: np.ndarray) -> None:
        self.classes = classes
        self.steps = _listed(postprocess)
        for step in self.steps:
            labels = getattr(step, "labels", None) if hasattr(step, "clean") else None
            check_labels(labels)
            unknown = set([] if labels is None else np.asarray(labels).tolist()) - set(classes.tolist())
            if unknown:
                name = type(step).__name__
                raise ValueError(f"labels of {name} must be among {classes.tolist()}; got {sorted(unknown, key=str)}.")
        takes = [getattr(step, "takes_probabilities", False) for step in self.steps]
        if any(takes[1:]):
            names = [type(step).__name__ for step in self.steps]
            raise ValueError(f"A step that takes probabilities must be the first of postprocess; got {names}.")
        self.take_probabilities = bool(takes and takes[0])

    def __bool__(self) -> bool:
        return bool(self.steps)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Return the labels (*S) that the steps make of labels (*S), or of probabilities (K, *S)."""
        size, background = values.shape[self.take_probabilities :], self.classes[0]
        for step in self.steps:
            values = np.asarray(_call(step, values, self.classes, background))
            background = 0 if gives_instances(step) else background
            if values.shape != size:
                raise ValueError(
                    f"A step of postprocess must give one label per pixel, shape {size} here; "
                    f"{getattr(step, '__name__', type(step).__name__)} gave {values.shape}."
                )
        return values


def _call(step: Any, values: np.ndarray, classes: np.ndarray, background: Any) -> Any:
    if getattr(step, "takes_probabilities", False):
        return step(values, classes)
    if hasattr(step, "clean"):  # a transformer of masks of ours, which need not look for the background
        return step.clean(values, background=background if step.background is None else step.background)
    return step.transform(values[None])[0] if hasattr(step, "transform") else step(values)
