"""The arrows between the rooms, and what a house must not have."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import skunet
from skunet import UNetSegmenter

PACKAGE = Path(skunet.__file__).parent
# From the top: a room may import those below it, and none above or beside it on its own line.
LAYERS = [
    ["__init__"],
    ["segmenter", "checks", "model_selection", "ensemble", "preprocessing", "learning_rate_finder"],
    [
        *("contract_parameters", "contract_fitting", "contract_process", "contract_copies", "contract_containers"),
        *("contract_prediction", "contract_labels", "contract_weights", "contract_errors"),
    ],
    ["contract", "thresholds", "image_transformer", "searches", "cross_validation", "cross_prediction"],
    ["net"],
    ["training_step"],
    ["resuming"],
    ["building"],
    ["batching", "callbacks", "prediction"],
    [
        *("image_dataset", "scoring", "stopping", "checkpoints", "progress", "schedules", "averaging"),
        "freezing",
        *("threshold_scores", "export", "postprocessing", "border_weights"),
    ],
    ["patches", "persistence", "image_by_image", "inference", "chunks", "pretrained"],
    ["receptive_field", "adaptation"],
    ["training_set", "files", "tiling", "sampling"],
    ["turning", "blending", "journal"],
    ["pixels"],
    [
        "images",
        "image_array",
        "splits",
        "components",
        "metrics",
        "datasets",
        "engines",
        "folding",
        "instances",
        "joining",
        "exactness",
    ],
    ["containers", "labels", "network", "losses", "augmentation", "adapters", "scaling", "confusion"],
    ["overlap_losses", "boundary_losses", "warping", "intensities"],
    ["loss_terms"],
    ["resizing", "state_file", "blocks", "fingerprint", "stored_parameters", "image_files"],
    [
        "randomness",
        "hardware",
        "hyperparameters",
        "interruption",
        "workers",
        "state_values",
        "mirroring",
        "reach",
        "memory",
        "derived",
        "tile_size",
        "allocation",
        "batch_records",
        "steps",
        "shallow_convolutions",
        "orientation",
    ],
    ["settings", "geometry", "connected"],
]
LEVEL = {room: level for level, rooms in enumerate(LAYERS) for room in rooms}
USES_SKORCH = {
    *("segmenter", "net", "training_step", "resuming", "building", "batching", "image_dataset"),
    *("callbacks", "scoring", "stopping", "checkpoints", "progress", "schedules", "averaging"),
    "freezing",
    "learning_rate_finder",
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


ROOMS = sorted(path.stem for path in PACKAGE.glob("*.py"))


@pytest.mark.parametrize("room", ROOMS)
def test_imports_point_downwards(room):
    assert room in LEVEL, f"give {room} its place in LAYERS"
    for module in imports_of(PACKAGE / f"{room}.py"):
        if module.startswith("skunet."):
            below = module.split(".")[1]
            assert LEVEL[below] > LEVEL[room], f"{room} must not import {below}"


@pytest.mark.parametrize("room", sorted(set(ROOMS) - USES_SKORCH))
def test_only_the_estimator_and_its_callbacks_know_skorch(room):
    assert not [module for module in imports_of(PACKAGE / f"{room}.py") if module.split(".")[0] == "skorch"]


def test_no_rooms_without_a_name():
    assert not {"utils", "helpers", "common", "base", "misc"} & set(ROOMS)


def test_public_names_are_those_in_all():
    public = {name for name, value in vars(skunet).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public == set(skunet.__all__)


def test_documented_defaults_are_those_of_the_signature():
    documented = dict(re.findall(r"^    (\w+) : .*default=(.+)$", UNetSegmenter.__doc__, re.MULTILINE))
    documented |= dict.fromkeys(["iterator_train", "iterator_valid"], documented.pop("iterator_valid", "DataLoader"))
    for name, parameter in inspect.signature(UNetSegmenter.__init__).parameters.items():
        if name in ("self", "kwargs", "use_caching", "torch_load_kwargs", "iterator_train", "iterator_valid"):
            continue
        value = parameter.default
        expected = value.__name__ if isinstance(value, type) else value
        text = documented[name]
        assert text.split(".")[-1] == expected if isinstance(value, type) else ast.literal_eval(text) == expected, name


def test_every_parameter_has_a_rule_or_belongs_to_skorch():
    from skunet.hyperparameters import RULES

    of_skorch = {
        "iterator_train", "iterator_valid", "dataset", "verbose",
        "predict_nonlinearity", "warm_start", "compile", "use_caching", "torch_load_kwargs",
    }  # fmt: skip
    assert set(RULES) | of_skorch == set(UNetSegmenter().get_params(deep=False))
