import multiprocessing
import os
import pickle
import re
import struct
import sys
import warnings
import zlib

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import zarr
from conftest import make_segmenter
from PIL import Image

from skunet.image_files import check_order, open_array, read_image, read_mask
from skunet.model_selection import TunedThresholdClassifierCV, train_test_split


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 255, (90, 70, 3), dtype=np.uint8)


TIFFS = {
    "plain": {},
    "tiles": {"tile": (32, 32), "compression": "zlib"},
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
}


@pytest.mark.parametrize("kind", TIFFS)
def test_parts_of_tiff_files_are_read(image, tmp_path, kind):
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, image, photometric="rgb", **TIFFS[kind])
    array = open_array(path)
    assert (array.shape, array.dtype) == (image.shape, image.dtype)
    np.testing.assert_array_equal(array[20:33, 5:64], image[20:33, 5:64])
    np.testing.assert_array_equal(read_image(path), image)


def test_the_finest_level_of_a_pyramid_is_meant(image, tmp_path):
    with tifffile.TiffWriter(tmp_path / "pyramid.tif") as file:
        file.write(image, tile=(32, 32), subifds=1, photometric="rgb")
        file.write(image[::2, ::2], tile=(32, 32), subfiletype=1, photometric="rgb")
    assert open_array(tmp_path / "pyramid.tif").shape == image.shape


def test_zarr_arrays_are_images_and_stacks(cells, fitted, tmp_path):
    X, y = cells
    zarr.save(str(tmp_path / "X.zarr"), X)
    zarr.save(str(tmp_path / "y.zarr"), y)
    for path in (tmp_path / "X.zarr", str(tmp_path / "X.zarr")):
        np.testing.assert_array_equal(fitted.predict(path), fitted.predict(X))
        assert fitted.score(path, tmp_path / "y.zarr") == fitted.score(X, y)
    np.testing.assert_array_equal(
        make_segmenter().fit(tmp_path / "X.zarr", tmp_path / "y.zarr").predict(X), make_segmenter().fit(X, y).predict(X)
    )
    zarr.save(str(tmp_path / "image.zarr"), X[0])
    np.testing.assert_array_equal(fitted.predict([tmp_path / "image.zarr"])[0], fitted.predict(X[:1])[0])


def test_zarr_arrays_have_no_length_and_are_read_image_by_image(cells, fitted, monkeypatch):
    X, y = cells
    stack, masks = zarr.array(X, chunks=(1, 32, 32)), zarr.array(y, chunks=(1, 32, 32))
    expected = fitted.predict(X), fitted.score(X, y)
    parts = train_test_split(X, y, random_state=0)
    tuned = TunedThresholdClassifierCV(make_segmenter(), cv=2).fit(X, y)
    read, largest = zarr.Array.__getitem__, []

    def watched(self, key):
        found = read(self, key)
        largest.append(np.size(found))
        return found

    monkeypatch.setattr(zarr.Array, "__getitem__", watched)
    np.testing.assert_array_equal(fitted.predict(stack), expected[0])
    assert fitted.score(stack, masks) == expected[1]
    make_segmenter().fit(stack, masks)
    assert TunedThresholdClassifierCV(make_segmenter(), cv=2).fit(stack, masks).best_threshold_ == tuned.best_threshold_
    for part, array in zip(train_test_split(stack, masks, random_state=0), parts, strict=True):
        np.testing.assert_array_equal(np.asarray(part), array)
    assert max(largest) == 32 * 32


def test_a_large_mask_is_no_attack(cells, tmp_path, monkeypatch):
    _, y = cells
    for name in ("mask.tif", "mask.png"):
        Image.fromarray(y[0]).save(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 // 3)  # above twice of it Pillow refuses
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), y[0])
    with pytest.raises(OSError, match=r"Set PIL\.Image.MAX_IMAGE_PIXELS to None where you trust it"):
        read_mask(tmp_path / "mask.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 32 * 32 - 1)  # it warns
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(read_mask(tmp_path / "mask.tif"), y[0])


def test_a_tiff_file_is_a_stack(cells, fitted, tmp_path):
    X, _ = cells
    tifffile.imwrite(tmp_path / "stack.tif", X)
    np.testing.assert_array_equal(fitted.predict(tmp_path / "stack.tif"), fitted.predict(X))
    tifffile.imwrite(tmp_path / "one.tif", X[0])
    with pytest.raises(ValueError, match=r"one.tif holds one image, shape \(32, 32\), and no stack: pass \[path\]"):
        fitted.predict(tmp_path / "one.tif")


@pytest.mark.parametrize("kind", TIFFS)
def test_large_files_are_predicted_in_windows(cells, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("skunet.pixels.BLOCK", 10)
    X, y = cells
    segmenter = make_segmenter(tile_size=16, scaling="image").fit(X, y)
    image = np.tile(X[0], (3, 2))[:83, :50]
    tifffile.imwrite(tmp_path / "image.tif", image, **TIFFS[kind])
    monkeypatch.setattr("skunet.containers.read_image", None)  # not as a whole
    np.testing.assert_array_equal(segmenter.predict([tmp_path / "image.tif"])[0], segmenter.predict([image])[0])


@pytest.mark.parametrize("kind", TIFFS)
def test_a_file_cut_short_is_named(cells, fitted, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("skunet.pixels.BLOCK", 10)
    path = tmp_path / "image.tif"
    tifffile.imwrite(path, np.tile(cells[0][0], (9, 9)), **TIFFS[kind])
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(OSError, match=re.escape(f"{path} could not be read as an image")):
        fitted.predict([path])


def test_what_is_not_there_or_a_group_is_named(fitted, tmp_path):
    for name in ("none.tif", "none.zarr"):
        with pytest.raises(FileNotFoundError, match=f"There is no .*{name}"):
            fitted.predict(tmp_path / name)
    group = zarr.open_group(str(tmp_path / "group.zarr"), mode="w")
    group.create_array("0", shape=(2, 8, 8), dtype="uint8")
    with pytest.raises(ValueError, match=r"is a zarr group of \['0'\]. Give the path of an array in it"):
        fitted.predict(tmp_path / "group.zarr")
    assert fitted.predict(tmp_path / "group.zarr" / "0").shape == (2, 8, 8)


def test_without_the_packages_files_are_read_whole(image, tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "image.tif", image, compression="zlib", photometric="rgb")
    assert open_array(tmp_path / "image.tif") is not None
    for missing in ("zarr", "tifffile"):
        monkeypatch.setitem(sys.modules, missing, None)
        assert open_array(tmp_path / "image.tif") is None
    zarr.save(str(tmp_path / "image.zarr"), image)
    with pytest.raises(ImportError, match=re.escape("pip install 'skunet[zarr]'")):
        open_array(tmp_path / "image.zarr")


def _check_parts(array, image, n_reads, failures):
    generator = np.random.default_rng(os.getpid())
    for _ in range(n_reads):
        row = int(generator.integers(image.shape[0] - 8))
        if not np.array_equal(array[row : row + 8], image[row : row + 8]):
            failures.put(row)


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork")
@pytest.mark.parametrize("kind", ["tiles", "strips"])
def test_forked_processes_read_for_themselves(image, tmp_path, kind):
    tifffile.imwrite(tmp_path / "image.tif", image, photometric="rgb", **TIFFS[kind])
    array = open_array(tmp_path / "image.tif")
    context = multiprocessing.get_context("fork")
    failures = context.SimpleQueue()
    children = [context.Process(target=_check_parts, args=(array, image, 60, failures)) for _ in range(4)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert failures.empty()
    assert [child.exitcode for child in children] == [0] * 4
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(array))[3:9], image[3:9])


def test_grey_masks_saved_in_colour(cells, tmp_path):
    X, y = cells
    paths = [[tmp_path / f"{name}{i}.tif" for i in range(6)] for name in "Xy"]
    for i in range(6):
        tifffile.imwrite(paths[0][i], X[i])
        tifffile.imwrite(paths[1][i], np.repeat(y[i][..., None] * np.uint8(255), 3, -1), photometric="rgb")
    assert make_segmenter().fit(*paths).classes_.tolist() == [0, 255]


def test_tools_around_segmenters_take_the_path_of_a_stack(cells, tmp_path):
    X, y = cells
    tifffile.imwrite(tmp_path / "X.tif", X)
    found = TunedThresholdClassifierCV(make_segmenter(), cv=2).fit(tmp_path / "X.tif", y)
    assert found.best_threshold_ == TunedThresholdClassifierCV(make_segmenter(), cv=2).fit(X, y).best_threshold_


def test_compressions_that_pillow_alone_knows(cells, fitted, tmp_path, monkeypatch):
    monkeypatch.setattr("skunet.pixels.BLOCK", 10)
    X, _ = cells
    Image.fromarray(X[0]).save(tmp_path / "one.tif", compression="tiff_lzw")
    pages = [Image.fromarray(image) for image in X[:3]]
    pages[0].save(tmp_path / "three.tif", compression="tiff_lzw", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "one.tif"), X[0])
    np.testing.assert_array_equal(read_image(tmp_path / "three.tif"), X[:3])
    np.testing.assert_array_equal(fitted.predict([tmp_path / "one.tif"])[0], fitted.predict(X[:1])[0])


@pytest.mark.parametrize("content", [b"", b"no image at all", b"II*\x00"])
def test_what_is_no_tiff_file_is_named(fitted, tmp_path, content):
    (tmp_path / "broken.tif").write_bytes(content)
    with pytest.raises(OSError, match=r"broken\.tif could not be read as an image"):
        fitted.predict([tmp_path / "broken.tif"])


def test_paths_and_arrays_in_one_list_are_refused(cells, fitted, tmp_path):
    with pytest.raises(TypeError, match="a list of paths or a list of arrays; got both"):
        fitted.predict([tmp_path / "a.tif", cells[0][0]])


def test_copies_of_maps_are_no_place_to_write(cells, fitted, tmp_path):
    X, _ = cells
    np.save(tmp_path / "out.npy", np.zeros(X.shape, np.uint8))
    with pytest.raises(ValueError, match='got a memory map of mode "c"'):
        fitted.predict(X, out=np.load(tmp_path / "out.npy", mmap_mode="c"))


# ---- what files say of themselves


def test_volumes_of_labels_with_a_table_of_colours_keep_all_slices(tmp_path):
    labels = np.random.default_rng(0).integers(0, 9, (4, 5, 6), dtype=np.uint8)
    colours = np.random.default_rng(0).integers(0, 2**16, (3, 256), dtype=np.uint16)
    for name, mask in (("volume", labels), ("slice", labels[0])):
        path = tmp_path / f"{name}.tif"
        tifffile.imwrite(path, mask, photometric="palette", colormap=colours)
        np.testing.assert_array_equal(read_mask(path), mask)


def test_volumes_of_three_slices_are_no_colours(tmp_path):
    labels = np.random.default_rng(0).integers(0, 9, (3, 8, 9), dtype=np.uint8)
    labels[..., :3] = 1
    iio.imwrite(tmp_path / "y.tif", labels)
    np.testing.assert_array_equal(read_mask(tmp_path / "y.tif"), labels)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photos_are_read_the_way_up_that_viewers_show(tmp_path, orientation):
    photo = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.rot90(photo, {1: 0, 3: 2, 6: 1, 8: -1}[orientation])
    Image.fromarray(stored).save(tmp_path / "x.jpg", exif=exif, quality=100)
    np.testing.assert_allclose(read_image(tmp_path / "x.jpg").astype(int), photo, atol=3)


def test_png_in_colour_with_16_bits_is_refused_as_half_of_it_would_be_lost(tmp_path):
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    pixels = zlib.compress((b"\0" + bytes(range(12))) * 2)
    chunks = [(b"IHDR", header), (b"IDAT", pixels), (b"IEND", b"")]
    parts = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks]
    (tmp_path / "x.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(ValueError, match=r"x\.png has several of 16.*Save it as TIFF"):
        read_image(tmp_path / "x.png")
    grey = np.array([[0, 300], [40000, 65535]], np.uint16)
    iio.imwrite(tmp_path / "grey.png", grey)
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), grey)


# ---- names of files that are paired by their order


def test_files_in_another_order_are_no_pairs(cells, tmp_path):
    X, y = cells
    paths = [[str(tmp_path / f"{side}{i}.png") for i in range(3)] for side in ("", "mask/")]
    (tmp_path / "mask").mkdir()
    for arrays, files in zip((X, y), paths, strict=True):
        for array, path in zip(arrays, files, strict=False):
            Image.fromarray(array).save(path)
    images, masks = paths
    make_segmenter().fit(images, masks)
    make_segmenter().fit(images, list(y[:3]))
    with pytest.raises(ValueError, match=r"got \S*0\.png with \S*mask/2\.png, though there is \S*mask/0\.png"):
        make_segmenter().fit(images, masks[::-1])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["1.png", "2.png"], ["2_mask.png", "1_mask.png"]),
        ([f"img{i}.tif" for i in range(12)], [f"m/seg-{i}_x.tif" for i in sorted(range(12), key=str)]),
    ],
)
def test_what_all_names_begin_and_end_with_is_left_out(images, masks):
    with pytest.raises(ValueError, match="paired by their order"):
        check_order(images, masks)


def test_numbers_that_are_shifted_may_be_meant():
    with pytest.warns(UserWarning, match=r"got a/2\.png with b/3\.png, though there is b/2\.png"):
        check_order(["a/1.png", "a/2.png"], ["b/2.png", "b/3.png"])


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        (["a/1.png", "b/1.png"], ["c/1.png", "d/1.png"]),
        (["cat.png", "dog.png"], ["7.png", "3.png"]),
        (["img_10.png", "img_11.png"], ["m10_x.png", "m11_x.png"]),
        (["1.png", np.zeros((4, 4))], ["2.png", "1.png"]),
    ],
)
def test_other_names_say_nothing_about_the_order(images, masks, recwarn):
    check_order(images, masks)
    assert not recwarn.list
