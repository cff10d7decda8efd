"""How good predicted masks are: the scores that the real data sets are known by.

All take the truth as class indices (N, *S) and the probabilities (N, K, *S), and return scores by name.
"""

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from skunet.metrics import dice_score, iou_score, per_image

Array = NDArray[np.generic]
THRESHOLDS = np.arange(1, 10) / 10
VOID = 11  # of CamVid


def score_membranes(y: Array, probabilities: Array) -> dict[str, float]:
    """Score cells (1) between membranes (0): pixel error, Rand and information score, these two also of thin membranes.

    Each is a mean over the sections, with cells where their probability is over 0.5; `best_*` is that at the best of
    the thresholds 0.1 to 0.9, as the ISBI 2012 challenge reports it (with membranes that are thin).
    """
    names = ("pixel_error", "v_rand", "v_info", "v_rand_thin", "v_info_thin")
    table = np.array([_score_sections(y == 1, probabilities[:, 1] > threshold) for threshold in THRESHOLDS])
    best = [table[:, 0].min(), *table[:, 1:].max(axis=0)]
    scores = dict(zip(names, table[len(THRESHOLDS) // 2], strict=True))
    scores |= dict(zip([f"best_{name}" for name in names], best, strict=True))
    return {name: float(score) for name, score in scores.items()}


def _score_sections(true: Array, pred: Array) -> list[float]:
    scores = [
        [*rand_and_information_score(*section), *rand_and_information_score(*section, is_thin=True)]
        for section in zip(true, pred, strict=True)
    ]
    return [float(np.mean(true != pred)), *np.mean(scores, axis=0)]


def rand_and_information_score(true: Array, pred: Array, is_thin: bool = False) -> tuple[float, float]:
    """Compare the cells of a section (H, W), true where there is one, as segmentations.

    Segments are the 4-connected components. Only pixels count that are cell in the truth ("foreground-restricted").
    Each of them that is predicted as membrane is a segment by itself; or, where membranes are made thin, belongs to the
    nearest segment, so that their width costs nothing, as in the tables of the challenge.

    Returns
    -------
    v_rand, v_info : float
        0 to 1, 1 for equal segments: F-scores of pairs of pixels in one segment, `sum p_ij^2` over the mean of
        `sum s_i^2` and `sum t_j^2`, and of the mutual information over the mean of the entropies. NaN without cells.

    References
    ----------
    Arganda-Carreras et al., Crowdsourcing the creation of image segmentation algorithms for connectomics, 2015.
    """
    segments = ndimage.label(pred)[0]
    if is_thin and pred.any():
        segments = segments[tuple(ndimage.distance_transform_edt(~pred, return_distances=False, return_indices=True))]
    else:
        segments[~pred] = segments.max() + 1 + np.arange(np.count_nonzero(~pred))
    t, s = ndimage.label(true)[0][true].astype(np.int64), segments[true].astype(np.int64)
    if not len(t):
        return float("nan"), float("nan")
    both, of_true, of_pred = (_shares(labels) for labels in (t * (s.max() + 1) + s, t, s))
    v_rand = 2 * np.sum(both**2) / (np.sum(of_true**2) + np.sum(of_pred**2))
    entropies = _entropy(of_true) + _entropy(of_pred)
    v_info = 2 * (entropies - _entropy(both)) / entropies if entropies > 0 else 1.0
    return float(v_rand), float(v_info)


def _shares(labels: Array) -> Array:
    return np.unique(labels, return_counts=True)[1] / len(labels)


def _entropy(shares: Array) -> float:
    return float(-np.sum(shares * np.log(shares)))


def score_objects(y: Array, probabilities: Array) -> dict[str, float]:
    """Score class 1 by the Dice coefficient of each image, as a mean over the images."""
    scores = per_image(dice_score, y, probabilities.argmax(axis=1), labels=[0, 1], average=None)
    return {"dice": float(np.nanmean(scores[:, 1]))}


def score_classes(y: Array, probabilities: Array) -> dict[str, float]:
    """Score each class but 0 by the Dice coefficient over all pixels; `dice` is their mean."""
    n_classes = probabilities.shape[1]
    scores = dice_score(y, probabilities.argmax(axis=1), labels=range(n_classes), average=None)
    each = {f"dice_{label}": float(scores[label]) for label in range(1, n_classes)}
    return {"dice": float(np.nanmean(scores[1:]))} | each


def score_scenes(y: Array, probabilities: Array) -> dict[str, float]:
    """Score by the mean IoU over the classes, from one confusion matrix over all pixels that are not void."""
    labels = range(probabilities.shape[1])
    return {"miou": float(iou_score(y, probabilities.argmax(axis=1), labels=labels, ignore_label=VOID))}
