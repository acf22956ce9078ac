"""Checkpoints in safetensors: mapped from disk, one file or sharded, plain or MLX-quantised."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts import mapped
from izwi_lab.artifacts.mlx_packing import Triplet, assemble, find_triplets
from izwi_lab.artifacts.safetensors_header import Entry, read_header
from izwi_lab.artifacts.tensors import AffineRows, AffineTensor, Tensor
from izwi_lab.errors import CheckpointError

INDEX = "model.safetensors.index.json"
_MAX_JSON_BYTES = 64 * 2**20


class SafetensorsCheckpoint:
    """One or more mapped safetensors files seen as one table of tensors.

    Tensors are views of the map: nothing is read before it is used, and an array stays valid after `close`.
    A quantised matrix appears once, as X.weight; its X.scales and X.biases are part of it.
    """

    def __init__(
        self,
        folder: Path,
        files: Iterable[Path],
        config: Mapping[str, Any],
        *,
        triplets: Mapping[str, Triplet] | None = None,
    ) -> None:
        """Map `files`. triplets: the quantised matrices, when they are known otherwise than from `config`."""
        self.folder = folder
        self.config = config
        self.metadata: dict[str, str] = {}
        self._entries: dict[str, tuple[Entry, Path]] = {}
        self._maps: dict[Path, np.ndarray] = {}
        for path in files:
            self._add(path)
        self._triplets = dict(
            find_triplets(config, self._entries, self._stored_shape) if triplets is None else triplets
        )
        parts = {n for t in self._triplets.values() for n in (t.codes, t.scales, t.biases)}
        owners = {t.codes: name for name, t in self._triplets.items()}
        self._names = tuple(owners.get(n, n) for n in self._entries if n not in parts or n in owners)
        self._closed = False

    def _add(self, path: Path) -> None:
        header = read_header(path)
        self.metadata.update(header.metadata)
        for name, entry in header.entries.items():
            if name in self._entries:
                first = self._entries[name][1].name
                raise CheckpointError(f"Tensor {name!r} is in both {first} and {path.name} of {self.folder}.")
            self._entries[name] = (entry, path)
        self._maps[path] = np.memmap(path, dtype=np.uint8, mode="r")

    @property
    def names(self) -> tuple[str, ...]:
        """Tensor names in file order."""
        return self._names

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape without reading the data; of a quantised matrix, the shape it stands for."""
        triplet = self._triplets.get(name)
        return triplet.dense_shape(self._stored_shape(triplet.codes)) if triplet else self._stored_shape(name)

    def read(self, name: str) -> Tensor | AffineTensor:
        """The tensor, mapped. 4 and 8 bit matrices come as AffineTensor, other widths unpacked to float32."""
        triplet = self._triplets.get(name)
        if triplet is None:
            return self._stored(name)
        return assemble(triplet, *(self._stored(n) for n in (triplet.codes, triplet.scales, triplet.biases)))

    @property
    def quantised(self) -> frozenset[str]:
        """Names of the tensors that `read` gives as AffineTensor."""
        return frozenset(n for n, t in self._triplets.items() if t.kept(self._stored_shape(t.codes)))

    def affine_rows(self, name: str) -> AffineRows | None:
        """What `read` gives as AffineTensor, to be read in blocks of rows; None for other tensors."""
        triplet = self._triplets.get(name)
        if triplet is None or not triplet.kept(self._stored_shape(triplet.codes)):
            return None
        rows, width = self.shape(name)

        def read(start: int, stop: int) -> AffineTensor:
            parts = [self._copied(n, start, stop) for n in (triplet.codes, triplet.scales, triplet.biases)]
            block = assemble(triplet, *parts)
            assert isinstance(block, AffineTensor), "triplet.kept says so"
            return block

        return AffineRows((rows, width), triplet.bits, triplet.group_size, read)

    def _copied(self, name: str, start: int, stop: int) -> Tensor:
        """Rows of a stored tensor; their pages are let go."""
        entry, path = self._opened(name)
        row_bytes = entry.nbytes // entry.shape[0]
        at, nbytes = entry.start + start * row_bytes, (stop - start) * row_bytes
        raw = np.asarray(self._maps[path])[at : at + nbytes].copy()
        mapped.release(self._maps[path].base, at, nbytes)
        return _typed(raw, entry.dtype, (stop - start, *entry.shape[1:]))

    def close(self) -> None:
        """Let go of the maps; arrays already read keep theirs alive."""
        self._maps.clear()
        self._closed = True

    def _entry(self, name: str) -> tuple[Entry, Path]:
        if name not in self._entries:
            raise CheckpointError(
                f"No tensor {name!r} in {self.folder}.", hint=f"It holds {len(self._names)} tensors; see `names`."
            )
        return self._entries[name]

    def _stored_shape(self, name: str) -> tuple[int, ...]:
        return self._entry(name)[0].shape

    def _stored(self, name: str) -> Tensor:
        entry, path = self._opened(name)
        raw = np.asarray(self._maps[path])[entry.start : entry.start + entry.nbytes]
        odd = entry.start % np.dtype(_numpy_type(entry.dtype)).itemsize  # allowed, but frameworks want aligned memory
        if odd or entry.nbytes <= mapped.SMALL:
            raw = raw.copy()
            raw.flags.writeable = False  # as a view of the file is
            mapped.release(self._maps[path].base, entry.start, entry.nbytes)
        return _typed(raw, entry.dtype, entry.shape)

    def _opened(self, name: str) -> tuple[Entry, Path]:
        found = self._entry(name)
        if self._closed:
            raise CheckpointError(f"The checkpoint in {self.folder} is closed.", hint="Open it again.")
        return found


def _numpy_type(dtype: str) -> str:
    return "uint16" if dtype == "bfloat16" else dtype


def _typed(raw: np.ndarray, dtype: str, shape: tuple[int, ...]) -> Tensor:
    return Tensor(raw.view(_numpy_type(dtype)).reshape(shape), dtype)


def open_folder(folder: Path) -> SafetensorsCheckpoint:
    """Open the checkpoint of a folder: the shards of its index, else its one weights file.

    Raises:
        CheckpointError: no weights, several candidates without an index, a shard missing or outside the folder,
            a malformed header.
    """
    config = _json_object(folder / "config.json") if (folder / "config.json").exists() else {}
    index = folder / INDEX
    if index.exists():
        return _open_sharded(folder, config, _json_object(index))
    found = sorted(p.name for p in folder.glob("*.safetensors"))
    chosen = [n for n in ("model.safetensors", "consolidated.safetensors") if n in found][:1] or found
    if len(chosen) != 1:
        what = f"several weights files ({', '.join(found)}) and no {INDEX}" if found else "no .safetensors file"
        raise CheckpointError(f"{folder} holds {what}.", hint="Expected model.safetensors, or shards with their index.")
    return SafetensorsCheckpoint(folder, [folder / chosen[0]], config)


def open_file(path: Path, *, config: Mapping[str, Any] | None = None) -> SafetensorsCheckpoint:
    """Open one safetensors file by name (a codec beside the model, say); its folder's config is not read."""
    return SafetensorsCheckpoint(path.parent, [path], config or {})


def _open_sharded(folder: Path, config: Mapping[str, Any], index: Mapping[str, Any]) -> SafetensorsCheckpoint:
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{folder / INDEX} has no weight_map.", hint="Fetch the model again.")
    for shard in weight_map.values():
        if not isinstance(shard, str) or not shard.endswith(".safetensors") or set(shard) & set("/\\:\0"):
            raise CheckpointError(
                f"{folder / INDEX} names the shard {str(shard)[:100]!r}.",
                hint="A shard is a .safetensors file in the same folder; do not use a checkpoint that says otherwise.",
            )
    checkpoint = SafetensorsCheckpoint(folder, (folder / s for s in sorted(set(weight_map.values()))), config)
    lost = [n for n, s in weight_map.items() if checkpoint._entries.get(n, (None, Path()))[1].name != s]
    if lost:
        raise CheckpointError(
            f"{folder}: {len(lost)} tensors are not in the shard that the index names, first {lost[0]!r}.",
            hint="The shards do not belong together: fetch the model again.",
        )
    return checkpoint


def _json_object(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise CheckpointError(f"{path} is larger than {_MAX_JSON_BYTES} bytes.", hint="Fetch the model again.")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a JSON object.", hint="Fetch the model again.")
    return value
