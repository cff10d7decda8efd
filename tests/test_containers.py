import gc
import warnings

import imageio.v3 as iio
import numpy as np
import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from skunet.containers import open_container, open_pairs, pick_items
from skunet.image_dataset import _as_user_array
from skunet.image_files import read_image, read_mask


def contents(container):
    return [container[index].tolist() for index in range(len(container))]


STACK = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (STACK, "stack"),
        (torch.from_numpy(STACK), "stack"),
        (list(STACK), "list"),
        (tuple(STACK), "list"),
        (STACK.tolist(), "list"),
        ([torch.from_numpy(image) for image in STACK], "list"),
    ],
)
def test_every_container_gives_its_items(data, kind):
    container = open_container(data, "X")
    assert container.kind == kind
    assert contents(container) == STACK.tolist()
    assert container[0].dtype == (np.int64 if isinstance(data, list) and isinstance(data[0], list) else np.uint8)


def test_object_arrays_hold_images_of_several_sizes():
    data = np.empty(2, dtype=object)
    data[0], data[1] = np.zeros((3, 4)), np.zeros((5, 6))
    container = open_container(data, "X")
    assert container.kind == "object_array"
    assert container[1].shape == (5, 6)


class Lazy:
    """An array on some other machine: read item by item, and counted."""

    shape, dtype = (2, 3, 4), np.dtype(np.uint8)

    def __init__(self):
        self.n_read = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.n_read += 1
        return STACK[index]


def test_lazy_arrays_are_not_read_when_opened():
    lazy = Lazy()
    container = open_container(lazy, "X")
    assert container.shape == (2, 3, 4)
    assert lazy.n_read == 0
    assert contents(container) == STACK.tolist()
    assert lazy.n_read == 2


def test_paths_are_read_when_needed(tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(2)]
    for path, image in zip(paths, STACK, strict=True):
        iio.imwrite(path, image)
    container = open_container([str(path) for path in paths], "X")
    assert contents(container) == STACK.tolist()
    paths[1].unlink()
    assert container[0].tolist() == STACK[0].tolist()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        container[1]


def test_a_file_cut_short_is_named(tmp_path):
    path = tmp_path / "cut.png"
    iio.imwrite(path, np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8))
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(OSError, match=r"cut\.png could not be read"):
        read_image(path)


def images_by_format():
    """Return a file name and the pixels that it holds for each format that keeps them."""
    generator = np.random.default_rng(0)
    grey, colour = (generator.integers(0, 255, shape).astype(np.uint8) for shape in ((20, 24), (20, 24, 3)))
    pages = np.stack([grey, grey[::-1], grey.T[:20, :20].repeat(2, axis=1)[:, :24]])
    return {
        "grey.png": grey,
        "colour.png": colour,
        "deep.png": grey.astype(np.uint16) * 200,
        "UPPER.PNG": grey,
        "grey.bmp": grey,
        "colour.ppm": colour,
        "grey.tif": grey,
        "float.tiff": grey / np.float32(7),
        "pages.tif": pages,
        "pages.TIF": pages,
        "movie.gif": np.stack([colour, colour[::-1]]),
    }


@pytest.mark.filterwarnings("error::ResourceWarning")
@pytest.mark.parametrize("name", images_by_format())
def test_files_hold_what_imageio_reads_by_path(name, tmp_path):
    image = images_by_format()[name]
    iio.imwrite(tmp_path / name, image)
    read = read_image(tmp_path / name)
    by_path = iio.imread(tmp_path / name)
    assert read.dtype == by_path.dtype
    np.testing.assert_array_equal(read, by_path)
    if not name.endswith("gif"):
        np.testing.assert_array_equal(read, image)


def test_files_without_or_with_a_wrong_suffix_are_read(tmp_path):
    iio.imwrite(tmp_path / "image.png", STACK[0])
    iio.imwrite(tmp_path / "image.jpg", np.full((8, 8, 3), 90, np.uint8))
    for name in ("image", "image.tif", "image.xyz"):
        (tmp_path / name).write_bytes((tmp_path / "image.png").read_bytes())
        assert read_image(str(tmp_path / name)).tolist() == STACK[0].tolist()
    assert read_image(tmp_path / "image.jpg").shape == (8, 8, 3)


@pytest.mark.parametrize("name", ["notes.png", "notes.tif", "notes.xyz", "notes", "empty.png"])
def test_a_file_that_is_no_image_is_named_and_closed(name, tmp_path):
    (tmp_path / name).write_bytes(b"" if name.startswith("empty") else b"no image at all" * 20)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(OSError, match=rf"{name} could not be read as an image: [^<]*\. Is the file complete"):
            read_image(tmp_path / name)
        gc.collect()
    assert not [warning for warning in caught if warning.category is ResourceWarning]


def test_masks_in_grey_rgb_and_palette_files_give_one_label_per_pixel(tmp_path):
    from PIL import Image

    mask = STACK[0] % 3
    iio.imwrite(tmp_path / "rgb.png", np.repeat(mask[..., None], 3, axis=2))
    palette = Image.fromarray(mask, mode=None).convert("P")
    palette.putdata(mask.ravel().tolist())
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "palette.png")
    assert read_mask(tmp_path / "rgb.png").tolist() == mask.tolist()
    assert read_mask(tmp_path / "palette.png").tolist() == mask.tolist()
    iio.imwrite(tmp_path / "colour.png", np.stack([mask, mask + 1, mask], axis=2))
    with pytest.raises(ValueError, match=r"one label per pixel; .*colour\.png is in colour"):
        read_mask(tmp_path / "colour.png")


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (None, ValueError, "X must be a stack"),
        ("images/", TypeError, r"holds a stack; got str 'images/'. For a folder pass its files"),
        ([], ValueError, r"at least one image; got 0 sample\(s\)"),
        (np.zeros((0, 4, 4)), ValueError, r"at least one image; got 0 sample"),
        (np.zeros((4, 4)), ValueError, r"got shape \(4, 4\).*X\[None\]"),
        (np.zeros(4), ValueError, "Reshape your data"),
        ([1, 2, 3], ValueError, "item 0 of the list has shape"),
        (object(), TypeError, "got object"),
        ({"a": 1}, TypeError, "got dict"),
    ],
)
def test_what_is_no_container_raises(data, error, message):
    with pytest.raises(error, match=message):
        open_container(data, "X")


def test_pairs_are_opened_channels_first():
    pairs = TensorDataset(torch.zeros(3, 2, 5, 6), torch.ones(3, 5, 6))
    images, masks = open_pairs(pairs)
    assert images.channels_first
    assert images[2].shape == (2, 5, 6)
    assert masks[2].tolist() == np.ones((5, 6)).tolist()


class Drawing(Dataset):
    """Draws image and mask anew at each look, as data sets with random transforms do."""

    def __init__(self):
        self.n_draws = 0

    def __len__(self):
        return 2

    def __getitem__(self, index):
        self.n_draws += 1
        return np.full((4, 4), self.n_draws), np.full((4, 4), self.n_draws)


def test_image_and_mask_of_a_random_data_set_are_of_one_draw():
    images, masks = open_pairs(Drawing())
    for index in (0, 1, 1, 0):
        np.testing.assert_array_equal(images[index], masks[index])


def test_a_data_set_without_pairs_raises():
    with pytest.raises(ValueError, match=r"must give \(image, mask\) pairs"):
        open_pairs(TensorDataset(torch.zeros(3, 4, 4)))


@pytest.mark.parametrize("data", [STACK, list(STACK), torch.from_numpy(STACK)])
def test_picking_items_reads_nothing_and_keeps_the_order(data):
    picked = pick_items(open_container(data, "X"), np.array([1, 0, 1]))
    assert contents(picked) == STACK[[1, 0, 1]].tolist()
    assert np.asarray(_as_user_array(picked)[1]).tolist() == STACK[0].tolist()
