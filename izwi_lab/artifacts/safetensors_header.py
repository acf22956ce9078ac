"""The safetensors header, checked field by field before anything is mapped.

Format: u64 little-endian header length, JSON header, data. Source: the format section of safetensors' README
(version 0.5). The header is untrusted: every number is checked against the size of the file.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from izwi_lab.artifacts.tensors import DTYPE_BYTES
from izwi_lab.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_RANK = 16
DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
CODES = {name: code for code, name in DTYPES.items()}
_FETCH_AGAIN = "The file is damaged or was not fully downloaded: fetch it again."


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a file. start: its first byte, counted from the beginning of the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header: tensors by name in file order, and the file's own string metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Raises:
        CheckpointError: the file is absent, truncated, or its header is malformed or hostile.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            raw, data_start = _header_bytes(file, path, size)
    except OSError as error:
        raise CheckpointError(
            f"Cannot read {path}: {error.strerror or error}.", hint="Fetch the model again."
        ) from None
    return _checked(_parsed(raw, path), path, data_start, size)


def _header_bytes(file: BinaryIO, path: Path, size: int) -> tuple[bytes, int]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CheckpointError(f"{path} is {size} bytes long, too short for a safetensors file.", hint=_FETCH_AGAIN)
    length = int.from_bytes(prefix, "little")
    if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > size:
        raise CheckpointError(
            f"{path} announces a header of {length} bytes; the file has {size} bytes and "
            f"the limit is {MAX_HEADER_BYTES}.",
            hint=_FETCH_AGAIN,
        )
    return file.read(length), 8 + length


def _parsed(raw: bytes, path: Path) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise CheckpointError(f"The header of {path} names a key twice.", hint=_FETCH_AGAIN)
        return found

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"The header of {path} is not valid JSON ({error}).", hint=_FETCH_AGAIN) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"The header of {path} is not a JSON object.", hint=_FETCH_AGAIN)
    return header


def _checked(header: dict[str, Any], path: Path, data_start: int, size: int) -> Header:
    metadata = header.pop("__metadata__", None) or {}  # mlx writes null for none
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"The metadata of {path} is not a table of strings.", hint=_FETCH_AGAIN)
    entries = {name: _entry(name, value, path, data_start, size) for name, value in header.items()}
    end = data_start
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].nbytes)):
        if entry.start != end:
            what = "overlaps the tensor before it" if entry.start < end else "leaves a gap before it"
            raise CheckpointError(f"{path}: the data of {name!r} {what}.", hint=_FETCH_AGAIN)
        end = entry.start + entry.nbytes
    if end != size:
        raise CheckpointError(f"{path} has {size} bytes, its header describes {end}.", hint=_FETCH_AGAIN)
    return Header(entries, metadata)


def _entry(name: str, value: Any, path: Path, data_start: int, size: int) -> Entry:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: tensor {name!r} {what}.", hint=_FETCH_AGAIN)

    if not name or not name.isprintable() or len(name) > 1024:
        raise fail("has an empty, unprintable or overlong name")
    if not isinstance(value, dict):
        raise fail("is not described by an object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise fail(f"has dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    if not _whole_numbers(shape) or len(shape) > MAX_RANK:
        raise fail(f"has shape {str(shape)[:100]}; expected at most {MAX_RANK} whole numbers")
    if not _whole_numbers(offsets) or len(offsets) != 2:
        raise fail(f"has data_offsets {str(offsets)[:100]}; expected two whole numbers")
    begin, end = offsets
    if begin > end or data_start + end > size:
        raise fail(f"spans bytes {begin}..{end} of the data; the file holds {size - data_start}")
    nbytes = math.prod(shape) * DTYPE_BYTES[DTYPES[dtype]]
    if end - begin != nbytes:
        raise fail(f"of shape {shape} and dtype {dtype} needs {nbytes} bytes, the header gives it {end - begin}")
    return Entry(DTYPES[dtype], tuple(shape), data_start + begin, nbytes)


def _whole_numbers(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)
