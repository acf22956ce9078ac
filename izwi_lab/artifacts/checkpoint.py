"""Checkpoint: what every reader gives, whatever the file format; `open_checkpoint` picks the reader by layout."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.errors import CheckpointError

# layout -> module with `open_folder(folder) -> Checkpoint`; imported when a checkpoint of that layout is opened
_READERS = {
    "hf": "izwi_lab.artifacts.safetensors_reader",
    "mlx": "izwi_lab.artifacts.safetensors_reader",
    "gguf": "izwi_lab.artifacts.gguf_reader",
    "ctranslate2": "izwi_lab.artifacts.ctranslate2_reader",
    "kokoro_onnx": "izwi_lab.artifacts.kokoro_onnx_reader",
    "kokoro_torch": "izwi_lab.artifacts.torch_zip_reader",
    "silero_onnx": "izwi_lab.artifacts.silero_onnx_reader",
}


class Checkpoint(Protocol):
    """An opened checkpoint. Names are the file's own; tensors are read (or mapped) one at a time."""

    folder: Path
    config: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in file order."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without reading the data."""

    def read(self, name: str) -> Tensor | AffineTensor:
        """The tensor, mapped from disk where the format allows; quantised ones stay quantised where exact."""

    def close(self) -> None:
        """Release maps and handles."""


def open_checkpoint(folder: Path, layout: str) -> Checkpoint:
    """Open the checkpoint in `folder`, laid out as `layout` (a `catalog.variant.Layout` value).

    Raises CheckpointError if files are missing, truncated or malformed. Nothing is ever unpickled.
    """
    module = _READERS.get(str(layout))
    if module is None:
        known = ", ".join(sorted(_READERS))
        raise CheckpointError(f"No reader for layout {layout!r}.", hint=f"Layouts with a reader: {known}.")
    opened: Checkpoint = importlib.import_module(module).open_folder(Path(folder))
    return opened
