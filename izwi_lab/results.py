"""What the tasks return: frozen values. Times are seconds from the start of the input, probabilities 0..1.

In a notebook they show themselves as static HTML (`rendering`); as plain text everywhere else.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from izwi_lab.audio import Audio


_NO_TIME_S = 1e-3  # of decoding: a speed taken from less says nothing


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
        """Generated tokens per second of decoding; nan when nothing was decoded, or in no time to speak of."""
        return self.tokens / self.decode_s if self.decode_s > _NO_TIME_S else float("nan")

    def __str__(self) -> str:
        parts = [f"{self.total_s:.2f} s", f"first after {self.first_s:.2f} s"] if self.total_s else []
        if self.audio_s:
            speed = 1 / self.rtf if self.rtf else float("inf")
            parts.append(f"{self.rtf:.2f} RTF ({speed:.{1 if speed >= 1 else 2}f}x real time)")
        if self.tokens and not math.isnan(self.tokens_per_s):
            parts.append(f"{self.tokens_per_s:.1f} tokens/s")
        return ", ".join(parts) or "not timed"

    def to_dict(self) -> dict[str, float | int | None]:
        """The fields and what follows from them, for JSON: nan becomes None."""
        return {
            "total_s": self.total_s,
            "first_s": self.first_s,
            "prefill_s": self.prefill_s,
            "decode_s": self.decode_s,
            "audio_s": self.audio_s,
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "rtf": None if math.isnan(self.rtf) else self.rtf,
            "tokens_per_s": None if math.isnan(self.tokens_per_s) else self.tokens_per_s,
        }

    def _repr_html_(self) -> str:
        from izwi_lab import rendering

        return rendering.timing_html(self)


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

    def to_dict(self) -> dict[str, Any]:
        """The names and units of the OpenAI `verbose_json` segment; seek counts frames of 10 ms."""
        return {
            "id": self.id,
            "seek": round(self.start_s * 100),
            "start": self.start_s,
            "end": self.end_s,
            "text": self.text,
            "tokens": list(self.tokens),
            "temperature": self.temperature,
            "avg_logprob": self.avg_logprob,
            "compression_ratio": self.compression_ratio,
            "no_speech_prob": self.no_speech_prob,
        }


@dataclass(frozen=True, slots=True)
class Transcript:
    """What was said. `str(transcript)` is the text; `duration_s` the length of the audio heard.

    notes: how it was heard where that was a choice, such as which voice-activity model found the speech.
    """

    text: str
    language: str
    duration_s: float
    segments: tuple[Segment, ...] = ()
    task: str = "transcribe"
    model: str = ""
    backend: str = ""
    timing: Timing = field(default_factory=Timing)
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text

    @property
    def words(self) -> tuple[Word, ...]:
        """All words of all segments, in order; empty unless word times were asked for."""
        return tuple(w for s in self.segments for w in s.words)

    def to_text(self) -> str:
        """The words alone."""
        return self.text

    def to_srt(self) -> str:
        """SubRip subtitles, one cue per segment; long ones are split at their words when these have times."""
        from izwi_lab import subtitles

        return subtitles.srt(self)

    def to_vtt(self) -> str:
        """WebVTT subtitles, cues as in `to_srt`."""
        from izwi_lab import subtitles

        return subtitles.vtt(self)

    def to_dict(self) -> dict[str, Any]:
        """Everything, under the names of OpenAI's `verbose_json`, plus model, backend and timing.

        "words" is there only when word times were asked for.
        """
        return {
            "task": self.task,
            "language": self.language,
            "duration": self.duration_s,
            "text": self.text,
            "segments": [s.to_dict() for s in self.segments],
            **(
                {
                    "words": [
                        {"word": w.text, "start": w.start_s, "end": w.end_s, "probability": w.probability}
                        for w in self.words
                    ]
                }
                if self.words
                else {}
            ),
            "model": self.model,
            "backend": self.backend,
            "timing": self.timing.to_dict(),
        }

    def to_json(self, *, indent: int | None = 2) -> str:
        """`to_dict` as JSON text; letters outside ASCII are kept."""
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent)

    def _repr_html_(self) -> str:
        from izwi_lab import rendering

        return rendering.transcript_html(self)


@dataclass(frozen=True, slots=True)
class Speech:
    """Spoken text. `voice` is the voice or blend that was used; `notes` say what of the text is not heard, and why.

    seed: of the random numbers, with which the same call says the same again; None where nothing is drawn.
    """

    audio: Audio
    text: str
    voice: str = ""
    language: str = ""
    model: str = ""
    backend: str = ""
    timing: Timing = field(default_factory=Timing)
    notes: tuple[str, ...] = ()
    seed: int | None = None

    def __repr__(self) -> str:
        facts = [f"voice={self.voice!r}", f"model={self.model!r}", str(self.timing)]
        facts += [] if self.seed is None else [f"seed={self.seed}"]
        facts += [f"notes={list(self.notes)}"] if self.notes else []
        return f"Speech({self.audio!r}, {_short(self.text)!r}, {', '.join(facts)})"

    def _repr_html_(self) -> str:
        from izwi_lab import rendering

        return rendering.speech_html(self)


@dataclass(frozen=True, slots=True)
class AudioChunk:
    """A piece of streamed speech. Chunks joined by `index` are the whole; the last has is_final. notes: see Speech.

    tokens: generated for it, counted as `Speech.timing.tokens` counts them.
    """

    audio: Audio
    index: int
    text: str = ""
    is_final: bool = False
    notes: tuple[str, ...] = ()
    tokens: int = 0

    def __repr__(self) -> str:
        facts = [repr(self.audio), *([repr(_short(self.text))] if self.text else [])]
        facts += ["is_final=True"] if self.is_final else []
        facts += [f"notes={list(self.notes)}"] if self.notes else []
        return f"AudioChunk({self.index}: {', '.join(facts)})"


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """How likely a token was, by the model's own distribution: before temperature, penalties and grammars.

    logprob: natural logarithm. top: the likeliest tokens at that place, best first, where they were asked for.
    raw: the bytes of the token, which alone may be no whole character.
    """

    token: int
    text: str
    logprob: float
    raw: bytes = b""
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A function that the model wants called. arguments: JSON text, checked to be an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted. prompt_tokens: all that came before the answer, read or not; completion_tokens: of the answer,
    end token included; cached_tokens: those of the prompt that a cache held; reasoning_tokens: those of the answer
    that were thought, tags included.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class TextDelta:
    """A piece of streamed text: whole characters. `token` is the id that completed it.

    reasoning: what was thought in this piece, apart from `text`. logprob: where asked for, of a token that is content.
    On the last delta alone: finish_reason, tool_calls, usage.
    """

    text: str
    index: int
    token: int | None = None
    logprob: TokenLogprob | None = None
    finish_reason: str | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    usage: Usage | None = None


@dataclass(frozen=True, slots=True)
class ChatReply:
    """A chat answer.

    finish_reason: "stop" (end token, stop string or the end of a grammar), "length" (max_tokens or a full context),
    "tool_calls" or "cancelled". tokens: all of the answer, with those of thoughts and calls. reasoning: what the model
    thought before it answered. logprobs: if asked for, one for each token of content, so none for thoughts, calls and
    the end token; those of a stop string are there.
    """

    text: str
    finish_reason: str
    tokens: tuple[int, ...] = ()
    model: str = ""
    backend: str = ""
    timing: Timing = field(default_factory=Timing)
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage = field(default_factory=Usage)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        from izwi_lab import rendering

        return rendering.chat_html(self)
