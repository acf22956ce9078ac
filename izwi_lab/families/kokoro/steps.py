"""What Kokoro's steps give: prosody, then acoustic features."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from izwi_lab.backends.base import Native
from izwi_lab.families.shared.steps import Span, Step


@dataclass(frozen=True, slots=True)
class ProsodyStep(Step):
    """What `prefill` gave. logits: native [T, max_duration], summed sigmoids are frames; hidden: native [1, T, D].

    durations: frames (25 ms each) per id, int64 [T]. f0: pitch in Hz, and energy, float32 [2F], two values per frame.
    They may be replaced (`dataclasses.replace`) before `decode`; f0 and energy keep their length, 2 * sum(durations).
    """

    durations: np.ndarray
    f0: np.ndarray
    energy: np.ndarray
    spans: tuple[Span, ...] = ()
    frame_s: float = 0.025

    def __repr__(self) -> str:
        return f"ProsodyStep({self.durations.size} ids, {self.frames} frames = {self.frames * self.frame_s:.2f} s)"

    @property
    def frames(self) -> int:
        """Frames in all."""
        return int(self.durations.sum())

    def word_times(self) -> list[tuple[str, float, float]]:
        """(word, start in s, end in s) of every word, from the durations of its phonemes."""
        ends = np.cumsum(self.durations) * self.frame_s
        return [(s.name, float(ends[s.start - 1]), float(ends[s.stop - 1])) for s in self.spans]


@dataclass(frozen=True, slots=True)
class AcousticFeatures:
    """What the vocoder reads. features: native [1, 2F, channels]; source: the excitation, float32 [S]."""

    features: Native
    source: np.ndarray
    style: np.ndarray

    def __repr__(self) -> str:
        return f"AcousticFeatures({self.source.size} samples of excitation)"

    @property
    def nbytes(self) -> int:
        """Bytes of the host arrays and, where it tells, of the native one."""
        return int(self.source.nbytes + self.style.nbytes + getattr(self.features, "nbytes", 0))


@dataclass(frozen=True, slots=True)
class AcousticStep(Step):
    """What `decode` gave. logits and hidden: the features, native [1, 2F, channels]; codes: for `codec.decode`."""

    codes: AcousticFeatures

    def __repr__(self) -> str:
        return f"AcousticStep({self.codes!r})"
