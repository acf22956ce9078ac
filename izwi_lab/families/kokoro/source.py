"""The vocoder's excitation and its Fourier constants, in numpy: made once on the host, equal on both backends.

`harmonic_source` is `SourceModuleHnNSF` of kokoro 0.9.4 (istftnet.py). Two facts of that code are used here: its random
initial phases are added at sample 0 and dropped again by its own 1/300 downsampling, so they never reach the sound;
and its nine independent noises only enter as a weighted sum, which has the distribution of one noise scaled by the
norm of the weights. `kokoro` computes the phase in float32, which costs up to 0.1 rad on long inputs; here the phase at
each frame is kept in cycles modulo 1, in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from izwi_lab.families.kokoro.config import KokoroConfig

SINE_AMPLITUDE = 0.1
VOICED_NOISE = 0.003
VOICED_ABOVE_HZ = 10.0


def harmonic_source(
    f0: np.ndarray, weight: np.ndarray, bias: float, config: KokoroConfig, rng: np.random.Generator | None
) -> np.ndarray:
    """Harmonics of the pitch where voiced, noise where not, merged and squashed by tanh.

    Args:
        f0: pitch in Hz, float32 [P], one value per `config.istft.samples_per_f0` samples.
        weight: how much of each harmonic, float32 [harmonics].
        bias: added to the weighted sum.
        config: sizes and rate.
        rng: draws the noise; None leaves it out (for parity tests).

    Returns:
        The excitation, float32 [S].
    """
    step = config.istft.samples_per_f0
    voiced = (f0 > VOICED_ABOVE_HZ).astype(np.float32)  # [P]
    merged = np.zeros(f0.shape[0] * step, np.float32)
    for harmonic in range(config.harmonics):
        cycles = (f0.astype(np.float64) * (harmonic + 1) / config.rate_hz) % 1.0  # per sample
        merged += np.float32(weight[harmonic] * SINE_AMPLITUDE) * _sine(cycles, step)
    merged *= np.repeat(voiced, step)
    if rng is not None:
        spread = voiced * VOICED_NOISE + (1 - voiced) * (SINE_AMPLITUDE / 3)
        noise = rng.standard_normal(merged.shape[0], dtype=np.float32)
        noise *= np.repeat(spread * np.float32(np.linalg.norm(weight)), step)
        merged += noise
    merged += np.float32(bias)
    return np.tanh(merged, out=merged)


def _sine(cycles: np.ndarray, step: int) -> np.ndarray:
    """Sin of the running phase: the phase at frame centres, joined by straight lines: [P] -> float32 [P * step]."""
    phase = np.cumsum(cycles) * step
    # Half a frame before the first centre and after the last one the phase stands still, as upstream's interpolation.
    before = np.concatenate([phase[:1], phase])
    slope = np.diff(before, append=phase[-1:])  # cycles from one centre to the next, [P + 1]
    ramp = (np.arange(step, dtype=np.float32) + 0.5) / np.float32(step)
    lines = np.asarray(before % 1.0, np.float32)[:, None] + np.asarray(slope, np.float32)[:, None] * ramp
    lines -= np.floor(lines)
    lines *= np.float32(2 * np.pi)
    half = step // 2
    return np.sin(lines, out=lines).reshape(-1)[half : half + cycles.shape[0] * step]


def source_spectrum(source: np.ndarray, config: KokoroConfig) -> np.ndarray:
    """Magnitudes and phases of the source's short Fourier frames: float32 [S] -> [S / hop + 1, n_fft + 2]."""
    n_fft, hop = config.istft.n_fft, config.istft.hop
    padded = np.pad(source, n_fft // 2, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, n_fft)[::hop] * _window(n_fft)
    spectrum = np.fft.rfft(frames, axis=-1)
    return np.concatenate([np.abs(spectrum), np.angle(spectrum)], axis=-1).astype(np.float32)


@lru_cache(maxsize=4)
def inverse_basis(n_fft: int) -> np.ndarray:
    """The windowed inverse transform as a matrix: (real and imaginary parts) [n_fft + 2] -> samples [n_fft]."""
    bins = n_fft // 2 + 1
    angle = 2 * np.pi * np.outer(np.arange(bins), np.arange(n_fft)) / n_fft
    weight = np.full((bins, 1), 2.0)
    weight[0] = weight[-1] = 1.0
    real, imaginary = weight * np.cos(angle), -weight * np.sin(angle)
    imaginary[0] = imaginary[-1] = 0.0  # as every real inverse transform, whatever the phase there
    return np.asarray(np.concatenate([real, imaginary]) / n_fft * _window(n_fft), np.float32)


@lru_cache(maxsize=32)
def inverse_envelope(frames: int, n_fft: int, hop: int) -> np.ndarray:
    """One over the sum of squared windows at each sample kept: float32 [(frames - 1) * hop]."""
    squared = _window(n_fft).astype(np.float64) ** 2
    steps = n_fft // hop
    total = np.zeros((frames + steps - 1, hop))
    for j in range(steps):
        total[j : j + frames] += squared[j * hop : (j + 1) * hop]
    kept = total.reshape(-1)[n_fft // 2 : -(n_fft // 2)]  # the edges, where the sum reaches zero, are trimmed off
    return np.asarray(1.0 / kept, np.float32)


def inverse_envelopes(counts: Sequence[int], n_fft: int, hop: int) -> np.ndarray:
    """`inverse_envelope` of several signals, float32 [B, S] with zeros after the end of each."""
    rows = [inverse_envelope(count, n_fft, hop) for count in counts]
    longest = max(row.size for row in rows)
    return np.stack([np.pad(row, (0, longest - row.size)) for row in rows])


@lru_cache(maxsize=4)
def _window(n_fft: int) -> np.ndarray:
    return np.asarray(0.5 - 0.5 * np.cos(2 * np.pi * np.arange(n_fft) / n_fft), np.float32)  # periodic Hann
