"""Samples to frames, probabilities to stretches of speech (silero-vad 6.2 `utils_vad.py`, get_speech_timestamps)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from izwi_lab.families.silero_vad.config import CONTEXT, FRAME, SAMPLE_RATE_HZ

FRAME_S = FRAME / SAMPLE_RATE_HZ


@dataclass(frozen=True, slots=True)
class Thresholds:
    """How probabilities become stretches. Speech starts at `start` and lasts until below `end` for min_silence_s."""

    start: float = 0.5
    end: float = 0.35
    min_speech_s: float = 0.25
    min_silence_s: float = 0.1
    pad_s: float = 0.03


def frames_of(samples: np.ndarray) -> np.ndarray:
    """Samples [S] at 16 kHz -> frames float32 [N, 64 + 512]; silence comes before the first and fills the last."""
    count = -(-len(samples) // FRAME)
    padded = np.zeros(CONTEXT + count * FRAME, np.float32)
    padded[CONTEXT : CONTEXT + len(samples)] = samples
    if not count:
        return np.zeros((0, CONTEXT + FRAME), np.float32)
    return np.lib.stride_tricks.sliding_window_view(padded, CONTEXT + FRAME)[::FRAME]


def speech_spans(
    probabilities: Sequence[float] | np.ndarray, duration_s: float, thresholds: Thresholds
) -> list[tuple[float, float]]:
    """Stretches of speech (start_s, end_s), in order and apart from each other, from one probability per 32 ms."""
    found: list[tuple[float, float]] = []
    start: float | None = None
    quiet: float | None = None  # when it fell silent, while that may still be a pause
    for n, p in enumerate(probabilities):
        now = n * FRAME_S
        if p >= thresholds.start:
            quiet = None
            start = now if start is None else start
        elif start is not None and p < thresholds.end:
            quiet = now if quiet is None else quiet
            if now - quiet >= thresholds.min_silence_s:
                found.append((start, quiet))
                start = quiet = None
    if start is not None:
        found.append((start, duration_s))
    long = [(a, min(b, duration_s)) for a, b in found if b - a > thresholds.min_speech_s]
    return _padded(long, duration_s, thresholds.pad_s)


def _padded(spans: list[tuple[float, float]], duration_s: float, pad_s: float) -> list[tuple[float, float]]:
    """Spans widened by pad_s, or to the middle of a shorter gap."""
    out: list[tuple[float, float]] = []
    for n, (a, b) in enumerate(spans):
        before = a - (spans[n - 1][1] if n else 0.0)
        after = (spans[n + 1][0] if n + 1 < len(spans) else duration_s) - b
        left = min(pad_s, before / 2 if n else before)
        right = min(pad_s, after / 2 if n + 1 < len(spans) else after)
        out.append((max(0.0, a - left), min(duration_s, b + max(0.0, right))))
    return out
