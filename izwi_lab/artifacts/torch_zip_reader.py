"""Reader of torch's zip format (`torch.save`): tensors mapped from the archive, nothing unpickled.

The archive holds `<root>/data.pkl`, an index that `torch_pickle` reads as data, and one uncompressed file of raw values
per storage. A tensor is a bounds-checked view of its storage's bytes in the mapped file.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import DTYPE_BYTES, Tensor
from izwi_lab.artifacts.torch_pickle import MAX_PICKLE_BYTES, StorageRef, TensorRef, read_pickle, tensors
from izwi_lab.errors import CheckpointError

_LOCAL_HEADER = struct.Struct("<4s22xHH")
_MAX_CONFIG_BYTES = 16 * 2**20
_HINT = "Fetch the file again."


class TorchZip:
    """One opened archive. Names are the keys of its nested dicts joined by dots; a bare tensor's name is ""."""

    def __init__(self, path: Path, config: Mapping[str, Any] | None = None) -> None:
        self.folder, self._path = path.parent, path
        self.config: Mapping[str, Any] = config or MappingProxyType({})
        try:
            with zipfile.ZipFile(path) as archive:
                self._files = {i.filename: i for i in archive.infolist()}
                index = [n for n in self._files if n.count("/") == 1 and n.endswith("/data.pkl")]
                if len(index) != 1:
                    raise CheckpointError(f"{path.name} is no torch archive: it has no data.pkl.", hint=_HINT)
                if self._files[index[0]].file_size > MAX_PICKLE_BYTES:
                    raise CheckpointError(f"{path.name}: its index is over {MAX_PICKLE_BYTES} bytes.", hint=_HINT)
                self._root = index[0].removesuffix("data.pkl")
                order = self._root + "byteorder"
                if order in self._files and archive.read(order) != b"little":
                    raise CheckpointError(f"{path.name} was written on a big-endian machine.", hint="Save it again.")
                value = read_pickle(archive.read(index[0]), path.name)
        except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
            raise CheckpointError(f"{path.name} is not a whole torch archive: {error}.", hint=_HINT) from error
        self._refs = dict(tensors(value))
        self._map: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r")

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in file order."""
        return tuple(self._refs)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without reading the data."""
        return self._ref(name).shape

    def read(self, name: str) -> Tensor:
        """The tensor: a view of the mapped file."""
        ref = self._ref(name)
        stored = self._storage(ref.storage)
        strides = [s * stored.itemsize for s in ref.strides]
        view = np.lib.stride_tricks.as_strided(stored[ref.offset :], ref.shape, strides, writeable=False)
        return Tensor(view, ref.storage.dtype)

    def close(self) -> None:
        """Let go of the map; arrays already read keep it alive."""
        self._map = np.empty(0, np.uint8)
        self._refs = {}

    def _ref(self, name: str) -> TensorRef:
        if name not in self._refs:
            raise CheckpointError(f"{self._path.name} has no tensor {name!r}.", hint="Names are listed by `names`.")
        return self._refs[name]

    def _storage(self, storage: StorageRef) -> np.ndarray:
        """The values of a storage, after checking that the archive holds as many bytes as it claims."""
        info = self._files.get(f"{self._root}data/{storage.key}")
        wanted = storage.count * DTYPE_BYTES[storage.dtype]
        if info is None or info.compress_type != zipfile.ZIP_STORED or info.file_size < wanted:
            raise CheckpointError(f"{self._path.name}: the values of storage {storage.key!r} are missing.", hint=_HINT)
        header = bytes(self._map[info.header_offset : info.header_offset + _LOCAL_HEADER.size])
        if len(header) < _LOCAL_HEADER.size or not header.startswith(b"PK\x03\x04"):
            raise CheckpointError(f"{self._path.name}: storage {storage.key!r} has no header.", hint=_HINT)
        _, name_bytes, extra_bytes = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size + name_bytes + extra_bytes
        raw = self._map[start : start + wanted]
        if raw.size != wanted:
            raise CheckpointError(f"{self._path.name} ends inside storage {storage.key!r}.", hint=_HINT)
        values: np.ndarray = raw.view(np.uint16 if storage.dtype == "bfloat16" else storage.dtype)
        return values


def open_folder(folder: Path) -> TorchZip:
    """Open the one `.pth` file in `folder`, with the `config.json` beside it.

    Raises CheckpointError if there is none or several, or either file is malformed. Nothing is unpickled.
    """
    found = sorted(Path(folder).glob("*.pth"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CheckpointError(f"Expected one .pth file in {folder}, found {names}.", hint="Fetch the model again.")
    config = Path(folder) / "config.json"
    try:
        if config.stat().st_size > _MAX_CONFIG_BYTES:
            raise CheckpointError(f"{config} is over {_MAX_CONFIG_BYTES} bytes.", hint=_HINT)
        values = json.loads(config.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{config} cannot be read: {error}.", hint=_HINT) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{config} holds no object.", hint=_HINT)
    return TorchZip(found[0], values)


def read_tensor(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The one tensor that a `.pt` file holds, float32, of the shape expected (a voice)."""
    archive = TorchZip(path)
    if archive.names != ("",) or archive.shape("") != shape:
        held = ", ".join(f"{n or 'tensor'} {list(archive.shape(n))}" for n in archive.names[:4]) or "nothing"
        raise CheckpointError(f"{path.name} should hold one tensor {list(shape)}; it holds {held}.", hint=_HINT)
    values = np.array(archive.read("").float32(), np.float32)
    if values.size != math.prod(shape):
        raise CheckpointError(f"{path.name} is truncated.", hint=_HINT)
    return values
