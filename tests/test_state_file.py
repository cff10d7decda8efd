"""State in a file: what comes back, what is refused, and what a crash leaves behind."""

import copy
import errno
import json
import os
import pickle
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from skunet import state_file
from skunet.state_file import read_state, write_state


def assert_same(found, expected):
    """Raise AssertionError unless both are of the same types, all the way down, and equal bit for bit."""
    assert type(found) is type(expected), f"{found!r} is not {expected!r}"
    if isinstance(expected, dict):
        assert len(found) == len(expected)
        for pair, expected_pair in zip(found.items(), expected.items(), strict=True):
            assert_same(pair, expected_pair)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for item, expected_item in zip(found, expected, strict=True):
            assert_same(item, expected_item)
    elif isinstance(expected, np.ndarray | np.generic):
        assert found.dtype == expected.dtype
        assert found.dtype.isnative
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()
    elif isinstance(expected, torch.Tensor):
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert torch.equal(found, expected)
    elif isinstance(expected, float):
        assert repr(found) == repr(expected)  # tells -0.0 from 0.0, and takes one NaN for another
    else:
        assert found == expected


def round_trip(tmp_path, state):
    write_state(tmp_path / "state", state, kind="test")
    return read_state(tmp_path / "state", kind="test")


DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="="),
    hnp.unsigned_integer_dtypes(endianness="="),
    hnp.floating_dtypes(endianness="="),
    hnp.complex_number_dtypes(endianness="="),
    hnp.unicode_string_dtypes(endianness="="),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
TENSORS = st.builds(
    lambda shape, dtype: torch.arange(int(np.prod(shape))).reshape(shape).to(dtype),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
    st.sampled_from([torch.bfloat16, torch.bool, torch.float32, torch.complex128, torch.uint16]),
)
NAN_FREE = st.floats(allow_nan=False)
KEYS = st.one_of(
    *(st.text(max_size=4), st.integers(), NAN_FREE, st.booleans(), st.none(), st.just("$tuple")),
    st.tuples(st.integers(), st.text(max_size=2)),
)
LEAVES = st.one_of(
    KEYS, st.floats(), st.binary(max_size=4), ARRAYS, ARRAYS.map(lambda array: array.ravel()[:1]), TENSORS
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
    max_leaves=8,
)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_nested_state_comes_back_as_it_was(tmp_path, state):
    original = copy.deepcopy(state)
    assert_same(round_trip(tmp_path, state), original)
    assert_same(state, original)


@pytest.mark.parametrize(
    "value",
    [
        *(2**63, -(2**64), 10**5000, 0.1, -0.0, 5e-324, float("inf"), float("-inf"), "\ud800\x00é", b"", b"\x00\xff"),
        *(np.float32(0.1), np.float64("nan"), np.bool_(True), np.uint8(255), np.str_("zellkörper"), np.bytes_(b"ab")),
        *(np.datetime64("2024-01-02"), np.array(["a", "bcd"]), np.array("x"), np.zeros((0, 3), "U5")),
        *(np.longdouble(1) / 3, np.float16([1, 2]), np.arange(3)),
        *({"$dict": 1}, {"$": {"$tensor": "0"}}, {True: 1, 2: 3, None: 4, np.uint8(5): 6, (1, ("a",)): 7}),
        *(
            torch.tensor(3.5),
            torch.zeros(0, 2),
            torch.tensor(1 + 2j).conj(),
            torch.tensor([1 + 2j]).conj().imag,
            torch.ones(2, dtype=torch.float8_e5m2),
        ),
    ],
    ids=lambda value: f"{type(value).__name__}",
)
def test_a_value_comes_back_as_it_was(tmp_path, value):
    if isinstance(value, torch.Tensor) and value.dtype == torch.float8_e5m2:
        assert torch.equal(round_trip(tmp_path, {"a": value})["a"].float(), value.float())
        return
    assert_same(round_trip(tmp_path, {"a": value, "b": [(value,)]}), {"a": value, "b": [(value,)]})


def test_nan_comes_back_as_a_float(tmp_path):
    assert np.isnan(round_trip(tmp_path, {"a": float("nan")})["a"])


def test_arrays_come_back_writable_in_native_byte_order_and_c_layout(tmp_path):
    array = np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3))
    found = round_trip(tmp_path, {"a": array, "b": array[:, ::2]})
    assert_same(found, {"a": array.astype("=i4", order="C"), "b": array[:, ::2].astype("=i4")})
    assert found["a"].flags.c_contiguous
    assert found["a"].flags.writeable


def test_a_memory_mapped_array_comes_back_as_an_array(tmp_path):
    mapped = np.memmap(tmp_path / "mapped", dtype=np.uint8, mode="w+", shape=(3,))
    assert_same(round_trip(tmp_path, {"a": mapped})["a"], np.zeros(3, np.uint8))


def test_tensors_of_any_layout_come_back_contiguous_and_with_memory_of_their_own(tmp_path):
    image = torch.arange(48.0).reshape(1, 3, 4, 4)
    weight = torch.nn.Parameter(image)
    state = {
        "last": image.contiguous(memory_format=torch.channels_last),
        "view": image[:, :, ::2],
        "tied": weight,
        "again": weight,
        "turned": image[0, 0].T,
    }
    found = round_trip(tmp_path, state)
    for name, tensor in state.items():
        assert torch.equal(found[name], tensor)
        assert found[name].is_contiguous()
        assert not found[name].requires_grad
    found["tied"].zero_()
    assert torch.equal(found["again"], image)
    assert state["last"].is_contiguous(memory_format=torch.channels_last)


def test_an_optimizer_that_was_read_goes_on_as_the_one_written(tmp_path):
    def steps(net, optimizer, count):
        for _ in range(count):
            optimizer.zero_grad()
            net(torch.ones(1, 2)).sum().backward()
            optimizer.step()

    net = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(net.parameters())
    steps(net, optimizer, 3)
    state = round_trip(tmp_path, {"net": net.state_dict(), "optimizer": optimizer.state_dict()})
    other = torch.nn.Linear(2, 2)
    other.load_state_dict(state["net"])
    other_optimizer = torch.optim.Adam(other.parameters())
    other_optimizer.load_state_dict(state["optimizer"])
    steps(net, optimizer, 3)
    steps(other, other_optimizer, 3)
    assert torch.equal(net.weight, other.weight)


def test_content_too_long_for_a_header_comes_back(tmp_path, monkeypatch):
    monkeypatch.setattr(state_file, "LONGEST_CONTENT", 10)
    state = {"history": [{"loss": 0.1}] * 10, "weight": torch.ones(2)}
    assert_same(round_trip(tmp_path, state), state)


def test_an_ordered_dict_comes_back_as_a_dict(tmp_path):
    assert_same(round_trip(tmp_path, {"a": OrderedDict(b=1)}), {"a": {"b": 1}})


def test_tensors_go_to_the_device_that_was_asked_for(tmp_path):
    write_state(tmp_path / "state", {"a": torch.ones(2, dtype=torch.complex64), "b": 1}, kind="test")
    found = read_state(tmp_path / "state", kind="test", device="meta")
    assert found["a"].device.type == "meta"
    assert found["a"].shape == (2,)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (print, r"state\['a'\]\[3\] is a builtin_function_or_method, which cannot"),
        ({1, 2}, r"state\['a'\]\[3\] is a set"),
        (namedtuple("Point", "row")(1), r"state\['a'\]\[3\] is a Point"),
        (np.array([{}]), r"state\['a'\]\[3\] is a ndarray of dtype object"),
        (np.ma.masked_array([1]), r"state\['a'\]\[3\] is a MaskedArray"),
        (torch.zeros(2).to_sparse(), r"state\['a'\]\[3\] is a Tensor"),
        (torch.float32, r"state\['a'\]\[3\] is a dtype"),
        ({frozenset(): 1}, r"a key of state\['a'\]\[3\] is a frozenset"),
        ({"b": ({1: len},)}, r"state\['a'\]\[3\]\['b'\]\[0\]\[1\] is a builtin"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(tmp_path, value, message):
    with pytest.raises(TypeError, match=message):
        write_state(tmp_path / "state", {"a": [0, 1, 2, value]}, kind="test")
    assert not list(tmp_path.iterdir())


def test_state_that_contains_itself_is_refused(tmp_path):
    state = {}
    state["self"] = state
    with pytest.raises(ValueError, match="contain itself"):
        write_state(tmp_path / "state", state, kind="test")


# ---- damage

STATE = {"weight": torch.arange(100.0), "classes": np.array([0, 255], np.uint8), "depth": 2}


@pytest.fixture
def path(tmp_path):
    write_state(tmp_path / "state", STATE, kind="test")
    return tmp_path / "state"


def metadata_of(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]


def rewrite(path, **changes):
    """Write the file anew, with other metadata."""
    tensors = safetensors.torch.load(path.read_bytes())
    path.write_bytes(safetensors.torch.save(tensors, metadata_of(path) | changes))


def test_other_programs_can_read_the_file(path):
    assert torch.equal(safetensors.torch.load_file(path)["0"], STATE["weight"])
    about = metadata_of(path)
    assert (about["format"], about["kind"], about["version"]) == ("skunet", "test", "1")
    assert json.loads(about["content"])["depth"] == 2


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_state(tmp_path / "nowhere", kind="test")


def test_a_file_cut_short_anywhere_is_called_so(path):
    data = path.read_bytes()
    for length in [*range(10, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut short"):
            read_state(path, kind="test")
    for length in range(1, 10):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match="cut short, or no file of skunet"):
            read_state(path, kind="test")
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is empty"):
        read_state(path, kind="test")


@pytest.mark.parametrize("change", [0x01, 0x80, 0xFF])
def test_no_byte_can_be_altered_unseen(path, change):
    data = path.read_bytes()
    for place in range(len(data)):
        altered = bytearray(data)
        altered[place] ^= change
        path.write_bytes(altered)
        with pytest.raises(ValueError, match=r"^.*state (was|is|must)"):
            read_state(path, kind="test")


def test_altered_weights_and_altered_json_are_called_altered(path):
    data = path.read_bytes()
    path.write_bytes(data[:-10] + bytes([data[-10] ^ 1]) + data[-9:])
    with pytest.raises(ValueError, match="was altered"):
        read_state(path, kind="test")
    path.write_bytes(data.replace(rb"\"depth\": 2", rb"\"depth\": 3"))
    with pytest.raises(ValueError, match="was altered"):
        read_state(path, kind="test")
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError, match="was altered"):
        read_state(path, kind="test")
    path.write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(ValueError, match="was altered"):
        read_state(path, kind="test")


def test_another_kind_is_named(path):
    with pytest.raises(ValueError, match="must hold the state of a segmenter; it holds that of a test"):
        read_state(path, kind="segmenter")
    rewrite(path, kind="segmenter")
    with pytest.raises(ValueError, match="was altered"):
        read_state(path, kind="segmenter")


def test_a_newer_version_is_named(path):
    rewrite(path, version="2", digest="of another kind")
    with pytest.raises(ValueError, match="newer skunet, in version 2 of the format; this one reads up to version 1"):
        read_state(path, kind="test")


def test_files_of_others_are_called_so(path):
    for data, message in [
        (b"date,iou\n2024-01-02,0.9\n", "not a safetensors file.$"),
        (pickle.dumps({"depth": 2}), "not a safetensors file. It may be a pickle"),
        (safetensors.torch.save({"a": torch.ones(2)}), "a safetensors file of another program"),
        (safetensors.torch.save({}, {"format": "pt"}), "a safetensors file of another program"),
        (b"\x02\x00\x00\x00\x00\x00\x00\x00" + b'{"', "was altered"),
    ]:
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_state(path, kind="test")


def content_file(path, content, tensors=None):
    """Write a file of any content with a digest that is right."""
    tensors, content = tensors or {}, json.dumps(content)
    header = {"format": "skunet", "kind": "test", "version": "1", "content": content}
    header["digest"] = state_file._digest(header, content, tensors)
    path.write_bytes(safetensors.torch.save(tensors, header))


@pytest.mark.parametrize(
    "content",
    [
        *({"a": {"$tensor": "9"}}, {"a": {"$new": 1}}, {"a": {"$array": ["0", "|O", [1]]}}, {"a": {"$int": "x"}}),
        *({"a": {"$array": ["0", "<f8", [9]]}}, {"a": {"$tensor": "0", "dtype": "load", "shape": [1]}}),
        *({"a": {"$scalar": ["|O", "00" * 8]}}, {"a": {"$dict": [[{"$dict": []}, 1]]}}),
    ],
)
def test_content_that_skunet_would_not_write_is_called_altered(tmp_path, content):
    content_file(tmp_path / "state", content, {"0": torch.zeros(8, dtype=torch.uint8)})
    with pytest.raises(ValueError, match="was altered"):
        read_state(tmp_path / "state", kind="test")


def test_reading_unpickles_nothing(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for owner, name in [(pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")]:
        monkeypatch.setattr(owner, name, refuse)
    assert_same(read_state(path, kind="test"), STATE)


# ---- writing


def test_an_older_file_is_replaced_also_behind_a_link(path):
    link = path.parent / "link"
    link.symlink_to(path)
    write_state(str(link), {"a": 1}, kind="test")
    assert read_state(path, kind="test") == {"a": 1}
    assert link.is_symlink()
    assert sorted(path.parent.iterdir()) == [link, path]


def test_a_new_file_has_the_permissions_of_any_new_file(path):
    (path.parent / "plain").touch()
    assert path.stat().st_mode == (path.parent / "plain").stat().st_mode


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_file_and_nothing_else(path, monkeypatch, call):
    def fail(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match=r"No space left on device; it could not be written: '.*state'") as caught:
        write_state(path, {"a": 1}, kind="test")
    monkeypatch.undo()
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(path)
    assert_same(read_state(path, kind="test"), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_an_interrupted_write_leaves_the_older_file_and_nothing_else(path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_state(path, {"a": 1}, kind="test")
    monkeypatch.undo()
    assert_same(read_state(path, kind="test"), STATE)
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_takes_no_files_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing/state"):
        write_state(tmp_path / "missing" / "state", {}, kind="test")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file/state"):
        write_state(tmp_path / "file" / "state", {}, kind="test")
    with pytest.raises(IsADirectoryError, match="could not be written"):
        write_state(tmp_path, {}, kind="test")


def test_the_file_and_then_its_folder_are_synced(path, monkeypatch):
    order = []
    sync, replace = os.fsync, os.replace

    def note_sync(descriptor):
        order.append(os.path.realpath(f"/proc/self/fd/{descriptor}"))
        sync(descriptor)

    def note_replace(source, target):
        order.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_state(path, {"a": 1}, kind="test")
    assert order[0].endswith(".unfinished")
    assert order[1:] == ["replace", str(path.parent)]


def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path):
    write_state(tmp_path / "state", {}, kind="example")
    os.chmod(tmp_path / "state", 0o600)
    write_state(tmp_path / "state", {"more": 1}, kind="example")
    assert os.stat(tmp_path / "state").st_mode & 0o777 == 0o600
