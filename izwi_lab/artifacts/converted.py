"""Converted checkpoints: made once from a model's own files, kept as safetensors beside them, mapped afterwards."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from izwi_lab.artifacts.atomic import written
from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.artifacts.locks import locked
from izwi_lab.artifacts.mlx_packing import Triplet
from izwi_lab.artifacts.paths import package_cache
from izwi_lab.artifacts.safetensors_header import CODES
from izwi_lab.artifacts.safetensors_reader import SafetensorsCheckpoint
from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.errors import ArtifactError, CheckpointError

FORMAT = 1  # raise it when what is written, or how a reader converts, changes
FOLDER = ".converted"
_ALIGN_BYTES = 64  # a cache line: what vectorised loads like best
_HASH_BYTES = 1 << 22


def converted(
    sources: Sequence[Path], key: str, build: Callable[[], Mapping[str, Tensor | AffineTensor]]
) -> Checkpoint:
    """The result of `build`, from the cache when `sources` are unchanged since it was made.

    The cache lies in `.converted` beside the first source, or in the user's cache folder where that is read-only. It
    is rebuilt when a source's size or time differs, when FORMAT or `key` differs, or when it is damaged.

    Args:
        sources: The files that `build` reads; their sizes and modification times identify the result.
        key: What was done to them, such as "kokoro-int8-v1": a plain file name. Change it when `build` changes.
        build: Makes the tensors. Called only when there is no valid cache.

    Raises:
        CheckpointError: a source is missing.
        ArtifactError: the result cannot be written.
    """
    identity = {"format": FORMAT, "key": key, "sources": [_fingerprint(p) for p in sources]}
    digest = hashlib.sha256(json.dumps([identity, str(sources[0].absolute())]).encode()).hexdigest()[:12]
    path = _cache_folder(sources[0]) / f"{key}-{digest}.safetensors"
    found = _open_valid(path, identity, sources[0].parent)
    if found is None:
        with locked(path.with_suffix(".lock")):  # two processes convert once
            found = _open_valid(path, identity, sources[0].parent)
            if found is None:
                _write(path, build(), identity)
                _forget_older(path, key)
                found = _open_valid(path, identity, sources[0].parent)
    if found is None:
        raise ArtifactError(f"The converted checkpoint {path} could not be read back.", hint="Check the disk.")
    return found


def _fingerprint(path: Path) -> list[Any]:
    try:
        stat = path.stat()
    except OSError:
        raise CheckpointError(f"{path} is missing.", hint="Fetch the model again.") from None
    return [path.name, stat.st_size, stat.st_mtime_ns]


def _cache_folder(source: Path) -> Path:
    if os.access(source.parent, os.W_OK):
        return source.parent / FOLDER
    return package_cache().parent / "converted"


def _record_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _open_valid(path: Path, identity: Mapping[str, Any], folder: Path) -> SafetensorsCheckpoint | None:
    """The cached checkpoint, or None when it is absent, for other sources, or not what was written."""
    try:
        record = json.loads(_record_path(path).read_text(encoding="utf-8"))
        stat = path.stat()
        if record["identity"] != identity or record["bytes"] != stat.st_size:
            return None
        # A changed time means that somebody touched the bytes: only then is the whole file read and compared.
        if record["mtime_ns"] != stat.st_mtime_ns and record["sha256"] != _sha256(path):
            return None
        triplets = {name: Triplet(**fields) for name, fields in record["affine"].items()}
        return SafetensorsCheckpoint(folder, [path], {}, triplets=triplets)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, CheckpointError):
        return None


def _write(path: Path, tensors: Mapping[str, Tensor | AffineTensor], identity: Mapping[str, Any]) -> None:
    stored, triplets = _flatten(tensors)
    header, offset = {}, 0
    for name, tensor in stored.items():
        header[name] = {
            "dtype": CODES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.nbytes],
        }
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % _ALIGN_BYTES)
    digest = hashlib.sha256()
    with written(path) as file:
        _put(file, digest, len(text).to_bytes(8, "little") + text)
        for tensor in stored.values():
            _put(file, digest, np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data)
    stat = path.stat()
    record = {
        "identity": identity,
        "bytes": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "sha256": digest.hexdigest(),
        "affine": {n: {f: getattr(t, f) for f in Triplet.__dataclass_fields__} for n, t in triplets.items()},
    }
    with written(_record_path(path)) as file:
        file.write(json.dumps(record).encode())


def _put(file: BinaryIO, digest: Any, data: bytes | memoryview) -> None:
    digest.update(data)
    file.write(data)


def _flatten(tensors: Mapping[str, Tensor | AffineTensor]) -> tuple[dict[str, Tensor], dict[str, Triplet]]:
    """Dense tensors to store, widest items first so that every offset is aligned, and how to put matrices together."""
    stored: dict[str, Tensor] = {}
    triplets: dict[str, Triplet] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor):
            stored[name] = value
            continue
        # The suffix cannot meet a tensor's name: names in checkpoints use dots, not colons.
        triplet = Triplet(f"{name}::q", f"{name}::scales", f"{name}::biases", value.bits, value.group_size)
        stored[triplet.codes] = Tensor(value.q, "uint32")
        stored[triplet.scales] = Tensor(np.asarray(value.scales, np.float32), "float32")
        stored[triplet.biases] = Tensor(np.asarray(value.biases, np.float32), "float32")
        triplets[name] = triplet
    return dict(sorted(stored.items(), key=lambda item: -item[1].data.itemsize)), triplets


def _forget_older(path: Path, key: str) -> None:
    """Drop what was made under this key from earlier versions of the sources beside `path`."""
    if path.parent.name != FOLDER:
        return  # the shared cache folder holds other models too
    for other in path.parent.glob("*.safetensors"):
        if other != path and other.stem.rpartition("-")[0] == key:
            _record_path(other).unlink(missing_ok=True)
            other.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BYTES):
            digest.update(block)
    return digest.hexdigest()
