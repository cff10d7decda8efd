import os
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

from skunet.datasets import make_cells
from skunet.files import write_mask
from skunet.image_files import read_mask

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "first_segmentation.py"
TINY = ("--epochs", "1", "--depth", "1", "--filters", "2", "--quiet")


def run(folder, *arguments, script=SCRIPT, **environment):
    """Run an example in a folder, as a user does."""
    return subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", str(script), *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_pairs(folder, values, n_pairs=5):
    """Write images of two sizes with masks of the given values, and one file on each side that has no partner."""
    for name in ("images", "masks"):
        (folder / name).mkdir()
    X, y = make_cells(n_pairs, size=32, random_state=0)
    for i, (image, mask) in enumerate(zip(X, y, strict=True)):
        width = 32 - 4 * (i % 2)
        iio.imwrite(folder / "images" / f"{i}.png", image[:, :width])
        write_mask(folder / "masks" / f"{i}_mask.tif", np.array(values)[mask[:, :width]])
    iio.imwrite(folder / "images" / "lonely_image.png", X[0])
    write_mask(folder / "masks" / "lonely_mask.tif", y[0])
    return "--images", folder / "images", "--masks", folder / "masks", "--mask-suffix", "_mask"


def test_the_first_code_of_the_readme_runs(capsys):
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    code = re.search(r"```python\n(.*?)```", readme, re.DOTALL).group(1)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["labels"].shape == (4, 64, 64)
    assert float(capsys.readouterr().out.split("mean IoU")[-1]) > 0.6


def scores(output):
    lines = output.split("held out:\n")[1].splitlines()[:3]
    return {line[:17].strip(): float(line[17:]) for line in lines}


@pytest.mark.slow
def test_cells_are_segmented_better_than_by_the_baselines(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    found = scores(done.stdout)
    assert found["U-Net"] > 0.85
    assert found["majority class"] < found["Otsu threshold"] < 0.75
    assert "30 images: 24 for fit, which validates on a fifth of them; the last 6 to test on" in done.stdout
    assert "predicts the same labels" in done.stdout
    assert iio.imread(tmp_path / "first_segmentation" / "overview.png").shape == (4 * 296, 3 * 296)


@pytest.mark.slow
@pytest.mark.parametrize(("values", "suffix"), [([0, 255], ".png"), ([-7, 300], ".tif")])
def test_folders_are_paired_trained_on_and_predicted_in_their_values(tmp_path, values, suffix):
    trained = run(tmp_path, *write_pairs(tmp_path, values), "--output", "run", *TINY)
    assert trained.returncode == 0, trained.stderr
    assert "5 images: 4 for fit" in trained.stdout
    assert "1 images have no mask (lonely_image.png) and 1 masks have no image (lonely_mask.tif)" in trained.stderr
    assert set(scores(trained.stdout)) == {"U-Net", "majority class", "Otsu threshold"}
    assert "predicts the same labels" in trained.stdout
    assert "train_loss" not in trained.stdout

    predicted = run(tmp_path, "--predict", "images", "--out", "found", "--output", "run")
    assert predicted.returncode == 0, predicted.stderr
    assert f"6 masks with labels {values}" in predicted.stdout
    for image in (tmp_path / "images").iterdir():
        mask = read_mask(tmp_path / "found" / f"{image.stem}{suffix}")
        assert mask.shape == iio.imread(image).shape
        assert set(np.unique(mask)) <= set(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--images", "nowhere", "--masks", "."], "error: there is no folder nowhere"),
        (["--images", "."], "error: --images and --masks go together"),
        (["--predict", "."], "error: --predict and --out"),
        (["--images", ".", "--masks", "."], "error: The folder must hold image files"),
        (["--predict", ".", "--out", "found", "--model", "no.joblib"], "error: [Errno 2] No such file or directory: "),
    ],
)
def test_wrong_use_is_told_without_a_traceback(tmp_path, arguments, message):
    done = run(tmp_path, *arguments)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_an_encoder_of_another_library_is_trained_on(tmp_path):
    pytest.importorskip(
        "segmentation_models_pytorch", reason="needs segmentation-models-pytorch, which is no dependency"
    )
    arguments = ("--weights", "none", "--epochs", "1", "--quiet", "--output", tmp_path / "file")
    done = run(tmp_path, *arguments, script=EXAMPLES / "pretrained_encoder.py")
    assert done.returncode == 0, done.stderr
    assert "mean IoU on 4 images held out: 0." in done.stdout
    assert "predicts the same labels" in done.stdout
    done = run(tmp_path, "--encoder", "no_such_net", "--weights", "none", script=EXAMPLES / "pretrained_encoder.py")
    assert re.match("error: .*no_such_net", done.stderr)


@pytest.mark.parametrize("kind", ["ImportError", "RuntimeError"])
def test_what_to_install_is_told_in_one_line(tmp_path, kind):
    (tmp_path / "segmentation_models_pytorch.py").write_text(f"raise {kind}('not here')")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = run(tmp_path, script=EXAMPLES / "pretrained_encoder.py", PYTHONPATH=path)
    assert done.returncode != 0
    assert done.stderr.startswith("error: not here. pip install segmentation-models-pytorch")
    assert len(done.stderr.splitlines()) == 1
