"""State in one file: safetensors with a digest; written whole or not at all."""

import hashlib
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from skunet.state_values import as_bytes, decode, encode

__all__ = ["FORMAT", "read_state", "replace_file", "write_state"]

FORMAT, VERSION = "skunet", 1
# A safetensors header holds at most 100 MB; longer JSON becomes a tensor, of this name.
LONGEST_CONTENT, CONTENT = 1 << 24, "content"


def write_state(path: str | os.PathLike[str], state: Mapping[str, Any], *, kind: str) -> None:
    """Write state to a file, replacing an older one in one step.

    Parameters
    ----------
    path : str or path
        Any suffix. A link is followed.
    state : mapping of str to value
        Nested dicts (keys: str, int, float, bool, None, bytes, numpy scalars and tuples of these), lists and tuples
        of None, bool, int, float, str, bytes, numpy arrays and scalars of numbers, dates or text, and tensors.
    kind : str
        What it is the state of; `read_state` must be asked for the same.

    Raises
    ------
    TypeError
        If a value is of another type; names its place.
    ValueError
        If the state is nested too deep, or contains itself.
    OSError
        If the file cannot be written, e.g. on a full disk; an older file is left as it was.

    Examples
    --------
    >>> write_state(getfixture("tmp_path") / "state", {"weight": torch.ones(2)}, kind="example")
    >>> read_state(getfixture("tmp_path") / "state", kind="example")
    {'weight': tensor([1., 1.])}
    """
    value, tensors = encode(dict(state))
    content = json.dumps(value, allow_nan=False)
    header = {"format": FORMAT, "kind": kind, "version": str(VERSION)}
    header["digest"] = _digest(header, content, tensors)
    if len(content) <= LONGEST_CONTENT:
        header[CONTENT] = content
    else:
        tensors[CONTENT] = as_bytes(content.encode())
    replace_file(Path(os.path.realpath(path)), safetensors.torch.save(tensors, header))


def read_state(path: str | os.PathLike[str], *, kind: str, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Return the state that `write_state` wrote; nothing in the file is executed.

    Parameters
    ----------
    path : str or path
    kind : str
        As when it was written.
    device : str or torch.device
        Where tensors go.

    Returns
    -------
    dict
        As it was written: tuples as tuples, numpy values as numpy values of the same dtype, in native byte order and
        C layout; tensors contiguous, detached, and each with memory of its own.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is not one of skunet, of another kind, cut short, altered, or written by a newer skunet.
    """
    data = Path(path).read_bytes()
    header = _read_header(data, path)
    _check_version(header, path)
    with _reporting_damage(path):
        tensors = safetensors.torch.load(data)
        content = header[CONTENT] if CONTENT in header else tensors.pop(CONTENT).numpy().tobytes().decode()
        if header["digest"] != _digest(header, content, tensors):
            raise ValueError("The digest is wrong.")
    if header["kind"] != kind:
        raise ValueError(f"{path} must hold the state of a {kind}; it holds that of a {header['kind']}.")
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    with _reporting_damage(path):
        state: dict[str, Any] = decode(json.loads(content), tensors)
    return state


# ---- what a file says about itself


def _digest(header: Mapping[str, str], content: str, tensors: Mapping[str, Tensor]) -> str:
    about = [header[name] for name in ("format", "kind", "version")]
    digest = hashlib.sha256(json.dumps([*about, content]).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _read_header(data: bytes, path: Any) -> dict[str, str]:
    """Return what the header of a safetensors file says about the file."""
    if data[8:10] != b'{"':
        raise ValueError(_foreign(data, path))
    length = int.from_bytes(data[:8], "little")
    if length > len(data) - 8:
        raise ValueError(_cut_short(path))
    with _reporting_damage(path):
        header = json.loads(data[8 : 8 + length])
        about: dict[str, str] = header.get("__metadata__", {})
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        is_cut, is_ours = len(data) - 8 - length < end, about.get("format") == FORMAT
    if not is_ours:
        raise ValueError(f"{path} must be a file that skunet wrote; it is a safetensors file of another program.")
    if is_cut:
        raise ValueError(_cut_short(path))
    return about


def _check_version(header: dict[str, str], path: Any) -> None:
    version = str(header.get("version", ""))
    if not version.isdecimal():
        raise ValueError(_altered(path))
    if int(version) > VERSION:
        raise ValueError(
            f"{path} was written by a newer skunet, in version {int(version)} of the format; this one reads up to "
            f"version {VERSION}. Install a newer skunet."
        )


def _foreign(data: bytes, path: Any) -> str:
    if len(data) < 10:
        return f"{path} is empty." if not data else f"{path} is cut short, or no file of skunet: {len(data)} bytes."
    is_pickle = data[:1] == b"\x80" or data[:2] == b"PK"
    advice = (
        " It may be a pickle (joblib.dump, torch.save): those are for joblib.load, and only if you trust who wrote it, "
        "as a pickle can run any code."
    )
    return f"{path} must be a file that skunet wrote; it is not a safetensors file.{advice if is_pickle else ''}"


def _cut_short(path: Any) -> str:
    return f"{path} is cut short. Copy or save it again."


@contextmanager
def _reporting_damage(path: Any) -> Iterator[None]:
    """Turn whatever a damaged file leads to, in the library's code too, into one ValueError."""
    try:
        yield
    except Exception as error:
        raise ValueError(_altered(path)) from error


def _altered(path: Any) -> str:
    return f"{path} was altered after skunet wrote it: its digest or structure is wrong. Copy or save it again."


# ---- writing in one step


def replace_file(path: Path, data: bytes) -> None:
    """Write a file so that whoever reads it, also after a crash, finds the old or the new one, whole."""
    with _naming(path):
        unfinished = path.parent / f".skunet-{secrets.token_hex(8)}.unfinished"
        try:
            with open(unfinished, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileNotFoundError):  # there is none to replace
                os.chmod(unfinished, stat.S_IMODE(os.stat(path).st_mode))
            os.replace(unfinished, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(unfinished)
            raise
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name of a file last."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders, and makes names last by itself
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let an error of the disk say which file could not be written."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; it could not be written", str(path)) from error
