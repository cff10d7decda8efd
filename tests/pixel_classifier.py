"""A small image estimator of numpy alone: softmax regression on the brightness of pixels and of their surroundings.

It keeps the whole contract, so that each way of breaking it can be shown by changing one of its steps.
"""

import numpy as np
from scipy.ndimage import uniform_filter
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from skunet.metrics import iou_score


class PixelClassifier(ClassifierMixin, BaseEstimator):
    """Classifies each pixel by its channels, and by these blurred `depth` times."""

    def __init__(
        self,
        depth=1,
        *,
        classes=None,
        ignore_label=None,
        max_epochs=4,
        batch_size=4,
        train_split=0.2,
        random_state=None,
        verbose=0,
    ):
        self.depth = depth
        self.classes = classes
        self.ignore_label = ignore_label
        self.max_epochs = max_epochs
        self.batch_size = batch_size
        self.train_split = train_split
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X, y=None, *, groups=None, sample_weight=None):
        return self._train(X, y, self.classes, groups, sample_weight, is_fresh=True)

    def partial_fit(self, X, y=None, classes=None, *, groups=None, sample_weight=None):
        is_fresh = not hasattr(self, "classes_")
        classes = (self.classes if classes is None else classes) if is_fresh else self.classes_
        return self._train(X, y, classes, groups, sample_weight, is_fresh=is_fresh)

    def predict(self, X):
        self._check_ready()
        return self._pack([self._to_labels(proba) for proba in self._predict_images(X)], X)

    def predict_proba(self, X):
        self._check_ready()
        return self._pack(self._predict_images(X), X)

    def score(self, X, y, sample_weight=None):
        self._check_ready()
        if len(X) != len(y):
            raise ValueError(f"X and y must have the same length; got {len(X)} and {len(y)}.")
        return float(
            iou_score(list(y), list(self.predict(X)), ignore_label=self.ignore_label, sample_weight=sample_weight)
        )

    # ---- fit

    def _train(self, X, y, classes, groups, sample_weight, *, is_fresh):
        self._check_parameters()
        images, masks = self._open_pairs(X, y)
        weights = self._open_weights(sample_weight, masks)
        groups = self._open_groups(groups, len(masks))
        kept = self._weighted(weights)
        images, masks, weights = ([items[i] for i in kept] for items in (images, masks, weights))
        if is_fresh:
            self.spatial_ndim_, self.n_channels_in_ = masks[0].ndim, images[0].shape[-1]
            self.classes_ = self._learn_classes(masks, classes)
            self.depth_ = self.depth
        self._check_listed(masks)
        trained_on = self._split(len(kept), None if groups is None else groups[kept], masks)
        if is_fresh:
            self.generator_ = self._make_generator()
            self._learn_scaling([images[i] for i in trained_on])
            self.coefficients_ = self._start()
        self._descend([(images[i], masks[i], weights[i]) for i in trained_on])
        return self

    def _check_parameters(self):
        if self.depth < 0 or self.max_epochs < 0 or self.batch_size < 1:
            raise ValueError("depth and max_epochs must be at least 0, batch_size at least 1.")
        if not (self.random_state is None or isinstance(self.random_state, int)):
            raise ValueError(f"random_state must be None or an integer; got {self.random_state!r}.")

    def _open_pairs(self, X, y):
        masks = [np.asarray(mask) for mask in self._open(y, "y")]
        if masks[0].ndim not in (2, 3):
            raise ValueError(f"Masks must have 2 or 3 axes; got {masks[0].ndim}.")
        for mask in masks:
            self._check_mask(mask)
        images = self._open_images(X, masks[0].ndim)
        sizes = [image.shape[:-1] for image in images]
        if sizes != [mask.shape for mask in masks] or len({image.shape[-1] for image in images}) != 1:
            raise ValueError("Each image must have a mask of its size, and all images the same channels.")
        return images, masks

    def _open(self, data, name):
        if data is None or len(data) == 0:
            raise ValueError(f"{name} must hold at least one image.")
        return data

    def _check_mask(self, mask):
        if mask.dtype.kind in "fc" and not (np.isfinite(mask) & (mask == np.round(mask))).all():
            raise ValueError("Masks must hold whole numbers.")

    def _open_images(self, X, spatial_ndim):
        images = [self._open_image(np.asarray(image), spatial_ndim) for image in self._open(X, "X")]
        for image in images:
            if not (image.size and np.isfinite(image).all()):
                raise ValueError("Images must have pixels, and all of them finite.")
        return images

    def _open_image(self, image, spatial_ndim):
        if image.dtype.kind not in "buif" or image.ndim not in (spatial_ndim, spatial_ndim + 1):
            raise ValueError(f"Images must hold numbers; got {image.dtype} of shape {image.shape}.")
        image = self._to_float(image)
        return image if image.ndim > spatial_ndim else image[..., None]  # (*S, C)

    def _to_float(self, image):
        return image.astype(np.float64)

    def _open_weights(self, sample_weight, masks):
        if sample_weight is None:
            return [np.ones(mask.shape) for mask in masks]
        weights = [self._spread(np.asarray(w, dtype=float), mask) for w, mask in zip(sample_weight, masks, strict=True)]
        self._check_weights(weights)
        return weights

    def _spread(self, weight, mask):
        return np.broadcast_to(weight, mask.shape).copy()

    def _check_weights(self, weights):
        if not all((np.isfinite(weight) & (weight >= 0)).all() for weight in weights) or not any(
            weight.any() for weight in weights
        ):
            raise ValueError("sample_weight must be finite and at least 0, and not 0 for all.")

    def _weighted(self, weights):
        return np.flatnonzero([weight.any() for weight in weights])

    def _open_groups(self, groups, n_images):
        if groups is not None and len(groups) != n_images:
            raise ValueError(f"groups must be one per image, {n_images}; got {len(groups)}.")
        return None if groups is None else np.asarray(groups)

    def _learn_classes(self, masks, classes):
        found = np.unique(np.concatenate([mask.ravel() for mask in masks]))
        found = found if classes is None else np.unique(np.asarray(classes)).astype(found.dtype)
        found = found if self.ignore_label is None else found[found != self.ignore_label]
        if len(found) < 2:
            raise ValueError(f"There must be at least 2 classes; got {found.tolist()}.")
        return found

    def _check_listed(self, masks):
        known = self.classes_.tolist() + ([] if self.ignore_label is None else [self.ignore_label])
        if not all(np.isin(mask, known).all() for mask in masks):
            raise ValueError(f"Masks must hold labels of classes only: {known}.")

    def _split(self, n_images, groups, masks):
        if callable(self.train_split):
            return self.train_split(np.arange(n_images), masks, groups=groups)[0]
        units = np.unique(np.arange(n_images) if groups is None else groups, return_inverse=True)[1]
        n_held_out = int(self.train_split * (units.max() + 1)) if self.train_split else 0
        return np.flatnonzero(units >= max(n_held_out, 1))

    def _make_generator(self):
        return np.random.default_rng(self.random_state)

    def _learn_scaling(self, images):
        pixels = np.concatenate([image.reshape(-1, self.n_channels_in_) for image in images])
        self.mean_, self.std_ = pixels.mean(axis=0), pixels.std(axis=0) + 1e-9

    def _start(self):
        return self.generator_.normal(scale=0.1, size=(2 * self.n_channels_in_ + 1, len(self.classes_)))

    def _descend(self, samples):
        for _ in range(self.max_epochs):
            order = self.generator_.permutation(len(samples))
            for start in range(0, len(samples), self.batch_size):
                batch = [samples[i] for i in order[start : start + self.batch_size]]
                gradients = [self._gradient(*sample) for sample in batch]
                self.coefficients_ = self.coefficients_ - self._step() * np.mean(gradients, axis=0)

    def _step(self):
        return 1.0

    def _gradient(self, image, mask, weight):
        features = self._features(image)
        indices, is_counted = self._encode(mask)
        errors = softmax(features @ self.coefficients_, axis=-1) - np.eye(len(self.classes_))[indices]
        errors *= (weight * is_counted)[..., None]
        return np.tensordot(features, errors, axes=[range(mask.ndim)] * 2) / mask.size

    def _encode(self, mask):
        indices = np.searchsorted(self.classes_, mask).clip(max=len(self.classes_) - 1)
        return indices, self.classes_[indices] == mask

    def _features(self, image):
        scaled = (image - self.mean_) / self.std_
        blurred = scaled
        for _ in range(self._n_blurs()):
            blurred = uniform_filter(blurred, size=(3,) * self.spatial_ndim_ + (1,))
        return np.concatenate([np.ones_like(scaled[..., :1]), scaled, blurred], axis=-1)

    def _n_blurs(self):
        return self.depth_

    # ---- prediction

    def _check_ready(self):
        check_is_fitted(self)

    def _predict_images(self, X):
        images = self._open_images(X, self.spatial_ndim_)
        self._check_channels(images)
        batches = [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]
        return [proba for batch in batches for proba in self._predict_batch(batch)]

    def _check_channels(self, images):
        if any(image.shape[-1] != self.n_channels_in_ for image in images):
            raise ValueError(f"Images must have {self.n_channels_in_} channels.")

    def _predict_batch(self, images):
        scores = [self._features(image) @ self.coefficients_ for image in images]
        return [np.moveaxis(softmax(score, axis=-1).astype(np.float32), -1, 0) for score in scores]

    def _to_labels(self, proba):
        return self.classes_.take(proba.argmax(axis=0))

    def _pack(self, arrays, X):
        if isinstance(X, list):
            return arrays
        if X.dtype != object:
            return np.stack(arrays)
        objects = np.empty(len(arrays), dtype=object)
        for index, array in enumerate(arrays):
            objects[index] = array
        return objects
