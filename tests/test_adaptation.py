import copy
import warnings

import dask.array as da
import numpy as np
import pytest
import torch
from conftest import make_segmenter
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from skunet import UNetSegmenter
from skunet.adaptation import NormAdaptation, adaptation_of, choose_share
from skunet.inference import Inference
from skunet.network import UNet


def fitted_by_single_patches(volumes, **parameters):
    X, y = volumes
    options = {"batch_size": 1, "patch_size": 8, "precision": "float32", "max_epochs": 2} | parameters
    return make_segmenter(**options).fit(X, y)


def by_hand(segmenter, batches):
    """Return what the network gives for scaled images whose batch alone decides how norms act."""
    network = copy.deepcopy(segmenter.module_).train()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm3d):
            layer.momentum = 0.0
    with torch.no_grad():
        return network(batches).softmax(dim=1).numpy()


def scaled(images):
    axes = (1, 2, 3)
    offset, spread = images.mean(axes, keepdims=True), images.std(axes, keepdims=True)
    return torch.from_numpy(((images - offset) / spread).astype(np.float32))[:, None]


@given(
    sizes=st.lists(st.tuples(st.integers(1, 90), st.integers(1, 40)), min_size=2, max_size=3),
    patch_pixels=st.integers(1, 10**5),
)
@settings(max_examples=50)
def test_parts_have_one_size_and_leave_out_nothing_where_they_are_few(sizes, patch_pixels):
    size, part_size = tuple(n for n, _ in sizes), tuple(n for _, n in sizes)
    windows = NormAdaptation(nn.Identity(), 0.5, part_size, patch_pixels).windows(size)
    assert all(0 <= span.start < span.stop <= n for window in windows for span, n in zip(window, size, strict=True))
    shapes = {tuple(span.stop - span.start for span in window) for window in windows}
    assert len(shapes) == 1
    shape = shapes.pop()
    seen = np.zeros(size, bool)
    for window in windows:
        seen[window] = True
    if np.prod(size) <= 2.5 * patch_pixels:
        assert shape == size
        assert len(windows) == 1
        return
    assert all(n <= largest for n, largest in zip(shape, part_size, strict=True))
    n_needed = np.prod([-(-n // largest) for n, largest in zip(size, part_size, strict=True)])
    most = max(2 * patch_pixels // np.prod(part_size), 4)
    assert len(windows) == min(n_needed, most)
    assert seen.all() == (n_needed <= most)


def test_of_huge_images_parts_are_drawn_without_a_list_of_them():
    windows = NormAdaptation(nn.Identity(), 0.5, (8, 8), 8 * 8).windows((10**6, 10**6))
    assert len(windows) == 4
    assert {tuple(span.stop - span.start for span in window) for window in windows} == {(8, 8)}
    assert [window[0].start // 250_000 for window in windows] == [0, 1, 2, 3]


def test_many_parts_come_from_all_over_the_image():
    windows = NormAdaptation(nn.Identity(), 0.5, (8, 8, 8), 8 * 8**3).windows((80, 80, 80))
    for axis in range(3):
        assert len({window[axis].start for window in windows}) > 3
    assert windows == NormAdaptation(nn.Identity(), 1.0, (8, 8, 8), 8 * 8**3).windows((80, 80, 80))


@pytest.mark.parametrize(
    ("patch_size", "part_size"),
    [((128, 128, 128), (64, 64, 64)), ((32, 128, 128), (32, 64, 64)), ((32, 32, 32), (32, 32, 32))],
)
def test_parts_follow_from_the_patches(patch_size, part_size):
    network = UNet(1, 2, depth=1, filters=2, spatial_ndim=3)
    adaptation = adaptation_of(network, "auto", batch_size=1, patch_size=patch_size, size_multiple=16)
    assert (adaptation.share, adaptation.part_size) == (0.5, part_size)
    assert adaptation.patch_pixels == np.prod(patch_size)


def test_with_all_of_an_image_it_is_normalized_as_in_training(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes, norm_adaptation=1.0)
    small = X[:2, :8, :8, :8].astype(float)
    expected = np.concatenate([by_hand(segmenter, image[None]) for image in scaled(small)])
    np.testing.assert_allclose(segmenter.predict_proba(small), expected, atol=1e-5)


def test_without_a_share_it_is_normalized_by_the_statistics_of_training(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes, norm_adaptation=0.0)
    with torch.no_grad():
        expected = copy.deepcopy(segmenter.module_).eval()(scaled(X[:1])).softmax(dim=1).numpy()
    np.testing.assert_allclose(segmenter.predict_proba(X[:1]), expected, atol=1e-5)


def test_norms_have_a_mean_of_both_statistics():
    torch.manual_seed(0)
    network = UNet(1, 2, depth=1, filters=2, spatial_ndim=3).eval()
    first = next(layer for layer in network.modules() if isinstance(layer, nn.BatchNorm3d))
    first.running_mean.fill_(3.0)
    before = copy.deepcopy(network.state_dict())
    patches = torch.randn(3, 1, 4, 4, 4)
    adaptation = NormAdaptation(network, 0.25, (4, 4, 4), 64)
    with torch.no_grad():
        met = network.encoder[0].convolutions[0](patches)
        statistics = adaptation.measure(patches, lambda module, images: module(images))
    axes = (0, 2, 3, 4)
    mean, variance = next(iter(statistics.values()))
    torch.testing.assert_close(mean, 0.25 * met.mean(axes) + 0.75 * 3.0)
    torch.testing.assert_close(variance, 0.25 * met.var(axes, correction=0) + 0.75)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_images_that_are_validated_together_adapt_one_by_one(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes, batch_size=4, norm_adaptation=0.5)
    found = torch.softmax(segmenter.forward(X), dim=1).numpy()
    np.testing.assert_allclose(found, segmenter.predict_proba(X), atol=1e-5)


def test_norms_take_in_an_image_once_or_not_at_all(volumes, monkeypatch):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes)
    expected = segmenter.predict_proba(X[:1])
    forward = Inference._forward

    def fail_at_first(self, *args):
        logits = forward(self, *args)
        monkeypatch.setattr(Inference, "_forward", forward)
        raise MemoryError(logits.shape)

    monkeypatch.setattr(Inference, "_forward", fail_at_first)
    with pytest.raises(MemoryError) as raised:
        segmenter.predict_proba(X[:1])
    assert "norm_adaptation=0" in raised.value.__notes__[0]
    np.testing.assert_array_equal(segmenter.predict_proba(X[:1]), expected)


@pytest.mark.parametrize(
    "parameters",
    [{}, {"module__padding": "valid", "patch_size": 24}, {"precision": "bfloat16"}, {"tta": True}],
    ids=str,
)
def test_tiles_equal_the_whole(volumes, parameters):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes, **parameters)
    large = np.concatenate([X[0], X[1][:, :, ::-1]], axis=1)  # several parts
    whole = segmenter.set_params(tile_size=None).predict_proba(large[None])
    tiled = segmenter.set_params(tile_size=8).predict_proba(large[None])
    atol = 1e-5 if segmenter.precision_ == "float32" else 0.02
    np.testing.assert_allclose(tiled, whole, atol=atol)
    assert np.abs(segmenter.set_params(norm_adaptation=0.0).predict_proba(large[None]) - whole).max() > 10 * atol


def test_each_image_has_statistics_of_its_own(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes)
    together = segmenter.predict_proba(X)
    for image, expected in zip(X, together, strict=True):
        np.testing.assert_allclose(segmenter.predict_proba(image[None])[0], expected, atol=1e-6)
    np.testing.assert_allclose(torch.softmax(segmenter.forward(X), dim=1).numpy(), together, atol=1e-5)


def test_lazy_images_are_measured_as_arrays(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes)
    large = np.concatenate([X[0], X[1]], axis=1)[None]
    chunks = da.from_array(large, chunks=(1, 8, 8, 8))
    np.testing.assert_allclose(
        segmenter.predict_proba(chunks).compute(scheduler="sync"), segmenter.predict_proba(large), atol=1e-5
    )


def test_auto_adapts_where_a_batch_was_one_patch(volumes):
    X, _ = volumes
    assert choose_share("auto", 1) == 0.5
    single = fitted_by_single_patches(volumes)
    found = single.predict_proba(X)
    np.testing.assert_array_equal(single.set_params(norm_adaptation=0.5).predict_proba(X), found)
    parts = fitted_by_single_patches(volumes, batch_size=2, micro_batch_size=1)
    found = parts.predict_proba(X)
    np.testing.assert_array_equal(parts.set_params(norm_adaptation=0.5).predict_proba(X), found)
    several = fitted_by_single_patches(volumes, batch_size=2)
    found = several.predict_proba(X)
    np.testing.assert_array_equal(several.set_params(norm_adaptation=0.0).predict_proba(X), found)


def test_networks_without_batch_norms_have_nothing_to_adapt(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes, module__normalization=None)
    found = segmenter.predict_proba(X)
    np.testing.assert_array_equal(segmenter.set_params(norm_adaptation=0.0).predict_proba(X), found)


def test_a_file_predicts_the_same(volumes, tmp_path):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes)
    segmenter.save(tmp_path / "volumes.skunet")
    loaded = UNetSegmenter.load(tmp_path / "volumes.skunet", check_probe=True)
    np.testing.assert_array_equal(loaded.predict_proba(X), segmenter.predict_proba(X))
    UNetSegmenter.load(tmp_path / "volumes.skunet", check_probe=True, norm_adaptation=0.0)


def test_other_engines_adapt_too(volumes):
    pytest.importorskip("onnxruntime")
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes)
    expected = segmenter.predict_proba(X[:2])
    np.testing.assert_allclose(segmenter.set_params(engine="onnxruntime").predict_proba(X[:2]), expected, atol=1e-4)


def test_an_exported_file_does_not_adapt_and_says_so(volumes, tmp_path):
    pytest.importorskip("onnxruntime")
    segmenter = fitted_by_single_patches(volumes)
    with pytest.warns(UserWarning, match="norm_adaptation must be 0 for a file that predicts as the segmenter"):
        segmenter.export(tmp_path / "volumes.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        segmenter.set_params(norm_adaptation=0.0).export(tmp_path / "volumes.onnx")


def test_an_image_that_holds_nan_is_refused_before_its_norms_take_it_in(volumes):
    X, _ = volumes
    segmenter = fitted_by_single_patches(volumes)
    spoiled = X[:1].astype(np.float32)
    spoiled[0, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        segmenter.predict(spoiled)
    with pytest.raises(ValueError, match="NaN"):
        segmenter.predict(da.from_array(spoiled, chunks=(1, 8, 8, 8))).compute(scheduler="sync")


@pytest.mark.parametrize("share", [-0.1, 1.1, "always", None, True])
def test_other_shares_are_refused(volumes, share):
    X, y = volumes
    with pytest.raises(ValueError, match="norm_adaptation must be"):
        make_segmenter(norm_adaptation=share).fit(X, y)
    segmenter = fitted_by_single_patches(volumes).set_params(norm_adaptation=share)
    with pytest.raises(ValueError, match="norm_adaptation must be"):
        segmenter.predict(X)
