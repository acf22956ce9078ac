"""Checkpoints in GGUF: header checked before it is trusted, tensors mapped, blocks of 4 to 8 bits kept quantised.

Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K become AffineTensor exactly (`gguf_blocks.py`); F32, F16 and BF16 are
views of the file; other types are dequantised to float32 by the `gguf` package. Format: ggml docs/gguf.md, versions 2
and 3.
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from izwi_lab.artifacts import mapped
from izwi_lab.artifacts.gguf_blocks import AFFINE, affine, expanded
from izwi_lab.artifacts.gguf_header import Cursor, Field, read_fields
from izwi_lab.artifacts.tensors import AffineRows, AffineTensor, Tensor
from izwi_lab.errors import CheckpointError

# ggml type -> (name, values per block, bytes per block); ggml.h and ggml-common.h of llama.cpp b6000
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    20: ("IQ4_NL", 32, 18),
    23: ("IQ4_XS", 256, 136),
    30: ("BF16", 1, 2),
}
_PLAIN = {"F32": ("<f4", "float32"), "F16": ("<f2", "float16"), "BF16": ("<u2", "bfloat16")}
_NAME_BYTES = 64  # GGML_MAX_NAME
_MAX_RANK = 4


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a tensor lies. shape: torch order [out, in]; start: byte offset in the file."""

    type: str
    type_id: int
    shape: tuple[int, ...]
    start: int
    nbytes: int


class GGUFCheckpoint:
    """One GGUF file. `config` is its metadata; long arrays are read when they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        self._map = _mapped(path)
        self._fields, self._entries = _read_header(path, memoryview(self._map))
        self.config: Mapping[str, Any] = _Metadata(self._fields)

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in file order."""
        return tuple(self._entries)

    @property
    def quantised(self) -> frozenset[str]:
        """Names of the tensors that `read` gives as AffineTensor."""
        return frozenset(n for n, e in self._entries.items() if e.type in AFFINE)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape [out, in] without reading the data."""
        return self._entry(name).shape

    def type(self, name: str) -> str:
        """The ggml type, such as "Q4_1"."""
        return self._entry(name).type

    def read(self, name: str) -> Tensor | AffineTensor:
        """The tensor; quantised blocks and small tensors get memory of their own and their pages are let go.

        Raises:
            CheckpointError: no such tensor, or the checkpoint is closed.
            MissingExtraError: a type that only the `gguf` package can expand, without that package.
        """
        entry = self._opened(name)
        raw = np.frombuffer(self._map, np.uint8, entry.nbytes, entry.start)
        if plain := _PLAIN.get(entry.type):
            stored, dtype = plain
            values = raw.view(stored).reshape(entry.shape)
            if entry.nbytes > mapped.SMALL:
                return Tensor(values, dtype)
            values = values.copy()
            values.flags.writeable = False  # as a view of the file is
            out: Tensor | AffineTensor = Tensor(values, dtype)
        elif entry.type in AFFINE:
            out = affine(entry.type, raw, entry.shape)
        else:
            out = expanded(raw, entry.type_id, entry.shape)
        del raw
        mapped.release(self._map, entry.start, entry.nbytes)
        return out

    def affine_rows(self, name: str) -> AffineRows | None:
        """What `read` gives as AffineTensor, to be read in blocks of rows; None for other tensors."""
        entry = self._entry(name)
        if entry.type not in AFFINE:
            return None
        bits, _, group, _ = AFFINE[entry.type]
        rows, width = math.prod(entry.shape[:-1]), entry.shape[-1]
        row_bytes = entry.nbytes // rows

        def read(start: int, stop: int) -> AffineTensor:
            self._opened(name)
            at, nbytes = entry.start + start * row_bytes, (stop - start) * row_bytes
            raw = np.frombuffer(self._map, np.uint8, nbytes, at)
            block = affine(entry.type, raw, (stop - start, width))
            mapped.release(self._map, at, nbytes)
            return block

        return AffineRows((rows, width), bits, group, read)

    def close(self) -> None:
        """Let go of the file; plain tensors already read keep their map alive."""
        self._entries = {}
        try:
            self._map.close()
        except BufferError:
            self._fields = {}  # views are out: the map goes when they do

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            raise CheckpointError(f"No tensor {name!r} in {self.path}.", hint=f"It holds {len(self._entries)} tensors.")
        return self._entries[name]

    def _opened(self, name: str) -> Entry:
        if self._map.closed:
            raise CheckpointError(f"The checkpoint {self.path.name} is closed.", hint="Open it again.")
        return self._entry(name)


class _Metadata(Mapping[str, Any]):
    """Metadata by key; values are decoded when they are asked for."""

    def __init__(self, fields: Mapping[str, Field]) -> None:
        self._fields = fields

    def __getitem__(self, key: str) -> Any:
        return self._fields[key].value()

    def __iter__(self) -> Any:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __contains__(self, key: object) -> bool:
        return key in self._fields


def open_folder(folder: Path) -> GGUFCheckpoint:
    """Open the one .gguf file of a folder (or a path to the file itself).

    Raises:
        CheckpointError: none or several files, a wrong magic or version, or a header that does not fit the file.
    """
    if folder.is_file():
        return GGUFCheckpoint(folder)
    found = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if len(found) != 1:
        what = f"{len(found)} .gguf files ({', '.join(p.name for p in found)})" if found else "no .gguf file"
        raise CheckpointError(f"{folder} holds {what}.", hint="Expected exactly one.")
    return GGUFCheckpoint(found[0])


def _mapped(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise CheckpointError(f"{path} is empty.", hint="Fetch the model again.")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None


def _read_header(path: Path, data: memoryview) -> tuple[Mapping[str, Field], dict[str, Entry]]:
    cursor = Cursor(data, path)
    if cursor.take(4) != b"GGUF":
        raise cursor.broken("does not start with GGUF")
    version = cursor.number("I")
    if version not in (2, 3):
        raise cursor.broken(f"has version {version}, expected 2 or 3 (little endian)")
    tensors, fields = cursor.number("Q"), cursor.number("Q")
    if tensors > len(data) // 24 or fields > len(data) // 13:  # the least bytes that one of them takes
        raise cursor.broken(f"claims {tensors} tensors and {fields} metadata fields")
    metadata = read_fields(cursor, fields)
    alignment = metadata["general.alignment"].value() if "general.alignment" in metadata else 32
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise cursor.broken(f"has alignment {alignment!r}, expected a power of two")
    entries = [_read_entry(cursor) for _ in range(tensors)]
    base = math.ceil(cursor.at / alignment) * alignment
    placed: dict[str, Entry] = {}
    for name, entry in entries:
        if name in placed:
            raise cursor.broken(f"holds the tensor {name!r} twice")
        start = base + entry.start
        if start + entry.nbytes > len(data):
            raise cursor.broken(
                f"is truncated: tensor {name!r} ends at byte {start + entry.nbytes} of a file of {len(data)}"
            )
        if entry.start % alignment:
            raise cursor.broken(f"places the tensor {name!r} off its alignment of {alignment}")
        placed[name] = Entry(entry.type, entry.type_id, entry.shape, start, entry.nbytes)
    _check_overlaps(cursor, placed)
    return MappingProxyType(metadata), placed


def _read_entry(cursor: Cursor) -> tuple[str, Entry]:
    name = cursor.text(_NAME_BYTES)
    if not name or not name.isprintable():
        raise cursor.broken(f"has a tensor with the name {name!r}")
    rank = cursor.number("I")
    if not 1 <= rank <= _MAX_RANK:
        raise cursor.broken(f"gives the tensor {name!r} {rank} dimensions")
    dims = tuple(cursor.number("Q") for _ in range(rank))
    type_id, offset = cursor.number("I"), cursor.number("Q")
    if type_id not in _TYPES:
        known = ", ".join(t[0] for t in _TYPES.values())
        raise cursor.broken(f"stores the tensor {name!r} as ggml type {type_id}; known types are {known}")
    kind, block, size = _TYPES[type_id]
    if min(dims) < 1 or dims[0] % block:
        raise cursor.broken(f"gives the tensor {name!r} the shape {list(dims)}, which does not fit {kind}")
    nbytes = math.prod(dims) // block * size
    return name, Entry(kind, type_id, tuple(reversed(dims)), offset, nbytes)


def _check_overlaps(cursor: Cursor, entries: Mapping[str, Entry]) -> None:
    end, last = 0, ""
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start < end:
            raise cursor.broken(f"lets the tensors {last!r} and {name!r} overlap")
        end, last = entry.start + entry.nbytes, name
