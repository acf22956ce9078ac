"""What the tasks return: frozen values. Times are seconds from the start of the input, probabilities 0..1."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from izwi_lab.audio import Audio


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the seconds of one request went.

    first_s: to the first token (chat, recognition) or first audio chunk (speech); total_s: the whole request.
    audio_s: seconds of audio made or heard, 0 for chat. prompt_tokens and tokens: read and generated.
    """

    total_s: float = 0.0
    first_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    audio_s: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0

    @property
    def rtf(self) -> float:
        """Processing seconds per second of audio (below 1 is faster than real time); nan without audio."""
        return self.total_s / self.audio_s if self.audio_s else float("nan")

    @property
    def tokens_per_s(self) -> float:
        """Generated tokens per second of decoding; nan when nothing was decoded."""
        return self.tokens / self.decode_s if self.decode_s else float("nan")


@dataclass(frozen=True, slots=True)
class Word:
    """One spoken word and when it was said."""

    text: str
    start_s: float
    end_s: float
    probability: float = 1.0


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of speech, usually a sentence or a breath group."""

    id: int
    start_s: float
    end_s: float
    text: str
    words: tuple[Word, ...] = ()
    tokens: tuple[int, ...] = ()
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. `str(transcript)` is the text; `duration_s` the length of the audio heard."""

    text: str
    language: str
    duration_s: float
    segments: tuple[Segment, ...] = ()
    task: str = "transcribe"
    model: str = ""
    backend: str = ""
    timing: Timing = field(default_factory=Timing)

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> tuple[Word, ...]:
        """All words of all segments, in order; empty unless word times were asked for."""
        return tuple(w for s in self.segments for w in s.words)


@dataclass(frozen=True, slots=True)
class Speech:
    """Spoken text. `audio` holds the samples; `voice` is the voice or blend that was used."""

    audio: Audio
    text: str
    voice: str = ""
    language: str = ""
    model: str = ""
    backend: str = ""
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of streamed speech. Chunks joined by `index` are exactly the whole; the last has is_final."""

    audio: Audio
    index: int
    text: str = ""
    is_final: bool = False


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of streamed text: whole characters. `token` is the id that completed it; finish_reason on the last."""

    text: str
    index: int
    token: int | None = None
    logprob: float | None = None
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A chat answer. finish_reason: "stop" (end token or stop string), "length" (max_tokens) or "cancelled"."""

    text: str
    finish_reason: str
    tokens: tuple[int, ...] = ()
    model: str = ""
    backend: str = ""
    timing: Timing = field(default_factory=Timing)

    def __str__(self) -> str:
        return self.text
