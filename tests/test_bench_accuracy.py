"""The core of benchmarks/bench_accuracy.py, on tiny stand-ins for the sets."""

import json
from types import SimpleNamespace

import bench_accuracy
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from accuracy_loops import Clock, Padded, PlainUNet, draw_batches
from accuracy_scores import (
    rand_and_information_score,
    score_classes,
    score_membranes,
    score_objects,
    score_scenes,
)
from accuracy_sets import (
    AccuracySet,
    Fold,
    TrainingData,
    find_set,
    load_camvid,
    load_carvana96,
    load_isbi2012,
    load_microtubules3d,
    load_nuclei3d,
)
from accuracy_systems import SYSTEMS, with_all_classes
from bench_accuracy import Cell, draw, format_table, main, measure, read_records, write_in_one_step
from scipy import ndimage
from sklearn.metrics import normalized_mutual_info_score, pair_confusion_matrix

from skunet.datasets import make_cells


def cells_of(text):
    """Return a mask (H, W), True where the text has a #."""
    return np.array([[sign == "#" for sign in row] for row in text.split()])


@pytest.mark.parametrize(
    ("true", "pred", "expected"),
    [
        ("##.##", "##.##", (1, 1)),
        ("##.##", "#####", (2 / 3, 0)),  # merged: 2 (1/4 + 1/4) / (1/2 + 1); they share no information
        ("####", "##.#", (6 / 11, 0)),  # split, and the membrane between is a segment: 2 (6/16) / (1 + 6/16)
        ("##.## #####", "##.## ##.##", (2 * 33 / (81 + 33), 0)),  # of nine pixels 4 and 4 together, one by itself
        ("##... ...##", "##..# ..###", (1, 1)),  # pixels that are no cell in the truth do not count
        ("#. .#", "## .#", (2 / 3, 0)),  # corners do not connect cells, sides do
    ],
)
def test_segments_are_compared_as_by_hand(true, pred, expected):
    assert rand_and_information_score(cells_of(true), cells_of(pred)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("true", "pred", "expected"),
    [
        ("###.###", "##...##", (1, 1)),  # the width of membranes costs nothing
        ("#####", "##.##", (2 * 13 / (13 + 25), 0)),  # of five pixels 3 and 2 together
        ("##.##", "##.#.", (1, 1)),
        ("##", "..", (2 * 2 / (2 + 4), 0)),  # without any segment, each pixel is one
    ],
)
def test_segments_between_thin_membranes_are_compared_as_by_hand(true, pred, expected):
    assert rand_and_information_score(cells_of(true), cells_of(pred), is_thin=True) == pytest.approx(expected)


def test_segments_are_compared_as_by_scikit_learn():
    generator = np.random.default_rng(0)
    true, pred = (ndimage.gaussian_filter(generator.normal(size=(64, 64)), 2) > 0 for _ in range(2))
    segments = ndimage.label(pred)[0]
    segments[~pred] = -np.arange(np.count_nonzero(~pred)) - 1
    t, s = ndimage.label(true)[0][true], segments[true]
    (_, split), (merged, together) = pair_confusion_matrix(s, t) + 0.0
    expected = 2 * (together + len(t)) / (2 * (together + len(t)) + split + merged)
    assert rand_and_information_score(true, pred) == pytest.approx((expected, normalized_mutual_info_score(t, s)))


def test_without_cells_there_is_no_score():
    assert np.isnan(rand_and_information_score(cells_of("..."), cells_of("###"))).all()


def test_membranes_are_scored_at_a_half_and_at_the_best_threshold():
    y = cells_of("##.## ##.##")[None].astype(int)
    cell = np.where(y == 1, 0.35, 0.05)
    scores = score_membranes(y, np.stack([1 - cell, cell], axis=1))
    assert scores["pixel_error"] == 0.8
    assert scores["v_rand"] < 0.5
    best = [scores[f"best_{name}"] for name in ("pixel_error", "v_rand", "v_info", "v_rand_thin", "v_info_thin")]
    assert best == pytest.approx([0, 1, 1, 1, 1])


def one_hot(labels, n_classes):
    return np.moveaxis(np.eye(n_classes)[np.asarray(labels)], -1, 1)


def test_dice_of_objects_is_a_mean_over_images():
    y, predicted = [[[1, 1, 0, 0]], [[1, 0, 0, 0]]], [[[1, 0, 0, 0]], [[1, 0, 0, 0]]]
    assert score_objects(np.array(y), one_hot(predicted, 2)) == {"dice": pytest.approx((2 / 3 + 1) / 2)}


def test_dice_of_classes_leaves_out_the_background():
    y, predicted = [[[0, 1, 1, 2]]], [[[0, 1, 2, 2]]]
    expected = {"dice_1": 2 / 3, "dice_2": 2 / 3, "dice": 2 / 3}
    assert score_classes(np.array(y), one_hot(predicted, 3)) == pytest.approx(expected)


def test_iou_of_scenes_is_of_all_pixels_but_void():
    y, predicted = [[[0, 0, 1, 11]], [[1, 1, 1, 11]]], [[[0, 1, 1, 5]], [[1, 1, 1, 0]]]
    assert score_scenes(np.array(y), one_hot(predicted, 11)) == {"miou": pytest.approx((1 / 2 + 4 / 5) / 2)}


def write_images(folder, names, size, values):
    """Write random images and masks of the given values."""
    generator = np.random.default_rng(0)
    for path, choices in zip(folder, (range(256), values), strict=True):
        path.mkdir(parents=True)
        for name in names:
            iio.imwrite(path / f"{name}.png", generator.choice(np.array(choices, np.uint8), size))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a tiny stand-in for each set; read-only."""
    folder = tmp_path_factory.mktemp("data")
    isbi, cars, scenes = folder / "isbi2012", folder / "carvana96", folder / "camvid"
    write_images((isbi / "image", isbi / "label"), range(30), (32, 32), (0, 255))
    write_images((cars / "images", cars / "masks"), [f"{car}_{i}" for car in "abc" for i in (1, 2)], (8, 12), (0, 255))
    for part in ("train", "val", "test"):
        write_images((scenes / part, scenes / f"{part}annot"), range(len(part)), (12, 16), range(12))
    volumes, masks = make_cells(2, size=32, spatial_ndim=3, random_state=0)
    volumes = {f"x_{i}": volumes[i] for i in (0, 1)}
    np.savez(folder / "nuclei3d.npz", **volumes, **{f"y_{i}": 7 * masks[i].astype(np.uint16) for i in (0, 1)})
    tubules = {f"y_{i}": np.arange(32**3).reshape(32, 32, 32).astype(np.uint8) % 3 for i in (0, 1)}
    np.savez(folder / "microtubules3d.npz", **volumes, **tubules)
    return folder


def test_sections_to_test_on_are_the_last_of_the_stack(data):
    (fold,) = load_isbi2012(data / "isbi2012").folds
    section = iio.imread(data / "isbi2012" / "image" / "20.png")
    assert fold.train.X.shape == (20, 32, 32)
    assert set(np.unique(fold.train.y)) == {0, 1}
    np.testing.assert_array_equal(fold.tests[""][0][0], section)
    assert len(fold.tests[""][0]) == 10


def test_cars_to_test_on_are_not_trained_on(data):
    images = data / "carvana96" / "images"
    cars = [[iio.imread(images / f"{car}_{i}.png").tobytes() for i in (1, 2)] for car in "abc"]
    tested = []
    for fold in load_carvana96(data / "carvana96", size=(8, 12)).folds:
        tested.append([image.tobytes() for image in fold.tests[""][0]])
        others = [image for car in cars if car != tested[-1] for image in car]
        assert sorted(image.tobytes() for image in fold.train.X) == sorted(others)
        assert fold.train.y.max() == 1
    assert sorted(tested) == sorted(cars)


def test_parts_of_the_road_scenes_are_those_given(data):
    camvid = load_camvid(data / "camvid", size=(6, 8))
    (fold,) = camvid.folds
    assert fold.train.ignore_label == 11
    assert fold.train.y.shape == (5, 6, 8)
    assert {name: pair[0].shape for name, pair in fold.tests.items()} == {"val_": (3, 6, 8), "test_": (4, 6, 8)}
    assert camvid.main == "test_miou"


@pytest.mark.parametrize(
    ("name", "load", "n_classes"), [("microtubules3d", load_microtubules3d, 3), ("nuclei3d", load_nuclei3d, 2)]
)
def test_volumes_are_trained_on_both_ways(data, name, load, n_classes):
    one, other = load(data / f"{name}.npz").folds
    np.testing.assert_array_equal(one.train.X, other.tests[""][0])
    np.testing.assert_array_equal(other.train.y, one.tests[""][1])
    assert not np.array_equal(one.train.X, other.train.X)
    assert one.train.n_classes == n_classes
    assert np.unique(one.train.y).tolist() == list(range(n_classes))


def test_a_step_is_taken_even_without_time_and_none_too_many():
    assert Clock(0).repeat(lambda: None) == 1
    assert Clock(100).repeat(lambda: None, at_most=3) == 3


@pytest.mark.parametrize("size", [(45, 30), (24, 9, 17)])
def test_the_plain_network_takes_any_size(size):
    network = PlainUNet(1, 3, depth=2, filters=2, spatial_ndim=len(size)).eval()
    assert network(torch.zeros(2, 1, *size)).shape == (2, 3, *size)


def test_sides_are_padded_to_multiples_and_cut_again():
    def network(images):
        assert images.shape == (1, 1, 64, 32)
        return images

    images = torch.rand(1, 1, 33, 20)
    assert torch.equal(Padded(network)(images), images)


def test_crops_of_masks_are_those_of_their_images():
    X = np.arange(6 * 40 * 300).reshape(6, 40, 300)
    data = TrainingData(X, X, n_classes=2, flip_axes=(1,))
    batches = draw_batches(X[:, None], data, np.random.default_rng(0))
    drawn = [next(batches) for _ in range(3)]
    for patches, masks in drawn:
        assert patches.shape == (4, 1, 40, 256)
        np.testing.assert_array_equal(patches[:, 0], masks)
    firsts = np.concatenate([masks[:, 0, 0] for _, masks in drawn])
    images = [first // (40 * 300) for first in firsts]
    assert sorted(images) == sorted([*range(6), *range(6)])  # two epochs
    steps = {int(np.sign(mask[0, 1] - mask[0, 0])) for _, masks in drawn for mask in masks}
    assert steps == {-1, 1}  # flipped or not along the width
    assert all((np.diff(masks, axis=1) > 0).all() for _, masks in drawn)  # never along the height


def test_classes_that_were_not_met_have_no_probability():
    placed = with_all_classes(np.full((1, 2, 3), 0.5, np.float32), np.array([0, 2]), 3)
    np.testing.assert_array_equal(placed, [[[0.5] * 3, [0] * 3, [0.5] * 3]])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("name", SYSTEMS)
def test_each_system_fits_and_is_scored(data, name, ndim):
    system = SYSTEMS[name]
    if system.missing_package() or ndim not in system.spatial_ndims:
        pytest.skip(f"{name} needs {system.missing_package()}, or is for images only")
    whole = load_nuclei3d(data / "nuclei3d.npz") if ndim == 3 else scenes_set()
    record = measure(Cell("any", name, 0.0001, 0), AccuracySet(whole.folds[:1], whole.score, whole.main), system)
    assert 0 <= record["scores"][whole.main] <= 1
    assert record["folds"][0].get("steps", record["folds"][0].get("trees")) >= 1
    assert record["environment"]["packages"]["torch"] == torch.__version__


def scenes_set():
    """Colour images with void, some classes missing in what is trained on."""
    generator = np.random.default_rng(0)
    X, y = generator.integers(256, size=(6, 32, 48, 3)).astype(np.uint8), generator.integers(12, size=(6, 32, 48))
    y = np.where(y == 5, 11, y).astype(np.uint8)
    train = TrainingData(X, y, n_classes=11, flip_axes=(1,), ignore_label=11)
    return AccuracySet([Fold(train, {"test_": (X[:1], y[:1])})], score_scenes, "test_miou")


def arguments(data, out, *more, system="loop"):
    given = {"--data": data, "--out": out, "--sets": "isbi2012", "--systems": system, "--minutes": 0.0001}
    return [str(part) for pair in given.items() for part in pair] + [*more]


def fake_processes(monkeypatch, started, exitcode=0):
    """Let cells be noted instead of run."""

    def make(target, args):
        return SimpleNamespace(start=lambda: started.append(args[0]), join=lambda: None, exitcode=exitcode)

    monkeypatch.setattr(bench_accuracy, "get_context", lambda how: SimpleNamespace(Process=make))


def test_cells_are_run_once(data, tmp_path, monkeypatch, capsys):
    pytest.importorskip("skimage")
    assert main(arguments(data, tmp_path, system="forest")) == 0
    (record,) = read_records(tmp_path)
    assert (record["set"], record["system"], record["seed"]) == ("isbi2012", "forest", 0)
    assert record["folds"][0]["trees"] >= 1
    assert [path.name for path in tmp_path.iterdir()] == ["isbi2012-forest-0.0001min-seed0.json"]
    assert "best_v_rand_thin" in capsys.readouterr().out

    started = []
    fake_processes(monkeypatch, started)
    assert main(arguments(data, tmp_path, "--seeds", "0", "1", system="forest")) == 0
    assert [cell.seed for cell in started] == [1]
    main(arguments(data, tmp_path, "--again", system="forest"))
    assert [cell.seed for cell in started] == [1, 0]
    main(arguments(data, tmp_path, "--again", "--table", system="forest"))
    assert len(started) == 2


def test_cells_that_fail_are_told_and_the_others_run(data, tmp_path, monkeypatch, capsys):
    started = []
    fake_processes(monkeypatch, started, exitcode=1)
    assert main(arguments(data, tmp_path, "--seeds", "0", "1")) == 1
    assert len(started) == 2
    assert capsys.readouterr().err.count("failed with exit code 1") == 2


def test_what_is_missing_is_told_and_left_out(data, tmp_path, monkeypatch, capsys):
    started = []
    fake_processes(monkeypatch, started)
    monkeypatch.setitem(SYSTEMS, "monai", bench_accuracy.System(None, ("no_such_package.part",)))
    monkeypatch.setitem(SYSTEMS, "smp", bench_accuracy.System(None, (), spatial_ndims=(2,)))
    everything = ["--data", str(data), "--out", str(tmp_path), "--systems", "loop", "monai", "smp"]
    main([*everything, "--sets", "isbi2012", "nuclei3d"])
    assert [(cell.set, cell.system) for cell in started] == [
        ("isbi2012", "loop"),
        ("isbi2012", "smp"),
        ("nuclei3d", "loop"),
    ]
    assert "monai is left out: the package no_such_package is not installed" in capsys.readouterr().out
    main(["--data", str(tmp_path / "empty"), "--out", str(tmp_path), "--sets", "camvid"])
    assert "camvid is left out: it is not in" in capsys.readouterr().out
    assert find_set(data, "nuclei3d") == data / "nuclei3d.npz"


def test_a_record_is_there_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "record.json"
    write_in_one_step(path, {"a": 1})

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(type(path), "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_in_one_step(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [each.name for each in path.parent.iterdir()] == ["record.json"]


def record_of(system, seed, dice, minutes=3.0, name="nuclei3d"):
    scores = {"dice": dice}
    times = {"fit_seconds": 180.0, "predict_seconds": 2.0}
    return {"set": name, "system": system, "minutes": minutes, "seed": seed, "main": "dice", "scores": scores, **times}


def test_the_table_has_a_row_per_system_with_mean_and_extremes():
    records = [record_of("forest", 0, 0.5), record_of("skunet", 0, 0.7), record_of("skunet", 1, 0.8)]
    records += [record_of("skunet", 0, 0.9, minutes=10.0), record_of("loop", 0, 0.6, name="carvana96")]
    lines = format_table(records).splitlines()
    assert [line for line in lines if "minutes" in line] == [
        "carvana96, 3 minutes",
        "nuclei3d, 3 minutes",
        "nuclei3d, 10 minutes",
    ]
    rows = lines[lines.index("nuclei3d, 3 minutes") + 1 :]
    assert rows[0].split() == ["seeds", "fit", "s", "predict", "s", "dice"]
    assert rows[1].split() == ["skunet", "2", "180.0", "2.0", "0.7500", "(0.7000-0.8000)"]
    assert rows[2].split() == ["forest", "1", "180.0", "2.0", "0.5000"]


def test_nothing_gives_an_empty_table(tmp_path, capsys):
    assert main(["--table", "--out", str(tmp_path / "none")]) == 0
    assert capsys.readouterr().out == "\n"


def test_scores_are_drawn_over_time(tmp_path):
    pytest.importorskip("matplotlib")
    records = [
        record_of(system, seed, 0.5 + seed / 10, minutes)
        for system in ("skunet", "loop")
        for seed in (0, 1)
        for minutes in (1.0, 3.0)
    ]
    draw(records, tmp_path / "plot.png")
    assert iio.imread(tmp_path / "plot.png").std() > 0
