"""Average segmenters, or let them vote, image by image."""

import time
from collections.abc import Iterable
from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin
from sklearn.utils import Bunch, get_tags
from sklearn.utils.metaestimators import available_if
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import check_is_fitted

from skunet.image_by_image import LabelledImages, map_images, score_masks
from skunet.labels import LabelCodec

__all__ = ["VotingClassifier"]

# Sums of weights this close are equal: 0.1 + 0.2 and 0.3 are.
TIE = 1e-9


def _is_soft(ensemble: "VotingClassifier") -> bool:
    if ensemble.voting != "soft":
        raise AttributeError(f"predict_proba is not available when voting={ensemble.voting!r}.")
    return True


class VotingClassifier(ClassifierMixin, MetaEstimatorMixin, BaseEstimator):  # type: ignore[misc]  # sklearn is not typed
    """Average the probabilities of several segmenters, or let them vote on each pixel.

    The counterpart of scikit-learn's class of this name, for masks. Images go through all members one at a time,
    so that memory holds the maps of one image.

    Parameters
    ----------
    estimators : list of (str, estimator)
        Image estimators by name; "drop" in place of one leaves it out. `fit` fits clones of them; one that is
        fitted and wrapped in `sklearn.frozen.FrozenEstimator` stays as it is.
    voting : {"soft", "hard"}, default="soft"
        "soft" takes the class of the highest weighted mean probability, "hard" that of most votes; of equal
        classes the lowest label.
    weights : array-like of float or None, default=None
        One per entry of `estimators`, at least 0; None for equal ones.
    n_jobs : int or None, default=None
        Members to fit at a time, as in `joblib.Parallel`.
    verbose : bool, default=False
        Whether to print the time that each member took to fit.

    Attributes
    ----------
    estimators_ : list of estimators
        The fitted members, without those dropped.
    named_estimators_ : Bunch
        The same by name; "drop" for those dropped.
    classes_ : ndarray of shape (K,)
        Sorted labels that any member knows. One that does not know a label gives it probability 0.
    spatial_ndim_, n_channels_in_ : int
        Where the first member has them.

    Examples
    --------
    >>> from sklearn.frozen import FrozenEstimator
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> X, y = make_cells(4, size=16, random_state=0)
    >>> first, second = (UNetSegmenter(1, 2, max_epochs=1, verbose=0, random_state=n).fit(X, y) for n in (0, 1))
    >>> both = VotingClassifier([("first", FrozenEstimator(first)), ("second", FrozenEstimator(second))]).fit(X, y)
    >>> means = (first.predict_proba(X) + second.predict_proba(X)) / 2
    >>> np.allclose(both.predict_proba(X), means)
    True
    """

    # As for UNetSegmenter: groups part images without a request for them.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}

    def __init__(
        self,
        estimators: Any,
        *,
        voting: str = "soft",
        weights: Any = None,
        n_jobs: int | None = None,
        verbose: bool = False,
    ) -> None:
        self.estimators = estimators
        self.voting = voting
        self.weights = weights
        self.n_jobs = n_jobs
        self.verbose = verbose

    @property
    def named_estimators(self) -> Bunch:
        """The members as given, by name."""
        return Bunch(**dict(self.estimators))

    @property
    def spatial_ndim_(self) -> int:
        """2 for images, 3 for volumes, where the first member tells."""
        return int(self._first().spatial_ndim_)

    @property
    def n_channels_in_(self) -> int:
        """Channels of the images, where the first member tells."""
        return int(self._first().n_channels_in_)

    def _first(self) -> Any:
        check_is_fitted(self)
        return self.estimators_[0]

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the parameters; with `deep` also the members by name, and theirs as `name__parameter`."""
        parameters: dict[str, Any] = super().get_params(deep=False)
        if deep and _are_pairs(self.estimators):
            for name, estimator in self.estimators:
                parameters[name] = estimator
                if hasattr(estimator, "get_params") and not isinstance(estimator, type):
                    parameters |= {f"{name}__{key}": value for key, value in estimator.get_params().items()}
        return parameters

    def set_params(self, **params: Any) -> Self:
        """Set parameters, replace members by name, or set theirs by `name__parameter`."""
        if "estimators" in params:
            self.estimators = params.pop("estimators")
        if _are_pairs(self.estimators):
            replaced = {name: params.pop(name) for name, _ in self.estimators if name in params}
            if replaced:
                self.estimators = [(name, replaced.get(name, estimator)) for name, estimator in self.estimators]
        super().set_params(**params)
        return self

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, sample_weight: Any = None) -> Self:
        """Fit a clone of each member on all images.

        Parameters
        ----------
        X, y : as the members take them
        groups, sample_weight : optional
            Passed on to the members whose `fit` takes them.

        Returns
        -------
        self

        Raises
        ------
        TypeError, ValueError
            If a parameter is out of its range, before any training; if members know labels of several kinds.
        """
        self._check()
        images = LabelledImages(X, y, groups, sample_weight)
        members = [(name, estimator) for name, estimator in self.estimators if not _is_dropped(estimator)]
        estimators = Parallel(n_jobs=self.n_jobs)(
            delayed(_fit_member)(images, estimator, f"({number} of {len(members)}) {name}" if self.verbose else None)
            for number, (name, estimator) in enumerate(members, 1)
        )
        self.classes_ = _join_classes([member.classes_ for member in estimators])
        self.estimators_ = estimators
        fitted = dict(zip([name for name, _ in members], estimators, strict=True))
        self.named_estimators_ = Bunch(**{name: fitted.get(name, "drop") for name, _ in self.estimators})
        return self

    def _check(self) -> None:
        """Raise if a parameter is out of its range."""
        if self.voting not in ("soft", "hard"):
            raise ValueError(f'voting must be "soft" or "hard"; got {self.voting!r}.')
        _check_names(self.estimators, self.get_params(deep=False))
        method = "predict_proba" if self.voting == "soft" else "predict"
        for name, estimator in self.estimators:
            has_methods = hasattr(estimator, "fit") and hasattr(estimator, method)
            if not _is_dropped(estimator) and (isinstance(estimator, type) or not has_methods):
                raise TypeError(
                    f"Each estimator must be an estimator with fit and {method}; got {name!r}, {estimator!r}."
                )
        _shares(self.weights, [estimator for _, estimator in self.estimators])

    def _members(self) -> list[tuple[Any, float]]:
        """Return the fitted members with their shares."""
        shares = _shares(self.weights, list(self.named_estimators_.values()))
        return list(zip(self.estimators_, shares.tolist(), strict=True))

    def _mean(self, image: Any) -> np.ndarray:
        """Return the mean probabilities (K, *S) of an image, float32."""
        total: Any = 0
        for member, share in self._members():
            probabilities = member.predict_proba(image)[0]  # (classes of the member, *S)
            aligned = np.zeros((len(self.classes_), *probabilities.shape[1:]), np.float32)
            aligned[np.searchsorted(self.classes_, member.classes_)] = share * probabilities
            total = total + aligned
        return np.asarray(total)

    def _elect(self, image: Any) -> np.ndarray:
        """Return the class indices (*S) with most votes."""
        codec = LabelCodec(self.classes_)
        votes: Any = 0
        for member, share in self._members():
            indices = codec.encode(np.asarray(member.predict(image)[0]))  # (*S)
            ballots = indices == np.arange(len(self.classes_)).reshape(-1, *(1,) * indices.ndim)  # (K, *S)
            votes = votes + share * ballots
        return np.asarray((votes >= votes.max(axis=0) - TIE).argmax(axis=0))

    def predict(self, X: Any) -> Any:
        """Return the label of each pixel.

        Parameters
        ----------
        X : as the members take it

        Returns
        -------
        labels : ndarray (N, *S), list or object array of (*S)
            In the container of X and the dtype of `classes_`.

        Raises
        ------
        NotFittedError
            Before fit.
        """
        check_is_fitted(self)
        if self.voting == "soft":
            return map_images(X, lambda image: self.classes_.take(self._mean(image).argmax(axis=0)))
        return map_images(X, lambda image: self.classes_.take(self._elect(image)))

    @available_if(_is_soft)  # type: ignore[untyped-decorator]  # sklearn is not typed
    def predict_proba(self, X: Any) -> Any:
        """Return the weighted mean of the members' probabilities; only with soft voting.

        Parameters
        ----------
        X : as in `predict`

        Returns
        -------
        probabilities : ndarray (N, K, *S), list or object array of (K, *S), float32
            In the order of `classes_`; they sum to 1 over axis 1 (0 in a list).
        """
        check_is_fitted(self)
        return map_images(X, self._mean, n_leading=len(self.classes_))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Return the mean IoU over the classes, from one confusion matrix over all pixels; see `UNetSegmenter`."""
        return score_masks(self, X, y, sample_weight)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        pairs = self.estimators if _are_pairs(self.estimators) else []
        members = [estimator for _, estimator in pairs if hasattr(estimator, "__sklearn_tags__")]
        if members:
            tags.input_tags = get_tags(members[0]).input_tags
        return tags


def _is_dropped(estimator: Any) -> bool:
    return isinstance(estimator, str) and estimator == "drop"


def _are_pairs(estimators: Any) -> bool:
    return isinstance(estimators, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and isinstance(pair[0], str) for pair in estimators
    )


def _check_names(estimators: Any, parameters: Iterable[str]) -> None:
    """Raise if these are not (name, estimator) pairs, by names of their own, some of them not dropped."""
    if not _are_pairs(estimators) or all(_is_dropped(estimator) for _, estimator in estimators):
        raise ValueError(
            f"estimators must be a list of (name, estimator) with at least one not dropped; got {estimators!r}."
        )
    names = [name for name, _ in estimators]
    if len(set(names)) < len(names) or set(names) & set(parameters) or any("__" in name for name in names):
        raise ValueError(
            f'Names of estimators must be distinct, hold no "__" and be none of {sorted(parameters)}; got {names}.'
        )


def _shares(weights: Any, estimators: list[Any]) -> np.ndarray:
    """Return the weights of those estimators that are not dropped, divided by their sum."""
    values = np.ones(len(estimators)) if weights is None else np.asarray(weights, dtype=float)
    if values.shape != (len(estimators),):
        raise ValueError(f"weights must hold one number per estimator, {len(estimators)}; got {weights!r}.")
    kept = values[[not _is_dropped(estimator) for estimator in estimators]]
    if not ((kept >= 0) & np.isfinite(kept)).all() or kept.sum() == 0:
        raise ValueError(f"weights must be at least 0, and one of them above; got {weights!r}.")
    return np.asarray(kept / kept.sum())


def _fit_member(images: LabelledImages, estimator: Any, message: str | None) -> Any:
    start = time.perf_counter()
    fitted = images.fit(estimator)
    if message:
        print(f"[Voting] {message}: {time.perf_counter() - start:.1f} s")
    return fitted


def _join_classes(each: list[np.ndarray]) -> np.ndarray:
    if len({classes.dtype.kind in "biuf" for classes in each}) > 1:
        raise ValueError(
            f"All members must know labels of one kind; got {[classes.tolist() for classes in each]}. "
            "Fit them on masks of the same labels."
        )
    return np.unique(np.concatenate(each))
