"""What a folder or hub repo outside the catalog holds: the catalog row it is a relative of, made over to describe it.

The family comes from config.json: a model is of the family of a catalog row when every `model_type` that both configs
state is the same. Layouts that only one family uses (CTranslate2, .nemo, the Kokoro exports) need no config.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from izwi_lab import artifacts, catalog
from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.hub_transfer import HubFiles, ends_as_hub_error
from izwi_lab.artifacts.local_model import source_folder
from izwi_lab.artifacts.manifest import read_manifest
from izwi_lab.artifacts.progress import Meter
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.errors import ArtifactError, CheckpointError, UnknownModelError

_SHARED_LAYOUTS = (Layout.HF, Layout.MLX, Layout.GGUF)  # of many families; the others belong to one each


def folder(path: Path) -> ModelVariant:
    """The variant that a local folder holds, in an official layout, or that a .gguf file is.

    Raises:
        UnknownModelError: no such folder, or a model of no family known here; the message lists what is known.
        ArtifactError: not a checkpoint.
    """
    gguf = path.suffix.lower() == ".gguf" and path.is_file()
    if path.is_file() and not gguf:
        raise UnknownModelError(f"{path} is a file.", hint=f"Give its folder, {path.parent}, or a .gguf file.")
    if not gguf and not path.is_dir():
        raise UnknownModelError(f"There is no folder {path}.", hint="Give a catalog id, a hub repo or a folder.")
    layout = Layout.GGUF if gguf else artifacts.local(path).layout
    relative, same = _relative(layout, lambda: _config_of(path, layout), str(path))
    size = sum(f.stat().st_size for f in ([path] if gguf else path.rglob("*")) if f.is_file())
    quantisation = _quantisation(_config_of(path, layout)) if layout is Layout.MLX else "none"
    name = path.stem if gguf else path.name
    return _made_over(relative, same, id=name, repo=str(path), layout=layout, size=size, quantisation=quantisation)


def repo(name: str, models_dir: Path | None = None) -> ModelVariant:
    """The variant that a hub repo ("owner/name") holds, pinned to the commit seen now.

    Reads the repo's file list and config.json, not its weights; one that was fetched before is not asked about again.

    Raises:
        UnknownModelError: a model of no family known here.
        ArtifactError: no such repo, gated, unreachable, or not laid out as config.json with safetensors.
    """
    plain = name.replace("/", "--")
    probe = replace(catalog.variants()[0], id=plain, repo=name, revision="main", hub=True)
    kept = source_folder(probe, "hub", models_dir)
    manifest = read_manifest(kept)
    if manifest is not None and manifest.intact(kept):
        made = folder(kept)
        return replace(made, id=plain, display_name=plain, repo=name, revision=manifest.commit, hub=True)
    hub = HubFiles(name, Meter(CancelToken()))
    with ends_as_hub_error(probe, hub.endpoint):
        commit, files = hub.listing("main")
        if "config.json" not in files or not any(n.endswith(".safetensors") for n in files):
            raise ArtifactError(
                f"{name} does not hold config.json with .safetensors.",
                hint="Download it and pass its folder: more layouts are understood there.",
            )
        config = _json(hub.fetch("config.json", commit, size=None, sha256=None))
    layout = Layout.MLX if isinstance(config.get("quantization"), dict) else Layout.HF
    relative, same = _relative(layout, lambda: config, name)
    size = sum(f.size or 0 for n, f in files.items() if n.endswith(".safetensors"))
    made = _made_over(relative, same, id=plain, repo=name, layout=layout, size=size, quantisation=_quantisation(config))
    return replace(made, revision=commit, hub=True)


def _relative(layout: Layout, config: Callable[[], Mapping[str, Any]], what: str) -> tuple[ModelVariant, bool]:
    """The catalog row nearest to a model, and whether it has the very same config."""
    rows = catalog.variants(include_disabled=True)
    families = {v.family for v in rows if layout in (v.layout, v.starter_layout)}
    if len(families) == 1 and layout not in _SHARED_LAYOUTS:
        return next(v for v in rows if v.family in families), True
    mine = _leaves(config())
    if layout is Layout.GGUF:
        near = [(0, v, False) for v in rows if v.family == mine.get("general.architecture")]
    else:
        compared = [(v, *_equal(mine, catalog.config(v))) for v in rows if catalog.has_config(v)]
        near = [(count, v, same) for v, count, same in compared if count]
    if not near:
        raise _unsupported(what, mine)
    _, row, same = max(near, key=lambda r: r[0])  # the first of equals: the catalog's order
    return row, same


def _equal(mine: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[int, bool]:
    """How many values two configs share, and whether all; 0 when one of their model types differs."""
    theirs = _leaves(config)
    types = [k for k in theirs if k.endswith("model_type") and (k in mine or k == "model_type")]
    if not types or any(mine.get(k) != theirs[k] for k in types):
        return 0, False
    count = sum(mine.get(k) == v for k, v in theirs.items())
    return count, count == len(theirs)


def _unsupported(what: str, config: Mapping[str, Any]) -> UnknownModelError:
    rows = [v for v in catalog.variants(include_disabled=True) if catalog.has_config(v)]
    known = sorted({str(t) for t in (catalog.config(v).get("model_type") for v in rows) if t})
    keys = ("model_type", "general.architecture", "architectures.0")
    said = next((config[k] for k in keys if config.get(k)), "nothing")
    return UnknownModelError(
        f"{what} holds a model of a family that is not known here: its config says {said!r}.",
        hint=f"Known model types: {', '.join(known)}.",
    )


def _made_over(
    row: ModelVariant, same: bool, *, id: str, repo: str, layout: Layout, size: int, quantisation: str
) -> ModelVariant:
    """The row with all that is this model's own. What only the catalog's weights have is left out unless `same`."""
    return replace(
        row,
        id=id,
        display_name=id,
        repo=repo,
        revision="main",
        layout=layout,
        size_bytes=size,
        size_estimated=False,
        quantisation=quantisation,
        files=(),
        aliases=(),
        starter=None,
        starter_layout=None,
        gated=False,
        hub=False,
        licence="",
        notes=f"Not in the catalog; a relative of {row.id}.",
        parameters=row.parameters if same else None,
        voices=row.voices if same else (),
        languages=row.languages if same else (),
    )


def _config_of(path: Path, layout: Layout) -> Mapping[str, Any]:
    if layout is Layout.GGUF:
        checkpoint = open_checkpoint(path, layout)
        try:
            return {"general.architecture": checkpoint.config.get("general.architecture")}
        finally:
            checkpoint.close()
    return _json(path / "config.json")


def _json(path: Path) -> Mapping[str, Any]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"Cannot read {path}: {error}.", hint="Fetch the model again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} does not hold an object.", hint="Fetch the model again.")
    return values


def _quantisation(config: Mapping[str, Any]) -> str:
    """In the catalog's words: "4bit", "8bit", "none"."""
    table = config.get("quantization")
    bits = table.get("bits") if isinstance(table, Mapping) else None
    return f"{bits}bit" if isinstance(bits, int) else "none"


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """A nested config flat: "text_config.model_type" -> "gemma3_text"."""
    items: Iterable[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list):
        items = enumerate(value)
    else:
        return {path: value}
    out: dict[str, Any] = {}
    for name, inner in items:
        out |= _leaves(inner, f"{path}.{name}" if path else str(name))
    return out
