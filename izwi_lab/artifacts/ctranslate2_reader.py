"""CTranslate2 `model.bin` (binary version 6): header parsed and checked, tensors mapped from the file, never copied.

Layout, little endian (CTranslate2 4.8 `src/models/model.cc`, ModelReader): u32 version, string spec, u32 revision,
u32 count, then per variable: string name, u8 rank, u32 dims[rank], u8 dtype, u32 bytes, data; u32 alias count, pairs of
strings. A string is a u16 length that counts the closing NUL, then the bytes. An int8 or int16 matrix has a companion
`<name>_scale` and stands for q / scale; a scalar integer without one is an attribute such as `encoder/num_heads`.
"""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError

MODEL_FILE = "model.bin"
_VERSION = 6
_DTYPES = {0: "float32", 1: "int8", 2: "int16", 3: "int32", 4: "float16", 5: "bfloat16"}
_NUMPY = {"bfloat16": "uint16"}
_MAX_RANK = 8
_MIN_VARIABLE_BYTES = 2 + 1 + 1 + 4  # an empty name, rank 0, dtype, byte count


@dataclass(frozen=True, slots=True)
class _Entry:
    offset: int
    shape: tuple[int, ...]
    dtype: str


class _Cursor:
    """A bounds-checked reader over the mapped file."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.pos = data, path, 0

    def fail(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {what} (at byte {self.pos} of {len(self.data)}).",
            hint="Expected a whole CTranslate2 model.bin of version 6; delete the file and fetch it again.",
        )

    def number(self, code: str, what: str) -> int:
        size = struct.calcsize("<" + code)
        if self.pos + size > len(self.data):
            raise self.fail(f"the file ends inside {what}")
        (value,) = struct.unpack_from("<" + code, self.data, self.pos)
        self.pos += size
        return int(value)

    def text(self, what: str) -> str:
        size = self.number("H", what)
        if size == 0 or self.pos + size > len(self.data):
            raise self.fail(f"{what} claims {size} bytes")
        raw = bytes(self.data[self.pos : self.pos + size])
        if raw[-1] != 0:
            raise self.fail(f"{what} has no closing NUL")
        self.pos += size
        try:
            return raw[:-1].decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None


class CTranslate2Checkpoint:
    """An opened CTranslate2 folder. `config` is its config.json, `attributes` the scalar settings in model.bin."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Mapping[str, Any] = _json(folder / "config.json")
        path = folder / MODEL_FILE
        try:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} cannot be opened: {error}.", hint="Fetch the model again.") from error
        with memoryview(self._map) as data:
            self.spec, self.revision, self._entries, aliases = _parse(_Cursor(data, path))
        for alias, name in aliases.items():
            if name not in self._entries:
                raise CheckpointError(f"{path}: alias {alias!r} names {name!r}, which is not in the file.")
            self._entries.setdefault(alias, self._entries[name])
        self.aliases = aliases

    @property
    def names(self) -> tuple[str, ...]:
        """Variable names in file order, aliases last."""
        return tuple(self._entries)

    @property
    def attributes(self) -> dict[str, float]:
        """The scalar variables, for example `encoder/num_heads`."""
        scalars = [n for n, e in self._entries.items() if e.shape == () and not n.endswith("_scale")]
        return {n: self._array(n).item() for n in scalars}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape from the header; nothing is read."""
        return self._entry(name).shape

    def read(self, name: str) -> Tensor:
        """The tensor as a view of the mapped file; int8 and int16 matrices come back as float32, q / scale."""
        entry = self._entry(name)
        array = self._array(name)
        if entry.dtype in ("int8", "int16") and f"{name}_scale" in self._entries:
            scale = self._array(f"{name}_scale").astype(np.float32)
            if scale.size not in (1, entry.shape[0] if entry.shape else 1):
                raise CheckpointError(f"{self.folder}: {name}_scale has {scale.size} values for {entry.shape} weights.")
            rows = scale.reshape(-1, *[1] * (array.ndim - 1)) if scale.size > 1 else scale.reshape(())
            return Tensor.of(array.astype(np.float32) / rows)
        return Tensor(array, entry.dtype)

    def release(self) -> None:
        """Give back the pages read so far; later reads fault them in again from the file."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Forget the file. The map itself goes when the last tensor taken from it does."""
        self._entries = {}

    def _entry(self, name: str) -> _Entry:
        if name not in self._entries:
            raise CheckpointError(f"{self.folder / MODEL_FILE} holds no tensor {name!r}.")
        return self._entries[name]

    def _array(self, name: str) -> np.ndarray:
        entry = self._entry(name)
        count = int(np.prod(entry.shape, dtype=np.int64))
        flat = np.frombuffer(self._map, _NUMPY.get(entry.dtype, entry.dtype), count, entry.offset)
        return flat.reshape(entry.shape)


def open_folder(folder: Path) -> CTranslate2Checkpoint:
    """Open a folder with model.bin and config.json. Raises CheckpointError if it is truncated or malformed."""
    return CTranslate2Checkpoint(Path(folder))


def _parse(cursor: _Cursor) -> tuple[str, int, dict[str, _Entry], dict[str, str]]:
    if (version := cursor.number("I", "the version")) != _VERSION:
        raise cursor.fail(f"binary version {version}, expected {_VERSION}")
    spec, revision = cursor.text("the spec name"), cursor.number("I", "the revision")
    count = cursor.number("I", "the variable count")
    if count * _MIN_VARIABLE_BYTES > len(cursor.data):
        raise cursor.fail(f"{count} variables cannot fit in the file")
    entries: dict[str, _Entry] = {}
    for _ in range(count):
        name = cursor.text("a variable name")
        if name in entries:
            raise cursor.fail(f"variable {name!r} appears twice")
        entries[name] = _variable(cursor, name)
    aliases: dict[str, str] = {}
    alias_count = cursor.number("I", "the alias count")
    if alias_count * 6 > len(cursor.data) - cursor.pos:
        raise cursor.fail(f"{alias_count} aliases cannot fit in the file")
    for _ in range(alias_count):
        alias = cursor.text("an alias")
        aliases[alias] = cursor.text("an alias target")
    if cursor.pos != len(cursor.data):
        raise cursor.fail(f"{len(cursor.data) - cursor.pos} bytes follow the end")
    return spec, revision, entries, aliases


def _variable(cursor: _Cursor, name: str) -> _Entry:
    rank = cursor.number("B", f"{name!r}")
    if rank > _MAX_RANK:
        raise cursor.fail(f"{name!r} claims rank {rank}, at most {_MAX_RANK} expected")
    shape = tuple(cursor.number("I", f"the shape of {name!r}") for _ in range(rank))
    code, size = cursor.number("B", f"{name!r}"), cursor.number("I", f"{name!r}")
    if code not in _DTYPES:
        raise cursor.fail(f"{name!r} has the unknown dtype {code}")
    dtype = _DTYPES[code]
    expected = np.dtype(_NUMPY.get(dtype, dtype)).itemsize
    for length in shape:
        expected *= length  # Python integers: a hostile shape cannot overflow
    if expected != size:
        raise cursor.fail(f"{name!r} has shape {list(shape)} of {dtype}, {expected} bytes, but claims {size}")
    if cursor.pos + size > len(cursor.data):
        raise cursor.fail(f"{name!r} needs {size} bytes, the file holds {len(cursor.data) - cursor.pos} more")
    offset = cursor.pos
    cursor.pos += size
    return _Entry(offset, shape, dtype)


def _json(path: Path) -> Mapping[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds {type(value).__name__}, expected a JSON object.")
    return value
