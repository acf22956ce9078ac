"""Silero VAD v6 at 16 kHz: how likely each 32 ms of audio is speech.

| verb | in | out |
|---|---|---|
| features(audio) | Audio of any rate | frames float32 [N, 576] |
| session() | | Session: the LSTM's memory |
| decode(session, frames) | frames in time order | probabilities float32 [N] |
| probabilities(audio) | Audio | float32 [N], one per 32 ms |
| speech(audio) | Audio | [(start_s, end_s)] |

Decoding frames one by one gives the same numbers as all at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.audio import Audio
from izwi_lab.backends.base import Backend, BackendPlan, Native
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import AudioError, CheckpointError
from izwi_lab.families.shared.closed import ClosedNet
from izwi_lab.families.shared.steps import Session
from izwi_lab.families.shared.taps import Replace, Taps, tapping
from izwi_lab.families.silero_vad import weights
from izwi_lab.families.silero_vad.config import SAMPLE_RATE_HZ, SileroConfig
from izwi_lab.families.silero_vad.processor import Thresholds, frames_of, speech_spans

_AT_ONCE = 2048  # frames per pass, about a minute


class SileroModel:
    """A loaded Silero VAD. Immutable; sessions hold the memory."""

    def __init__(self, variant: ModelVariant, plan: BackendPlan, backend: Backend, net: Any) -> None:
        self.variant, self.plan, self.backend, self.net = variant, plan, backend, net
        self.config = SileroConfig()
        shapes: Mapping[str, tuple[int, ...]] = backend.parameters(net)
        self._nbytes = 4 * sum(int(np.prod(s)) for s in shapes.values())

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held."""
        return 0 if isinstance(self.net, ClosedNet) else self._nbytes

    def close(self) -> None:
        """Drop the weights; the model cannot be used afterwards."""
        self.net = ClosedNet(self.variant.id)

    def tap(self, patterns: str | Sequence[str], *, replace: Replace | None = None) -> AbstractContextManager[Taps]:
        """Read or replace "spectrum", "features", "lstm" or "probability"."""

        def array(values: np.ndarray, like: Native) -> Native:
            return self.backend.array(values)

        return tapping(patterns, numpy=self.backend.numpy, array=array, replace=replace)

    def features(self, audio: Audio) -> np.ndarray:
        """Frames [N, 576]: 512 new samples after 64 of the frame before. Raises AudioError for empty audio or NaN."""
        if audio.samples.size == 0:
            raise AudioError("The audio is empty.", hint="Expected at least one sample.")
        if not np.isfinite(audio.samples).all():
            raise AudioError("The audio holds NaN or infinite samples.", hint="Check how it was decoded or computed.")
        same = audio.rate_hz == SAMPLE_RATE_HZ
        return frames_of(audio.samples if same else audio.resample(SAMPLE_RATE_HZ).samples)

    def session(self) -> Session:
        """A fresh memory."""
        with self.backend.inference():
            zero = np.zeros(self.config.hidden, np.float32)
            memory = (self.backend.array(zero), self.backend.array(zero))
        return Session(self.backend, {"memory": memory}, seed=0)

    def decode(self, session: Session, frames: np.ndarray) -> np.ndarray:
        """Frames [N, 576] in time order -> probabilities [N]; the session remembers them."""
        with self.backend.inference():
            native = self.backend.array(np.ascontiguousarray(frames))
            found, memory = self.net(native, session.state["memory"])
            self.backend.evaluate(found, memory)
            session.state["memory"] = memory
            session.position += len(frames)
            return self.backend.numpy(found)

    def probabilities(self, audio: Audio, *, cancel: CancelToken | None = None) -> np.ndarray:
        """Probability of speech for every 32 ms, float32 [N]."""
        frames = self.features(audio)
        session = self.session()
        out = [np.zeros(0, np.float32)]
        for start in range(0, len(frames), _AT_ONCE):
            if cancel is not None:
                cancel.check()
            out.append(self.decode(session, frames[start : start + _AT_ONCE]))
        return np.concatenate(out)

    def speech(
        self, audio: Audio, *, thresholds: Thresholds | None = None, cancel: CancelToken | None = None
    ) -> list[tuple[float, float]]:
        """Stretches of speech (start_s, end_s) in order; empty when nobody speaks."""
        found = self.probabilities(audio, cancel=cancel)
        return speech_spans(found, audio.duration_s, thresholds or Thresholds())


def load(
    variant: ModelVariant,
    folder: Path | None,
    plan: BackendPlan,
    backend: Backend,
    *,
    layout: str,
    load_format: str = "auto",
) -> SileroModel:
    """Load silero_vad.onnx from `folder`, or random weights; see FamilyLoader."""
    state = None
    if load_format != "dummy":
        if folder is None or layout != "silero_onnx":
            raise CheckpointError(f"Silero VAD reads the layout 'silero_onnx', got {layout!r} in {folder}.")
        state = weights.read(open_checkpoint(folder, layout))
    net = backend.net("izwi_lab.families.silero_vad", "SileroNet", SileroConfig(), state)
    return SileroModel(variant, plan, backend, net)
