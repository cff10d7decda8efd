import pickle
import subprocess
import sys
import warnings
from functools import partial

import imageio.v3 as iio
import joblib
import numpy as np
import pytest
import torch
import zarr
from conftest import make_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import NotFittedError
from sklearn.metrics import jaccard_score
from skorch.callbacks import EpochScoring, GradientNormClipping
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from skunet import UNet, UNetSegmenter
from skunet.augmentation import Augment
from skunet.image_array import StackView
from skunet.image_dataset import ImageDataset
from skunet.metrics import iou_scorer
from skunet.training_set import open_training_set


def weights_of(segmenter):
    return [value.clone() for value in segmenter.module_.state_dict().values()]


def same_weights(a, b):
    return all(torch.equal(x, y) for x, y in zip(weights_of(a), weights_of(b), strict=True))


# ---- what comes back


@pytest.mark.parametrize(
    ("labels", "dtype"),
    [
        ([False, True], bool),
        ([0, 255], np.uint8),
        ([-7, 40000], np.int32),
        ([3, 200], np.uint16),
        ([1.0, 5.0], np.float64),
        (["cell", "wall"], "<U4"),
    ],
)
def test_any_labels_come_back_in_the_dtype_of_y(cells, labels, dtype):
    X, y = cells
    segmenter = make_segmenter().fit(X, np.asarray(labels, dtype=dtype)[y])
    predicted = segmenter.predict(X[:3])
    assert predicted.dtype == np.dtype(dtype)
    assert predicted.shape == X[:3].shape
    assert set(np.unique(predicted).tolist()) <= set(labels)
    np.testing.assert_array_equal(segmenter.classes_, np.asarray(labels, dtype=dtype))


def test_a_segmenter_learns(cells):
    X, y = cells
    segmenter = make_segmenter(depth=2, filters=8, max_epochs=25, lr=3e-3).fit(X, y * np.uint8(255))
    assert segmenter.score(X, y * np.uint8(255)) > 0.75


def test_probabilities_sum_to_one_over_axis_1_and_their_largest_is_the_label(cells, fitted):
    X, _ = cells
    proba = fitted.predict_proba(X)
    assert proba.shape == (len(X), 2, *X.shape[1:])
    assert proba.dtype == np.float32
    np.testing.assert_allclose(proba.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(fitted.classes_[proba.argmax(axis=1)], fitted.predict(X))


def test_logits_decide_every_pixel(cells, fitted):
    X, _ = cells
    logits = fitted.forward(X)
    np.testing.assert_array_equal(fitted.classes_[logits.argmax(1).numpy()], fitted.predict(X))


def test_the_container_comes_back_as_given(cells, fitted):
    X, _ = cells
    stack = fitted.predict(X)
    assert isinstance(fitted.predict(list(X)), list)
    objects = np.empty(len(X), dtype=object)
    for index, image in enumerate(X):
        objects[index] = image
    as_objects = fitted.predict(objects)
    assert as_objects.dtype == object
    others = [
        fitted.predict(list(X)),
        as_objects,
        fitted.predict(X[..., None]),
        fitted.predict(torch.tensor(X)),
        fitted.predict(torch.tensor(X)[:, None]),
        fitted.predict(np.asfortranarray(X)),
        fitted.predict(X.astype(np.float64)),
        fitted.predict(TensorDataset(torch.tensor(X), torch.zeros(len(X)))),
    ]
    for other in others:
        np.testing.assert_array_equal(np.stack(list(other)), stack)


def test_neighbours_in_the_stack_change_nothing(cells, fitted):
    X, _ = cells
    whole = fitted.predict_proba(X)
    np.testing.assert_array_equal(fitted.predict_proba(X[5:6])[0], whole[5])
    np.testing.assert_array_equal(fitted.predict_proba([X[5]])[0], whole[5])
    np.testing.assert_array_equal(fitted.predict_proba(X[::-1]), whole[::-1])


@settings(max_examples=15)
@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=3))
def test_every_size_comes_back(fitted, sizes):
    images = [np.random.default_rng(0).integers(0, 255, size).astype(np.uint8) for size in sizes]
    assert [labels.shape for labels in fitted.predict(images)] == sizes
    assert [proba.shape for proba in fitted.predict_proba(images)] == [(2, *size) for size in sizes]


@pytest.mark.parametrize("module", [{}, {"module__padding": "valid"}, {"module__normalization": "instance"}])
def test_one_pixel_and_odd_sizes_for_every_kind_of_network(cells, module):
    X, y = cells
    segmenter = make_segmenter(depth=2, **module).fit(X, y)
    sizes = [(1, 1), (1, 7), (13, 2), (33, 31)]
    assert [p.shape for p in segmenter.predict([np.zeros(size, np.uint8) for size in sizes])] == sizes


def test_volumes(volumes):
    X, y = volumes
    segmenter = make_segmenter(depth=2).fit(X, y)
    assert segmenter.spatial_ndim_ == 3
    assert segmenter.predict(X).shape == X.shape
    assert segmenter.predict_proba(X[:1, :3, :5]).shape == (1, 2, 3, 5, 16)


def test_several_sizes_and_channels_in_one_fit():
    rng = np.random.default_rng(0)
    sizes = [(20, 30), (16, 16), (33, 9), (5, 40), (24, 24), (1, 1)]
    X = [rng.integers(0, 255, (*size, 3)).astype(np.uint8) for size in sizes]
    y = [np.where(image[..., 0] > 100, 255, 0).astype(np.uint8) for image in X]
    segmenter = make_segmenter().fit(X, y)
    assert [labels.shape for labels in segmenter.predict(X)] == sizes
    assert 0 <= segmenter.score(X, y) <= 1


def test_files_and_lazy_arrays(cells, tmp_path):
    X, y = cells
    images, masks = [[tmp_path / f"{kind}{i}.png" for i in range(len(X))] for kind in ("image", "mask")]
    for path, array in zip(images + masks, [*X, *(y * 255)], strict=True):
        iio.imwrite(path, array)
    from_files = make_segmenter().fit(images, [str(path) for path in masks])
    from_arrays = make_segmenter().fit(X, y * np.uint8(255))
    assert same_weights(from_files, from_arrays)
    np.testing.assert_array_equal(np.stack(from_files.predict(images)), from_arrays.predict(X))
    np.save(tmp_path / "X.npy", X)
    memmap = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert same_weights(make_segmenter().fit(memmap, y * np.uint8(255)), from_arrays)
    assert from_files.score(images, masks) == pytest.approx(from_arrays.score(X, y * np.uint8(255)))


def test_a_torch_data_set_of_pairs(cells):
    X, y = cells
    pairs = TensorDataset(torch.tensor(X)[:, None], torch.tensor(y))
    assert same_weights(make_segmenter().fit(pairs), make_segmenter().fit(X, y))
    assert make_segmenter().fit(pairs).score(pairs) == make_segmenter().fit(X, y).score(X, y)


# ---- score


def test_score_is_the_mean_iou_of_scikit_learn(cells, fitted):
    X, y = cells
    predicted = fitted.predict(X)
    assert fitted.score(X, y) == pytest.approx(jaccard_score(y.ravel(), predicted.ravel(), average="macro"))


def test_ignored_pixels_count_nowhere(cells):
    X, y = cells
    holes = y.copy()
    holes[:, :10] = 9
    segmenter = make_segmenter(ignore_label=9).fit(X, holes)
    assert segmenter.classes_.tolist() == [0, 1]
    assert set(np.unique(segmenter.predict(X))) <= {0, 1}
    seen = holes != 9
    expected = jaccard_score(y[seen], segmenter.predict(X)[seen], average="macro")
    assert segmenter.score(X, holes) == pytest.approx(expected)
    scrambled = holes.copy()
    changed = X.copy()
    assert same_weights(segmenter, make_segmenter(ignore_label=9).fit(changed, scrambled))


def test_validation_score_in_the_history_equals_score(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=1, train_split=0.5).fit(X, y)
    from skunet.splits import hold_out

    _, valid = hold_out(len(X), 0.5, groups=None, seed=0)
    assert segmenter.history[-1, "valid_iou"] == pytest.approx(segmenter.score(X[valid], y[valid]), abs=1e-6)


# ---- weights of images and pixels


def test_an_image_without_weight_is_as_if_absent_bit_for_bit(cells):
    X, y = cells
    weights = np.ones(len(X))
    weights[[2, 7]] = 0
    keep = weights > 0
    assert same_weights(make_segmenter().fit(X, y, sample_weight=weights), make_segmenter().fit(X[keep], y[keep]))


def test_pixels_without_weight_do_not_teach(cells):
    X, y = cells
    weights = np.ones(y.shape)
    weights[:, 5:20] = 0
    other = y.copy()
    other[:, 5:20] = 1 - other[:, 5:20]
    fits = [make_segmenter(train_split=None).fit(X, labels, sample_weight=weights) for labels in (y, other)]
    assert same_weights(*fits)


def test_foreign_criteria_take_weights_and_classes(cells):
    X, y = cells
    plain = make_segmenter(criterion=nn.CrossEntropyLoss, train_split=None)
    weighted = make_segmenter(criterion=nn.CrossEntropyLoss, train_split=None)
    plain.fit(X, y)
    weighted.fit(X, y, sample_weight=np.full(len(X), 2.0))
    for a, b in zip(weights_of(plain), weights_of(weighted), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert make_segmenter(criterion=nn.CrossEntropyLoss, class_weight={1: 3}).fit(X, y).criterion_.weight.tolist() == [
        1,
        3,
    ]
    with pytest.raises(ValueError, match="class_weight must be None for a criterion"):
        make_segmenter(criterion=nn.TripletMarginLoss, class_weight="balanced").fit(X, y)


def test_images_without_a_label_teach_nothing_by_a_foreign_criterion(cells):
    X, y = cells
    masks = y.copy()
    masks[:2] = 255
    segmenter = make_segmenter(
        criterion=nn.CrossEntropyLoss, ignore_label=255, batch_size=1, train_split=lambda data, y: (data, data)
    )
    segmenter.fit(X, masks)
    assert np.isfinite(segmenter.history[-1, ("train_loss", "valid_loss")]).all()


def test_class_weights(cells):
    X, y = cells
    segmenter = make_segmenter(class_weight="balanced").fit(X, y)
    counts = np.bincount(y.ravel())
    np.testing.assert_allclose(segmenter.criterion_.class_weight, y.size / (2 * counts), rtol=1e-6)
    with pytest.raises(ValueError, match=r"class_weight must name labels of y, \[0, 1\]; got \[255\]"):
        make_segmenter(class_weight={255: 2}).fit(X, y)
    with pytest.raises(ValueError, match="class_weight must be above 0 for some label of y"):
        make_segmenter(class_weight={0: 0, 1: 0}).fit(X, y)


# ---- randomness


def test_the_same_seed_gives_the_same_weights_in_any_number_of_workers(cells):
    X, y = cells
    parameters = {"max_epochs": 2, "patch_size": 16, "module__dropout": 0.3}
    first = make_segmenter(**parameters).fit(X, y)
    assert same_weights(first, make_segmenter(**parameters).fit(X, y))
    workers = make_segmenter(
        **parameters, iterator_train__num_workers=2, iterator_train__multiprocessing_context="fork"
    )
    assert same_weights(first, workers.fit(X, y))
    assert not same_weights(first, make_segmenter(**(parameters | {"random_state": 1})).fit(X, y))


def test_going_on_equals_not_having_stopped(cells):
    X, y = cells
    parameters = {"module__dropout": 0.3, "callbacks__early_stopping": None}
    whole = make_segmenter(max_epochs=4, **parameters).fit(X, y)
    halves = make_segmenter(max_epochs=2, **parameters).fit(X, y).partial_fit(X, y)
    assert same_weights(whole, halves)
    assert whole.n_iter_ == halves.n_iter_ == 4


def test_a_random_state_gives_one_draw_and_none_is_kept(cells):
    X, y = cells
    state = np.random.RandomState(0)
    segmenter = make_segmenter(random_state=state, max_epochs=0).fit(X, y)
    first = segmenter.seed_
    assert segmenter.fit(X, y).seed_ != first
    assert isinstance(make_segmenter(random_state=None, max_epochs=0).fit(X, y).seed_, int)


def test_global_generators_filters_and_threads_stay_as_they_were(cells):
    X, y = cells
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()
    n_threads, filters = torch.get_num_threads(), list(warnings.filters)
    make_segmenter(module__dropout=0.2).fit(X, y).predict(X)
    make_segmenter().fit(X, y).set_params(module__dropout=0.5)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == n_threads
    assert warnings.filters == filters


def test_importing_changes_nothing_in_the_process():
    code = """
import warnings, logging, numpy, torch
before = list(warnings.filters), torch.get_num_threads(), torch.initial_seed(), len(logging.root.handlers)
import skorch, sklearn, tqdm.auto, sklearn.model_selection
before = list(warnings.filters), *before[1:]
import skunet
assert before == (list(warnings.filters), torch.get_num_threads(), torch.initial_seed(), len(logging.root.handlers))
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---- fitted state


def test_not_fitted(cells):
    X, y = cells
    for method in ("predict", "predict_proba", "forward"):
        with pytest.raises(NotFittedError):
            getattr(make_segmenter(), method)(X)
    with pytest.raises(NotFittedError):
        make_segmenter().score(X, y)
    with pytest.raises(NotFittedError, match="random weights"):
        make_segmenter().initialize().predict(X)


def test_a_failing_fit_loses_nothing(cells, fitted):
    X, y = cells
    segmenter = pickle.loads(pickle.dumps(fitted))
    with pytest.raises(ValueError, match="same number of images"):
        segmenter.fit(X, y[:3])
    np.testing.assert_array_equal(segmenter.predict(X), fitted.predict(X))


def test_predict_checks_channels_and_rank(cells, fitted):
    X, _ = cells
    for bad, message in [
        (X[0], r"X\[None\]"),
        (np.repeat(X[..., None], 3, axis=-1), r"X has 3 channel\(s\), but UNetSegmenter is expecting 1"),
        (X[:, None], "np.moveaxis|channels"),
        (np.zeros((2, 3, 4, 5, 6)), "as fitted"),
        ([], "at least one image"),
        (np.full((1, 8, 8), np.nan), "contains NaN or infinity: image 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            fitted.predict(bad)


def test_the_history_tells_the_curve(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=3).fit(X, y)
    for name in ("train_loss", "valid_loss", "valid_iou", "dur"):
        assert len(segmenter.history[:, name]) == 3
    assert segmenter.n_iter_ == 3


def test_no_epochs_are_legal(cells):
    X, y = cells
    segmenter = make_segmenter(max_epochs=0).fit(X, y)
    assert segmenter.n_iter_ == 0
    assert segmenter.predict(X).shape == X.shape


@pytest.mark.parametrize("dump", ["pickle", "joblib"])
def test_a_segmenter_survives_the_journey_to_a_new_process(cells, fitted, tmp_path, dump):
    X, _ = cells
    path = tmp_path / "segmenter"
    (joblib if dump == "joblib" else _Pickle).dump(fitted, path)
    np.save(tmp_path / "X.npy", X[:3])
    code = f"""
import joblib, pickle, numpy as np
X = np.load(r"{tmp_path / "X.npy"}")
segmenter = joblib.load(r"{path}") if "{dump}" == "joblib" else pickle.load(open(r"{path}", "rb"))
np.save(r"{tmp_path / "out.npy"}", segmenter.predict_proba(X))
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), fitted.predict_proba(X[:3]))


class _Pickle:
    @staticmethod
    def dump(thing, path):
        path.write_bytes(pickle.dumps(thing))


def test_a_segmenter_goes_on_learning_after_pickling(cells):
    X, y = cells
    segmenter = make_segmenter(callbacks__early_stopping=None).fit(X, y)
    copy = pickle.loads(pickle.dumps(segmenter))
    assert same_weights(segmenter.partial_fit(X, y), copy.partial_fit(X, y))


# ---- prediction parameters


def test_parameters_of_prediction_act_at_the_next_call(cells, fitted):
    X, _ = cells
    segmenter = pickle.loads(pickle.dumps(fitted))
    whole = segmenter.predict_proba(X)
    segmenter.set_params(tile_size=8)
    np.testing.assert_allclose(segmenter.predict_proba(X), whole, atol=1e-5)
    segmenter.set_params(precision="bfloat16")
    assert 0 < np.abs(segmenter.predict_proba(X) - whole).max() < 0.1
    assert segmenter.precision_ == "bfloat16"


def test_scaling_by_image_is_the_same_in_tiles(cells):
    X, y = cells
    segmenter = make_segmenter(scaling="image").fit(X, y)
    whole = segmenter.predict_proba(X)
    np.testing.assert_allclose(segmenter.set_params(tile_size=8).predict_proba(X), whole, atol=1e-5)
    brighter = X.astype(np.float32) * 3 + 50
    np.testing.assert_allclose(segmenter.predict_proba(brighter), whole, atol=1e-3)


def test_networks_without_exact_tiles_blend_and_say_so(cells):
    X, y = cells
    segmenter = make_segmenter(module__normalization="instance").fit(X, y).set_params(tile_size=16)
    with pytest.warns(UserWarning, match="instance or group normalization.*tile_size=None"):
        assert segmenter.predict(X).shape == X.shape


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_learns_nearly_the_same(cells, precision):
    X, y = cells
    half = make_segmenter(max_epochs=3, precision=precision).fit(X, y)
    full = make_segmenter(max_epochs=3).fit(X, y)
    assert half.history[-1, "train_loss"] == pytest.approx(full.history[-1, "train_loss"], rel=0.03)


# ---- bad input


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"depth": 7}, "depth must be a whole number from 0 to 6; got 7"),
        ({"depth": 2.0}, "depth must be"),
        ({"filters": 0}, "filters must be a whole number of at least 1; got 0"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"max_epochs": -1}, "max_epochs must be"),
        ({"lr": "fast"}, "lr must be"),
        ({"scaling": "zscore"}, 'scaling must be "auto", "dataset"'),
        ({"scaling": (0, 0)}, "std > 0"),
        ({"patch_size": 0}, "patch_size must be"),
        ({"augment": "strong"}, "augment must be"),
        ({"augment": Augment}, r"augment must be .*Augment\(\.\.\.\)"),
        ({"class_weight": "even"}, "class_weight must be"),
        ({"precision": "half"}, "precision must be"),
        ({"tile_size": -8}, "tile_size must be"),
        ({"train_split": 1.5}, "train_split must be"),
        ({"train_split": 5}, "train_split must be"),
        ({"classes": [1]}, "classes must be None or a list of at least 2"),
        ({"random_state": "abc"}, "random_state must be"),
        ({"device": "tpu9"}, "device must be"),
        ({"optimizer": "adam"}, "optimizer must be a class of optimizers such as torch.optim.Adam; got 'adam'"),
        ({"module": "unet"}, "module must be"),
        ({"criterion": "dice"}, "criterion must be"),
        ({"criterion": torch.nn.BCEWithLogitsLoss}, "criterion must be a class of losses of logits and class indices"),
        ({"criterion": torch.nn.MSELoss()}, "criterion must be"),
        ({"patch_size": (16, 16, 16)}, "patch_size must be a number of pixels, or one per axis, 2 here"),
        ({"callbacks": print}, "callbacks must be"),
    ],
)
def test_bad_parameters_are_stored_and_named_at_fit(cells, parameters, message):
    segmenter = make_segmenter(**parameters)
    with pytest.raises(ValueError, match=message):
        segmenter.fit(*cells)


def test_unknown_parameters_raise_at_once():
    with pytest.raises(TypeError, match=r"'dept' \(did you mean 'depth'\?\), 'n_filters' \(did you mean 'filters'"):
        UNetSegmenter(dept=3, n_filters=4)


def test_a_loss_that_is_not_finite_raises(cells):
    with pytest.raises(RuntimeError, match=r"Training diverged: the loss is .* Lower lr \(now 1e\+30\)"):
        make_segmenter(lr=1e30, max_epochs=5).fit(*cells)


@pytest.mark.parametrize("labels", [np.array([0, 1], np.uint8), np.array([False, True])])
def test_scoring_masks_of_other_labels_warns_once_at_the_call(cells, labels):
    X, y = cells
    segmenter = make_segmenter(max_epochs=3).fit(X, np.array([0, 255], np.uint8)[y])
    message = (
        r"y holds labels \[(1|True)\] that the segmenter was not fitted on, \[0, 255\]: their pixels count as wrong"
    )
    with pytest.warns(UserWarning, match=message) as caught:
        score = segmenter.score(X, labels[y])
    assert [warning.filename for warning in caught] == [__file__]
    assert score == iou_scorer(segmenter, X, labels[y])


def test_scoring_labels_that_are_known_or_do_not_count_does_not_warn(cells):
    X, y = cells
    segmenter = make_segmenter(ignore_label=9).fit(X, np.where(X > 250, 9, y))
    np.testing.assert_array_equal(segmenter.classes_, [0, 1])
    y_ignored, y_unknown, weights = y.copy(), y.copy(), np.ones(y.shape)
    y_ignored[:, 0], y_unknown[:, 0], weights[:, 0] = 9, 7, 0
    expected = segmenter.score(X, y_ignored)
    assert segmenter.score(X, y_unknown, sample_weight=weights) == expected
    assert 0 < segmenter.score(X, y.astype(bool)) == segmenter.score(X, y.astype(np.float32))
    y_unknown[1:] = y[1:]
    segmenter.score(X, y_unknown, sample_weight=np.arange(len(X)))
    with pytest.warns(UserWarning, match=r"labels \[7\] .* not fitted on, \[0, 1\]"):
        segmenter.score(X, y_unknown, sample_weight=np.arange(len(X)) + 1)


def test_score_counts_before_it_predicts(cells, fitted):
    with pytest.raises(ValueError, match="same number of images; got 12 images, 2 masks"):
        fitted.score(cells[0], cells[1][:2])


def test_one_colour_image_for_a_segmenter_without_colour_warns(fitted):
    with pytest.warns(UserWarning, match="taken for 8 images of 9 x 3 pixels"):
        fitted.predict(np.zeros((8, 9, 3), np.uint8))


def test_modules_that_shrink_images_raise(cells):
    with pytest.raises(ValueError, match="module must keep the size"):
        make_segmenter(module=lambda in_channels, n_classes: nn.Conv2d(in_channels, n_classes, 3)).fit(*cells)


def test_rare_classes_are_pointed_out(cells):
    X, y = cells
    y = y.copy()
    y[0, 0, 0] = 2
    with pytest.warns(UserWarning, match="cover less than 0.1% of the pixels"):
        make_segmenter().fit(X, y)


# ---- validation images


def test_a_fifth_is_held_out_and_too_few_images_are_not_an_error(cells, capsys):
    X, y = cells
    segmenter = make_segmenter(verbose=1).fit(X[:4], y[:4])
    assert "Too few images" in capsys.readouterr().out
    assert "valid_iou" not in segmenter.history[-1]
    segmenter = make_segmenter(train_split=None).fit(X, y)
    assert "valid_iou" not in segmenter.history[-1]
    assert make_segmenter().fit(X[:1], y[:1]).predict(X[:1]).shape == X[:1].shape


def test_labels_are_made_tile_by_tile(cells, fitted, monkeypatch):
    X, _ = cells
    segmenter = pickle.loads(pickle.dumps(fitted)).set_params(tile_size=16)
    seen = []
    to_labels = segmenter._to_labels
    monkeypatch.setattr(
        type(segmenter), "_to_labels", lambda self, logits: seen.append(logits.shape) or to_labels(logits)
    )
    segmenter.predict(X)
    assert set(seen) == {(1, 2, 16, 16)}
    assert len(seen) == 4 * len(X)


# ---- what a review found


class Flipping(Dataset):
    """Flips image and mask together at random, anew at each look; the mask is the image's parity."""

    def __init__(self):
        self.rng = np.random.default_rng(0)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        image = np.arange(64).reshape(8, 8) * 3 + index
        image = image[:, ::-1].copy() if self.rng.random() < 0.5 else image
        return torch.from_numpy(image[None]), torch.from_numpy(image % 2)


def test_batches_of_a_random_data_set_hold_image_and_mask_of_one_draw():
    seen = []

    def spy(images, masks, weights, generator):
        seen.append(torch.equal(images[:, 0].round() % 2, masks.float()))
        return images, masks, weights

    make_segmenter(augment=spy, scaling=None, max_epochs=3, patch_size=8).fit(Flipping())
    assert len(seen) > 3
    assert all(seen)


def test_an_ignored_label_among_the_classes_is_ignored(cells):
    X, y = cells
    y = y.copy()
    y[:, :4] = 2
    assert make_segmenter(classes=[0, 1, 2], ignore_label=2).fit(X, y).classes_.tolist() == [0, 1]


def test_a_large_void_class_does_not_make_masks_soft():
    rng = np.random.default_rng(0)
    y = rng.choice(np.arange(21), p=[0.8] + [0.01] * 20, size=(6, 48, 48)).astype(np.uint8)
    y[rng.random(y.shape) < 0.07] = 255
    X = rng.integers(0, 255, y.shape).astype(np.uint8)
    assert len(make_segmenter(ignore_label=255, max_epochs=0).fit(X, y).classes_) == 21


def test_clipped_gradients_train_in_float16(cells):
    X, y = cells

    def movement(precision):
        clip = [("clip", GradientNormClipping(0.1))]
        segmenter = make_segmenter(precision=precision, optimizer=torch.optim.SGD, lr=0.1, callbacks=clip)
        segmenter.set_params(callbacks__early_stopping=None)
        start = make_segmenter(max_epochs=0).fit(X, y).module_.state_dict()
        end = segmenter.fit(X, y).module_.state_dict()
        return sum((end[name] - start[name]).abs().sum() for name in start if "weight" in name).item()

    assert movement("float16") == pytest.approx(movement("float32"), rel=0.2)


def test_a_fit_that_fails_half_way_leaves_no_fitted_segmenter(cells):
    X, y = cells

    def broken(images, masks, weights, generator):
        raise OSError("the disk is gone")

    segmenter = make_segmenter(augment=broken)
    with pytest.raises(OSError, match="the disk is gone"):
        segmenter.fit(X, y)
    with pytest.raises(NotFittedError):
        segmenter.predict(X)


def test_loading_the_history_alone_trains_nothing(cells, tmp_path):
    segmenter = make_segmenter().fit(*cells)
    segmenter.save_params(f_history=tmp_path / "history.json")
    segmenter.set_params(module__dropout=0.1)
    segmenter.load_params(f_history=tmp_path / "history.json")
    with pytest.raises(NotFittedError):
        segmenter.predict(cells[0])


def test_balanced_weights_are_those_of_the_masks_at_hand(cells):
    X, y = cells
    segmenter = make_segmenter(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    assert segmenter.criterion_.class_weight[2] == 1  # it has not been met
    segmenter.partial_fit(X, np.where(y == 1, 2, y))
    n_background = (y == 0).sum()
    expected = [y.size / (2 * n_background), 1, y.size / (2 * (y.size - n_background))]
    np.testing.assert_allclose(segmenter.criterion_.class_weight, expected, rtol=1e-6)


def test_a_class_that_was_trained_cannot_be_ignored_afterwards(cells):
    X, y = cells
    segmenter = make_segmenter().fit(X, y)
    with pytest.raises(ValueError, match=r"ignore_label must be none of the labels that were trained, \[0, 1\]; got 0"):
        segmenter.set_params(ignore_label=0).partial_fit(X, y)
    strokes = np.where(np.arange(32) % 2 == 0, y, 255)
    segmenter.set_params(ignore_label=255).partial_fit(X, strokes)
    assert segmenter.classes_.tolist() == [0, 1]


def test_class_weight_acts_at_the_next_fit_also_with_a_warm_start(cells):
    segmenter = make_segmenter(warm_start=True).fit(*cells)
    segmenter.set_params(class_weight={1: 50}).fit(*cells)
    assert segmenter.criterion_.class_weight.tolist() == [1, 50]
    assert segmenter.n_iter_ == 2


def test_numpy_numbers_are_numbers(cells):
    segmenter = make_segmenter(tile_size=np.int64(16), depth=np.int64(1), patch_size=np.int64(16)).fit(*cells)
    assert segmenter.predict(cells[0]).shape == cells[0].shape


@pytest.mark.parametrize("labels", [["a", "b"], [3, 7]])
def test_masks_of_python_objects(cells, labels):
    X, y = cells
    masks = [np.array(labels, dtype=object)[mask] for mask in y]
    segmenter = make_segmenter().fit(X, masks)
    assert segmenter.classes_.tolist() == labels
    assert segmenter.score(X, masks) == make_segmenter().fit(X, np.array(labels, dtype=object)[y]).score(X, masks)


def test_partial_fit_keeps_the_dtype_of_the_labels(cells):
    X, y = cells
    assert make_segmenter().fit(X, y).partial_fit(X, y.astype(np.float32)).predict(X).dtype == np.uint8


def test_epochs_are_counted_without_callbacks(cells):
    assert make_segmenter(callbacks="disable", max_epochs=2).fit(*cells).n_iter_ == 2


def test_bad_input_is_found_before_the_old_network_is_lost(cells, fitted):
    X, y = cells
    segmenter = pickle.loads(pickle.dumps(fitted))
    for parameters, arguments, message in [
        ({"scaling": ([1, 2, 3], [1, 1, 1])}, {}, "one for each of 1"),
        ({"scaling": "dataset"}, {"sample_weight": 1.0}, "one entry per image, 12; got 1"),
        ({}, {"groups": [1]}, "one value per image"),
        ({"tta": ["flip_depth"]}, {}, "tta must be"),
    ]:
        with pytest.raises(ValueError, match=message):
            segmenter.set_params(**parameters).fit(X, y * 255, **arguments)
        segmenter.set_params(tta=False)
        np.testing.assert_array_equal(segmenter.predict(X), fitted.predict(X))


def test_every_image_of_a_list_has_its_channels_checked(cells, fitted):
    with pytest.raises(ValueError, match=r"All images must have 2 axes|must have 1 channel"):
        fitted.predict([cells[0][0], np.zeros((8, 8, 3), np.uint8)])


def test_factories_keep_what_they_fix(cells):
    segmenter = make_segmenter(module=partial(UNet, filters=2)).fit(*cells)
    assert segmenter.module_.filters == 2


def test_criterion_instances(cells):
    X, y = cells
    holes = y.copy()
    holes[:, :4] = 9
    criterion = nn.CrossEntropyLoss()  # ignores -100, not -1
    assert make_segmenter(criterion=criterion, ignore_label=9).fit(X, holes).n_iter_ == 1
    with pytest.raises(ValueError, match="criterion is an instance"):
        make_segmenter(criterion=criterion, class_weight="balanced").fit(X, y)


def test_dropping_an_image_keeps_tensors_tensors(cells):
    X, y = cells
    colour = torch.from_numpy(np.repeat(X[:, None], 3, axis=1))
    scoring = EpochScoring(iou_scorer, name="iou2", lower_is_better=False, use_caching=False)
    segmenter = make_segmenter(callbacks=[scoring])
    segmenter.fit(colour, y, sample_weight=np.arange(len(X)))
    assert segmenter.history[-1, "iou2"] > 0


@pytest.mark.parametrize("kind", ["array", "memmap", "zarr"])
def test_dropping_an_image_reads_and_copies_no_stack(cells, tmp_path, kind):
    X, y = cells
    stack, masks = X, y
    if kind == "memmap":
        np.save(tmp_path / "X.npy", X)
        np.save(tmp_path / "y.npy", y)
        stack, masks = (np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "Xy")
    if kind == "zarr":
        stack, masks = (zarr.array(array, chunks=(1, 32, 32)) for array in (X, y))
    weights = np.arange(len(X)) > 0
    dataset = ImageDataset(open_training_set(stack, masks, sample_weight=weights))
    assert isinstance(dataset.X, StackView)
    assert dataset.X.stack is stack
    np.testing.assert_array_equal(dataset.X, X[1:])
    np.testing.assert_array_equal(dataset.y, y[1:])
    scoring = EpochScoring(iou_scorer, name="iou2", lower_is_better=False, use_caching=False)
    segmenter = make_segmenter(callbacks=[scoring]).fit(stack, masks, sample_weight=weights)
    assert segmenter.history[-1, "iou2"] == pytest.approx(segmenter.history[-1, "valid_iou"])


def test_volumes_in_lists_warn_too():
    X = [np.zeros((8, 8, 1), np.uint8)] * 2
    with pytest.warns(UserWarning, match="volumes of width 1"):
        make_segmenter(max_epochs=0).fit(X, [np.arange(64).reshape(8, 8, 1) % 2] * 2)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tile_size", 0), ("tile_size", "x"), ("tta", None), ("engine", "foo"), ("precision", "float64")],
)
def test_what_acts_at_prediction_is_checked_there(cells, name, value):
    X, y = cells
    segmenter = make_segmenter().fit(X, y).set_params(**{name: value})
    with pytest.raises(ValueError, match=f"{name} must be"):
        segmenter.predict(X)
