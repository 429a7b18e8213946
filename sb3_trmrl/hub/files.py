"""
Reading files that nobody vouches for, and writing folders that a kill can't break.

JSON and safetensors hold data only. What is left to a hostile file is to be too large, too deep or not what it says: it is
checked before it is parsed.
"""

import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from sb3_trmrl.common.safe_write import alone_in
from sb3_trmrl.hub.errors import MalformedFileError, MissingFileError, PretrainedError

MAX_CONFIG_BYTES = 1 << 24
"""Size of ``config.json``; real ones have a few kB, with hundreds of tasks as a keyword of the environment a megabyte."""
MAX_STATE_BYTES = 1 << 25
"""Size of ``training.json``; the arrays are in ``training.safetensors``."""
MAX_HEADER_BYTES = 1 << 22
"""Size of the header of a safetensors file, about 100 bytes for each tensor."""
MAX_DEPTH = 32
"""Objects within objects in JSON."""
MAX_NODES = 1 << 21
"""Values in one JSON file: parsed, each takes about 100 bytes."""

# Matches wherever it starts, also a string without an end: to try again from each of its quotes would take hours
_STRINGS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_STRUCTURE = re.compile(rb"[\[\]{},]")


class TensorInfo(NamedTuple):
    """What the header of a safetensors file says about a tensor."""

    dtype: str
    """Name in safetensors: ``"F32"``, ``"I64"``, ..."""
    shape: tuple[int, ...]


# -- Reading -------------------------------------------------------------------------------------------------------------


def file_in(folder: Path, name: str) -> Path:
    """
    :param folder: Folder of a model
    :param name: Name of a file in it
    :return: Its path; links are followed, but only within the folder or to the blobs of the Hub's cache
    :raises MissingFileError: if there is no such file
    :raises MalformedFileError: if it is no regular file, or the name or a link leads out of the folder
    """
    if Path(name).name != name or name in (".", ".."):
        raise MalformedFileError(f"{name!r} is no name of a file in {folder}: it leads out of the folder.")
    try:
        path = (folder / name).resolve(strict=True)
        mode = path.stat().st_mode
    except (OSError, RuntimeError) as error:
        raise MissingFileError(f"{folder} holds no {name}.") from error
    homes = [folder.resolve()]
    if folder.parent.name == "snapshots":
        # The cache of the Hub: <repository>/snapshots/<commit>/<name> is a link into <repository>/blobs, and what lies there
        # may be one into the blobs that all repositories share
        homes += [(above / "blobs").resolve() for above in folder.resolve().parents[1:3]]
    if not any(path.is_relative_to(home) for home in homes):
        raise MalformedFileError(f"{folder / name} is a link that leads out of the folder, to {path}.")
    if not stat.S_ISREG(mode):
        raise MalformedFileError(f"{folder / name} is no regular file.")
    return path


def parse_json(data: bytes, name: str) -> Any:
    """
    :param data: UTF-8 text
    :param name: Of the file, for errors
    :return: What ``json.loads`` makes of it
    :raises MalformedFileError: if it is no JSON, has a key twice, is nested too deeply or holds too many values
    """
    depth = deepest = nodes = 0
    for match in _STRUCTURE.finditer(_STRINGS.sub(b"", data)):
        sign = match.group()
        nodes += 1
        depth += (sign in b"[{") - (sign in b"]}")
        deepest = max(deepest, depth)
        if deepest > MAX_DEPTH or nodes > MAX_NODES:
            what = f"is nested more than {MAX_DEPTH} deep" if deepest > MAX_DEPTH else f"holds more than {MAX_NODES} values"
            raise MalformedFileError(f"{name} {what}: it is no file of this package.")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise MalformedFileError(f"{name} is no JSON: {error}.") from error


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON number")


def read_json(folder: Path, name: str, max_bytes: int) -> dict[str, Any]:
    """
    :param folder: Folder of a model
    :param name: Name of the file in it
    :param max_bytes: Its largest size
    :return: The JSON object in it
    :raises PretrainedError: as :func:`file_in` and :func:`parse_json`
    """
    with open(file_in(folder, name), "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise MalformedFileError(f"{folder / name} is larger than {max_bytes} bytes: it is no file of this package.")
    value = parse_json(data, str(folder / name))
    if not isinstance(value, dict):
        raise MalformedFileError(f"{folder / name} must hold a JSON object, got {type(value).__name__}.")
    return value


def read_tensor_infos(folder: Path, name: str) -> dict[str, TensorInfo]:
    """
    Read the header of a safetensors file, and nothing else. (The library checks that the tensors fill the file exactly.)

    :param folder: Folder of a model
    :param name: Name of the file in it
    :return: Type and shape of every tensor
    :raises PretrainedError: as :func:`file_in`; also if it is no safetensors file, or its header is too large
    """
    path = file_in(folder, name)
    with open(path, "rb") as file:
        prefix = file.read(8)
    header_bytes, left = int.from_bytes(prefix, "little"), path.stat().st_size - 8
    if len(prefix) < 8 or header_bytes > left:
        raise MalformedFileError(
            f"{folder / name} is truncated or no safetensors file: its first 8 bytes promise a header of {header_bytes} "
            f"bytes, {max(left, 0)} follow. (A pickle does not become one by another name, and is not read.)"
        )
    if header_bytes > MAX_HEADER_BYTES:
        raise MalformedFileError(f"{folder / name} has a header of {header_bytes} bytes, more than {MAX_HEADER_BYTES}.")
    try:
        with safe_open(path, framework="pt") as tensors:
            views = {key: tensors.get_slice(key) for key in tensors.keys()}
            return {key: TensorInfo(view.get_dtype(), tuple(view.get_shape())) for key, view in views.items()}
    except SafetensorError as error:
        raise MalformedFileError(f"{folder / name} is truncated or no safetensors file: {error}.") from error


def sha256_of(path: Path) -> str:
    """:return: Hash of a file, in hexadecimal."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# -- Writing -------------------------------------------------------------------------------------------------------------


def to_json(value: Any) -> bytes:
    """
    :param value: Data with finite numbers
    :return: JSON, indented, a list of numbers or strings in one line
    """
    return (_to_lines(value, "\n") + "\n").encode()


def _to_lines(value: Any, newline: str) -> str:
    inner = newline + "  "
    if isinstance(value, dict) and value:
        items = (f"{json.dumps(key)}: {_to_lines(item, inner)}" for key, item in value.items())
        return "{" + inner + f",{inner}".join(items) + newline + "}"
    if isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
        return "[" + inner + f",{inner}".join(_to_lines(item, inner) for item in value) + newline + "]"
    return json.dumps(value, allow_nan=False)


def _siblings(folder: Path) -> tuple[Path, Path, Path]:
    # Hidden, beside it, so that a rename stays within one file system
    return tuple(folder.parent / f".{folder.name}.{state}" for state in ("partial", "new", "old"))  # type: ignore[return-value]


def existing_folder(folder: Path) -> Path:
    """
    :param folder: Where a model was saved
    :return: Where it is: there, or beside it if a kill struck between the two renames of :func:`replace_folder`
    """
    _, new, old = _siblings(folder)
    if not os.path.lexists(folder):
        for kept in (new, old):
            if kept.is_dir():
                return kept
    return folder


def replace_folder(folder: Path, write: Callable[[Path], None], own_names: frozenset[str]) -> None:
    """
    Write a folder so that, whenever the process is killed, the old or the new one loads, whole.

    It is written under another name beside it and flushed to the disk, then renamed. Two renames replace a folder; after a
    kill between them :func:`existing_folder` finds the new one, and the next call tidies up.

    :param folder: Where it goes
    :param write: Writes the files into the folder it gets
    :param own_names: Names of files that may be replaced
    :raises PretrainedError: if ``folder``, or a hidden one beside it that is needed, is there and holds other files too, is no
        folder, or holds the working directory
    """
    folder = Path(os.path.abspath(folder))
    _check_nobody_is_in(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with alone_in(folder.parent):
        partial, new, old = _siblings(folder)
        for path in (folder, partial, new, old):
            _check_own(path, own_names)
        kept = existing_folder(folder)
        if kept != folder:
            os.rename(kept, folder)
        for stale in (partial, new, old):
            _remove(stale)
        partial.mkdir()
        try:
            write(partial)
            for path in (*partial.iterdir(), partial):
                _flush(path)
        except BaseException:
            _remove(partial)
            raise
        os.rename(partial, new)
        if os.path.lexists(folder):
            # A link to a folder is replaced as such
            os.rename(folder, old)
        os.rename(new, folder)
        _flush(folder.parent)
        _remove(old)


def _check_nobody_is_in(folder: Path) -> None:
    # It is renamed away: relative paths of this process would lead nowhere from then on
    try:
        here = Path.cwd()
    except FileNotFoundError:  # somebody else has removed it
        return
    if here.is_relative_to(folder.resolve()):
        raise PretrainedError(
            f"{folder} is the working directory, or holds it: saving replaces the whole folder, so name one in it, "
            f"for example {here / 'model'}."
        )


def _check_own(folder: Path, own_names: frozenset[str]) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise PretrainedError(f"{folder} is a file, where saving needs a folder: choose another name, or move it away.")
    others = sorted({entry.name for entry in folder.iterdir()} - own_names) if folder.is_dir() else []
    if others:
        raise PretrainedError(
            f"{folder} holds files that are not of a saved model, {others[:5]}: saving replaces the whole folder, so give it "
            "one of its own."
        )


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        shutil.rmtree(folder)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def encode_float(value: float) -> Any:
    """:return: The number, or ``{"$float": "inf"}`` for one that JSON does not have."""
    return value if math.isfinite(value) else {"$float": repr(value)}


def decode_float(value: dict[str, Any]) -> float:
    """
    :param value: What :func:`encode_float` made of a number that JSON does not have
    :return: The number
    :raises MalformedFileError: for anything else
    """
    if value.get("$float") not in ("inf", "-inf", "nan"):
        raise MalformedFileError(f"{value!r} is no number.")
    return float(value["$float"])
