"""Audio of any length: find speech, cut at silences, decode windows together, stitch the segments.

A window is at most 30 s and is cut where nobody speaks, so windows do not depend on each other and share their steps.
Nothing is lost: when a window ends before its speech does, the rest of it is heard again as a window of its own.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import ArtifactError, AudioError, InvalidInputError
from izwi_lab.families.shared import chunking, stitching
from izwi_lab.families.shared.course import Alone, Course, Shared
from izwi_lab.families.shared.steps import Session
from izwi_lab.families.whisper import decoding
from izwi_lab.families.whisper.config import SAMPLE_RATE_HZ, WINDOW_S
from izwi_lab.families.whisper.rules import Guards
from izwi_lab.results import Segment, Timing, Transcript

if TYPE_CHECKING:
    from izwi_lab.families.whisper.model import WhisperModel

VAD_ID = "Silero-VAD-v6"
_TOGETHER = 4  # windows per decoder step: the weights are read once for all of them
_LEFT_OVER_S = 1.5  # speech after the last segment that makes the rest of a window worth another hearing
_PROGRESS_S = 1.0
_LATE_S, _BEFORE_S = 0.6, 0.1


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked, checked. language: a code, or None to detect."""

    language: str | None
    task: str
    prompt: str | None
    word_times: bool
    temperature: float
    seed: int | None
    timestamps: bool
    condition_on_previous: bool
    vad: bool | str
    guards: Guards
    streaming: bool


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of the audio to decode. rest: it is the remainder of a window that ended early."""

    start_s: float
    end_s: float
    rest: bool = False


class SpeechGate:
    """The voice-activity model, loaded once when first needed."""

    def __init__(self, plan: BackendPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._model: Any = None
        self._reason = ""

    def use(self, model: Any) -> None:
        """Hear with this model from now on."""
        self._model, self._reason = model, ""

    def open(self, asked: bool | str) -> tuple[Any, str]:
        """(the model or None, a note saying what is used). Raises what stood in the way when asked is True."""
        if asked not in (True, False, "auto"):
            raise InvalidInputError(f"vad must be True, False or 'auto', got {asked!r}.")
        if asked is False:
            return None, "voice activity: off, all of the audio was heard"
        with self._lock:
            if self._model is None and (asked is True or not self._reason):
                try:
                    self._model = _load_vad(self._plan)
                except (ArtifactError, ImportError, OSError) as error:
                    if asked is True:
                        raise
                    self._reason = str(error)
        if self._model is None:
            return None, f"voice activity: off, {VAD_ID} is not available ({self._reason}); all of the audio was heard"
        return self._model, f"voice activity: {VAD_ID}"


def _load_vad(plan: BackendPlan) -> Any:
    """Silero VAD beside its user: same backend and device, in float32 (it is tiny)."""
    from izwi_lab import artifacts, backends, catalog
    from izwi_lab.families.silero_vad.model import load

    local = artifacts.fetch(catalog.get(VAD_ID))
    plan = replace(plan, dtype="float32")
    return load(catalog.get(VAD_ID), local.folder, plan, backends.open_backend(plan), layout=str(local.layout))


class Listening:
    """One request over one audio. `segments()` is its course, taken once; `transcript()` then tells how it went."""

    def __init__(self, model: WhisperModel, audio: Audio, options: Options, cancel: CancelToken) -> None:
        self.model, self.options, self.cancel = model, options, cancel
        self.began_s = time.perf_counter()
        self.samples = checked_samples(audio)
        self.duration_s = audio.duration_s
        self.language = options.language
        self.notes: list[str] = []
        self.work = decoding.Work()
        self._first_s = 0.0
        self._previous: list[int] = []

    # --- running ------------------------------------------------------------------------------------------------------

    def segments(self) -> Course:
        """Segments in order, each once its window is done; before them, what they need of the model."""
        spans: list[chunking.Span] = yield Alone(self._speech)
        queue = deque(Window(*w) for w in self._windows(spans))
        size = 1 if self.options.streaming or self.options.condition_on_previous else _TOGETHER
        count, clock, said = 0, 0.0, ""
        while queue:
            group = [queue.popleft() for _ in range(min(size, len(queue)))]
            for window, found in zip(group, (yield from self._decode(group)), strict=True):
                pending = deque([(window, found)])
                while pending:
                    window, found = pending.popleft()
                    rest = self._rest(window, found, spans)
                    fresh = self._without_repeats(window, found.segments, said)
                    for segment in stitching.monotone(fresh, duration_s=self.duration_s, first_id=count, after_s=clock):
                        self._first_s = self._first_s or time.perf_counter() - self.began_s
                        count, clock, said = count + 1, segment.end_s, (said + segment.text)[-400:]
                        yield segment
                    if rest is not None:
                        pending.append((rest, (yield from self._decode([rest]))[0]))
            if not self.options.condition_on_previous:
                size = _TOGETHER

    def transcript(self, segments: tuple[Segment, ...]) -> Transcript:
        """The whole, after `segments()` has run."""
        total = time.perf_counter() - self.began_s
        timing = Timing(
            total_s=total,
            first_s=self._first_s or total,
            prefill_s=self.work.encode_s,
            decode_s=self.work.decode_s,
            audio_s=self.duration_s,
            prompt_tokens=self.work.prompt_tokens,
            tokens=self.work.tokens,
        )
        return Transcript(
            text=stitching.joined_text(segments),
            language=self.language or "",
            duration_s=self.duration_s,
            segments=segments,
            task=self.options.task,
            model=self.model.variant.id,
            backend=f"{self.model.plan.backend}:{self.model.plan.device}:{self.model.plan.dtype}",
            timing=timing,
            notes=tuple(self.notes),
        )

    # --- parts --------------------------------------------------------------------------------------------------------

    def _speech(self) -> list[chunking.Span]:
        gate, note = self.model.gate.open(self.options.vad)
        self.notes.append(note)
        if gate is None:
            return [(0.0, self.duration_s)]
        found: list[chunking.Span] = gate.speech(Audio(self.samples, SAMPLE_RATE_HZ), cancel=self.cancel)
        return found

    def _windows(self, spans: Sequence[chunking.Span]) -> list[chunking.Span]:
        return chunking.plan_windows(spans, self.duration_s, limit_s=WINDOW_S, quietest=self._quietest)

    def _quietest(self, start_s: float, end_s: float) -> float:
        """The middle of the quietest 0.2 s between two times: where to cut speech that never pauses."""
        frame = SAMPLE_RATE_HZ // 50
        part = self.samples[int(start_s * SAMPLE_RATE_HZ) : int(end_s * SAMPLE_RATE_HZ)]
        count = len(part) // frame
        if count < 10:
            return end_s
        energy = np.square(part[: count * frame].reshape(count, frame)).mean(axis=1)
        smooth = np.convolve(energy, np.full(10, 0.1), mode="valid")
        return start_s + (int(smooth.argmin()) + 5) * frame / SAMPLE_RATE_HZ

    def _decode(self, group: Sequence[Window]) -> Generator[Any, Any, list[decoding.Found]]:
        """Encode and decode windows together."""
        self.cancel.check()
        began = time.perf_counter()
        states: list[Any] = []
        most = self.model.share_limit("encode")
        for n in range(0, len(group), most):
            features = [self.model.features(self._sound(window)) for window in group[n : n + most]]
            states += yield Shared("encode", features, weight=len(features))
            self.cancel.check()
        sessions: list[Session] = yield Alone(partial(self._opened, group, states))
        self.work.encode_s += time.perf_counter() - began
        options = self.options
        prompt = self.model.tokenize(
            options.prompt,
            language=self.language if self.model.config.multilingual else None,
            task=options.task,
            timestamps=options.timestamps,
            previous=self._previous if options.condition_on_previous else (),
        )
        results: list[decoding.Result] = yield from decoding.decode_windows(
            self.model, sessions, prompt, options.guards, options.temperature, self.work, self.cancel
        )
        found = []
        for window, session, result in zip(group, sessions, results, strict=True):
            found.append((yield from self._found(window, session, result)))
        if options.condition_on_previous and results and results[-1].temperature <= 0.5:
            self._previous += [t for r in results for t in r.tokens]  # a warm guess would spread its mistakes
        return found

    def _sound(self, window: Window) -> Audio:
        cut = slice(round(window.start_s * SAMPLE_RATE_HZ), round(window.end_s * SAMPLE_RATE_HZ))
        return Audio(self.samples[cut][: int(WINDOW_S * SAMPLE_RATE_HZ)], SAMPLE_RATE_HZ)

    def _opened(self, group: Sequence[Window], states: Sequence[Any]) -> list[Session]:
        """A session for each window; the first to be heard tells the language, if nobody did."""
        if self.language is None:
            self.language = next(iter(self.model.detect_language(states[0])))
        asked = self.options.seed
        seeds = [None if asked is None else asked + round(window.start_s * 100) for window in group]
        return [self.model.session(heard, seed=seed) for heard, seed in zip(states, seeds, strict=True)]

    def _found(self, window: Window, session: Session, result: decoding.Result) -> Generator[Any, Any, decoding.Found]:
        length = window.end_s - window.start_s
        if self.options.guards.silent(result.avg_logprob, result.no_speech_prob):
            return decoding.Found([], length, True)
        found = decoding.segments_of(self.model, result, window.start_s, length)
        if self.options.word_times and found.segments:
            began = time.perf_counter()
            language = self.language or "en"
            asked = (self.model, session, found.segments, language, window.start_s, length)
            timed: list[Segment] = yield Alone(lambda: decoding.with_words(*asked))
            self.work.decode_s += time.perf_counter() - began
            return replace(found, segments=timed)
        return found

    def _rest(self, window: Window, found: decoding.Found, spans: Sequence[chunking.Span]) -> Window | None:
        """What is left of a window that ended early: after its last segment, when people still speak there."""
        if found.silent:
            return None
        start = window.start_s + found.heard_s
        left = chunking.speech_within(spans, start, window.end_s)
        for a, b in spans:  # a time token may fall just inside the next sentence: go back to where that begins
            if a < start < min(b, a + _LATE_S):
                start = a - _BEFORE_S
        enough = start - window.start_s >= _PROGRESS_S
        if not enough or left < _LEFT_OVER_S or (self.options.vad is False and found.complete):
            return None
        return Window(start, window.end_s, rest=True)

    @staticmethod
    def _without_repeats(window: Window, segments: Sequence[Segment], said: str) -> list[Segment]:
        """The rest of a window may begin inside a word that was already written: drop what is there twice."""
        out = list(segments)
        if window.rest and out and (count := stitching.repeated_prefix(said, out[0].text)):
            text = stitching.without_words(out[0].text, count)
            out[0] = replace(out[0], text=text, words=out[0].words[count:])
            out = out if text.strip() else out[1:]
        return out


def checked_samples(audio: Audio) -> np.ndarray:
    """The samples at 16 kHz. Raises AudioError when there are none or some are not finite."""
    if audio.samples.size == 0:
        raise AudioError("The audio is empty.", hint="Expected at least one sample.")
    if not np.isfinite(audio.samples).all():
        raise AudioError("The audio holds NaN or infinite samples.", hint="Check how it was decoded or computed.")
    same = audio.rate_hz == SAMPLE_RATE_HZ
    return audio.samples if same else audio.resample(SAMPLE_RATE_HZ).samples
