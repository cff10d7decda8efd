import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skunet.containers import open_container
from skunet.images import Results, as_tensor, open_images


def opened(X, spatial_ndim=2, **options):
    return open_images(open_container(X, "X"), spatial_ndim=spatial_ndim, **options)


@given(
    st.sampled_from([2, 3]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from(["stack", "list", "object_array", "tensor"]),
    st.data(),
)
def test_every_image_comes_in_channels_first(spatial_ndim, n_channels, kind, data):
    size = data.draw(st.tuples(*[st.integers(1, 5)] * spatial_ndim))
    n_images = data.draw(st.integers(1, 4))
    channels = () if n_channels is None else (n_channels,)
    X = np.arange(n_images * np.prod(size + channels)).reshape(n_images, *size, *channels)
    expected = np.moveaxis(X, -1, 1) if channels else X[:, None]
    container = X
    if kind == "list":
        container = list(X)
    elif kind == "object_array":
        container = np.empty(n_images, dtype=object)
        container[:] = list(X)
    elif kind == "tensor":
        container = torch.from_numpy(np.ascontiguousarray(expected if channels else X))
    images = opened(container, spatial_ndim)
    assert len(images) == n_images
    for image, same in zip(images, expected, strict=True):
        np.testing.assert_array_equal(image, same)
    assert images.size(0) == size


@given(st.sampled_from(["stack", "list", "object_array"]), st.integers(1, 4))
def test_results_come_in_the_container_of_the_images(kind, n_images):
    X = np.random.default_rng(0).integers(0, 9, (n_images, 4, 5))
    container = {"stack": X, "list": list(X), "object_array": np.empty(n_images, dtype=object)}[kind]
    if kind == "object_array":
        container[:] = list(X)
    images = opened(container)
    results = Results(images, np.int16)
    for index, image in enumerate(images):
        results.begin(index, image.shape[1:])
        results.write(index, (slice(0, 4), slice(0, 5)), image[0] + 1)
    given_back = results.give_back()
    assert type(given_back) is type(container)
    assert len(given_back) == n_images
    for result, image in zip(given_back, X, strict=True):
        assert result.dtype == np.int16
        np.testing.assert_array_equal(result, image + 1)


def test_channels_unlike_those_fitted_raise_with_the_remedy():
    with pytest.raises(ValueError, match=r"np\.moveaxis\(X, 1, -1\)"):
        opened(np.zeros((2, 3, 8, 9)), n_channels=3)
    with pytest.raises(ValueError, match=r"X\[None\]"):
        opened(np.zeros((8, 9, 3)), n_channels=3)
    with pytest.raises(ValueError, match=r"X has 2 channel\(s\), but UNetSegmenter is expecting 3"):
        opened(np.zeros((2, 8, 9, 2)), n_channels=3)


@given(
    hnp.arrays(st.sampled_from([np.uint8, np.uint16, np.uint32, np.int16, np.float32, np.bool_, ">i2", ">f4"]), (3, 4))
)
def test_tensors_hold_the_same_numbers(array):
    tensor = as_tensor(array)
    np.testing.assert_array_equal(tensor.numpy().astype(np.float64), array.astype(np.float64))
    assert (tensor.dtype == torch.uint8) == (array.dtype in (np.uint8, np.bool_))


def test_read_only_arrays_are_taken_without_a_warning():
    array = np.zeros((3, 3), np.uint8)
    array.flags.writeable = False
    tensor = as_tensor(array)
    tensor += 1
    assert array.max() == 0
