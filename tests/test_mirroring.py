import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skunet.mirroring import mirror_pad, reflect


@given(st.integers(1, 9), st.integers(0, 30), st.integers(1, 30))
def test_reflected_positions_equal_numpy_reflection(n, start, length):
    padded = np.pad(np.arange(n), (0, start + length), mode="reflect" if n > 1 else "edge")
    np.testing.assert_array_equal(reflect(np.arange(start, start + length), n), padded[start : start + length])


@given(
    image=hnp.arrays(
        st.sampled_from([np.uint8, np.bool_, np.uint16, np.int64, np.float32]),
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
        elements={"allow_nan": False},
    ),
    data=st.data(),
)
@settings(max_examples=60)
def test_mirror_pad_is_numpys_reflect_for_any_dtype_and_pad(image, data):
    n_padded = data.draw(st.integers(1, image.ndim))
    pads = st.lists(st.integers(0, 12), min_size=n_padded, max_size=n_padded)
    before, after = data.draw(pads), data.draw(pads)
    untouched = [(0, 0)] * (image.ndim - n_padded)
    expected = np.pad(image, untouched + list(zip(before, after, strict=True)), mode="reflect")
    padded = mirror_pad(torch.from_numpy(image), before, after)
    assert padded.dtype == torch.from_numpy(image).dtype
    np.testing.assert_array_equal(padded.numpy(), expected)


def test_mirror_pad_repeats_a_single_pixel_and_leaves_its_argument_alone():
    image = torch.tensor([[7]], dtype=torch.uint8)
    assert mirror_pad(image, [1, 2], [0, 3]).tolist() == [[7] * 6] * 2
    assert image.tolist() == [[7]]
    assert mirror_pad(image, [0, 0], [0, 0]) is image


@pytest.mark.parametrize(("before", "after"), [([-1], [0]), ([1], [1, 1]), ([1, 1, 1], [1, 1, 1])])
def test_mirror_pad_refuses_pads_that_do_not_fit(before, after):
    with pytest.raises(ValueError, match="before and after must hold one pad >= 0 per axis"):
        mirror_pad(torch.zeros(2, 2), before, after)


def test_mirror_pad_refuses_an_empty_axis():
    with pytest.raises(ValueError, match=r"images must have pixels on each axis; got \(1, 0\)"):
        mirror_pad(torch.zeros(1, 0), [1], [1])
