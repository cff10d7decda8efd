import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skunet.labels import LabelCodec, count_labels, learn_codec, warn_of_rare_classes

LABEL_SETS = [
    np.array([False, True]),
    np.array([0, 255], dtype=np.uint8),
    np.array([-3, 0, 70000]),
    np.array([1, 2, 5], dtype=np.int16),
    np.array([0.0, 1.0, 7.0], dtype=np.float32),
    np.array(["cell", "wall"]),
    np.array([-(10**9), 0, 10**9]),
]


@pytest.mark.parametrize("classes", LABEL_SETS, ids=str)
@given(data=st.data())
def test_encode_then_decode_is_the_identity_and_keeps_the_dtype(classes, data):
    codec = LabelCodec(classes)
    indices = data.draw(hnp.arrays(np.int64, (3, 4), elements=st.integers(0, len(classes) - 1)))
    mask = classes[indices]
    np.testing.assert_array_equal(codec.encode(mask), indices)
    assert codec.decode(indices).dtype == classes.dtype
    np.testing.assert_array_equal(codec.decode(indices), mask)


@pytest.mark.parametrize("classes", LABEL_SETS, ids=str)
@pytest.mark.parametrize("with_ignore", [False, True])
def test_encoding_a_tensor_equals_encoding_an_array(classes, with_ignore):
    ignore = {"b": None, "u": 7, "i": 3, "f": 3.0, "U": "void"}[classes.dtype.kind] if with_ignore else None
    mask = classes[np.array([[0, 1], [len(classes) - 1, 0]])]
    if ignore is not None:
        mask = np.append(mask, [[ignore, ignore]], axis=0).astype(np.result_type(classes, np.asarray(ignore)))
    codec = LabelCodec(classes, ignore)
    np.testing.assert_array_equal(codec.encode_tensor(codec.to_tensor(mask)).numpy(), codec.encode(mask))


@pytest.mark.parametrize("classes", [[0, 1], [0, 2], [1, 2], [1, 2, 3], [-1, 3], [5, 250], [0, 10**6], [-(10**6), 1]])
@pytest.mark.parametrize("ignore_label", [None, 4])
def test_an_unknown_label_is_no_class(classes, ignore_label):
    codec = LabelCodec(np.array(classes), ignore_label)
    mask = np.array([*classes, -(10**7), -3, -2, -1, 0, 1, 2, 3, 4, 5, 9, 255, 256, 10**7])
    expected = [classes.index(label) if label in classes else -1 for label in mask]
    assert codec.encode(mask).tolist() == expected
    assert codec.encode_tensor(torch.as_tensor(mask)).tolist() == expected


def test_an_unknown_index_of_a_text_is_no_class():
    codec = LabelCodec(np.array(["cell", "gap"]))
    assert codec.encode_tensor(torch.tensor([0, 1, 2, -1, -2])).tolist() == [0, 1, -1, -1, -1]


@pytest.mark.parametrize(("mask", "label"), [([0, 1, 255], "255"), (["cell", "gap"], 255)])
def test_an_ignore_label_of_another_kind_raises(mask, label):
    with pytest.raises(ValueError, match=f"ignore_label must be written as the labels of y are, .* got {label!r}"):
        learn_codec([count_labels(np.array(mask), "mask 0")], classes=None, ignore_label=label)


def test_masks_without_any_label_raise():
    masks = [count_labels(np.zeros((4, 4), np.uint8), f"mask {index}") for index in range(2)]
    for classes in (None, [1, 2]):
        with pytest.raises(ValueError, match="y must hold pixels with a label; all are ignore_label=0"):
            learn_codec(masks, classes=classes, ignore_label=0)


@given(hnp.arrays(st.sampled_from([np.uint8, np.int16, np.int64, np.uint16, np.bool_]), (5, 6)))
def test_counts_equal_those_of_unique(mask):
    counts = count_labels(mask, "mask 0")
    values, expected = np.unique(mask, return_counts=True)
    np.testing.assert_array_equal(counts.values, values)
    np.testing.assert_array_equal(counts.counts, expected)
    assert counts.values.dtype == mask.dtype


def learn(*masks, classes=None, ignore_label=None):
    counted = [count_labels(np.asarray(mask), f"mask {i}") for i, mask in enumerate(masks)]
    return learn_codec(counted, classes=classes, ignore_label=ignore_label)


def test_classes_are_sorted_without_the_ignored_and_counted():
    codec, counts = learn(np.array([[5, 0], [255, 5]], np.uint8), np.array([[2, 2]], np.uint8), ignore_label=255)
    assert codec.classes.tolist() == [0, 2, 5]
    assert codec.classes.dtype == np.uint8
    assert counts.tolist() == [1, 2, 2]


def test_listed_classes_that_do_not_occur_keep_their_place_and_the_dtype_of_y():
    codec, counts = learn(np.array([[0, 2]], np.uint8), classes=[2, 0, 1])
    assert codec.classes.tolist() == [0, 1, 2]
    assert codec.classes.dtype == np.uint8
    assert counts.tolist() == [1, 0, 1]


def test_a_label_not_listed_raises_and_names_mask_and_label():
    with pytest.raises(ValueError, match=r"classes=\[0, 1\]; mask 1 holds \[7\]"):
        learn(np.array([[0, 1]]), np.array([[7, 1]]), classes=[0, 1])


def test_one_class_raises():
    with pytest.raises(ValueError, match="1 class"):
        learn(np.zeros((3, 3), int))


def test_too_many_classes_raise():
    with pytest.raises(ValueError, match="at most 256 classes; got 300"):
        learn(*(np.arange(i * 30, i * 30 + 30).reshape(5, 6) for i in range(10)))


def test_soft_edges_raise_with_the_number_of_values():
    rows, columns = np.mgrid[:64, :64]
    soft = np.clip((20 - np.hypot(rows - 32, columns - 32)) * 60 + 128, 0, 255).astype(np.uint8)
    with pytest.raises(ValueError, match=r"mask 1 has \d+ values; was it saved as JPEG or resized with interpolation"):
        learn((soft > 127).astype(np.uint8) * 255, soft)
    with pytest.raises(ValueError, match="interpolation"):
        learn(soft, classes=[0, 255])


def test_soft_edges_show_in_many_small_masks_together():
    rng = np.random.default_rng(0)
    masks = [np.where(rng.random((16, 16)) < 0.5, 0, 255) for _ in range(8)]
    for mask in masks:
        mask[0, :3] = rng.integers(1, 255, 3)
    with pytest.raises(ValueError, match=r"The masks together have \d+ values"):
        learn(*masks)


def test_many_values_raise_unless_listed():
    ids = np.arange(80).reshape(8, 10)
    with pytest.raises(ValueError, match="mask 0 has 80 values"):
        learn(ids)
    assert len(learn(ids, classes=range(80))[0].classes) == 80


def test_a_mask_of_twenty_even_classes_is_not_soft():
    assert len(learn(np.arange(400).reshape(20, 20) % 20)[0].classes) == 20


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[0.0, 0.5]]), "Unknown label type: mask 0 must hold whole numbers; got 0.5"),
        (np.array([[0.0, np.nan]]), "mask 0 contains NaN"),
        (np.array([[0, 1j]]), "Complex data not supported"),
    ],
)
def test_numbers_that_are_no_labels_raise(mask, message):
    with pytest.raises(ValueError, match=message):
        count_labels(mask, "mask 0")


def test_object_masks_of_strings_and_of_numbers_are_labels():
    assert count_labels(np.array([["a", "b"]], dtype=object), "mask 0").values.tolist() == ["a", "b"]
    assert count_labels(np.array([[1, 3]], dtype=object), "mask 0").values.tolist() == [1, 3]


def test_rare_classes_are_named_with_their_share():
    codec = LabelCodec(np.array([0, 1, 2]))
    with pytest.warns(UserWarning, match=r"2 \(0\.0005\)"):
        warn_of_rare_classes(codec, np.array([9000, 995, 5]), stacklevel=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_rare_classes(codec, np.array([900, 95, 5]), stacklevel=2)
        warn_of_rare_classes(codec, np.array([900, 100, 0]), stacklevel=2)  # listed, not in y: nothing to see


def test_masks_of_two_scales_are_told():
    masks = [count_labels(np.array(mask), "") for mask in ([0, 255], [0, 1], [0, 0])]
    with pytest.warns(UserWarning, match=r"mask 1 has 1 and others have 255.*pass y > 0"):
        learn_codec(masks, classes=None, ignore_label=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learn_codec(masks, classes=[0, 1, 255], ignore_label=None)
        learn_codec([*masks, count_labels(np.array([1, 255]), "")], classes=None, ignore_label=None)
        learn_codec(masks, classes=None, ignore_label=255)


def test_labels_in_double_precision_travel_as_whole_numbers():
    codec = LabelCodec(np.array([0.0, 255.0]), -1)
    tensor = codec.to_tensor(np.array([[255.0, -1.0, 0.0]]))
    assert tensor.dtype == torch.int64  # not every device has float64
    assert codec.encode_tensor(tensor).tolist() == [[1, -1, 0]]


def test_labels_that_are_no_numbers_travel_as_class_indices():
    codec = LabelCodec(np.array(["a", "b"]), "void")
    tensor = codec.to_tensor(np.array([["b", "void"]]))
    assert tensor.tolist() == [[1, -1]]
    assert torch.equal(codec.encode_tensor(tensor), tensor)
