import os
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from skunet import files
from skunet.files import find_images, pair_files, write_mask, write_masks
from skunet.image_files import read_mask


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).touch()
    return folder


def names(paths):
    return [path.name for path in paths]


# ---- find_images


def test_images_come_in_natural_order_and_any_case(tmp_path):
    touch(tmp_path, "10.png", "2.PNG", "1.tif", "b2.jpg", "B10.JPEG", "a.gif", "z.bmp", "02.png", "x.TIFF")
    assert names(find_images(tmp_path)) == [
        "1.tif", "02.png", "2.PNG", "10.png", "a.gif", "b2.jpg", "B10.JPEG", "x.TIFF", "z.bmp",
    ]  # fmt: skip


def test_a_name_may_be_the_beginning_of_another(tmp_path):
    touch(tmp_path, "movie.tif", "movie.tif0001.tif", "movie.tif.tif")
    assert names(find_images(tmp_path)) == ["movie.tif", "movie.tif0001.tif", "movie.tif.tif"]


def test_only_visible_image_files_are_found(tmp_path):
    touch(tmp_path, "a.png", ".hidden.png", "notes.txt", "png", "b.png.bak")
    (tmp_path / "folder.png").mkdir()
    assert find_images(str(tmp_path)) == [tmp_path / "a.png"]


@given(st.lists(st.integers(0, 10**30), unique=True, min_size=1, max_size=8))
def test_numbered_names_sort_as_numbers(numbers):
    paths = [Path(f"section{number}_v2.png") for number in numbers]
    assert sorted(paths, key=files._natural_order) == [Path(f"section{n}_v2.png") for n in sorted(numbers)]


def test_missing_folder_says_where_it_looked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must exist; got .*nowhere.*read from"):
        find_images(tmp_path / "nowhere")


def test_file_instead_of_folder_is_told(tmp_path):
    touch(tmp_path, "a.png")
    with pytest.raises(NotADirectoryError, match=r"got the file .*a\.png"):
        find_images(tmp_path / "a.png")


def test_folder_without_images_is_told(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ValueError, match=r"none among 1 entries"):
        find_images(tmp_path)


# ---- pair_files


def test_pairs_by_exact_stem_never_by_order_or_prefix(tmp_path):
    images = touch(tmp_path / "images", "1.png", "2.png", "10.png", "11.png")
    masks = touch(tmp_path / "masks", "10.tif", "2.tif", "100.tif")
    with pytest.warns(UserWarning, match=r"2 images have no mask \(1.png, 11.png\) and 1 masks .*\(100.tif\)"):
        paired = pair_files(images, masks)
    assert names(paired.images) == ["2.png", "10.png"]
    assert names(paired.masks) == ["2.tif", "10.tif"]
    assert names(paired.unmatched_images) == ["1.png", "11.png"]
    assert names(paired.unmatched_masks) == ["100.tif"]
    assert len(paired) == 2


def test_suffixes_are_taken_off_both_sides():
    paired = pair_files(["a_img.jpg", "b_img.jpg"], ["x/b_mask.png", "x/a_mask.png"], image_suffix="_img",
                        mask_suffix="_mask")  # fmt: skip
    assert names(paired.masks) == ["a_mask.png", "b_mask.png"]


def test_file_without_the_suffix_is_unmatched_not_matched():
    with pytest.warns(UserWarning, match=r"1 images have no mask \(b.jpg\) and 1 masks have no image \(b.png\)"):
        paired = pair_files(["a.jpg", "b.jpg"], ["a_mask.png", "b.png"], mask_suffix="_mask")
    assert names(paired.images) == ["a.jpg"]


def test_lists_keep_the_order_of_the_images():
    paired = pair_files(["b.jpg", Path("c.jpg"), "a.jpg"], ["a.png", "b.png", "c.png"])
    assert names(paired.images) == ["b.jpg", "c.jpg", "a.jpg"]
    assert names(paired.masks) == ["b.png", "c.png", "a.png"]


@given(st.lists(st.text("ab01_.", min_size=1, max_size=4), unique=True, min_size=1), st.randoms(use_true_random=False))
def test_every_image_gets_its_own_mask_whatever_the_order(stems, random):
    shuffled = random.sample(stems, len(stems))
    paired = pair_files([f"i/{stem}.jpg" for stem in stems], [f"m/{stem}_m.png" for stem in shuffled], mask_suffix="_m")
    assert names(paired.images) == [f"{stem}.jpg" for stem in stems]
    assert names(paired.masks) == [f"{stem}_m.png" for stem in stems]


def test_one_folder_may_hold_both_sides(tmp_path):
    touch(tmp_path, "a.jpg", "a_mask.png", "b.jpg", "b_mask.png")
    paired = pair_files(tmp_path, tmp_path, mask_suffix="_mask")
    assert names(paired.images) == ["a.jpg", "b.jpg"]
    assert names(paired.masks) == ["a_mask.png", "b_mask.png"]
    assert not paired.unmatched_images
    assert not paired.unmatched_masks


def test_what_has_no_partner_in_a_folder_of_both_sides_is_named_once(tmp_path):
    touch(tmp_path, "a.jpg", "a_mask.png", "b.jpg", "c_mask.png")
    with pytest.warns(UserWarning, match=r"1 images have no mask \(b.jpg\) and 1 masks have no image \(c_mask.png\)"):
        paired = pair_files(tmp_path, tmp_path, mask_suffix="_mask")
    assert names(paired.unmatched_images) == ["b.jpg"]
    assert names(paired.unmatched_masks) == ["c_mask.png"]


def test_no_file_is_its_own_mask(tmp_path):
    touch(tmp_path, "a.png", "b.png")
    with pytest.raises(ValueError, match=r"must be different files; got .*a\.png as both"):
        pair_files(tmp_path, tmp_path)


def test_many_unmatched_are_counted_after_five():
    images = [f"{i}.jpg" for i in range(9)]
    with pytest.warns(UserWarning, match=r"8 images have no mask \(1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 3 more\)"):
        paired = pair_files(images, ["0.png"])
    assert len(paired.unmatched_images) == 8


@pytest.mark.parametrize(("images", "masks"), [(["a.png", "a.jpg"], ["a.tif"]), (["a.tif"], ["m/a.png", "n/a.png"])])
def test_two_files_of_one_name_are_refused(images, masks):
    with pytest.raises(ValueError, match=r"must differ .* got \S*a\.png and \S*a\.(jpg|png)"):
        pair_files(images, masks)


def test_no_match_shows_names_and_hints_at_the_suffix():
    with pytest.raises(ValueError, match=r"images 'a', 'b' and masks 'a_mask', 'b_mask'.*mask_suffix='_mask'"):
        pair_files(["a.jpg", "b.jpg"], ["a_mask.png", "b_mask.png"])


def test_no_files_are_no_match():
    with pytest.raises(ValueError, match=r"got images no files and masks 'a'"):
        pair_files([], ["a.png"])


# ---- write_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masks")


def assert_round_trip(path, mask):
    write_mask(path, mask)
    found = read_mask(path)
    assert found.shape == mask.shape
    assert found.dtype.kind in "ui"
    np.testing.assert_array_equal(found, mask)


PNG_MASKS = st.sampled_from([np.bool_, np.uint8, np.uint16]).flatmap(
    lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=2, max_dims=2, max_side=6))
)
WHOLE = st.sampled_from([np.bool_, np.int8, np.uint16, np.int16, np.int32, np.uint32, np.int64, np.uint64, ">i4"])


@given(mask=PNG_MASKS)
def test_png_keeps_every_value_and_the_dtype(folder, mask):
    assert_round_trip(folder / "mask.png", mask)
    assert read_mask(folder / "mask.png").dtype == (np.uint8 if mask.dtype == bool else mask.dtype)


@given(mask=WHOLE.flatmap(lambda dtype: npst.arrays(dtype, npst.array_shapes(min_dims=2, max_dims=2, max_side=6))))
def test_tiff_keeps_every_whole_number(folder, mask):
    pytest.importorskip("tifffile")
    assert_round_trip(folder / "mask.tif", mask)


# A last axis of 3 or 4 is colour to read_mask.
@given(
    mask=WHOLE.flatmap(
        lambda dtype: npst.arrays(dtype, st.tuples(st.integers(1, 6), st.integers(1, 6), st.sampled_from([1, 2, 5])))
    )
)
def test_tiff_keeps_volumes(folder, mask):
    pytest.importorskip("tifffile")
    assert_round_trip(folder / "mask.TIFF", mask)


@given(mask=npst.arrays(np.float64, (2, 3), elements=st.integers(-(2**31), 2**31 - 1).map(float)))
def test_whole_floats_keep_their_values_in_tiff(folder, mask):
    assert_round_trip(folder / "mask.tif", mask)


@pytest.mark.parametrize("mask", [np.array([[0, 255]]), np.array([[0.0, 65535.0]]), [[0, 7], [1, 2]]])
def test_png_takes_any_dtype_whose_values_fit(folder, mask):
    assert_round_trip(folder / "mask.png", np.asarray(mask))


def test_2d_tiff_needs_no_tifffile(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    write_mask(folder / "plain.tif", np.array([[-1, 2**31 - 1]]))
    with pytest.raises(ImportError, match=r"shape \(2, 3, 4\).*skunet\[tiff\]"):
        write_mask(folder / "volume.tif", np.zeros((2, 3, 4), np.uint8))
    monkeypatch.undo()
    np.testing.assert_array_equal(read_mask(folder / "plain.tif"), [[-1, 2**31 - 1]])
    assert not (folder / "volume.tif").exists()


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("m.png", np.array([[-1, 0]]), r"must be 0\.\.65535; got -1\.\.0 for .*\.tif"),
        ("m.png", np.array([[0, 65536]]), r"must be 0\.\.65535; got 0\.\.65536"),
        ("m.png", np.zeros((2, 3, 5), np.uint8), r"volume must go to a \.tif file; got shape \(2, 3, 5\)"),
        ("m.tif", np.array([[0.0, 1e300]]), r"must be 64-bit integers"),
        ("m.tif", np.array([[0.5, 1]]), r"whole numbers; got float64 with fractions"),
        ("m.tif", np.array([[np.nan, 1]]), r"whole numbers"),
        ("m.tif", np.array([[np.inf, 1]]), r"whole numbers"),
        ("m.png", np.array([["cell", "ground"]]), r"must hold numbers; got labels of dtype <U6.*searchsorted"),
        ("m.png", np.array([[1j]]), r"must hold numbers"),
        ("m.jpg", np.zeros((2, 2), np.uint8), r"must end with \.png, \.tif or \.tiff.*got .*m\.jpg"),
        ("m", np.zeros((2, 2), np.uint8), r"must end with"),
        ("m.png", np.zeros(3, np.uint8), r"got shape \(3,\)"),
        ("m.png", np.zeros((0, 3), np.uint8), r"at least 1 pixel; got shape \(0, 3\)"),
        ("m.tif", np.zeros((1, 2, 3, 4), np.uint8), r"got shape \(1, 2, 3, 4\)"),
    ],
)
def test_what_a_file_cannot_keep_is_refused_and_no_file_is_left(tmp_path, name, mask, message):
    with pytest.raises(ValueError, match=message):
        write_mask(tmp_path / name, mask)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_failure_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, error):
    path = tmp_path / "mask.png"
    write_mask(path, np.ones((2, 2), np.uint8))

    def write_half(self, content):
        with open(self, "wb") as file:
            file.write(content[:10])
        raise error

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises(type(error)):
        write_mask(path, np.zeros((2, 2), np.uint8))
    assert os.listdir(tmp_path) == ["mask.png"]
    assert (read_mask(path) == 1).all()


# ---- write_masks


def test_masks_are_named_after_images_in_a_new_folder(tmp_path):
    masks = [np.full((2, 2), value, np.uint8) for value in (0, 255)]
    paths = write_masks(tmp_path / "new" / "out", ["in/a.jpg", Path("in/b.c.tif")], iter(masks))
    assert paths == [tmp_path / "new/out/a.png", tmp_path / "new/out/b.c.png"]
    assert [int(read_mask(path).max()) for path in paths] == [0, 255]


def test_masks_may_be_tiff_and_replace_older_ones(tmp_path):
    for value in (-1, -2):
        (path,) = write_masks(tmp_path, ["in/a.jpg"], np.full((1, 2, 2), value), extension=".tif")
    assert (read_mask(path) == -2).all()


def test_nothing_beside_the_images_is_replaced(tmp_path):
    touch(tmp_path, "a.jpg", "b.png")
    masks = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match=r"beside the images; .* already has b\.png"):
        write_masks(tmp_path / "." / ".." / tmp_path.name, [tmp_path / "a.jpg", tmp_path / "b.png"], masks)
    assert sorted(os.listdir(tmp_path)) == ["a.jpg", "b.png"]
    assert (tmp_path / "b.png").stat().st_size == 0


def test_new_names_beside_the_images_are_written(tmp_path):
    touch(tmp_path, "a.jpg")
    assert write_masks(tmp_path, [tmp_path / "a.jpg"], np.zeros((1, 3, 3), np.uint8)) == [tmp_path / "a.png"]


def test_two_images_of_one_name_are_refused_before_writing(tmp_path):
    with pytest.raises(ValueError, match=r"must differ in more than extension and folder"):
        write_masks(tmp_path / "out", ["x/a.jpg", "y/a.jpg"], np.zeros((2, 3, 3), np.uint8))
    assert not (tmp_path / "out").exists()


def test_number_of_masks_must_be_that_of_names(tmp_path):
    with pytest.raises(ValueError, match=r"one mask per name; got 2 masks and 1 names"):
        write_masks(tmp_path / "out", ["a.jpg"], [np.zeros((3, 3), np.uint8)] * 2)
    assert not (tmp_path / "out").exists()
