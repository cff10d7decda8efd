"""Choose from which probability on a pixel is foreground, around any estimator of binary masks."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import Parameter, signature
from itertools import chain
from numbers import Integral, Real
from typing import Any, ClassVar, Self

import numpy as np
import sklearn
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GroupKFold, GroupShuffleSplit, PredefinedSplit, ShuffleSplit, check_cv
from sklearn.pipeline import Pipeline
from sklearn.utils import check_consistent_length, check_random_state, get_tags
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted
from torch.utils.data import Dataset, Subset

from skunet.containers import Container, open_container, open_pairs
from skunet.image_array import pick_images
from skunet.images import Images, Results
from skunet.labels import LabelCodec, count_labels, learn_codec
from skunet.metrics import dice_score, iou_score, pixel_accuracy, precision_score, recall_score
from skunet.training_set import pick

__all__ = [
    "FixedThresholdClassifier",
    "LabelledImages",
    "TunedThresholdClassifierCV",
    "find_setting",
    "map_images",
    "score_masks",
]

N_FOLDS = 5


@dataclass(frozen=True)
class LabelledImages:
    """Images, masks and what belongs to each of them, as a user gives them to `fit`.

    Attributes
    ----------
    X, y : see `UNetSegmenter.fit`
    groups, sample_weight : array-like of length N, or None
    """

    X: Any
    y: Any = None
    groups: Any = None
    sample_weight: Any = None

    def masks(self) -> Container:
        """Return the masks, to be read one at a time; raise ValueError if there is not one per image."""
        masks = open_pairs(self.X)[1] if isinstance(self.X, Dataset) else open_container(self.y, "y")
        check_consistent_length(self.X, masks, self.groups, self.sample_weight)
        return masks

    def select(self, indices: np.ndarray) -> "LabelledImages":
        """Return the images at `indices`, in containers of the same kinds."""
        masks = None if self.y is None else pick_images(self.y, indices)
        groups = None if self.groups is None else np.asarray(self.groups)[indices]
        weights = self.sample_weight
        if weights is not None and not isinstance(weights, np.ndarray):
            weights = list(weights)
        return LabelledImages(select_images(self.X, indices), masks, groups, pick(weights, indices))

    def with_weight(self) -> "LabelledImages":
        """Return the images that have any weight, or all where none has."""
        if self.sample_weight is None:
            return self
        self.masks()
        has_weight = np.array([np.any(weight) for weight in self.sample_weight])
        return self if has_weight.all() or not has_weight.any() else self.select(np.flatnonzero(has_weight))

    def fit(self, estimator: Any) -> Any:
        """Return a fitted clone, which was given groups and weights if its `fit` takes them."""
        given = {"groups": self.groups, "sample_weight": self.sample_weight}
        names = _argument_names(estimator, {name: value for name, value in given.items() if value is not None})
        return clone(estimator).fit(self.X, self.y, **names)


def _argument_names(estimator: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Return those of the values that `fit` takes, under the names by which it takes them."""
    if isinstance(estimator, Pipeline) and not sklearn.get_config()["enable_metadata_routing"]:
        name, last = estimator.steps[-1]
        return {f"{name}__{key}": value for key, value in _argument_names(last, values).items()}
    parameters = signature(estimator.fit).parameters
    takes_all = any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters.values())
    return {key: value for key, value in values.items() if takes_all or key in parameters}


def make_splitter(cv: Any, *, has_groups: bool, random_state: Any) -> Any:
    """Return the splitter that `cv` stands for; see `TunedThresholdClassifierCV`.

    Parameters
    ----------
    cv : int, float, splitter, iterable of (train, test), or None
    has_groups : bool
        Whether numbers stand for splits that keep groups together.
    random_state : int, RandomState or None
        Of the split that a float stands for.
    """
    generator = check_random_state(random_state)
    if isinstance(cv, float):
        return (GroupShuffleSplit if has_groups else ShuffleSplit)(1, test_size=cv, random_state=generator)
    cv = N_FOLDS if cv is None else cv
    return GroupKFold(cv) if has_groups and isinstance(cv, Integral) else check_cv(cv)


def select_images(X: Any, indices: np.ndarray) -> Any:
    """Return the images at `indices` in a container of the same kind, of a torch Dataset a Subset; reads none."""
    return Subset(X, indices.tolist()) if isinstance(X, Dataset) else pick_images(X, indices)


def map_images(X: Any, function: Callable[[Any], np.ndarray], *, n_leading: int | None = None) -> Any:
    """Apply a function to one image at a time.

    Parameters
    ----------
    X : see `UNetSegmenter.fit`
    function : callable
        Gets a container like X of one image, and returns its map: an ndarray (*S), or (n_leading, *S).
    n_leading : int, optional
        Length of an axis before the spatial ones, e.g. classes; None for no such axis.

    Returns
    -------
    maps : ndarray (N, *S) or (N, n_leading, *S), list or object array
        In the container of X.

    Examples
    --------
    >>> map_images([np.ones((2, 2)), np.ones((1, 3))], lambda image: image[0] + 1)
    [array([[2., 2.],
           [2., 2.]]), array([[2., 2., 2.]])]
    """
    container = open_container(X, "X")
    maps = (function(select_images(X, np.array([index]))) for index in range(len(container)))
    first = next(maps)
    spatial_ndim = first.ndim - (n_leading is not None)
    images = Images(container, spatial_ndim, has_channel_axis=container.item_ndim() > spatial_ndim)
    results = Results(images, first.dtype, n_leading)
    for index, pixels in enumerate(chain([first], maps)):
        results.array_for(index, pixels.shape[-spatial_ndim:])[...] = pixels
    return results.give_back()


def is_fitted(estimator: Any) -> bool:
    """Return whether an estimator is fitted."""
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def find_setting(estimator: Any, name: str) -> Any:
    """Return a parameter of an estimator, or of the first one inside it that has a value for it; else None.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from skunet import UNetSegmenter
    >>> find_setting(make_pipeline(UNetSegmenter(ignore_label=255)), "ignore_label")
    255
    """
    value = getattr(estimator, name, None)
    for part in estimator.get_params().values():
        if value is None and hasattr(part, "get_params") and not isinstance(part, type):
            value = find_setting(part, name)
    return value


def score_masks(estimator: Any, X: Any, y: Any, sample_weight: Any) -> float:
    """Return the mean IoU of an estimator's predictions, from one confusion matrix over all pixels.

    Parameters
    ----------
    estimator : fitted estimator
        Pixels of its `ignore_label`, or of that of an estimator inside it, are not counted.
    X, y, sample_weight : see `UNetSegmenter.score`
    """
    masks = LabelledImages(X, y, sample_weight=sample_weight).masks()
    truth = [masks[index] for index in range(len(masks))]
    ignore_label = find_setting(estimator, "ignore_label")
    return float(iou_score(truth, list(estimator.predict(X)), ignore_label=ignore_label, sample_weight=sample_weight))


SCORES: dict[str, Callable[..., Any]] = {
    "iou": iou_score,
    "dice": dice_score,
    "accuracy": pixel_accuracy,
    "precision": precision_score,
    "recall": recall_score,
}
# Pixels that are counted at a time.
BLOCK = 1 << 20


def candidate_thresholds(thresholds: Any) -> np.ndarray:
    """Return the thresholds (T,) to try, ascending; see `TunedThresholdClassifierCV`.

    Raises
    ------
    ValueError
        If these are no numbers from 0 to 1, or fewer than 2 are asked for.

    Examples
    --------
    >>> candidate_thresholds(4)
    array([0.  , 0.25, 0.5 , 0.75])
    """
    is_whole = isinstance(thresholds, Integral)
    if is_whole and thresholds >= 2:
        return np.arange(int(thresholds)) / int(thresholds)
    values = np.unique(thresholds)
    if is_whole or values.dtype.kind not in "uif" or len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
        raise ValueError(
            f"thresholds must be a whole number of at least 2, or numbers from 0 to 1; got {thresholds!r}."
        )
    return values.astype(np.float64)


class Histogram:
    """How many pixels of either class have a probability between one threshold and the next.

    Parameters
    ----------
    thresholds : ndarray of shape (T,), float64, ascending

    Examples
    --------
    >>> histogram = Histogram(np.array([0.25, 0.75]))
    >>> histogram.add(np.array([0.1, 0.5, 0.9]), np.array([0, 1, 1]))
    >>> histogram.tables().tolist()
    [[[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]]]
    """

    def __init__(self, thresholds: np.ndarray) -> None:
        self.thresholds = thresholds
        self.amounts = np.zeros((2, len(thresholds) + 1))

    def add(self, probabilities: np.ndarray, truth: np.ndarray, weight: Any = None) -> None:
        """Count the pixels of an image.

        Parameters
        ----------
        probabilities : ndarray of shape (*S), float
        truth : ndarray of shape (*S), int
            Class indices; -1 counts nowhere.
        weight : float or ndarray of shape (*S), optional
        """
        weights = None if weight is None else np.broadcast_to(np.asarray(weight, np.float64), truth.shape).ravel()
        probabilities, truth = probabilities.ravel(), truth.ravel()
        for start in range(0, truth.size, BLOCK):
            block = slice(start, start + BLOCK)
            is_counted = truth[block] >= 0
            bins = np.searchsorted(self.thresholds, probabilities[block][is_counted], side="right")
            codes = truth[block][is_counted] * self.amounts.shape[1] + bins
            block_weights = None if weights is None else weights[block][is_counted]
            counts = np.bincount(codes, block_weights, minlength=self.amounts.size)
            self.amounts += counts.reshape(self.amounts.shape)

    def tables(self) -> np.ndarray:
        """Return the confusion counts (T, 2, 2) at each threshold: rows truth, columns prediction.

        A pixel is foreground where its probability is at least the threshold.
        """
        is_foreground = self.amounts[:, ::-1].cumsum(axis=1)[:, -2::-1]  # (2, T)
        is_background = self.amounts.cumsum(axis=1)[:, :-1]  # (2, T)
        return np.stack([is_background, is_foreground], axis=-1).swapaxes(0, 1)  # (T, 2, 2)


def count_thresholds(estimator: Any, images: LabelledImages, thresholds: np.ndarray) -> np.ndarray:
    """Return the confusion counts (T, 2, 2) of a fitted estimator at each threshold, one image at a time."""
    classes = check_masks(estimator, images, estimator.classes_)
    codec = LabelCodec(classes, find_setting(estimator, "ignore_label"))
    masks = images.masks()
    weights = [None] * len(masks) if images.sample_weight is None else list(images.sample_weight)
    histogram = Histogram(thresholds)
    for index, weight in enumerate(weights):
        image = select_images(images.X, np.array([index]))
        histogram.add(estimator.predict_proba(image)[0][1], codec.encode(masks[index]), weight)
    return histogram.tables()


def score_tables(tables: np.ndarray, classes: np.ndarray, score: Callable[..., Any]) -> np.ndarray:
    """Return the score (T,) of each table of counts (T, 2, 2): of one pixel per cell, which weighs its count.

    Examples
    --------
    >>> score_tables(np.array([[[2, 0], [1, 1]]]), np.array([0, 255]), pixel_accuracy)
    array([0.75])
    """
    truth, predicted = np.repeat(classes, 2), np.tile(classes, 2)
    return np.array([score(truth, predicted, sample_weight=table.ravel()) for table in tables], np.float64)


def find_score(scoring: Any) -> Callable[..., Any] | None:
    """Return the function of truth, prediction and weights that `scoring` stands for.

    Parameters
    ----------
    scoring : see `TunedThresholdClassifierCV`

    Returns
    -------
    callable, or None
        None for a callable that is no scorer of `skunet.metrics`: it may not be a function of the counts.

    Raises
    ------
    ValueError
        If there is no score of this name.
    """
    if scoring is None or (isinstance(scoring, str) and scoring in SCORES):
        return SCORES[scoring or "iou"]
    if not callable(scoring):
        raise ValueError(f"scoring must be one of {list(SCORES)}, a scorer or a callable; got {scoring!r}.")
    # What make_scorer was given can be read nowhere else.
    metric: Any = getattr(scoring, "_score_func", None)
    if metric not in SCORES.values():
        return None
    return lambda *masks, **weights: scoring._sign * metric(*masks, **scoring._kwargs, **weights)


def check_masks(estimator: Any, images: LabelledImages, classes: Any) -> np.ndarray:
    """Return the two labels of masks for an estimator; raise ValueError if there are others, or more.

    Parameters
    ----------
    estimator : estimator
        Its `ignore_label`, or that of an estimator inside it, is no class.
    images : LabelledImages
    classes : sequence of labels or None
        Labels to expect; None takes those of the masks.
    """
    masks = images.masks()
    counts = [count_labels(masks[index], masks.describe(index)) for index in range(len(masks))]
    codec, _ = learn_codec(counts, classes=classes, ignore_label=find_setting(estimator, "ignore_label"))
    return check_binary(codec.classes)


def check_binary(classes: np.ndarray) -> np.ndarray:
    """Return the labels; raise ValueError if they are not two."""
    if len(classes) != 2:
        raise ValueError(
            f"A threshold needs exactly 2 classes; got {len(classes)}: {classes.tolist()}. "
            "Make masks of one class against the rest, e.g. (y == label), or use the estimator without a threshold."
        )
    return classes


# A split into training and held-out images; a fitted estimator has seen none.
Split = tuple[np.ndarray, np.ndarray] | None


class _ThresholdClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """What both classifiers do once they are fitted."""

    estimator: Any
    # As for UNetSegmenter: groups part images without a request for them.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}

    def _fitted(self) -> Any:
        """Return the estimator that predicts, or raise NotFittedError."""
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(f"This {type(self).__name__} instance is not fitted yet. Call fit first.")
        return getattr(self, "estimator_", self.estimator)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_")

    def _decision(self, classes: np.ndarray) -> tuple[float, int]:
        """Return the threshold and the index of the class that it is a threshold of."""
        raise NotImplementedError

    @property
    def classes_(self) -> np.ndarray:
        """The two labels, sorted."""
        classes: np.ndarray = self._fitted().classes_
        return classes

    @property
    def spatial_ndim_(self) -> int:
        """2 for images, 3 for volumes, where the estimator tells."""
        return int(self._fitted().spatial_ndim_)

    @property
    def n_channels_in_(self) -> int:
        """Channels of the images, where the estimator tells."""
        return int(self._fitted().n_channels_in_)

    def predict(self, X: Any) -> Any:
        """Return the label of each pixel, one image at a time.

        Parameters
        ----------
        X : as `estimator` takes it

        Returns
        -------
        labels : ndarray (N, *S), list or object array of (*S)
            In the container of X and the dtype of `classes_`.

        Raises
        ------
        NotFittedError
            Before fit.
        """
        estimator = self._fitted()
        classes = check_binary(estimator.classes_)
        threshold, index = self._decision(classes)

        def label(image: Any) -> np.ndarray:
            is_reached = estimator.predict_proba(image)[0][index] >= np.float64(threshold)  # (*S)
            return classes.take(np.where(is_reached, index, 1 - index))

        return map_images(X, label)

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities of `estimator`, (N, 2, *S); no threshold changes them."""
        return self._fitted().predict_proba(X)

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean IoU over both classes, from one confusion matrix over all pixels; see `UNetSegmenter`."""
        return score_masks(self, X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        tags.input_tags = get_tags(self.estimator).input_tags
        return tags


class FixedThresholdClassifier(_ThresholdClassifier):
    """Predict foreground from a given probability on.

    The counterpart of scikit-learn's class of this name, for masks.

    Parameters
    ----------
    estimator : estimator
        Of binary masks, with `predict_proba` (N, 2, *S) and `classes_`. One that is fitted serves without `fit`.
    threshold : "auto" or float, default="auto"
        Least probability of `pos_label`, 0 to 1; "auto" is 0.5.
    pos_label : label or None, default=None
        The foreground; None is the higher label.
    response_method : {"auto", "predict_proba"}, default="auto"
        Both are `predict_proba`.

    Attributes
    ----------
    estimator_ : estimator
        The fitted one.
    classes_ : ndarray of shape (2,)
    spatial_ndim_, n_channels_in_ : int
        Where the estimator has them.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(4, size=16, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=2, max_epochs=1, verbose=0, random_state=0).fit(X, y)
    >>> bool((FixedThresholdClassifier(segmenter, threshold=0.0).predict(X) == 1).all())
    True
    """

    def __init__(
        self, estimator: Any, *, threshold: Any = "auto", pos_label: Any = None, response_method: str = "auto"
    ) -> None:
        self.estimator = estimator
        self.threshold = threshold
        self.pos_label = pos_label
        self.response_method = response_method

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, sample_weight: Any = None) -> Self:
        """Fit a clone of `estimator`.

        Parameters
        ----------
        X, y : as `estimator` takes them
        groups : array-like of shape (N,), optional
        sample_weight : array-like of shape (N,) or (N, *S), optional
            Both are passed on to the estimator if its `fit` takes them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of its range, or `y` has more than two classes; before any training.
        """
        images = LabelledImages(X, y, groups, sample_weight)
        self._decision(check_masks(self.estimator, images, find_setting(self.estimator, "classes")))
        self.estimator_ = images.fit(self.estimator)
        return self

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "estimator_") or is_fitted(self.estimator)

    def _decision(self, classes: np.ndarray) -> tuple[float, int]:
        if self.response_method not in ("auto", "predict_proba"):
            raise ValueError(f'response_method must be "auto" or "predict_proba"; got {self.response_method!r}.')
        threshold = 0.5 if isinstance(self.threshold, str) and self.threshold == "auto" else self.threshold
        if not isinstance(threshold, Real) or not 0 <= float(threshold) <= 1:
            raise ValueError(f'threshold must be "auto" or a number from 0 to 1; got {self.threshold!r}.')
        if self.pos_label is None:
            return float(threshold), 1
        found = np.flatnonzero(classes == self.pos_label)
        if len(found) == 0:
            raise ValueError(f"pos_label must be one of the labels {classes.tolist()}; got {self.pos_label!r}.")
        return float(threshold), int(found[0])


class TunedThresholdClassifierCV(_ThresholdClassifier):
    """Predict foreground from that probability on which scores best on images held out.

    The counterpart of scikit-learn's class of this name, for masks. Memory holds the probabilities of one image
    and a table of counts per threshold, so that any number of images can be used.

    Parameters
    ----------
    estimator : estimator
        Of binary masks, with `predict_proba` (N, 2, *S) and `classes_`. Pixels of its `ignore_label`, or of that
        of an estimator inside it, are not counted.
    scoring : {"iou", "dice", "accuracy", "precision", "recall"}, scorer, callable or None, default=None
        A name or a scorer of `skunet.metrics`, the mean over both classes where it is one per class; None is
        "iou". Any other callable is called as `scoring(estimator, X, y)` once per threshold and fold, and
        predicts anew each time.
    thresholds : int or array-like of float, default=100
        Candidates, 0 to 1; an int `n` stands for 0, 1/n, 2/n ... (n - 1)/n.
    cv : int, float, splitter, iterable of (train, test), "prefit" or None, default=None
        Folds: an int is that many, None is 5, of whole groups where `fit` gets `groups`; a float is the share of
        one random hold-out set. "prefit" takes `estimator` as it is fitted, and images it has not seen.
    refit : bool, default=True
        Whether to fit on all images in the end, which may change what a probability means. False keeps the
        estimator that the threshold was chosen for: with a single split, and with "prefit", which needs it.
    n_jobs : int or None, default=None
        Folds at a time, as in `joblib.Parallel`.
    random_state : int, RandomState or None, default=None
        Decides the split of a float `cv`.
    store_cv_results : bool, default=False

    Attributes
    ----------
    best_threshold_ : float
        Of several with the best score the one nearest to 0.5.
    best_score_ : float
        The mean of its scores over the folds.
    cv_results_ : dict
        "thresholds" and "scores" (mean over folds), ndarrays of shape (T,); only with `store_cv_results=True`.
    estimator_, classes_, spatial_ndim_, n_channels_in_
        As in `FixedThresholdClassifier`.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(6, size=16, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, filters=2, max_epochs=1, verbose=0, random_state=0)
    >>> tuned = TunedThresholdClassifierCV(segmenter, cv=2).fit(X, y)
    >>> tuned.predict(X).shape, 0 <= tuned.best_threshold_ < 1
    ((6, 16, 16), True)
    """

    def __init__(
        self,
        estimator: Any,
        *,
        scoring: Any = None,
        thresholds: Any = 100,
        cv: Any = None,
        refit: bool = True,
        n_jobs: int | None = None,
        random_state: Any = None,
        store_cv_results: bool = False,
    ) -> None:
        self.estimator = estimator
        self.scoring = scoring
        self.thresholds = thresholds
        self.cv = cv
        self.refit = refit
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.store_cv_results = store_cv_results

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, sample_weight: Any = None) -> Self:
        """Choose the threshold, and fit a clone of `estimator` on all images.

        Parameters
        ----------
        X, y, groups, sample_weight
            As in `FixedThresholdClassifier.fit`. The splits get the groups too, and the weights count in named
            scores.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter is out of its range, or `y` has more than two classes; before any training.
        NotFittedError
            If `cv="prefit"` and `estimator` is not fitted.
        """
        images = LabelledImages(X, y, groups, sample_weight)
        # Images that count nowhere do not change the folds, unless these are given by position.
        if not (hasattr(self.cv, "__iter__") or isinstance(self.cv, PredefinedSplit)):
            images = images.with_weight()
        thresholds = candidate_thresholds(self.thresholds)
        find_score(self.scoring)
        splits = self._split(images)
        known = self.estimator.classes_ if splits == [None] else find_setting(self.estimator, "classes")
        check_masks(self.estimator, images, known)
        folds = Parallel(n_jobs=self.n_jobs)(
            delayed(_score_fold)(
                self.estimator, images, split, thresholds=thresholds, scoring=self.scoring, is_kept=not self.refit
            )
            for split in splits
        )
        self._choose(thresholds, np.array([scores for scores, _ in folds]))
        self.estimator_ = images.fit(self.estimator) if self.refit else folds[0][1]
        return self

    def _split(self, images: LabelledImages) -> list[Split]:
        """Return the splits; [None] for an estimator that is taken as it is fitted."""
        if isinstance(self.cv, str):
            return self._no_split()
        splitter = make_splitter(self.cv, has_groups=images.groups is not None, random_state=self.random_state)
        parts = splitter.split(images.X, images.y, images.groups)
        splits: list[Split] = [(np.asarray(train), np.asarray(held_out)) for train, held_out in parts]
        if len(splits) > 1 and not self.refit:
            raise ValueError(f"refit must be True where cv makes several splits; got {len(splits)} splits.")
        return splits

    def _no_split(self) -> list[Split]:
        if self.cv != "prefit":
            raise ValueError(f'cv must be "prefit", a number, a splitter or an iterable of splits; got {self.cv!r}.')
        if self.refit:
            raise ValueError('refit must be False with cv="prefit", as the estimator stays as it was fitted.')
        if not is_fitted(self.estimator):
            raise NotFittedError('With cv="prefit" the estimator must be fitted. Call its fit first.')
        return [None]

    def _choose(self, thresholds: np.ndarray, scores: np.ndarray) -> None:
        """Take the best threshold from the scores (F, T) of the folds."""
        is_counted = ~np.isnan(scores).any(axis=1)
        if not is_counted.any():
            raise ValueError("The score must be a number in at least one fold; all are NaN: no held-out pixel counts.")
        means = scores[is_counted].mean(axis=0)
        best = np.lexsort((np.abs(thresholds - 0.5), -means))[0]
        self.best_threshold_, self.best_score_ = float(thresholds[best]), float(means[best])
        if self.store_cv_results:
            self.cv_results_ = {"thresholds": thresholds, "scores": means}

    def _decision(self, classes: np.ndarray) -> tuple[float, int]:  # noqa: ARG002  # the other class asks for it
        return self.best_threshold_, 1


def _score_fold(
    estimator: Any, images: LabelledImages, split: Split, *, thresholds: np.ndarray, scoring: Any, is_kept: bool
) -> tuple[np.ndarray, Any]:
    """Return the score at each threshold (T,), and the fitted estimator if it is to be kept."""
    if split is not None:
        estimator, images = images.select(split[0]).fit(estimator), images.select(split[1])
    score = find_score(scoring)
    if score is None:
        predictors = (FixedThresholdClassifier(estimator, threshold=threshold) for threshold in thresholds)
        scores = np.array([scoring(predictor, images.X, images.y) for predictor in predictors], np.float64)
    else:
        scores = score_tables(count_thresholds(estimator, images, thresholds), estimator.classes_, score)
    return scores, estimator if is_kept else None
