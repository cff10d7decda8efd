import numpy as np
import pytest
import torch
from conftest import make_segmenter

from skunet.geometry import PlainGeometry
from skunet.network import UNet
from skunet.pixels import TensorPixels, read_mirrored
from skunet.reach import cut
from skunet.tiling import assemble, predict_tiles
from skunet.turning import TURNS, Turn, TurnedPixels, choose_turns

NUMPY = {
    "flip_vertical": np.flipud,
    "flip_horizontal": np.fliplr,
    "turn_180": lambda image: np.rot90(image, 2),
    "transpose": np.transpose,
    "turn_90": np.rot90,
    "turn_270": lambda image: np.rot90(image, 3),
    "antitranspose": lambda image: np.rot90(image, 2).T,
}


@pytest.mark.parametrize("name", TURNS)
def test_turns_are_those_of_numpy_and_can_be_undone(name):
    image = torch.arange(15).reshape(3, 5)
    turn = choose_turns([name], spatial_ndim=2)[1]
    np.testing.assert_array_equal(turn.apply(image), NUMPY[name](image.numpy()))
    assert torch.equal(turn.undo(turn.apply(image)), image)
    assert torch.equal(turn.apply(image.to(torch.uint16)), turn.apply(image).to(torch.uint16))


@pytest.mark.parametrize("spatial_ndim", [2, 3])
def test_windows_turn_with_the_image(spatial_ndim):
    size = (4, 5, 7)[-spatial_ndim:]
    image = torch.arange(int(np.prod(size))).reshape(1, 1, *size)
    window = tuple(slice(1, 1 + i) for i in range(2, 2 + spatial_ndim))
    turns = choose_turns(True, spatial_ndim=spatial_ndim)
    assert len({tuple(turn.apply(image).flatten().tolist()) for turn in turns}) == len(turns)
    for turn in turns:
        turned = turn.apply(image)
        there = turn.window(window, size)
        assert torch.equal(turned[(..., *there)], turn.apply(image[(..., *window)]))
        assert turn.window_before(there, size) == window
        view = TurnedPixels(TensorPixels(image), turn)
        assert view.size == tuple(turned.shape[2:])
        assert torch.equal(view.read(there), turned[(..., *there)])
        beyond = tuple(slice(-3, n + 9) for n in view.size)
        assert torch.equal(read_mirrored(view, beyond), read_mirrored(TensorPixels(turned), beyond))


@pytest.mark.parametrize("tta", [["turn_45"], ["flip_depth"], "turn_90"])
def test_unknown_names_are_refused_before_training(cells, tta):
    with pytest.raises(ValueError, match="tta must be"):
        make_segmenter(tta=tta).fit(*cells)


def run(network, images, tile_size, turns):
    with torch.inference_mode():
        tiles = predict_tiles(TensorPixels(images), network, tile_size=tile_size, geometry=network, turns=turns)
        return assemble(tiles, images.shape[2:])


@pytest.mark.parametrize("size", [(61, 40), (17, 90), (1, 50)])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_tiled_with_turns_equals_whole_with_turns(size, padding):
    torch.manual_seed(0)
    network = UNet(1, 3, depth=2, filters=2, padding=padding).eval()
    images, turns = torch.randn(1, 1, *size), choose_turns(True, spatial_ndim=2)
    whole = run(network, images, None, turns)
    torch.testing.assert_close(run(network, images, (16, 20), turns), whole, atol=1e-5, rtol=1e-5)
    by_hand = sum(turn.undo(run(network, turn.apply(images), None, ())) for turn in turns) / len(turns)
    torch.testing.assert_close(whole, by_hand, atol=1e-6, rtol=1e-5)


def test_a_turned_image_gives_the_turned_prediction():
    torch.manual_seed(0)
    network, images = UNet(1, 2, depth=2, filters=2).eval(), torch.randn(1, 1, 32, 48)
    turns = choose_turns(True, spatial_ndim=2)
    expected = run(network, images, None, turns)
    for turn in turns:
        found = run(network, turn.apply(images), (16, 16), turns)
        torch.testing.assert_close(found, turn.apply(expected), atol=1e-5, rtol=1e-5)


def test_blended_tiles_are_turned_too():
    images = torch.randn(1, 1, 50, 33)
    turns, geometry = choose_turns(["turn_90", "flip_vertical"], spatial_ndim=2), PlainGeometry(size_multiple=4)
    tiles = predict_tiles(
        TensorPixels(images), lambda x, window: cut(2 * x, window), tile_size=(16, 12), geometry=geometry, turns=turns
    )
    torch.testing.assert_close(assemble(tiles, (50, 33)), 2 * images)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32, np.int64, np.float16, np.float64, bool])
def test_images_of_every_dtype_are_turned(cells, dtype):
    X, y = cells
    X = (X > 128 if dtype is bool else X).astype(dtype)
    segmenter = make_segmenter(tta=True).fit(X, y)
    np.testing.assert_allclose(
        segmenter.predict_proba(X[:2]), segmenter.predict_proba(X[:2].astype(np.float32)), atol=1e-5
    )


@pytest.mark.parametrize("tile_size", [None, 8])
def test_predictions_are_the_mean_over_the_turned_images(cells, tile_size):
    X, y = cells
    segmenter = make_segmenter(max_epochs=2, precision="float32", tile_size=tile_size).fit(X, y)
    turns = {"turn_90": (1, 3), "flip_horizontal": None}
    plain = segmenter.predict_proba(X)
    turned = np.rot90(segmenter.predict_proba(np.rot90(X, 1, (1, 2)).copy()), -1, (2, 3))
    flipped = segmenter.predict_proba(X[:, :, ::-1].copy())[..., ::-1]
    found = segmenter.set_params(tta=list(turns)).predict_proba(X)
    np.testing.assert_allclose(found, (plain + turned + flipped) / 3, atol=1e-6)
    np.testing.assert_array_equal(segmenter.predict(X), segmenter.classes_[found.argmax(1)])


def test_volumes_turn_in_their_last_axes_and_flip_in_depth(volumes):
    X, y = volumes
    segmenter = make_segmenter(depth=1, precision="float32", tta=["flip_depth", "transpose"]).fit(X, y)
    found = segmenter.predict_proba(X)
    segmenter.set_params(tta=False)
    parts = [
        segmenter.predict_proba(X),
        segmenter.predict_proba(X[:, ::-1].copy())[:, :, ::-1],
        np.swapaxes(segmenter.predict_proba(np.swapaxes(X, 2, 3).copy()), 3, 4),
    ]
    np.testing.assert_allclose(found, sum(parts) / 3, atol=1e-6)


def test_turn_is_what_it_says():
    assert Turn((1, 0), (True, False)).size((3, 5)) == (5, 3)
