"""Folders in an official layout, where models live, and an import that costs nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from fake_registry import variant

from izwi_lab import artifacts
from izwi_lab.artifacts.manifest import NAME, read_manifest
from izwi_lab.artifacts.paths import model_folder, package_cache
from izwi_lab.catalog.variant import Layout
from izwi_lab.errors import ArtifactError

CT2 = (6).to_bytes(4, "little") + (12).to_bytes(2, "little") + b"WhisperSpec\0" + bytes(64)
PLAIN, MLX = json.dumps({}).encode(), json.dumps({"quantization": {"bits": 4, "group_size": 64}}).encode()


@pytest.mark.parametrize(
    ("files", "layout"),
    [
        ({"config.json": PLAIN, "model.safetensors": b""}, Layout.HF),
        ({"config.json": PLAIN, "model-00001-of-00002.safetensors": b""}, Layout.HF),
        ({"config.json": MLX, "model.safetensors": b""}, Layout.MLX),
        ({"small.gguf": b"GGUF\3\0\0\0"}, Layout.GGUF),
        ({"config.json": PLAIN, "model.bin": CT2, "tokenizer.json": b"{}"}, Layout.CTRANSLATE2),
        ({"config.json": PLAIN, "kokoro-v1_0.pth": b""}, Layout.KOKORO_TORCH),
        ({"kokoro-v1.0.int8.onnx": b"", "vocab.json": b"{}"}, Layout.KOKORO_ONNX),
        ({"parakeet-tdt-0.6b-v2.nemo": b""}, Layout.NEMO),
        ({"params.json": PLAIN, "consolidated.safetensors": b""}, Layout.MISTRAL),
        ({"silero_vad.onnx": b""}, Layout.SILERO_ONNX),
    ],
)
def test_the_layout_is_seen_from_the_files(tmp_path: Path, files: dict[str, bytes], layout: Layout) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    model = artifacts.local(tmp_path)
    assert (model.layout, model.source, model.folder, model.variant) == (layout, "local", tmp_path, None)
    assert artifacts.local(str(tmp_path), variant=variant(None)).variant == variant(None)


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"model.safetensors": b""},
        {"config.json": PLAIN, "model.bin": b"\x80\x02}q\0."},  # a pickle, as old checkpoints have
        {"model.bin": b"\6\0\0\0\xff\xff"},
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ArtifactError, match="No known checkpoint layout"):
        artifacts.local(tmp_path)


@pytest.mark.parametrize(("content", "what"), [(b"GGML", "does not start with GGUF"), (b"", "is empty")])
def test_a_damaged_gguf_is_named(tmp_path: Path, content: bytes, what: str) -> None:
    (tmp_path / "a.gguf").write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"a\.gguf {what}\. Fetch it again"):
        artifacts.local(tmp_path)


def test_a_broken_config_and_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        artifacts.local(tmp_path / "gone")
    (tmp_path / "config.json").write_text("{")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ArtifactError, match="Cannot read"):
        artifacts.local(tmp_path)


def test_where_things_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "here"))
    assert artifacts.models_dir() == tmp_path / "here" and not (tmp_path / "here").exists()
    assert model_folder("Whisper-tiny.en") == tmp_path / "here" / "Whisper-tiny.en"
    monkeypatch.delenv("IZWI_MODELS_DIR")
    monkeypatch.delenv("IZWI_PACKAGE_CACHE", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert artifacts.models_dir() == tmp_path / "data" / "izwi" / "models"
    assert package_cache() == Path.home() / ".cache" / "izwi" / "packages"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert artifacts.models_dir() == Path.home() / "Library" / "Application Support" / "izwi" / "models"
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert package_cache() == tmp_path / "local" / "izwi" / "packages"


def test_looking_for_models_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom izwi_lab import artifacts\nartifacts.locate, artifacts.fetch, artifacts.local\n"
        "heavy = {'numpy', 'torch', 'mlx', 'huggingface_hub', 'safetensors', 'filelock'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)\n"
    )
    root = Path(artifacts.__file__).parents[2]
    subprocess.run([sys.executable, "-c", script], check=True, cwd=root)
    assert set(artifacts.__all__) == set(artifacts._HOME)
    with pytest.raises(AttributeError, match="no attribute 'ghost'"):
        _ = artifacts.ghost


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[" * 100_000,
        '{"format": 1, "variant": "x", "source": "hub", "layout": "of-the-future", "files": {}}',
        '{"format": 1, "variant": "x", "source": "hub", "layout": ["hf"], "files": {}}',
        '{"format": 1, "variant": "", "source": "", "layout": "hf", "files": {"a": {"sha256": "", "bytes": Infinity}}}',
        '{"format": 2, "variant": "x", "source": "hub", "layout": "hf", "files": {}}',
    ],
)
def test_a_manifest_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    row = variant(None)
    folder = tmp_path / row.id / "hub"
    folder.mkdir(parents=True)
    (folder / NAME).write_text(text)
    assert read_manifest(folder) is None
    assert artifacts.locate(row, root=tmp_path) is None


def test_a_folder_of_a_user_who_does_not_exist() -> None:
    with pytest.raises(ArtifactError, match="is not a folder"):
        artifacts.local("~no-such-user-here/model")
