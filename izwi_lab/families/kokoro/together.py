"""Several pieces of text spoken in one pass: padded to the longest, each as it would be by itself.

How each is said is computed alone: the source sums the pitch over time and takes phases of that sum, so that a pitch
rounded otherwise (1e-6) moves samples by a tenth of their peak, while an equal pitch keeps them equal to 1e-6. The rest
is most of the work, and shares its pass.

Shapes: B pieces, T ids, F frames; what is real of each row is told to every layer that could see the padding.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.backends.base import Native
from izwi_lab.families.kokoro.saying import Sound
from izwi_lab.families.kokoro.source import source_spectrum
from izwi_lab.families.shared.steps import Prompt

if TYPE_CHECKING:
    from izwi_lab.families.kokoro.model import Kokoro


def spoken(model: Kokoro, prompts: Sequence[Prompt], seeds: Sequence[int | None]) -> list[Sound]:
    """Prompts, each with the seed of its noise -> the sound of each; see Kokoro.speak_many."""
    began = time.perf_counter()
    sessions = [model.session(seed=seed) for seed in seeds]
    steps = [model.prefill(session, prompt) for session, prompt in zip(sessions, prompts, strict=True)]
    read_s = time.perf_counter() - began
    net, backend = model.net, model.backend
    sources = [model.codec.source(step.f0, session.rng) for step, session in zip(steps, sessions, strict=True)]
    orders = [np.repeat(np.arange(step.durations.size, dtype=np.int32), step.durations) for step in steps]
    styles = np.concatenate([prompt.extras["style"] for prompt in prompts])
    read, real = net.real([len(prompt) for prompt in prompts]), net.real([step.frames for step in steps])

    def native(rows: Sequence[np.ndarray]) -> Native:
        return backend.array(_padded(rows), dtype="float32")

    with backend.inference():
        voices = backend.array(styles[:, : model.config.style], dtype="float32")
        ids, order = (backend.array(_padded(rows)) for rows in ([prompt.ids for prompt in prompts], orders))
        f0, energy = native([step.f0 for step in steps]), native([step.energy for step in steps])
        features = net.features(ids, order, f0, energy, voices, read, real)
        har = native([source_spectrum(source, model.config) for source in sources])
        samples = backend.numpy(net.samples(features, har, voices, real.times(2)))
    size, rest_s = model.config.samples_per_frame, time.perf_counter() - began - read_s
    sounds = [
        Audio(np.array(row[: n * size]), model.codec.rate_hz) for row, n in zip(samples, real.lengths, strict=True)
    ]
    return [Sound(audio, read_s, rest_s) for audio in sounds]


def _padded(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows [n, ...] of different lengths -> [B, longest, ...] with zeros after each."""
    out = np.zeros((len(rows), max(len(row) for row in rows), *rows[0].shape[1:]), rows[0].dtype)
    for n, row in enumerate(rows):
        out[n, : len(row)] = row
    return out
