"""scikit-learn's searches over parameters, on images in any container."""

from collections.abc import Callable
from typing import Any, Self

import numpy as np
import sklearn
from sklearn import model_selection
from sklearn.experimental import enable_halving_search_cv  # noqa: F401  # gives sklearn its two Halving classes

from skunet.image_array import indexable_pair
from skunet.image_by_image import fit_arguments
from skunet.metrics import find_scorer, find_scorers
from skunet.splits import check_splitter

__all__ = ["GridSearchCV", "HalvingGridSearchCV", "HalvingRandomSearchCV", "RandomizedSearchCV"]


class ImageSearch:
    """What the searches have in common: they hand scikit-learn images that it can split."""

    _find_scorers = staticmethod(find_scorers)
    estimator: Any
    cv: Any
    scoring: Any
    get_params: Callable[..., dict[str, Any]]

    def fit(self, X: Any, y: Any = None, **params: Any) -> Self:
        """Try the parameters, then fit the best on all images.

        Parameters
        ----------
        X, y : containers of images and masks
            As for `UNetSegmenter.fit`, but no torch Dataset.
        **params
            As in scikit-learn: `groups`, and what the estimator's `fit` takes. Groups part the folds, and what each fit
            validates on, if it takes them.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If `scoring` is another name, or `cv` stratifies by one class per image; before any training.
        """
        check_splitter(self.cv, y)
        super().fit(*indexable_pair(X, y, self.estimator), **params)  # type: ignore[misc]  # of the search that it is mixed into
        return self

    def score(self, X: Any, y: Any = None, **params: Any) -> float:
        """Return the score of the best estimator, by `scoring` where it is given.

        Parameters
        ----------
        X, y, **params
            As in `fit`.
        """
        return float(super().score(*indexable_pair(X, y), **params))  # type: ignore[misc]

    @property
    def _parameter_constraints(self) -> dict[str, Any]:
        # sklearn's rule for the parameter lists its own names.
        return {**super()._parameter_constraints, "scoring": "no_validation"}  # type: ignore[misc]

    def _get_routed_params_for_fit(self, params: dict[str, Any]) -> Any:
        routed = super()._get_routed_params_for_fit(params)  # type: ignore[misc]
        if params.get("groups") is not None and not sklearn.get_config()["enable_metadata_routing"]:
            routed.estimator.fit |= fit_arguments(self.estimator, {"groups": params["groups"]})
        return routed

    def _get_scorers(self) -> Any:
        # The parameter itself stays as the user gave it.
        search = type(self)(**(self.get_params(deep=False) | {"scoring": self._find_scorers(self.scoring)}))
        return super(ImageSearch, search)._get_scorers()  # type: ignore[misc]


class GridSearchCV(ImageSearch, model_selection.GridSearchCV):  # type: ignore[misc]  # sklearn is not typed
    """`sklearn.model_selection.GridSearchCV` for images in any container.

    Parameters, attributes and methods are scikit-learn's. An integer `cv` stands for `KFold` without shuffling, as
    scikit-learn takes it where targets are no classes; splitters of this module keep foreground and groups even.
    `scoring` is as in `cross_validate`, of the halving searches as in `cross_val_score`.

    Examples
    --------
    >>> from skunet import UNetSegmenter
    >>> from skunet.datasets import make_cells
    >>> from skunet.model_selection import GridSearchCV
    >>> X, y = make_cells(4, size=16, random_state=0)
    >>> segmenter = UNetSegmenter(depth=1, max_epochs=1, verbose=0, random_state=0)
    >>> search = GridSearchCV(segmenter, {"filters": [2, 4]}, cv=2).fit(list(X), list(y))
    >>> len(search.predict(list(X)))
    4
    """


class RandomizedSearchCV(ImageSearch, model_selection.RandomizedSearchCV):  # type: ignore[misc]
    """`sklearn.model_selection.RandomizedSearchCV` for images in any container; see `GridSearchCV`."""


class ImageHalving(ImageSearch):
    """How the halving searches find the fewest images to start with; they go by a single score."""

    _find_scorers = staticmethod(find_scorer)

    def _check_input_parameters(self, X: Any, y: Any, split_params: dict[str, Any]) -> None:  # noqa: ARG002
        # The factor for the number of classes, which sklearn would find in y, is 1: an image shows many classes.
        super()._check_input_parameters(X, np.zeros(len(X), dtype=int), split_params)  # type: ignore[misc]


class HalvingGridSearchCV(ImageHalving, model_selection.HalvingGridSearchCV):  # type: ignore[misc]
    """`sklearn.model_selection.HalvingGridSearchCV` for images in any container; see `GridSearchCV`.

    `min_resources="smallest"` is two images per split, whatever the number of classes.
    """


class HalvingRandomSearchCV(ImageHalving, model_selection.HalvingRandomSearchCV):  # type: ignore[misc]
    """`sklearn.model_selection.HalvingRandomSearchCV` for images in any container; see `HalvingGridSearchCV`."""
