"""What the decoder may say next: the reference's logit rules, and the numbers that decide whether to trust it.

Source: openai/whisper `decoding.py` (SuppressBlank, SuppressTokens, ApplyTimestampRules) and `transcribe.py`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from izwi_lab.families.whisper.config import SECONDS_PER_TIMESTAMP, GenerationConfig
from izwi_lab.families.whisper.processor import ControlTokens

MAX_INITIAL_TIMESTAMP_S = 1.0


@dataclass(frozen=True, slots=True)
class Rules:
    """The rules of one decoding. timestamps: text must come between pairs of time tokens."""

    tokens: ControlTokens
    suppress: np.ndarray
    begin_suppress: np.ndarray
    timestamps: bool
    max_initial_timestamp_s: float | None = MAX_INITIAL_TIMESTAMP_S

    @classmethod
    def of(cls, tokens: ControlTokens, settings: GenerationConfig, *, timestamps: bool) -> Rules:
        """From a checkpoint's settings. Control tokens are never emitted, whatever the settings list."""
        control = (tokens.start, tokens.translate, tokens.transcribe, tokens.start_of_lm, tokens.start_of_prev)
        untimed = {tokens.no_timestamps} if timestamps else set()
        never = sorted({*settings.suppress, *control, tokens.no_speech} | untimed)
        begin = settings.begin_suppress or (tokens.end,)
        return cls(tokens, np.array(never, np.int64), np.array(begin, np.int64), timestamps)

    def apply(self, logits: np.ndarray, said: Sequence[int]) -> tuple[np.ndarray, float]:
        """Logits [V] after the prompt and `said` -> (allowed logits [V], log of the sum of their exponentials)."""
        z = logits.astype(np.float32, copy=True)
        z[self.suppress] = -np.inf
        if not said:
            z[self.begin_suppress] = -np.inf
        if self.timestamps:
            self._times(z, said)
        top = float(z.max())
        weights = np.exp(z - top)
        if not self.timestamps:
            return z, top + float(np.log(weights.sum()))
        first = self.tokens.first_timestamp
        text, times = float(weights[:first].sum()), float(weights[first:].sum())
        if times > 0 and np.log(times) + top > float(z[:first].max()):
            z[:first] = -np.inf  # time as a whole is likelier than any one word: it must be a time token
            text = 0.0
        return z, top + float(np.log(text + times))

    def _times(self, z: np.ndarray, said: Sequence[int]) -> None:
        first, end = self.tokens.first_timestamp, self.tokens.end
        last_is_time = bool(said) and said[-1] >= first
        before_is_time = len(said) < 2 or said[-2] >= first
        if last_is_time and before_is_time:
            z[first:] = -np.inf  # a pair is complete: text next
        elif last_is_time:
            z[:end] = -np.inf  # a segment was closed: a new one opens, or the end
        times = [t for t in said if t >= first]
        if times:  # time does not run backwards, and a segment is not empty
            z[first : times[-1] + (0 if last_is_time and not before_is_time else 1)] = -np.inf
        if not said:
            z[:first] = -np.inf
            if self.max_initial_timestamp_s is not None:
                z[first + round(self.max_initial_timestamp_s / SECONDS_PER_TIMESTAMP) + 1 :] = -np.inf


def compression_ratio(text: str) -> float:
    """Bytes over compressed bytes: high when a text repeats itself."""
    raw = text.encode("utf-8")
    return len(raw) / len(zlib.compress(raw)) if raw else 0.0


@dataclass(frozen=True, slots=True)
class Guards:
    """When to distrust a window and try again warmer, and when to call it silence (the reference's defaults)."""

    temperatures: tuple[float, ...] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
    compression_ratio: float = 2.4
    avg_logprob: float = -1.0
    no_speech: float = 0.6

    def distrusts(self, ratio: float, avg_logprob: float, no_speech_prob: float) -> bool:
        """True when the window should be decoded again at the next temperature."""
        if no_speech_prob > self.no_speech and avg_logprob < self.avg_logprob:
            return False  # silence: it will be dropped anyway
        return ratio > self.compression_ratio or avg_logprob < self.avg_logprob

    def silent(self, avg_logprob: float, no_speech_prob: float) -> bool:
        """True when the window holds no speech, whatever was decoded."""
        return no_speech_prob > self.no_speech and avg_logprob < self.avg_logprob

    def from_temperature(self, start: float) -> tuple[float, ...]:
        """The temperatures to try, beginning at `start`."""
        return (start, *(t for t in self.temperatures if t > start))
