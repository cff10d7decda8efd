"""Transformers of images, by themselves and in Pipelines in front of a segmenter."""

import io
import pickle
import warnings

import imageio.v3 as iio
import joblib
import numpy as np
import pytest
import sklearn
import torch
from conftest import make_segmenter, real_data
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import EpochScoring
from torch.utils.data import TensorDataset

from skunet.containers import object_array
from skunet.datasets import make_cells
from skunet.metrics import iou_score, iou_scorer
from skunet.preprocessing import ChannelSelector, ImageResizer, ImageScaler, ResizedImages
from skunet.resizing import resize_image, resize_linearly, resize_mask

TRANSFORMERS = [ImageScaler("minmax"), ImageScaler(), ChannelSelector([0]), ImageResizer(8)]


def colour_images(n=4, size=(6, 7), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *size, 3), dtype=np.uint8)


# ---- containers


def as_container(X, kind, folder=None):
    """Return a stack as another container, with the type that is to come back, and that of its items."""
    if kind == "stack":
        return X, np.ndarray
    if kind == "memmap":
        lazy = np.memmap(folder / "stack.raw", dtype=X.dtype, mode="w+", shape=X.shape)
        lazy[:] = X
        return lazy, np.ndarray
    if kind == "tensor":
        return torch.from_numpy(np.moveaxis(X, -1, 1).copy()), torch.Tensor
    if kind == "list":
        return list(X), list
    if kind == "object array":
        return object_array(list(X)), np.ndarray
    if kind == "tensors":
        return [torch.from_numpy(np.moveaxis(image, -1, 0).copy()) for image in X], list
    for index, image in enumerate(X):
        iio.imwrite(folder / f"{index}.png", image)
    return [folder / f"{index}.png" for index in range(len(X))], list


CONTAINERS = ["stack", "memmap", "tensor", "list", "object array", "tensors", "paths"]


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_container_comes_back_with_the_values_of_the_stack(transformer, kind, tmp_path):
    X = colour_images()
    expected = clone(transformer).set_params(spatial_ndim=2).fit_transform(X)
    given, container = as_container(X, kind, tmp_path)
    changed = clone(transformer).set_params(spatial_ndim=2).fit_transform(given)
    if isinstance(expected, ResizedImages):
        assert changed.original_sizes == expected.original_sizes == ((6, 7),) * 4
        changed, expected = changed.images, expected.images
    assert isinstance(changed, container)
    assert len(changed) == 4
    assert getattr(changed, "dtype", None) == (object if kind == "object array" else getattr(changed, "dtype", None))
    for image, reference in zip(changed, expected, strict=True):
        if kind in ("tensor", "tensors"):
            assert isinstance(image, torch.Tensor)
            image = np.moveaxis(image.numpy(), 0, -1)
        assert image.dtype == reference.dtype
        np.testing.assert_array_equal(image, reference)


@pytest.mark.parametrize("transformer", [ImageScaler(), ImageScaler("percentile"), ImageResizer(factor=0.5)], ids=str)
def test_images_without_channels_and_volumes_keep_their_axes(transformer, cells, volumes):
    for X, y in (cells, volumes):
        changed = clone(transformer).fit(X[:3], y[:3]).transform(X[:3])
        assert np.ndim(changed[0]) == X.ndim - 1
        coloured = clone(transformer).fit(X[:3, ..., None], y[:3]).transform(X[:3, ..., None])
        np.testing.assert_array_equal(coloured[1][..., 0], changed[1])


def test_originals_are_neither_changed_nor_kept_alive():
    X = [image.copy() for image in colour_images(2)]
    before = [image.copy() for image in X]
    for transformer in [*TRANSFORMERS, ChannelSelector(0), ChannelSelector(slice(None)), ImageResizer((6, 7))]:
        changed = clone(transformer).set_params(spatial_ndim=2).fit_transform(X)
        images = changed.images if isinstance(changed, ResizedImages) else changed
        assert all(image.base is None or image.base.size <= image.size for image in images)
        assert not any(np.shares_memory(image, original) for image, original in zip(images, X, strict=True))
    np.testing.assert_array_equal(X, before)


# ---- which axis is what


@pytest.mark.parametrize("transformer", [ImageScaler(), ImageResizer(4)], ids=str)
def test_rank_is_settled_by_masks_by_shape_or_by_parameter(transformer):
    X = np.random.default_rng(0).normal(size=(2, 5, 6, 7))
    for y, expected in ((X[..., 0] > 0, (2, 7)), (X > 0, (3, 1))):
        fitted = clone(transformer).fit(X, y)
        assert (fitted.spatial_ndim_, fitted.n_channels_in_) == expected
    with pytest.raises(
        ValueError, match=r"shape \(5, 6, 7\) may be 2-D with channels, or volumes.*spatial_ndim=2 or 3"
    ):
        clone(transformer).fit(X)
    fitted = clone(transformer).set_params(spatial_ndim=3).fit(X)
    assert (fitted.spatial_ndim_, fitted.n_channels_in_) == (3, 1)
    assert clone(transformer).fit(X[:, 0]).spatial_ndim_ == 2
    assert clone(transformer).fit(X[..., None]).spatial_ndim_ == 3


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((colour_images()[..., 0], colour_images()[:3, ..., 0]), ValueError, "same number of images; got 4"),
        ((colour_images(), colour_images()[:, :5, :, 0]), ValueError, r"size of its image; image 0 has \(6, 7\)"),
        ((np.moveaxis(colour_images(), -1, 1), colour_images()[..., 0]), ValueError, "Channels come last"),
        ((TensorDataset(torch.zeros(2, 1, 4, 4), torch.zeros(2, 4, 4)),), TypeError, "got a TensorDataset"),
        ((None,), ValueError, "X must be"),
        ((np.full((2, 4, 4), np.nan),), ValueError, "NaN or infinity: image 0"),
    ],
)
def test_fit_refuses_what_the_segmenter_would(arguments, error, text):
    with pytest.raises(error, match=text):
        ImageScaler().fit(*arguments)


@pytest.mark.parametrize("spatial_ndim", [1, 4, "2"])
def test_rank_parameter_out_of_range_raises(spatial_ndim):
    with pytest.raises(ValueError, match="spatial_ndim must be 2 for images"):
        ImageResizer(4, spatial_ndim=spatial_ndim).fit(colour_images())


def test_rank_parameter_that_contradicts_the_masks_raises(cells):
    with pytest.raises(ValueError, match="number of axes of a mask, 2; got 3"):
        ImageScaler(spatial_ndim=3).fit(*cells)


@pytest.mark.parametrize("transformer", TRANSFORMERS, ids=str)
def test_transform_refuses_other_images_than_fitted(transformer):
    X = colour_images()
    fitted = clone(transformer).fit(X, X[..., 0])
    with pytest.raises(ValueError, match=r"3 channel\(s\).*image 0 has 2"):
        fitted.transform(X[..., :2])
    with pytest.raises(ValueError, match=r"image 2 has 1"):
        fitted.transform([X[0], X[1], X[2][..., :1]])
    with pytest.raises(ValueError, match="X must be a stack"):
        fitted.transform(X[:, :, :, None])
    with pytest.raises(ValueError, match="NaN or infinity: image 1"):
        fitted.transform([np.zeros((2, 2, 3)), np.full((2, 2, 3), np.inf)])
    with pytest.raises(NotFittedError):
        clone(transformer).transform(X)


# ---- scikit-learn's conventions


@pytest.mark.parametrize("transformer", [*TRANSFORMERS, ImageResizer(factor=2), ImageScaler((1, [1, 2, 3]))], ids=str)
def test_transformer_is_cloned_pickled_and_described(transformer):
    X = colour_images()
    fitted = clone(transformer).fit(X, X[..., 0])
    assert repr(clone(fitted)) == repr(transformer)
    again = pickle.loads(pickle.dumps(fitted)).transform(X)
    assert np.array_equal(np.asarray(list(again)), np.asarray(list(fitted.transform(X))))
    tags = fitted.__sklearn_tags__()
    assert tags.requires_fit
    assert not tags.target_tags.required
    assert tags.transformer_tags is not None
    assert fitted.set_output(transform="pandas") is fitted
    with sklearn.config_context(transform_output="pandas"):
        assert type(clone(transformer).fit_transform(X, X[..., 0])) in (np.ndarray, ResizedImages)


def test_output_of_a_pipeline_can_be_set(cells):
    X, y = cells
    pipeline = make_pipeline(ImageScaler(), ImageResizer(16), make_segmenter()).set_output(transform="pandas")
    assert pipeline.fit(X, y).predict(X).shape == y.shape


# ---- ImageScaler


def test_dataset_scaling_gives_each_channel_mean_0_and_deviation_1_of_the_fitted_images():
    X = [image[: 3 + index] for index, image in enumerate(colour_images())]
    y = [image[..., 0] for image in X]
    scaled = ImageScaler().fit(X, y).transform(X)
    pixels = np.concatenate([image.reshape(-1, 3) for image in X]).astype(float)
    expected = (X[3] - pixels.mean(0)) / pixels.std(0)
    np.testing.assert_allclose(scaled[3], expected, atol=1e-5)
    standard = StandardScaler().fit(pixels)
    np.testing.assert_allclose(ImageScaler().fit(X, y).scaling_constants_, [standard.mean_, standard.scale_])


def test_image_and_minmax_scaling_look_at_each_channel_of_each_image():
    X = colour_images()
    scaled = ImageScaler("image", spatial_ndim=2).fit_transform(X)
    np.testing.assert_allclose(scaled.mean((1, 2)), 0, atol=1e-6)
    np.testing.assert_allclose(scaled.std((1, 2)), 1, atol=1e-6)
    scaled = ImageScaler("minmax", spatial_ndim=2).fit_transform(X)
    np.testing.assert_array_equal(scaled.min((1, 2)), 0)
    np.testing.assert_array_equal(scaled.max((1, 2)), 1)


def test_percentiles_become_0_and_1_and_what_lies_beyond_is_not_clipped():
    X = colour_images(size=(30, 31))
    scaled = ImageScaler("percentile", percentiles=(10, 80), spatial_ndim=2).fit_transform(X)
    low, high = np.percentile(X, [10, 80], axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(scaled, (X - low) / (high - low), atol=1e-5)
    assert scaled.min() < 0
    assert scaled.max() > 1


def test_percentiles_that_coincide_fall_back_on_the_extremes():
    X = np.zeros((1, 30, 30), dtype=np.uint8)
    X[0, 0, 0] = 200
    scaled = ImageScaler("percentile").fit_transform(X)
    assert scaled[0, 0, 0] == 1
    assert np.count_nonzero(scaled) == 1


def test_given_mean_and_deviation_per_channel():
    X = colour_images()
    scaled = ImageScaler(([1, 2, 3], 2.0), spatial_ndim=2).fit_transform(X)
    np.testing.assert_allclose(scaled, (X - np.array([1.0, 2, 3])) / 2, atol=1e-6)


@pytest.mark.parametrize("scaling", ["dataset", "image", "minmax", "percentile"])
@pytest.mark.parametrize("value", [0, 7, 0.1, 1e9 + 0.3])
def test_constant_images_become_0(scaling, value):
    scaled = ImageScaler(scaling).fit_transform(np.full((2, 5, 6), value))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, 0, atol=1e-6)


def test_dataset_scaling_scales_new_images_as_those_fitted():
    scaler = ImageScaler().fit(np.array([[[0.0, 2.0]]]))
    assert scaler.transform(np.array([[[5.0]]])).tolist() == [[[4.0]]]


def test_small_differences_at_a_large_offset_survive():
    X = np.array([[[2**30, 2**30 + 1], [2**30 + 2, 2**30 + 4]]], dtype=np.int32)
    assert ImageScaler("minmax").fit_transform(X).tolist() == [[[0, 0.25], [0.5, 1]]]


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"scaling": "standard"}, "scaling must be .*percentile.*; got 'standard'"),
        ({"scaling": None}, "scaling must be .*; got None"),
        ({"scaling": (1, 0)}, "scaling must be"),
        ({"scaling": ([1, 2], 1)}, "one for each of 3"),
        ({"scaling": "percentile", "percentiles": (99, 1)}, "percentiles must be"),
        ({"percentiles": 5}, "percentiles must be"),
    ],
)
def test_scaler_parameter_out_of_range_raises_at_fit(parameters, text):
    scaler = ImageScaler(**parameters)
    with pytest.raises(ValueError, match=text):
        scaler.fit(colour_images(), colour_images()[..., 0])


# ---- ChannelSelector


@pytest.mark.parametrize(
    "channels", [0, -1, np.int64(1), [2, 0], (1,), np.array([0, 1]), slice(1, None), slice(None, None, 2)]
)
def test_channels_are_selected_as_by_numpy(channels):
    X = colour_images()
    expected = X[..., list(channels) if isinstance(channels, tuple) else channels]
    selected = ChannelSelector(channels).fit(X).transform(X)
    assert selected.dtype == np.uint8
    np.testing.assert_array_equal(selected, expected)


def test_channels_of_volumes_are_the_last_axis():
    X = np.arange(2 * 3 * 4 * 5 * 2).reshape(2, 3, 4, 5, 2)
    selector = ChannelSelector(1).fit(X)
    assert selector.spatial_ndim_ == 3
    np.testing.assert_array_equal(selector.transform(X), X[..., 1])


@pytest.mark.parametrize(
    ("channels", "error"),
    [
        *((channels, ValueError) for channels in (3, -4, [0, 3], [], slice(3, None))),
        *((channels, TypeError) for channels in ("red", 1.0, [True, False, True], None)),
    ],
)
def test_channels_that_are_not_there_raise(channels, error):
    with pytest.raises(error, match="channels must"):
        ChannelSelector(channels).fit(colour_images())


def test_images_without_channels_have_none_to_select(volumes):
    with pytest.raises(ValueError, match=r"channel axis to select from; got images of shape \(6, 7\)"):
        ChannelSelector(0).fit(colour_images()[..., 0])
    with pytest.raises(ValueError, match="channel axis to select from"):
        ChannelSelector(0).fit(*volumes)


@pytest.mark.parametrize("channels", [1, [1], [2, 0]])
def test_selected_channels_reach_the_segmenter(channels):
    X = colour_images(size=(16, 16))
    y = (X[..., 1] > 127).astype(np.uint8)
    pipeline = make_pipeline(ChannelSelector(channels), make_segmenter()).fit(X, y)
    alone = make_segmenter().fit(X[..., channels], y)
    np.testing.assert_array_equal(pipeline.predict_proba(X), alone.predict_proba(X[..., channels]))


# ---- ImageResizer


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({"size": 5}, (5, 5)),
        ({"size": (3, 20)}, (3, 20)),
        ({"size": np.array([3, 4])}, (3, 4)),
        ({"factor": 0.5}, (6, 8)),
        ({"factor": (2, 0.25)}, (22, 4)),
        ({"factor": 1e-9}, (1, 1)),
        ({"factor": 1}, (11, 15)),
        ({"size": np.int64(7)}, (7, 7)),
    ],
)
def test_sides_are_the_size_or_rounded_multiples(parameters, expected):
    X = np.random.default_rng(0).integers(0, 256, (2, 11, 15), dtype=np.uint8)
    resized = ImageResizer(**parameters).fit_transform(X)
    assert resized.images.shape == (2, *expected)
    assert resized.images.dtype == np.uint8
    np.testing.assert_array_equal(resized[1], resize_image(X[1][None], expected)[0])


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({}, "Either size or factor must be given; got size=None"),
        ({"size": 4, "factor": 1.0}, "Either size or factor must be given; got size=4"),
        ({"size": 0}, "size must be"),
        ({"size": 2.5}, "size must be"),
        ({"size": True}, "size must be"),
        ({"size": (4, 4, 4)}, "2 of them, one per axis"),
        ({"size": "4"}, "size must be"),
        ({"factor": 0}, "factor must be"),
        ({"factor": np.inf}, "factor must be"),
        ({"factor": (0.5, -1)}, "factor must be"),
        ({"factor": "half"}, "factor must be"),
    ],
)
def test_resizer_parameter_out_of_range_raises_at_fit(parameters, text):
    resizer = ImageResizer(**parameters)
    with pytest.raises(ValueError, match=text):
        resizer.fit(colour_images()[..., 0])


def test_several_resizers_and_other_transformers_keep_the_first_size(cells):
    X, y = cells
    steps = [
        ImageResizer(factor=0.5),
        ImageScaler(),
        ImageResizer((12, 20)),
        ChannelSelector([0]),
        ImageScaler("image"),
    ]
    resized = make_pipeline(*steps).fit(X[..., None], y).transform(X[..., None])
    assert resized.images.shape == (12, 12, 20, 1)
    assert resized.original_sizes == ((32, 32),) * 12


# ---- Pipelines


def ragged_cells(n=6):
    """Images of odd and even sizes; masks of 0 and 255."""
    sizes = [(24, 33), (31, 24), (24, 24), (40, 27), (25, 25), (33, 24)][:n]
    pairs = [make_cells(1, size=size, random_state=seed) for seed, size in enumerate(sizes)]
    return [X[0] for X, _ in pairs], [(y[0] * 255).astype(np.uint8) for _, y in pairs]


def pipeline_of(**resizing):
    return make_pipeline(ImageResizer(**resizing), ImageScaler(), make_segmenter(scaling=None))


def expected_probabilities(pipeline, image, size):
    """Return probabilities (K, *size): what the segmenter says of the resized image, interpolated."""
    resized = pipeline[:-1].transform([image]).images
    probabilities = pipeline[-1].predict_proba(resized)[0]
    return resize_linearly(torch.from_numpy(probabilities[None]), size)[0].numpy()


def check_results(pipeline, X, y):
    """Compare what a fitted pipeline predicts with an interpolation by hand, and its parts with each other."""
    labels, probabilities = pipeline.predict(X), pipeline.predict_proba(X)
    assert len(labels) == len(probabilities) == len(X)
    for index in range(len(X)):
        image = iio.imread(X[index]) if not hasattr(X[index], "shape") else X[index]
        assert labels[index].shape == y[index].shape
        assert labels[index].dtype == pipeline.classes_.dtype
        assert probabilities[index].dtype == np.float32
        np.testing.assert_allclose(
            probabilities[index], expected_probabilities(pipeline, image, y[index].shape), atol=1e-6
        )
        np.testing.assert_array_equal(labels[index], pipeline.classes_[probabilities[index].argmax(0)])
        np.testing.assert_allclose(probabilities[index].sum(0), 1, atol=1e-5)
    assert pipeline.score(X, y) == iou_score(list(y), list(labels))


@pytest.mark.parametrize("resizing", [{"factor": 0.5}, {"size": (11, 17)}, {"factor": 1.5}, {"size": 1}], ids=str)
def test_stack_is_predicted_at_its_own_size(cells, resizing):
    X, y = cells
    pipeline = pipeline_of(**resizing).fit(X, y)
    assert isinstance(pipeline.predict(X), np.ndarray)
    assert pipeline.predict_proba(X).shape == (12, 2, 32, 32)
    check_results(pipeline, X, y)


@pytest.mark.parametrize("resizing", [{"factor": 0.5}, {"size": (4, 9, 7)}, {"factor": (1, 0.5, 0.5)}], ids=str)
def test_volumes_are_predicted_at_their_own_size(volumes, resizing):
    X, y = volumes
    check_results(pipeline_of(**resizing).fit(X, y), X, y)


@pytest.mark.parametrize("container", [list, object_array])
@pytest.mark.parametrize("resizing", [{"factor": 0.5}, {"size": 16}], ids=str)
def test_images_of_several_sizes_come_back_in_their_sizes(container, resizing):
    X, y = ragged_cells()
    pipeline = pipeline_of(**resizing).fit(container(X), container(y))
    assert type(pipeline.predict(container(X))) is type(container(X))
    assert set(pipeline.classes_) == {0, 255}
    check_results(pipeline, container(X), container(y))


def test_files_are_predicted_at_their_own_size(tmp_path):
    X, y = ragged_cells()
    for index, (image, mask) in enumerate(zip(X, y, strict=True)):
        iio.imwrite(tmp_path / f"{index}.png", image)
        iio.imwrite(tmp_path / f"{index}_mask.png", mask)
    images, masks = ([tmp_path / f"{index}{end}.png" for index in range(6)] for end in ("", "_mask"))
    pipeline = pipeline_of(factor=0.5).fit(images, masks)
    check_results(pipeline, images, y)
    assert pipeline.score(images, masks) == pipeline.score(X, y)
    for of_files, of_arrays in zip(pipeline.predict(images), pipeline_of(factor=0.5).fit(X, y).predict(X), strict=True):
        np.testing.assert_array_equal(of_files, of_arrays)


def test_tensors_with_channels_first_are_predicted_at_their_own_size(cells):
    X, y = cells
    colour = np.stack([X, X[:, ::-1], X], axis=-1)
    tensor = torch.from_numpy(np.moveaxis(colour, -1, 1).copy())
    pipeline = pipeline_of(factor=0.5).fit(tensor, torch.from_numpy(y.copy()))
    np.testing.assert_array_equal(pipeline.predict(tensor), pipeline_of(factor=0.5).fit(colour, y).predict(colour))


def test_images_of_one_pixel_are_predicted():
    X, y = ragged_cells()
    pipeline = pipeline_of(size=16).fit([*X, np.full((1, 1), 9, np.uint8)], [*y, np.zeros((1, 1), np.uint8)])
    assert pipeline.predict([np.full((1, 1), 200, np.uint8), np.full((1, 5), 3, np.uint8)])[1].shape == (1, 5)


def test_same_size_changes_nothing_bit_for_bit(cells):
    X, y = cells
    pipeline = make_pipeline(ImageResizer(factor=1.0), make_segmenter(max_epochs=2)).fit(X, y)
    alone = make_segmenter(max_epochs=2).fit(X, y)
    np.testing.assert_array_equal(pipeline.predict_proba(X), alone.predict_proba(X))
    np.testing.assert_array_equal(pipeline.predict(X), alone.predict(X))


def test_training_equals_that_on_images_and_masks_resized_by_hand(cells):
    X, y = cells
    weights = np.random.default_rng(0).uniform(0, 2, y.shape)
    weights[3] = 0
    pipeline = make_pipeline(ImageResizer(20), make_segmenter(max_epochs=2))
    pipeline.fit(X, y, unetsegmenter__sample_weight=weights)
    small = [np.stack([resize_mask(item, (20, 20)) for item in stack]) for stack in (y, weights)]
    images = np.stack([resize_image(image[None], (20, 20))[0] for image in X])
    alone = make_segmenter(max_epochs=2).fit(images, small[0], sample_weight=small[1])
    for one, other in zip(pipeline[-1].module_.parameters(), alone.module_.parameters(), strict=True):
        assert torch.equal(one, other)
    assert pipeline[-1].history_[-1, "valid_iou"] == alone.history_[-1, "valid_iou"]


def test_weights_of_images_pass_and_weights_of_another_size_raise(cells):
    X, y = cells
    make_pipeline(ImageResizer(16), make_segmenter()).fit(X, y, unetsegmenter__sample_weight=np.arange(12))
    with pytest.raises(ValueError, match=r"size of the mask \(32, 32\); got \(16, 16\) for image 0"):
        pipeline_of(size=16).fit(X, y, unetsegmenter__sample_weight=np.ones((12, 16, 16)))


def test_masks_of_the_new_size_are_refused(cells):
    X, y = cells
    resized = ImageResizer(16).fit(X).transform(X)
    with pytest.raises(ValueError, match=r"mask 0 has \(16, 16\). Pass masks as they are"):
        make_segmenter().fit(resized, y[:, ::2, ::2])
    assert make_segmenter().fit(resized, y).predict(resized).shape == y.shape


def test_mask_of_another_size_than_its_image_raises_with_its_number(cells):
    X, y = ragged_cells()
    y[4] = y[4][1:]
    with pytest.raises(ValueError, match="A mask must have the size of its image; image 4"):
        pipeline_of(size=16).fit(X, y)


@pytest.mark.parametrize("caching", [True, False])
def test_scores_during_training_are_at_the_new_size_cached_or_not(caching):
    X, y = ragged_cells()
    if not caching:  # skorch caches class indices in place of strings
        y = [np.where(mask > 0, "cell", "none") for mask in y]
    scoring = EpochScoring(iou_scorer, name="score", lower_is_better=False, use_caching=caching)
    segmenter = make_segmenter(callbacks=[scoring], batch_size=1)
    pipeline = make_pipeline(ImageResizer(16), segmenter).fit(X, y)
    row = pipeline[-1].history_[-1]
    assert row["score"] == pytest.approx(row["valid_iou"])
    assert pipeline.predict(X)[0].dtype == pipeline.classes_.dtype


def test_ignored_pixels_follow_their_mask(cells):
    X, y = cells
    marked = y.astype(np.int16)
    marked[:, :16] = 7
    pipeline = make_pipeline(ImageResizer(16), make_segmenter(ignore_label=7)).fit(X, marked)
    assert pipeline.classes_.tolist() == [0, 1]
    assert pipeline[-1].class_counts_.sum() == 12 * 8 * 16
    assert set(np.unique(pipeline.predict(X))) <= {0, 1}
    assert pipeline.score(X, marked) == iou_score(marked, pipeline.predict(X), ignore_label=7)


def test_labels_are_those_of_the_most_probable_class_after_interpolation():
    # Per pixel the two corner classes win; half-way between them the third one, second in both, would not be
    # found by interpolating labels.
    X, y = make_cells(6, size=16, random_state=0)
    y[:, :4] = 2
    pipeline = make_pipeline(ImageResizer(factor=0.3), make_segmenter(max_epochs=3, lr=0.05)).fit(X, y)
    np.testing.assert_array_equal(pipeline.predict(X), pipeline.predict_proba(X).argmax(1))


# ---- scikit-learn's tools


def test_cross_validation_scores_at_the_size_of_the_user(cells):
    X, y = cells
    cv = KFold(2)
    pipeline = pipeline_of(size=16)
    scores = cross_val_score(pipeline, X, y, cv=cv)
    predicted = cross_val_predict(pipeline, X, y, cv=cv)
    expected = [iou_score(y[test], predicted[test]) for _, test in cv.split(X)]
    np.testing.assert_allclose(scores, expected)


def test_grid_search_finds_size_and_factor(cells):
    X, y = cells
    pipeline = make_pipeline(ImageResizer(), make_segmenter(max_epochs=8, lr=0.02))
    grid = [{"imageresizer__size": [2, 24]}, {"imageresizer__factor": [0.05]}]
    search = GridSearchCV(pipeline, grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_ == {"imageresizer__size": 24}
    assert search.predict(X).shape == y.shape
    assert search.score(X, y) == search.best_estimator_.score(X, y)


@pytest.mark.slow
def test_two_workers_give_the_scores_of_one():
    X, y = ragged_cells()
    X, y = object_array(X), object_array(y)
    one, two = (cross_val_score(pipeline_of(factor=0.5), X, y, cv=2, n_jobs=n_jobs) for n_jobs in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_pipeline_is_stored_with_what_it_learned(cells):
    X, y = cells
    pipeline = pipeline_of(size=16).fit(X, y)
    file = io.BytesIO()
    joblib.dump(pipeline, file)
    file.seek(0)
    np.testing.assert_array_equal(joblib.load(file).predict_proba(X), pipeline.predict_proba(X))


def test_training_at_half_size_gives_a_useful_mask():
    X, y = make_cells(12, size=48, random_state=0)
    pipeline = make_pipeline(ImageResizer(factor=0.5), make_segmenter(filters=8, max_epochs=15, lr=0.02))
    pipeline.fit(X[:8], y[:8])
    always_background = iou_score(y[8:], np.zeros_like(y[8:]))
    assert pipeline.score(X[8:], y[8:]) > always_background + 0.25


@pytest.mark.slow
def test_photographs_of_cars_are_learned_at_a_tenth_of_their_size():
    folder = real_data("carvana96", "images")
    images = sorted(folder.glob("*"))[:12]
    masks = [next((folder.parent / "masks").glob(f"{path.stem}*")) for path in images]
    pipeline = make_pipeline(ImageResizer(factor=0.1), make_segmenter(depth=2, filters=8, max_epochs=12, lr=0.01))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipeline.fit(images[:9], masks[:9])
    assert pipeline.predict(images[9:])[0].shape == iio.imread(images[9]).shape[:2]
    assert pipeline.score(images[9:], masks[9:]) > 0.7
