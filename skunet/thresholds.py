"""Choose from which probability on a pixel is foreground, around any estimator of binary masks."""

from numbers import Real
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import PredefinedSplit
from sklearn.utils import get_tags
from sklearn.utils.parallel import Parallel, delayed

from skunet.hyperparameters import find_setting
from skunet.image_by_image import LabelledImages, is_fitted, make_splitter, map_images, score_masks
from skunet.splits import check_splitter
from skunet.threshold_scores import (
    candidate_thresholds,
    check_binary,
    check_masks,
    check_response_method,
    count_thresholds,
    find_score,
    mean_over_folds,
    score_tables,
)

__all__ = ["FixedThresholdClassifier", "TunedThresholdClassifierCV"]

Split = tuple[np.ndarray, np.ndarray] | None  # training and held-out images; a fitted estimator has seen none


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
        check_response_method(self.response_method)
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
        "iou". Any other callable is called as `scoring(estimator, X, y)` for each threshold and fold.
    response_method : {"auto", "predict_proba"}, default="auto"
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
        response_method: str = "auto",
        thresholds: Any = 100,
        cv: Any = None,
        refit: bool = True,
        n_jobs: int | None = None,
        random_state: Any = None,
        store_cv_results: bool = False,
    ) -> None:
        self.estimator = estimator
        self.scoring = scoring
        self.response_method = response_method
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
            As in `FixedThresholdClassifier.fit`. Splits get the groups too, and named scores the weights.

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
        thresholds, _ = candidate_thresholds(self.thresholds), find_score(self.scoring)
        check_response_method(self.response_method)
        splits = self._split(images)
        known = self.estimator.classes_ if splits == [None] else find_setting(self.estimator, "classes")
        check_masks(self.estimator, images, known)
        folds = Parallel(n_jobs=self.n_jobs)(
            delayed(_score_fold)(
                self.estimator, images, split, thresholds=thresholds, scoring=self.scoring, is_kept=not self.refit
            )
            for split in splits
        )
        means = mean_over_folds(np.array([scores for scores, _ in folds]))
        fitted = images.fit(self.estimator) if self.refit else folds[0][1]
        best = np.lexsort((np.abs(thresholds - 0.5), -means))[0]
        self.estimator_, self.best_threshold_, self.best_score_ = fitted, float(thresholds[best]), float(means[best])
        if self.store_cv_results:
            self.cv_results_ = {"thresholds": thresholds, "scores": means}
        return self

    def _split(self, images: LabelledImages) -> list[Split]:
        """Return the splits; [None] for an estimator that is taken as it is fitted."""
        if isinstance(self.cv, str):
            return self._no_split()
        check_splitter(self.cv, images.y)
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
