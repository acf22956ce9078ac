"""The header of a GGUF file: a cursor that cannot leave the file, and metadata values decoded on demand."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.errors import CheckpointError

_STRING, _ARRAY = 8, 9
_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_KEY_BYTES = 65_535


class Cursor:
    """Reads forward through bytes; every read is checked against the end. Raises CheckpointError."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data, self.path, self.at = data, path, 0

    def broken(self, what: str) -> CheckpointError:
        """The error to raise: the file and what is wrong with it."""
        return CheckpointError(f"{self.path} {what}.", hint="It is not a GGUF file or is damaged: fetch it again.")

    def skip(self, count: int) -> int:
        """Move on by `count` bytes; gives the position before."""
        start = self.at
        if count > len(self.data) - start:
            raise self.broken(f"is truncated at byte {len(self.data)}: {count} more expected from byte {start}")
        self.at = start + count
        return start

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        start = self.skip(count)
        return bytes(self.data[start : start + count])

    def number(self, format: str) -> Any:
        """One little-endian number of a struct format."""
        return struct.unpack_from("<" + format, self.data, self.skip(struct.calcsize("<" + format)))[0]

    def text(self, limit: int) -> str:
        """A string with its length before it."""
        length = self.number("Q")
        if length > limit:
            raise self.broken(f"has a name of {length} bytes at byte {self.at}, at most {limit} are allowed")
        try:
            return self.take(length).decode()
        except UnicodeDecodeError:
            raise self.broken(f"has a name that is not UTF-8 before byte {self.at}") from None


@dataclass(frozen=True, slots=True)
class Field:
    """A metadata value where it lies. kind: the GGUF value type; count: None for a single value."""

    data: memoryview
    kind: int
    start: int
    count: int | None = None

    def value(self) -> Any:
        """The value: a number, a bool, a string, a numpy array of numbers or a list of strings."""
        if self.kind == _STRING:
            texts = self._texts(1 if self.count is None else self.count)
            return texts[0] if self.count is None else texts
        if self.count is None:
            return struct.unpack_from("<" + _FORMATS[self.kind], self.data, self.start)[0]
        dtype = np.dtype("<" + _FORMATS[self.kind]) if self.kind != 7 else np.dtype(bool)
        return np.frombuffer(self.data, dtype, self.count, self.start).copy()

    def _texts(self, count: int) -> list[str]:
        out, at, length_at = [], self.start, struct.Struct("<Q").unpack_from
        data = self.data
        for _ in range(count):
            (length,) = length_at(data, at)
            out.append(str(data[at + 8 : at + 8 + length], "utf-8", "replace"))
            at += 8 + length
        return out


def read_fields(cursor: Cursor, count: int) -> dict[str, Field]:
    """The metadata table: every value is walked over and checked, none is decoded yet."""
    fields: dict[str, Field] = {}
    for _ in range(count):
        key = cursor.text(_KEY_BYTES)
        if not key or not key.isprintable():
            raise cursor.broken(f"has a metadata key {key[:80]!r}")
        if key in fields:
            raise cursor.broken(f"has the metadata key {key!r} twice")
        fields[key] = _field(cursor, cursor.number("I"))
    return fields


def _field(cursor: Cursor, kind: int) -> Field:
    if kind == _ARRAY:
        inner, count = cursor.number("I"), cursor.number("Q")
        start = cursor.at
        _skip_array(cursor, inner, count)
        return Field(cursor.data, inner, start, count)
    start = cursor.at
    _skip_one(cursor, kind)
    return Field(cursor.data, kind, start)


def _skip_array(cursor: Cursor, kind: int, count: int) -> None:
    if kind == _STRING:
        if count > len(cursor.data) // 8:
            raise cursor.broken(f"claims an array of {count} strings")
        _skip_texts(cursor, count)
    elif kind in _FORMATS:
        cursor.skip(count * struct.calcsize("<" + _FORMATS[kind]))
    else:
        raise cursor.broken(f"has an array of type {kind}; arrays hold numbers or strings")


def _skip_texts(cursor: Cursor, count: int) -> None:
    at, end, length_at = cursor.at, len(cursor.data), struct.Struct("<Q").unpack_from
    data = cursor.data
    for _ in range(count):
        if at + 8 > end:
            break
        at += 8 + length_at(data, at)[0]
    if at > end:
        raise cursor.broken(f"is truncated at byte {end}: an array of strings goes on to byte {at}")
    cursor.at = at


def _skip_one(cursor: Cursor, kind: int) -> None:
    if kind == _STRING:
        cursor.skip(cursor.number("Q"))
    elif kind in _FORMATS:
        cursor.skip(struct.calcsize("<" + _FORMATS[kind]))
    else:
        raise cursor.broken(f"has a metadata value of type {kind}")
