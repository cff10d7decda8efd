import numpy as np
import pytest
import torch
from conftest import make_segmenter

from skunet import hardware
from skunet.geometry import PlainGeometry
from skunet.network import UNet
from skunet.tile_size import TileMemory, auto_tile_size, choose_tile_size, measure_tile

EXACT = PlainGeometry(16, (50, 50), is_exactly_tileable=True)
BLENDED = PlainGeometry(16)


@pytest.mark.parametrize(
    ("tile_size", "size", "expected"),
    [
        (None, (9999, 9999), None),
        (100, (300, 300), (112, 112)),
        ((16, 40), (300, 300), (16, 48)),
        (300, (300, 300), None),
    ],
)
def test_tile_sizes(tile_size, size, expected):
    assert choose_tile_size(tile_size, size, size_multiple=16) == expected


def test_a_tile_has_the_axes_of_the_image():
    with pytest.raises(ValueError, match=r"one per axis, 2 here; got \(1, 2, 3\)"):
        choose_tile_size((1, 2, 3), (300, 300), size_multiple=16)


@pytest.mark.parametrize(
    ("size", "is_gpu", "expected"),
    [
        ((1024, 1024), False, None),
        ((1100, 1100), False, None),
        ((1200, 1200), False, (608, 608)),
        ((2048, 2048), False, (1024, 1024)),  # two tiles, each with surroundings on one side
        ((3000, 900), False, (1008, 912)),
        ((9000, 9000), False, (1008, 1008)),
        ((200, 200, 200), False, (80, 80, 80)),
        ((3, 500000), False, (16, 1024)),
        ((2048, 2048), True, None),
        ((9000, 9000), True, (2256, 2256)),
    ],
)
def test_tiles_are_as_large_as_is_fast(size, is_gpu, expected):
    assert auto_tile_size(size, geometry=EXACT, is_gpu=is_gpu) == expected


@pytest.mark.parametrize("limit", [1e6, 3e6, 1e7, 1e8, 1e9])
@pytest.mark.parametrize("size", [(1000, 1000), (4000, 300), (3, 5000)])
def test_tiles_keep_within_the_limit(size, limit):
    memory = TileMemory(constant=1000, per_pixel=40)
    tile = auto_tile_size(size, geometry=EXACT, memory=memory, limit=limit)
    read = [
        n if side >= n else side + (50 if 2 * side >= n else 100) for side, n in zip(tile or size, size, strict=True)
    ]
    assert memory.bytes_for(read) <= limit
    with pytest.warns(UserWarning, match="The smallest tile takes about .* Give a higher memory_limit"):
        auto_tile_size(size, geometry=EXACT, memory=memory, limit=100)


def test_images_whose_tiles_would_be_blended_are_whole_if_they_fit():
    memory = TileMemory(constant=0, per_pixel=100)
    assert auto_tile_size((5000, 5000), geometry=BLENDED, memory=memory, limit=3e9) is None
    assert auto_tile_size((5000, 5000), geometry=BLENDED, memory=memory, limit=1e9) == (1008, 1008)
    assert auto_tile_size((5000, 5000), geometry=EXACT, memory=memory, limit=3e9) == (1008, 1008)


@pytest.mark.parametrize("parameters", [{}, {"filters": 16}, {"depth": 2}, {"spatial_ndim": 3, "depth": 2}], ids=str)
def test_what_is_measured_on_small_tiles_holds_for_larger_ones(parameters):
    network = UNet(1, 3, **({"depth": 3, "filters": 8} | parameters)).eval()
    ndim = parameters.get("spatial_ndim", 2)

    def run(size):
        with torch.inference_mode():
            network(torch.zeros(1, 1, *size))

    small = measure_tile(run, [(32,) * ndim, (64,) * ndim])
    larger = measure_tile(run, [(64,) * ndim, (96,) * ndim])
    assert small.bytes_for((96,) * ndim) == pytest.approx(larger.bytes_for((96,) * ndim), rel=0.02)


def sides_of_tiles(segmenter, X, monkeypatch):
    import skunet.inference

    forward, sides = skunet.inference.Inference._forward, []
    monkeypatch.setattr(
        skunet.inference.Inference,
        "_forward",
        lambda self, images, *args: sides.append(images.shape[-1]) or forward(self, images, *args),
    )
    labels = segmenter.predict(X)
    monkeypatch.undo()
    return labels, sides


def test_free_memory_and_memory_limit_choose_the_tiles(cells, monkeypatch):
    X, y = cells
    segmenter = make_segmenter(depth=2, filters=8).fit(X, y)
    image = np.tile(X[:1], (1, 13, 11))
    expected, sides = sides_of_tiles(segmenter, image, monkeypatch)
    assert max(sides) == 352  # whole
    monkeypatch.setattr("skunet.inference.free_memory", lambda device: 8e6)
    labels, sides = sides_of_tiles(segmenter, image, monkeypatch)
    np.testing.assert_array_equal(labels, expected)
    segmenter.set_params(memory_limit=4e6)
    labels, others = sides_of_tiles(segmenter, image, monkeypatch)
    np.testing.assert_array_equal(labels, expected)
    assert max(others) < 352
    monkeypatch.setattr("skunet.inference.free_memory", lambda device: None)
    _, sides = sides_of_tiles(segmenter.set_params(memory_limit=None), image, monkeypatch)
    assert max(sides) == 352


def test_a_network_that_cannot_be_measured_has_the_usual_tiles(cells):
    class Particular(torch.nn.Module):
        def __init__(self, in_channels, n_classes):
            super().__init__()
            self.layer = torch.nn.Conv2d(in_channels, n_classes, 1)

        def forward(self, images):
            if images.shape[-1] != 288:
                raise RuntimeError("288 or nothing")
            return self.layer(images)

    X, y = cells
    X, y = np.tile(X, (1, 9, 9)), np.tile(y, (1, 9, 9))
    segmenter = make_segmenter(module=Particular, patch_size=288).fit(X[:2], y[:2])
    assert segmenter.predict(X[:1]).shape == (1, 288, 288)


def test_free_memory_is_that_of_the_machine_or_the_container(tmp_path, monkeypatch):
    free = hardware.free_memory("cpu")
    if free is None:
        pytest.skip("this machine does not say how much memory is free")
    assert 1e6 < free < 1e14
    monkeypatch.setattr(hardware, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("4000000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 2000000\n")
    assert hardware.free_memory("cpu") == 3000000
    (tmp_path / "memory.max").write_text("max\n")
    assert hardware.free_memory("cpu") > 5000000
    assert hardware.free_memory("meta") is None
