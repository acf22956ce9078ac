"""Models that are on this machine: LocalModel, `locate`, and folders in an official layout that a user brings."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from izwi_lab.artifacts.manifest import Manifest, read_manifest
from izwi_lab.artifacts.paths import model_folder
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.errors import ArtifactError

COMMIT = re.compile(r"[0-9a-f]{40}")
SOURCES = ("hub", "starter")  # in the order `locate` looks: official weights before packaged ones
_GGUF_MAGIC = b"GGUF"
_CTRANSLATE2_VERSIONS = range(3, 10)  # of the binary format; 6 is current in CTranslate2 4.8


@dataclass(frozen=True, slots=True)
class LocalModel:
    """A model whose files are all here. variant is None for a folder the user brought without saying what it is."""

    variant: ModelVariant | None
    folder: Path
    layout: Layout
    source: str
    note: str = ""


def source_folder(variant: ModelVariant, source: str, root: Path | None = None) -> Path:
    """Where the files of `variant` from `source` lie: one folder per variant, in it one per source."""
    return model_folder(variant.id, root) / source


def locate(variant: ModelVariant, *, source: str = "auto", root: Path | None = None) -> LocalModel | None:
    """The model if a completed fetch of what the catalog pins is on disk, each file at its recorded size; else None."""
    for name in SOURCES if source == "auto" else (source,):
        folder = source_folder(variant, name, root)
        manifest = read_manifest(folder)
        if manifest is not None and _is_current(variant, manifest) and manifest.intact(folder):
            return from_manifest(variant, folder, manifest)
    return None


def _is_current(variant: ModelVariant, manifest: Manifest) -> bool:
    """False when the catalog has since pinned another commit, repo, file list or hash than what was fetched."""
    have = manifest.files or {}
    if manifest.source == "hub":
        required = {f.name for f in variant.files if not f.optional}
        moving = not COMMIT.fullmatch(variant.revision)
        return (
            manifest.repo == variant.repo
            and required <= have.keys()
            and (moving or manifest.commit == variant.revision)
        )
    pack = variant.starter
    while pack is not None:
        pinned = {f.name: f.sha256 for f in pack.files if not f.members[0].endswith("/")}
        if all(n in have and sha in (None, have[n].sha256) for n, sha in pinned.items()):
            return True
        pack = pack.alternative
    return False


def from_manifest(variant: ModelVariant, folder: Path, manifest: Manifest) -> LocalModel:
    """The model that a complete manifest describes."""
    return LocalModel(variant, folder, Layout(manifest.layout), manifest.source, manifest.note)


def local(folder: str | Path, *, variant: ModelVariant | None = None) -> LocalModel:
    """A model in a folder of the user's, in its official layout; nothing is copied.

    Raises:
        ArtifactError: no such folder, or no layout that is known.
    """
    try:
        path = Path(folder).expanduser().absolute()
    except RuntimeError as error:  # "~nobody/model"
        raise ArtifactError(
            f"{folder} is not a folder: {str(error).rstrip('.')}.", hint="Check the user's name."
        ) from None
    if not path.is_dir():
        raise ArtifactError(f"{path} is not a folder.", hint="Give the folder that holds config.json and the weights.")
    return LocalModel(variant, path, detect_layout(path), "local")


def detect_layout(folder: Path) -> Layout:
    """The layout of a folder, from the names and first bytes of its files.

    Raises:
        ArtifactError: nothing recognisable; the message lists what is there and what would be understood.
    """
    names = {p.name for p in folder.iterdir()}
    if "model.bin" in names and _is_ctranslate2(folder / "model.bin"):
        return Layout.CTRANSLATE2
    if "silero_vad.onnx" in names:
        return Layout.SILERO_ONNX
    if any(n.startswith("kokoro-v1") and n.endswith(".onnx") for n in names):
        return Layout.KOKORO_ONNX
    if any(n.startswith("kokoro-v1") and n.endswith(".pth") for n in names):
        return Layout.KOKORO_TORCH
    if any(n.endswith(".nemo") for n in names):
        return Layout.NEMO
    if "params.json" in names and "consolidated.safetensors" in names:
        return Layout.MISTRAL
    if "config.json" in names and any(n.endswith(".safetensors") for n in names):
        return Layout.MLX if _is_mlx(folder / "config.json") else Layout.HF
    if any(n.endswith(".gguf") and _starts_with(folder / n, _GGUF_MAGIC) for n in names):
        return Layout.GGUF
    if damaged := next((n for n in sorted(names) if n.endswith(".gguf")), None):
        what = "does not start with GGUF" if _head(folder / damaged, 1) else "is empty"
        raise ArtifactError(f"{folder / damaged} {what}.", hint="Fetch it again.")
    found = ", ".join(sorted(names)[:12]) or "nothing"
    raise ArtifactError(
        f"No known checkpoint layout in {folder}; it holds {found}.",
        hint="Expected config.json with .safetensors, a .gguf file, a CTranslate2 model.bin, a Kokoro .pth or .onnx "
        "export, a .nemo file, params.json with consolidated.safetensors, or silero_vad.onnx.",
    )


def _is_mlx(config: Path) -> bool:
    try:
        values = json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"Cannot read {config}: {error}.", hint="Fetch the model again.") from None
    return isinstance(values, dict) and isinstance(values.get("quantization"), dict)


def _is_ctranslate2(path: Path) -> bool:
    """The head of model.bin: u32 version, then a spec name as u16 length and that many bytes ending in NUL."""
    head = _head(path, 128)
    length = int.from_bytes(head[4:6], "little")
    name = head[6 : 6 + length]
    plausible = len(head) >= 8 and int.from_bytes(head[:4], "little") in _CTRANSLATE2_VERSIONS
    return plausible and 1 < length <= 64 and name.endswith(b"\0") and name[:-1].isalnum()


def _starts_with(path: Path, magic: bytes) -> bool:
    return _head(path, len(magic)) == magic


def _head(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
