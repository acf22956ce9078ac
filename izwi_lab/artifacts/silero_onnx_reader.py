"""Silero VAD's ONNX export: the weights of its 16 kHz branch, read with a small protobuf walker, no onnx package.

`silero_vad.onnx` is one If node; its then-branch holds the 16 kHz net with every weight as a Constant node whose output
is named after the module path (`If_0_then_branch__Inline_0__encoder.0.reparam_conv.weight`). Field numbers are those
of onnx.proto: ModelProto.graph 7, GraphProto.node 1, NodeProto.{output 2, op_type 4, attribute 5},
AttributeProto.{name 1, t 5, g 6}, TensorProto.{dims 1, data_type 2, float_data 4, raw_data 9}.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError

MODEL_FILE = "silero_vad.onnx"
_BRANCH = "then_branch"
_SCOPE = "__Inline_0__"
_MAX_BYTES = 64 << 20
_FLOAT = 1
_FIXED = {1: 8, 5: 4}  # wire type -> bytes

Field = tuple[int, "int | memoryview"]


class SileroCheckpoint:
    """The opened file. Names are module paths, such as `decoder.rnn.weight_ih`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config: Mapping[str, Any] = {"sample_rate_hz": 16_000}
        path = folder / MODEL_FILE
        try:
            if path.stat().st_size > _MAX_BYTES:
                raise CheckpointError(f"{path} has {path.stat().st_size} bytes, expected about 2.3 MB.")
            data = memoryview(path.read_bytes())
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
        self._tensors = dict(_weights(data, path))
        if not self._tensors:
            raise CheckpointError(f"{path} holds no 16 kHz Silero weights.", hint="Expected silero_vad.onnx of v6.")

    @property
    def names(self) -> tuple[str, ...]:
        """Weight names in file order."""
        return tuple(self._tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a weight."""
        return self.read(name).shape

    def read(self, name: str) -> Tensor:
        """The weight, float32."""
        if name not in self._tensors:
            raise CheckpointError(f"{self.folder / MODEL_FILE} holds no weight {name!r}.")
        return self._tensors[name]

    def close(self) -> None:
        """Forget the weights."""
        self._tensors = {}


def open_folder(folder: Path) -> SileroCheckpoint:
    """Open a folder with silero_vad.onnx. Raises CheckpointError if it is truncated or malformed."""
    return SileroCheckpoint(Path(folder))


def _weights(model: memoryview, path: Path) -> Iterator[tuple[str, Tensor]]:
    graphs = list(_messages(model, 7, path))  # walks the whole file, so a cut at its end is seen too
    for node in _messages(graphs[0] if graphs else memoryview(b""), 1, path):
        if _text(node, 4, path) != "If":
            continue
        for attribute in _messages(node, 5, path):
            if _text(attribute, 1, path) == _BRANCH:
                yield from _constants(_message(attribute, 6, path), path)


def _constants(graph: memoryview, path: Path) -> Iterator[tuple[str, Tensor]]:
    for node in _messages(graph, 1, path):
        name = _text(node, 2, path)
        if _text(node, 4, path) != "Constant" or _SCOPE not in name:
            continue
        for attribute in _messages(node, 5, path):
            value = list(_messages(attribute, 5, path))
            if value and (tensor := _tensor(value[0], name, path)) is not None:
                yield name.partition(_SCOPE)[2], tensor


def _tensor(message: memoryview, name: str, path: Path) -> Tensor | None:
    """A float32 tensor of at least one dimension, or None for the graph's small integers."""
    dims: list[int] = []
    kind, raw = 0, memoryview(b"")
    for number, value in _fields(message, path):
        if number == 1:
            dims += [value] if isinstance(value, int) else list(_packed(value, path))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number in (4, 9) and not isinstance(value, int):
            raw = value
    if kind != _FLOAT or not dims:
        return None
    expected = 4
    for length in dims:
        expected *= length
    if expected != len(raw):
        raise CheckpointError(f"{path}: {name!r} has shape {dims}, {expected} bytes, but holds {len(raw)}.")
    return Tensor(np.frombuffer(raw, "<f4").reshape(dims), "float32")


def _fields(message: memoryview, path: Path) -> Iterator[Field]:
    """(field number, varint or bytes) of a protobuf message, every length checked."""
    at, end = 0, len(message)
    while at < end:
        key, at = _varint(message, at, path)
        wire = key & 7
        if wire == 0:
            value, at = _varint(message, at, path)
            yield key >> 3, value
            continue
        if wire == 2:
            size, at = _varint(message, at, path)
        elif wire in _FIXED:
            size = _FIXED[wire]
        else:
            raise CheckpointError(f"{path} is not a valid ONNX file: wire type {wire}.")
        if size > end - at:
            raise CheckpointError(f"{path} is truncated: a field of {size} bytes, {end - at} left.")
        yield key >> 3, message[at : at + size]
        at += size


def _varint(data: memoryview, at: int, path: Path) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise CheckpointError(f"{path} is truncated inside a number.")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise CheckpointError(f"{path} is not a valid ONNX file: a number is too long.")


def _packed(data: memoryview, path: Path) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _varint(data, at, path)
        yield value


def _messages(message: memoryview, number: int, path: Path) -> Iterator[memoryview]:
    for n, value in _fields(message, path):
        if n == number and not isinstance(value, int):
            yield value


def _message(message: memoryview, number: int, path: Path) -> memoryview:
    return next(_messages(message, number, path), memoryview(b""))


def _text(message: memoryview, number: int, path: Path) -> str:
    return bytes(_message(message, number, path)).decode("utf-8", "replace")
