"""For each check an estimator that it must catch: `PixelClassifier` with one of its steps broken."""

import copy
import os
import warnings

import numpy as np
import torch
from breaking import BROKEN, after_fit, breaks, mend, replace
from pixel_classifier import PixelClassifier

from skunet.metrics import iou_score

__all__ = ["BROKEN"]

# ---- parameters


@breaks("check_set_params")
class SetsMoreThanAsked(PixelClassifier):
    def set_params(self, **parameters):
        return super().set_params(**({"batch_size": 1} | parameters if "depth" in parameters else parameters))


@breaks("check_unknown_parameter_raises")
class TakesAnyName(PixelClassifier):
    def set_params(self, **parameters):
        return super().set_params(**{name: parameters[name] for name in parameters if name in self.get_params()})


@breaks("check_constructor_only_stores")
class ChecksInConstructor(PixelClassifier):
    def __init__(self, depth=1):
        if not isinstance(depth, int):
            raise TypeError("depth must be an integer.")
        super().__init__(depth)


replace("check_clone", __sklearn_clone__=copy.copy)
after_fit("check_parameters_survive_fit", do=lambda self, X, y: setattr(self, "classes", self.classes_))
replace("check_impossible_parameters_raise", _check_parameters=lambda self: None)
replace("check_set_params_waits_for_fit", _n_blurs=lambda self: self.depth)


# ---- fit


def write_into(array):
    if array.flags.writeable:
        array[...] = 0


@breaks("check_fit_twice")
class GoesOn(PixelClassifier):
    def _start(self):
        return self.coefficients_ if hasattr(self, "coefficients_") else super()._start()


@breaks("check_refit_forgets")
class RemembersClasses(PixelClassifier):
    def _step(self):
        self.most_classes_ = max(getattr(self, "most_classes_", 0), len(self.classes_))
        return 1 / self.most_classes_


@breaks("check_fit_keeps_sample_weight")
class NormalisesWeightsInPlace(PixelClassifier):
    def fit(self, X, y=None, *, sample_weight=None):
        super().fit(X, y, sample_weight=sample_weight)
        if sample_weight is not None:
            sample_weight /= sample_weight.sum()
        return self


@breaks("check_is_classifier")
class OfNoKind(PixelClassifier):
    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.estimator_type = None
        return tags


@breaks("check_zero_epochs")
class PredictsNothingUntrained(PixelClassifier):
    def predict(self, X):
        return super().predict(X)[: None if self.max_epochs else 1]


@breaks("check_partial_fit")
class ForgetsClasses(PixelClassifier):
    def partial_fit(self, X, y=None, classes=None):
        super().partial_fit(X, y, classes)
        self.classes_ = np.unique(y)
        return self


replace("check_fit_returns_self", fit=lambda self, X, y=None: None)
after_fit("check_fit_keeps_images", do=lambda self, X, y: write_into(y))
after_fit("check_fitted_attributes", do=lambda self, X, y: setattr(self, "labels", y))
replace("check_not_fitted_error", _check_ready=lambda self: self.coefficients_)
replace("check_is_fitted_is_told", __sklearn_is_fitted__=lambda self: True)
after_fit("check_fit_is_silent", do=lambda self, X, y: print("fitted"))
after_fit("check_learned_shape", do=lambda self, X, y: setattr(self, "n_channels_in_", np.shape(X)[-1]))
replace("check_partial_fit_refuses_new_labels", "check_unlisted_label_raises", _check_listed=lambda self, masks: None)


# ---- process and copies


def draw_seed_globally(self):
    return np.random.default_rng(np.random.randint(2**31))


replace("check_same_seed_same_result", _make_generator=lambda self: np.random.default_rng())
replace("check_global_seeds_have_no_influence", _make_generator=draw_seed_globally)
after_fit("check_global_generators_untouched", do=lambda self, X, y: torch.manual_seed(0))
after_fit("check_warning_filters_untouched", do=lambda self, X, y: warnings.simplefilter("ignore"))
after_fit("check_thread_counts_untouched", do=lambda self, X, y: torch.set_num_threads(torch.get_num_threads() + 1))
after_fit("check_global_settings_untouched", do=lambda self, X, y: os.environ.update(OF_A_BROKEN_SEGMENTER="1"))


@breaks("check_pickle", "check_joblib")
class RoundsWhenPickled(PixelClassifier):
    def __getstate__(self):
        state = super().__getstate__()
        return state | {"coefficients_": state["coefficients_"].astype(np.float16)}


replace("check_deepcopy", __deepcopy__=lambda self, memo: self)


# ---- containers


@breaks("check_fit_containers")
class DropsFromLists(PixelClassifier):
    def fit(self, X, y=None):
        return super().fit(X[1:], y[1:]) if isinstance(X, list) else super().fit(X, y)


@breaks("check_memory_maps")
class ReadsOnePage(PixelClassifier):
    def fit(self, X, y=None):
        return super().fit(X[:3], y[:3]) if isinstance(X, np.memmap) else super().fit(X, y)


@breaks("check_fit_several_sizes")
class FillsUpToTheLargest(PixelClassifier):
    def _pack(self, arrays, X):
        largest = np.max([array.shape for array in arrays], axis=0)
        return super()._pack([np.resize(array, largest) for array in arrays], X)


@breaks("check_predict_sizes")
class KeepsPadding(PixelClassifier):
    def _pack(self, arrays, X):
        return super()._pack([np.pad(array, [(0, n % 2) for n in array.shape]) for array in arrays], X)


@breaks("check_dtypes")
class GuessesFromDtype(PixelClassifier):
    def _to_float(self, image):
        return image * 255.0 if image.dtype.kind == "f" else image * 1.0


@breaks("check_channel_axis")
class TreatsChannelAxisOtherwise(PixelClassifier):
    def _open_image(self, image, spatial_ndim):
        return super()._open_image(np.sqrt(image) if image.ndim > spatial_ndim else image, spatial_ndim)


@breaks("check_colour")
class SeesOneChannel(PixelClassifier):
    def _open_image(self, image, spatial_ndim):
        opened = super()._open_image(image, spatial_ndim)
        return np.repeat(opened[..., :1], opened.shape[-1], axis=-1)


def read_in_memory_order(self, image):
    return image.ravel(order="K").reshape(image.shape) * 1.0


def darken_by_mean(self, X):
    level = np.mean([np.mean(image) for image in X])
    return PixelClassifier._predict_images(self, [image - 0.1 * level for image in X])


replace("check_memory_layouts", _to_float=read_in_memory_order)
replace("check_predict_containers", _pack=lambda self, arrays, X: np.stack(arrays))
replace("check_predict_several_sizes", "check_predict_subset", _predict_images=darken_by_mean)


# ---- prediction


@breaks("check_predict_order")
class DarkensOneByOne(PixelClassifier):
    def _predict_images(self, X):
        return super()._predict_images([image - 8.0 * index for index, image in enumerate(X)])


@breaks("check_predict_batch_size")
class DarkensByBatch(PixelClassifier):
    def _predict_batch(self, images):
        return super()._predict_batch([image - 0.1 * np.mean(images) for image in images])


@breaks("check_predict_keeps_images")
class WritesWhenItPredicts(PixelClassifier):
    def predict(self, X):
        labels = super().predict(X)
        write_into(X)
        return labels


@breaks("check_predict_changes_nothing")
class KeepsWhatItPredicts(PixelClassifier):
    def predict(self, X):
        self.last_ = super().predict(X)
        return self.last_


@breaks("check_proba_form")
class ClassesLast(PixelClassifier):
    def predict_proba(self, X):
        return np.moveaxis(super().predict_proba(X), 1, -1)


@breaks("check_proba_agrees")
class ClassesTheOtherWayRound(PixelClassifier):
    def predict_proba(self, X):
        return super().predict_proba(X)[:, ::-1]


@breaks("check_score_sample_weight")
class ScoresWithoutWeights(PixelClassifier):
    def score(self, X, y, sample_weight=None):
        return super().score(X, y)


@breaks("check_score_leaves_out_ignored")
class ScoresIgnoredPixels(PixelClassifier):
    def score(self, X, y):
        return float(iou_score(y, self.predict(X)))


@breaks("check_score")
class ScoresImageByImage(PixelClassifier):
    def score(self, X, y):
        return float(np.mean([iou_score([a], [b]) for a, b in zip(y, self.predict(X), strict=True)]))


# ---- labels


def return_labels(name, turn):
    replace(name, _to_labels=lambda self, proba: turn(PixelClassifier._to_labels(self, proba)))


return_labels("check_bool_labels", lambda labels: labels.astype(np.uint8))
return_labels("check_byte_labels", lambda labels: np.minimum(labels, 1))
return_labels("check_gapped_labels", lambda labels: np.minimum(labels, 255))
return_labels("check_negative_labels", np.abs)
return_labels("check_float_labels", lambda labels: labels.astype(int))
return_labels("check_text_labels", lambda labels: labels.astype(object))


def learn_all(self, masks, classes):
    return np.unique(masks)


def learn_all_but_255(self, masks, classes):
    return np.setdiff1d(masks, [255]).astype(np.uint8)


@breaks("check_proba_of_ignored_problem")
class HasMapOfIgnored(PixelClassifier):
    def predict_proba(self, X):
        proba = super().predict_proba(X)
        return proba if self.ignore_label is None else np.concatenate([proba, 0 * proba[:, :1]], axis=1)


after_fit("check_classes", do=lambda self, X, y: setattr(self, "classes_", self.classes_[::-1]))
replace("check_listed_classes", "check_ignore_label_is_no_class", _learn_classes=learn_all)
replace("check_ignore_label_is_any", _learn_classes=learn_all_but_255)
replace(
    "check_ignored_pixels_have_no_influence",
    _encode=lambda self, mask: (PixelClassifier._encode(self, mask)[0], np.True_),
)


# ---- weights and groups


def spread(name, turn):
    replace(name, _spread=lambda self, weight, mask: np.broadcast_to(turn(weight), mask.shape).copy())


replace("check_weightless_image_is_absent", _weighted=lambda self, weights: np.arange(len(weights)))
spread("check_weightless_pixel_has_no_influence", lambda weight: np.maximum(weight, 0.01))
spread("check_unit_weights", lambda weight: 2 * weight)
spread("check_image_weight_is_pixel_weight", lambda weight: weight if weight.ndim else weight**2)
spread("check_weights_have_effect", lambda weight: (weight > 0) * 1.0)
replace("check_bad_weights_raise", _check_weights=lambda self, weights: None)
replace(
    "check_groups_stay_together",
    "check_groups_reach_train_split",
    _split=lambda self, n, groups, masks: PixelClassifier._split(self, n, None, masks),
)
replace("check_bad_groups_raise", _open_groups=lambda self, groups, n: None if groups is None else np.resize(groups, n))


# ---- errors


def fill_empty(X, y):
    return (X, y) if np.size(X) else (np.zeros((2, 8, 8)), np.indices((2, 8, 8))[0])


def cut_to_shortest(X, y):
    n = len(X) if y is None else min(len(X), len(y))
    return X[:n], y if y is None else y[:n]


def paint_images(X, y):
    return X, y if np.ndim(y) != 1 else np.broadcast_to(y[:, None, None], X.shape)


def add_first_axis(X, y):
    return (X[None], y if y is None else y[None]) if X.ndim == 2 else (X, y)


mend("check_nan_raises", "check_infinity_raises", by=lambda X, y: (np.nan_to_num(X, posinf=0), y))
mend("check_complex_raises", by=lambda X, y: (X.real, y))
mend("check_text_images_raise", by=lambda X, y: (X if X.dtype.kind != "U" else np.zeros(X.shape), y))
mend("check_no_images_raise", "check_no_pixels_raise", by=fill_empty)
mend("check_length_mismatch_raises", by=cut_to_shortest)
mend("check_size_mismatch_raises", by=lambda X, y: (X if y is None else X[..., : y.shape[-1]], y))
mend("check_wrong_rank_raises", by=paint_images)
mend("check_channels_first_raises", by=lambda X, y: (np.moveaxis(X, 1, -1) if X.shape[1] == 2 else X, y))
mend("check_single_image_raises", by=add_first_axis)
replace("check_one_class_raises", _learn_classes=lambda self, masks, classes: np.array([0, 1]))
mend("check_fractional_mask_raises", by=lambda X, y: (X, y if y is None else np.ceil(y)))
mend("check_nan_in_mask_raises", by=lambda X, y: (X, y if y is None else np.nan_to_num(y)))
mend("check_missing_masks_raise", by=lambda X, y: (X, X > 99 if y is None else y))
mend("check_other_channels_raise", by=lambda X, y: (X[..., 0] if X.ndim == 4 else X, y))
mend("check_other_rank_raises", by=lambda X, y: (np.squeeze(X), y))
