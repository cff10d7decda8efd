import copy

import numpy as np
import pytest
from conftest import make_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import label
from skimage.morphology import remove_small_objects
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline

from skunet import UNetSegmenter
from skunet.postprocessing import ArgMax, FillHoles, KeepLargest, RemoveSmall, Threshold, WatershedInstances
from skunet.steps import Steps

masks_2d = st.integers(0, 2**32 - 1).map(lambda seed: np.random.default_rng(seed).random((14, 17)) < 0.45)


@settings(max_examples=30)
@given(masks_2d, st.integers(1, 20), st.integers(1, 2))
def test_small_components_go_as_in_scikit_image(mask, min_size, connectivity):
    expected = remove_small_objects(mask, max_size=min_size - 1, connectivity=connectivity)
    found = RemoveSmall(min_size, connectivity=connectivity).clean(mask, background=False)
    # Pixels that go take the label of the nearest that stays, which is not always background.
    np.testing.assert_array_equal(found[expected], True)
    gone = mask & ~expected
    if not gone.all():
        nearest = ndimage.distance_transform_edt(gone, return_distances=False, return_indices=True)
        np.testing.assert_array_equal(found, np.where(gone, mask[tuple(nearest)], mask))


@settings(max_examples=30)
@given(masks_2d)
def test_holes_are_filled_as_by_scipy(mask):
    filled = FillHoles().transform(np.stack([mask, np.zeros_like(mask)]))
    np.testing.assert_array_equal(filled[0], ndimage.binary_fill_holes(mask))


@settings(max_examples=30)
@given(masks_2d)
def test_one_component_stays(mask):
    kept = KeepLargest().clean(mask, background=False)
    numbers = label(mask, connectivity=1)
    if mask.any():
        largest = numbers == 1 + np.bincount(numbers.ravel())[1:].argmax()
        np.testing.assert_array_equal(kept[largest], True)


@pytest.mark.parametrize("labels", [[0, 255], [-3, 4], ["cell", "none"], [False, True], [0.0, 2.0]])
def test_any_labels_are_cleaned_and_keep_their_dtype(labels):
    background, object_ = labels if labels[1] != "none" else labels[::-1]
    mask = np.full((1, 6, 6), background)
    mask[0, 0, 0] = mask[0, 3:5, 3:5] = object_
    classes = np.array(sorted(labels))
    for step in (RemoveSmall(2, labels=[object_]), KeepLargest([object_])):
        cleaned = step.transform(mask)
        assert cleaned.dtype == mask.dtype
        assert (cleaned == object_).sum() == 4
    probabilities = np.stack([mask[0] == name for name in classes]).astype(np.float32)
    decided = Threshold(0.5, label=object_)(probabilities, classes)
    np.testing.assert_array_equal(decided, mask[0])
    assert decided.dtype == classes.dtype
    np.testing.assert_array_equal(ArgMax()(probabilities, classes), mask[0])


def test_volumes_are_cleaned_in_three_dimensions():
    volume = np.zeros((5, 5, 5), int)
    volume[1:4, 1:4, 1:4] = 1
    volume[2, 2, 2] = 0
    assert FillHoles().clean(volume, background=0)[2, 2, 2] == 1
    volume[0, 0, 0] = 1  # shares a corner with the cube
    assert KeepLargest().clean(volume, background=0)[0, 0, 0] == 0
    assert KeepLargest(connectivity=3).clean(volume, background=0)[0, 0, 0] == 1


def test_only_the_labels_that_are_named_are_touched():
    mask = np.array([[1, 0, 2, 0, 1, 1]])
    np.testing.assert_array_equal(RemoveSmall(2, labels=[1]).clean(mask, background=0), [[0, 0, 2, 0, 1, 1]])
    np.testing.assert_array_equal(RemoveSmall(2).clean(mask, background=0), [[0, 0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(
        RemoveSmall(3, labels=[0, 1, 2]).clean(mask, background=0), mask
    )  # nothing would stay


def test_small_holes_alone():
    mask = np.ones((9, 9), int)
    mask[1, 1] = mask[4:7, 4:7] = 0
    assert (FillHoles(max_size=4).clean(mask, background=0) == 0).sum() == 9


def test_each_mask_of_a_list_keeps_its_dtype():
    masks = [np.zeros((8, 8), np.uint8), np.full((8, 8), 300, np.int32), np.full((4, 4), "membrane")]
    for found, mask in zip(RemoveSmall(2).transform(masks[:2]), masks, strict=False):
        np.testing.assert_array_equal(found, mask)
        assert found.dtype == mask.dtype
    words = RemoveSmall(2).transform([np.full((3, 3), "no"), masks[2]])
    assert words[1].dtype == masks[2].dtype


def test_lists_come_back_as_lists():
    masks = [np.eye(4, dtype=np.uint8), np.eye(3, 5, dtype=np.uint8)]
    found = RemoveSmall(2).transform(masks)
    assert [mask.shape for mask in found] == [(4, 4), (3, 5)]
    assert not any(mask.any() for mask in found)


def test_priors_move_the_border():
    probabilities = np.array([[0.9, 0.7, 0.5], [0.1, 0.3, 0.5]])
    classes = np.array(["a", "b"])
    assert ArgMax({"a": 0.1, "b": 0.9})(probabilities, classes).tolist() == ["a", "b", "b"]
    assert ArgMax({"a": 0.1, "b": 0.9}, {"a": 0.1, "b": 0.9})(probabilities, classes).tolist() == ["a", "a", "a"]
    with pytest.raises(ValueError, match="priors must give numbers"):
        ArgMax({"c": 1})(probabilities, classes)
    with pytest.raises(ValueError, match="old_priors must be above 0"):
        ArgMax(old_priors={"a": 0})(probabilities, classes)
    counts = np.array([10, 90])
    assert ArgMax(counts)(probabilities, classes).tolist() == ["a", "b", "b"]
    assert ArgMax([1, 1], counts)(probabilities, classes).tolist() == ["a", "a", "a"]
    with pytest.raises(ValueError, match="one number per class, 2"):
        ArgMax([1, 2, 3])(probabilities, classes)


def test_touching_objects_are_told_apart():
    rows, columns = np.mgrid[:30, :50]
    discs = [(rows - 15) ** 2 + (columns - centre) ** 2 <= 100 for centre in (14, 33)]
    inside = discs[0] | discs[1]
    probabilities = np.stack([~inside, inside]).astype(np.float32)
    instances = WatershedInstances()(probabilities, np.array([0, 1]))
    assert instances.dtype == np.int32
    assert label(inside).max() == 1
    assert instances.max() == 2
    assert instances[15, 14] != instances[15, 33]
    np.testing.assert_array_equal(instances > 0, inside)
    probabilities[:, 2:4, 2:4] = [[[0]], [[1]]]  # a speck
    assert WatershedInstances()(probabilities, np.array([0, 1])).max() == 3
    without = WatershedInstances(min_size=5)(probabilities, np.array([0, 1]))
    assert np.unique(without).tolist() == [0, 1, 2]
    assert not without[2:4, 2:4].any()


@pytest.mark.parametrize("degrees", [0, 14, 45, 70])
@pytest.mark.parametrize(("length", "width"), [(60, 3), (70, 8)])
def test_a_long_object_is_one(degrees, length, width):
    rows, columns = np.mgrid[:90, :90] - 44.7
    angle = np.deg2rad(degrees)
    along, across = columns * np.cos(angle) + rows * np.sin(angle), rows * np.cos(angle) - columns * np.sin(angle)
    bar = (abs(along) <= length / 2) & (abs(across) <= width / 2)
    bar[2, 2:9] = True  # as thin as can be
    instances = WatershedInstances()(np.stack([~bar, bar]).astype(np.float32), np.array([0, 1]))
    assert instances.max() == 2
    np.testing.assert_array_equal(instances > 0, bar)


def test_objects_whose_corners_touch_are_two():
    inside = np.kron(np.eye(2), np.ones((6, 6))) > 0
    assert WatershedInstances()(np.stack([~inside, inside]).astype(np.float32), np.array([0, 1])).max() == 2


def test_many_objects_take_no_more_memory_than_pixels():
    inside = np.zeros((900, 900), bool)
    inside[::3, ::3] = True  # 90 000 objects
    instances = WatershedInstances()(np.stack([~inside, inside]).astype(np.float32), np.array([0, 1]))
    assert instances.max() == 90_000
    np.testing.assert_array_equal(instances > 0, inside)
    whole = WatershedInstances()(np.stack([np.zeros((9, 9)), np.ones((9, 9))]), np.array([0, 1]))
    assert (whole == 1).all()


def test_objects_inside_boundaries_are_numbered_without_gaps():
    truth = np.zeros((8, 30), int)
    truth[2:6, 1:3] = truth[2:6, 6:14] = truth[2:6, 18:28] = 1
    probabilities = np.stack([truth == 0, truth == 1, np.zeros_like(truth)]).astype(np.float32)
    instances = WatershedInstances(label=1, boundary=2, min_size=20)(probabilities, np.array([0, 1, 2]))
    assert np.unique(instances).tolist() == [0, 1, 2]


def test_the_background_can_be_named():
    mask = np.full((1, 6, 6), 2)
    mask[0, 2, 2] = 1
    assert (RemoveSmall(5).transform(mask) == mask).all()  # 1 is the least
    assert (RemoveSmall(5, background=0).transform(mask) == 2).all()
    classes = np.array([1, 2])
    for background in (None, 1, 2):
        step = RemoveSmall(5, background=background)
        np.testing.assert_array_equal(Steps(step, classes)(mask[0]), step.transform(mask)[0])


def test_boundaries_part_objects():
    truth = np.zeros((20, 30), int)
    truth[2:18, 2:28] = 1
    truth[2:18, 18:20] = 2
    probabilities = np.stack([truth == i for i in range(3)]).astype(np.float32)
    instances = WatershedInstances(label=1, boundary=2)(probabilities, np.array([0, 1, 2]))
    assert instances.max() == 2
    np.testing.assert_array_equal(instances > 0, truth > 0)
    assert set(np.unique(instances[:, :18])) == {0, instances[5, 5]}
    # What comes after finds the background that instances have, whatever the labels.
    steps = Steps([WatershedInstances(8, 9), RemoveSmall(200)], np.array([7, 8, 9]))
    np.testing.assert_array_equal(np.unique(steps(probabilities)), [0, instances[5, 5]])
    assert WatershedInstances(1, 2, min_size=200)(probabilities, np.array([0, 1, 2])).max() == 1


# ---- in the segmenter


def mirrored(labels):
    return labels[::-1]


class Surest:
    takes_probabilities = True

    def __call__(self, probabilities, classes):
        return np.where(probabilities.max(0) > 0.9, classes[probabilities.argmax(0)], classes[0])


def test_predict_gives_what_the_steps_make(cells, fitted):
    X, _ = cells
    labels, probabilities = fitted.predict(X), fitted.predict_proba(X)
    segmenter = clone_of(fitted, postprocess=mirrored)
    np.testing.assert_array_equal(segmenter.predict(X), labels[:, ::-1])
    np.testing.assert_array_equal(segmenter.predict_proba(X), probabilities)
    segmenter.set_params(postprocess=[Threshold(0.3), RemoveSmall(9), mirrored])
    expected = RemoveSmall(9).transform((probabilities[:, 1] >= 0.3).astype(labels.dtype))[:, ::-1]
    np.testing.assert_array_equal(segmenter.predict(X), expected)
    np.testing.assert_array_equal(segmenter.predict(list(X))[3], expected[3])
    segmenter.set_params(postprocess=Surest())
    np.testing.assert_array_equal(segmenter.predict(X), np.where(probabilities[:, 1] > 0.9, 1, 0))
    segmenter.set_params(postprocess=make_pipeline(RemoveSmall(9), FillHoles()))
    np.testing.assert_array_equal(segmenter.predict(X), FillHoles().transform(RemoveSmall(9).transform(labels)))


def clone_of(fitted, **parameters):
    return copy.deepcopy(fitted).set_params(**parameters)


def test_instances_have_a_dtype_of_their_own(cells, fitted):
    X, y = cells
    segmenter = clone_of(fitted, postprocess=WatershedInstances(min_distance=2))
    instances = segmenter.predict(X)
    assert instances.dtype == np.int32
    assert [image.dtype for image in segmenter.predict(list(X))] == [np.int32] * len(X)
    with pytest.raises(ValueError, match="Instances are no labels"):
        segmenter.score(X, y)
    out = np.zeros(X.shape, np.int64)
    np.testing.assert_array_equal(segmenter.predict(X, out=out), instances)
    many = clone_of(fitted, postprocess=lambda labels: np.arange(labels.size).reshape(labels.shape))
    with pytest.raises(ValueError, match="dtype uint8 cannot hold what image 0 has, int64 from 0 to 1023"):
        many.predict(X, out=np.zeros(X.shape, np.uint8))


def test_it_survives_clone_search_and_files(cells, fitted, tmp_path):
    X, y = cells
    segmenter = clone_of(fitted, postprocess=RemoveSmall(7))
    assert clone(segmenter).postprocess.min_size == 7
    assert clone(segmenter).postprocess is not segmenter.postprocess
    segmenter.set_params(postprocess__min_size=8)
    assert segmenter.get_params()["postprocess__min_size"] == 8
    for postprocess in (RemoveSmall(8, labels=[1]), [Threshold(0.25), FillHoles()], None):
        segmenter.set_params(postprocess=postprocess).save(tmp_path / "file")
        loaded = UNetSegmenter.load(tmp_path / "file")
        assert repr(loaded.postprocess) == repr(postprocess)
        np.testing.assert_array_equal(loaded.predict(X), segmenter.predict(X))
    search = GridSearchCV(
        make_segmenter(postprocess=RemoveSmall()), {"postprocess__min_size": [1, 2000]}, cv=2, refit=False
    ).fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert scores[0] != scores[1]
    with pytest.raises(
        ValueError,
        match=r"parameters, to set postprocess__min_size; got None\. Pass one first: postprocess=RemoveSmall\(\)",
    ):
        segmenter.set_params(postprocess__min_size=3)


def test_what_a_file_cannot_hold_must_be_given_again(cells, fitted, tmp_path):
    X, _ = cells
    segmenter = clone_of(fitted, postprocess=[RemoveSmall(3), mirrored])
    segmenter.save(tmp_path / "file")
    with pytest.raises(ValueError, match=r"needs postprocess=.*mirrored'"):
        UNetSegmenter.load(tmp_path / "file")
    loaded = UNetSegmenter.load(tmp_path / "file", postprocess=segmenter.postprocess)
    np.testing.assert_array_equal(loaded.predict(X), segmenter.predict(X))


@pytest.mark.parametrize(
    ("postprocess", "error"),
    [
        (RemoveSmall, "postprocess must be None, a function of labels, a step"),
        (3, "postprocess must be None"),
        ([RemoveSmall(), Threshold()], "must be the first of postprocess; got"),
        (lambda labels: labels[:3], r"one label per pixel, shape \(32, 32\) here; <lambda> gave \(3, 32\)"),
        (Threshold(7), "threshold must be a number from 0 to 1"),
        (Threshold(label=9), r"label must be one of the labels \[0, 1\]; got 9"),
        (RemoveSmall(connectivity=3), "connectivity must be a whole number from 1 to 2"),
        (RemoveSmall(labels=[9]), r"labels of RemoveSmall must be among \[0, 1\]; got \[9\]"),
        (RemoveSmall(-3), "min_size must be a whole number of at least 1"),
        (FillHoles("a"), "max_size must be a whole number"),
        (WatershedInstances(min_distance=0), "min_distance must be a whole number"),
        (ArgMax({0: 0, 1: 0}), "priors must not all be 0"),
    ],
)
def test_what_is_no_step_is_refused(cells, fitted, postprocess, error):
    with pytest.raises(ValueError, match=error):
        clone_of(fitted, postprocess=postprocess).predict(cells[0])


def test_training_does_not_see_it(cells):
    X, y = cells
    plain = make_segmenter(max_epochs=2).fit(X, y)
    other = make_segmenter(max_epochs=2, postprocess=np.zeros_like).fit(X, y)
    assert [row["valid_iou"] for row in plain.history] == [row["valid_iou"] for row in other.history]
    assert other.predict(X).max() == 0


def test_labels_are_a_list():
    for labels in (1, {1, 2}):
        with pytest.raises(ValueError, match="labels must be None or a list"):
            RemoveSmall(labels=labels).clean(np.eye(4), background=0)
        with pytest.raises(ValueError, match="labels must be None or a list"):
            Steps(RemoveSmall(labels=labels), np.array([0, 1]))
    steps = Steps(RemoveSmall(3, labels=np.array([1, 2])), np.array([0, 1, 2]))
    assert not steps(np.eye(4, dtype=int)).any()
    with pytest.raises(ValueError, match=r"labels of RemoveSmall must be among \[0, 1\]; got \[2\]"):
        Steps(RemoveSmall(3, labels=np.array([1, 2])), np.array([0, 1]))
