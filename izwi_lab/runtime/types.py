"""What goes into the engine and what comes out of it: one frozen request per task, and the results of results.py."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias

from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant, Task
from izwi_lab.engine.request import Priority
from izwi_lab.errors import InvalidInputError
from izwi_lab.results import AudioChunk, ChatReply, Segment, Speech, TextDelta, Timing, Transcript

if TYPE_CHECKING:
    from izwi_lab.audio import Audio
    from izwi_lab.families.qwen3_tts.voice import Voice
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.families.shared.speculative import Drafts

__all__ = [
    "AudioChunk",
    "ChatRequest",
    "GenerationRequest",
    "GenerationResult",
    "Limits",
    "LoadedModel",
    "Message",
    "ModelName",
    "SpeechRequest",
    "Timing",
    "TranscriptionRequest",
    "VoiceRequest",
]

ModelName: TypeAlias = str | Path | ModelVariant
Message: TypeAlias = Mapping[str, Any]
AudioSource: TypeAlias = "Audio | str | Path | bytes | BinaryIO"
GenerationResult: TypeAlias = Speech | Transcript | ChatReply
GenerationItem: TypeAlias = AudioChunk | Segment | TextDelta
PRIORITIES = {level.name.lower(): level for level in Priority}


def check_text(name: str, text: str) -> str:
    """The text; raises InvalidInputError where it holds half a character, as bytes of another encoding leave behind."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            f"{name} holds {text[error.start]!r} at character {error.start}, which is no character.",
            hint="Decode the text with the encoding it was written in.",
        ) from None
    return text


def check_number(name: str, value: object) -> None:
    """Raise InvalidInputError for what is not a finite number of 0 or more."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < math.inf:
        raise InvalidInputError(f"{name} must be a number of 0 or more, got {value!r}.")


def check_seed(seed: object) -> None:
    """Raise InvalidInputError for what is neither None nor a whole number of 0 or more."""
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, Integral) or int(seed) < 0):
        raise InvalidInputError(f"seed must be a whole number of 0 or more, or None, got {seed!r}.")


def _request_id() -> str:
    return uuid.uuid4().hex


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What every request says. A request is bound to one model when it starts and keeps it until it ends.

    model: catalog id or name, hub repo id, folder, or a variant; None takes the task's default.
    backend, device, dtype: None takes the engine's own setting.
    cancel: stops the work at its next step, from any thread. timeout_s: seconds from the call until the work is
    stopped the same way, waiting and loading included. download: fetch missing weights, else NotDownloadedError.
    progress: called with the download's progress, if one is needed. priority: "low", "normal", "high" or "critical";
    who waits long enough comes before who is more urgent. tenant: whose request it is; what a model has read for one
    tenant is never used for another.
    """

    model: ModelName | None = None
    backend: str | None = None
    device: str | None = None
    dtype: str | None = None
    seed: int | None = None
    cancel: CancelToken | None = None
    timeout_s: float | None = None
    download: bool = True
    progress: Callable[[Any], None] | None = None
    priority: str = "normal"
    tenant: str = ""
    id: str = field(default_factory=_request_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechRequest(GenerationRequest):
    """Say `text`. voice: a name, or a cloned Voice; None takes the model's first. speed: 1.0 is the voice's own pace.

    What not every model takes, and is refused by those that do not: instruct, how to speak or what the voice is like,
    in words; reference, audio of a voice to speak in, with its transcript (what it says) for a closer likeness;
    text_mode, "whole" or "streaming": whether all text is read before the first sound; sampling, of the first code of
    each frame, and predictor, of its others; max_frames, at most, of each piece of the text.
    """

    text: str
    voice: str | Voice | None = None
    language: str | None = None
    speed: float = 1.0
    instruct: str | None = None
    reference: AudioSource | None = None
    transcript: str | None = None
    text_mode: str | None = None
    sampling: Sampling | None = None
    predictor: Sampling | None = None
    max_frames: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class VoiceRequest(GenerationRequest):
    """Make a voice of `audio`, a recording of one person. Options as in `model.voice`."""

    audio: AudioSource
    transcript: str | None = None
    name: str = "reference"
    language: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TranscriptionRequest(GenerationRequest):
    """Write down what is said in `audio`. language: None detects; task: "transcribe" or "translate" (to English).

    prompt: text the model should think came before; word_times: also times each word.
    """

    audio: AudioSource
    language: str | None = None
    task: str = "transcribe"
    prompt: str | None = None
    word_times: bool = False
    temperature: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest(GenerationRequest):
    """Answer `messages`: a plain string is one user turn. The other options are those of ChatOptions.

    seed: with it, a sampled answer reads the whole conversation anew, so that the same call gives the same answer.
    """

    messages: str | Sequence[Message]
    sampling: Sampling | None = None
    max_tokens: int = 512
    stop: Sequence[str] = ()
    thinking: bool | None = None
    tools: Sequence[Mapping[str, Any]] = ()
    tool_choice: str | Mapping[str, Any] = "auto"
    response_format: Mapping[str, Any] | None = None
    logprobs: int | None = None
    truncation: str = "error"
    speculative: Drafts | None = None


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine refuses at the door, so that one request cannot fill the machine.

    text_chars: of one speech request (50,000 characters are about an hour of speech). chat_chars: of all messages
    together; the model's own context is checked after that. audio_s: seconds of one recording.
    """

    text_chars: int = 50_000
    chat_chars: int = 1_000_000
    audio_s: float = 4 * 3600.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
                raise InvalidInputError(f"Limits: {name} must be a number above 0, got {value!r:.80}.")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in memory. in_use: requests that hold it now; idle_s: since the last one ended; leaving: unload asked.

    nbytes: weights, and the caches of requests and of what conversations left for their next turn; cache_bytes: these
    caches alone.
    """

    id: str
    tasks: tuple[Task, ...]
    backend: str
    device: str
    dtype: str
    nbytes: int
    in_use: int
    idle_s: float
    leaving: bool = False
    cache_bytes: int = 0
