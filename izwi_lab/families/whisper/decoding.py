"""Decoding windows together: the loop that asks for steps, the fallback to warmer draws, tokens to segments."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from izwi_lab.cancel import CancelToken
from izwi_lab.families.shared.course import Shared
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Session
from izwi_lab.families.whisper.config import SECONDS_PER_TIMESTAMP
from izwi_lab.families.whisper.rules import Guards, compression_ratio
from izwi_lab.results import Segment, Word

if TYPE_CHECKING:
    from izwi_lab.families.whisper.model import WhisperModel


_AGREE_S = 0.5  # word times and time tokens this close say the same


@dataclass(slots=True)
class Work:
    """Where the time of a request went, added up."""

    encode_s: float = 0.0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """One decoded window. finished: it ended by itself and not at the token limit."""

    tokens: tuple[int, ...]
    text: str
    avg_logprob: float
    compression_ratio: float
    no_speech_prob: float
    temperature: float
    finished: bool


@dataclass(frozen=True, slots=True)
class Found:
    """A window's segments. heard_s: how far into the window they reach; complete: no speech was left unread."""

    segments: list[Segment]
    heard_s: float
    complete: bool
    silent: bool = False


def decode_windows(
    model: WhisperModel,
    sessions: Sequence[Session],
    prompt: Prompt,
    guards: Guards,
    temperature: float,
    work: Work,
    cancel: CancelToken,
) -> Generator[Any, Any, list[Result]]:
    """Decode all sessions, asking for their steps together; those distrusted again, warmer, by themselves."""
    results: dict[int, Result] = {}
    pending = list(range(len(sessions)))
    for heat in guards.from_temperature(temperature):
        began = time.perf_counter()
        group = [sessions[n] for n in pending]
        for session in group:
            session.trim(0)
        yield from _decode_once(model, group, prompt, Sampling(temperature=heat), cancel)
        work.decode_s += time.perf_counter() - began
        work.prompt_tokens += len(prompt) * len(group)
        work.tokens += sum(len(s.tokens) for s in group)
        for n in pending:
            results[n] = _result(model, sessions[n], heat)
        pending = [n for n in pending if _distrusted(results[n], guards)]
        if not pending:
            break
    return [results[n] for n in range(len(sessions))]


def _decode_once(
    model: WhisperModel, sessions: Sequence[Session], prompt: Prompt, sampling: Sampling, cancel: CancelToken
) -> Generator[Any, Any, None]:
    steps = yield Shared("prefill", [(session, prompt) for session in sessions], weight=len(sessions))
    active = list(range(len(sessions)))
    while active:
        cancel.check()
        said = [(sessions[n], model.sample(sessions[n], steps[n], sampling)) for n in active]
        for n, step in zip(active, (yield Shared("decode", said, weight=len(said))), strict=True):
            steps[n] = step
        active = [n for n in active if not sessions[n].done]


def _result(model: WhisperModel, session: Session, temperature: float) -> Result:
    text = model.detokenize(session.tokens).strip()
    return Result(
        tokens=tuple(session.tokens),
        text=text,
        avg_logprob=session.state["logprob"] / (len(session.tokens) + 1),
        compression_ratio=compression_ratio(text),
        no_speech_prob=session.state["no_speech_prob"],
        temperature=temperature,
        finished=session.finish_reason == "stop",
    )


def _distrusted(result: Result, guards: Guards) -> bool:
    return guards.distrusts(result.compression_ratio, result.avg_logprob, result.no_speech_prob)


def segments_of(model: WhisperModel, result: Result, offset_s: float, length_s: float) -> Found:
    """A window's tokens cut at its pairs of time tokens (openai/whisper `transcribe.py`).

    Text after the last pair belongs to the window's end when decoding finished there, and is heard again otherwise.
    """
    first = model.processor.tokens.first_timestamp
    tokens = list(result.tokens)
    is_time = [t >= first for t in tokens]
    cuts = [n for n in range(1, len(tokens)) if is_time[n] and is_time[n - 1]]
    pieces = [tokens[a:b] for a, b in zip([0, *cuts], [*cuts, len(tokens)], strict=True)]
    out: list[Segment] = []
    heard = 0.0
    for n, piece in enumerate(pieces):
        text = [t for t in piece if t < first]
        times = [(t - first) * SECONDS_PER_TIMESTAMP for t in piece if t >= first]
        if not result.finished and n == len(pieces) - 1 and cuts:
            break  # cut off in mid-sentence: the rest is heard again from here
        start = times[0] if times and piece[0] >= first else heard
        closed = len(times) > (1 if piece and piece[0] >= first else 0)
        end = times[-1] if closed else length_s
        start, end = min(start, length_s), min(max(start, end), length_s)
        if words := model.detokenize(text):
            if words.strip():
                out.append(_segment(result, tuple(piece), words, offset_s + start, offset_s + end))
            heard = end
    return Found(out, heard if out else length_s, result.finished)


def _segment(result: Result, tokens: tuple[int, ...], text: str, start_s: float, end_s: float) -> Segment:
    return Segment(
        id=0,
        start_s=start_s,
        end_s=end_s,
        text=text,
        tokens=tokens,
        temperature=result.temperature,
        avg_logprob=result.avg_logprob,
        compression_ratio=result.compression_ratio,
        no_speech_prob=result.no_speech_prob,
    )


def with_words(
    model: WhisperModel, session: Session, segments: Sequence[Segment], language: str, offset_s: float, length_s: float
) -> list[Segment]:
    """The segments with their words; a segment's edges move to its first and last word."""
    end = model.processor.tokens.end
    text = [t for s in segments for t in s.tokens if t < end]
    timed = iter(model.word_times(session, text, language=language, heard_s=length_s, offset_s=offset_s))
    out: list[Segment] = []
    owed = 0
    for segment in segments:
        owed += sum(t < end for t in segment.tokens)
        words: list[Word] = []
        while owed > 0 and (item := next(timed, None)) is not None:
            words.append(item[0])
            owed -= item[1]
        if not words:
            out.append(segment)
            continue
        # words and time tokens are two opinions; the segment covers both where they differ by little
        first, last = words[0].start_s, words[-1].end_s
        start = first if abs(first - segment.start_s) > _AGREE_S else min(first, segment.start_s)
        stop = last if abs(last - segment.end_s) > _AGREE_S else max(last, segment.end_s)
        out.append(replace(segment, start_s=start, end_s=max(stop, start), words=tuple(words)))
    return out
