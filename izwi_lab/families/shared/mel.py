"""Log-mel features as Whisper defines them, in numpy; also the front end of Qwen3-ASR, Voxtral and others.

Source: openai/whisper `audio.py` (log_mel_spectrogram) and transformers' WhisperFeatureExtractor: 16 kHz, 400-sample
periodic Hann windows every 160 samples, centred with reflection, power spectrum, Slaney mel filters 0-8000 Hz,
log10 floored at 1e-10, then at 8 below the loudest, then (x + 4) / 4. Equal to the latter within 1e-4.
Shapes: S samples, F frames, M mel bins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

N_FFT = 400
HOP = 160
RATE_HZ = 16_000


def whisper_log_mel(samples: np.ndarray, bins: int, *, frames: int | None = None) -> np.ndarray:
    """Samples float32 [S] at 16 kHz -> features float32 [M, F].

    frames: pad with silence (or cut) to this many, as Whisper does to 3000; default: as many as the samples fill.
    """
    wanted = len(samples) // HOP if frames is None else frames
    samples = samples[: wanted * HOP]
    # Frames past the sound see only zeros: they are filled in, not computed.
    heard = min(wanted, (len(samples) + N_FFT // 2 + HOP - 1) // HOP)
    power = _power(samples, heard, wanted * HOP)
    mel = np.maximum(power @ mel_filters(bins), 1e-10)
    log = np.log10(mel, out=mel)
    floor = (log.max() if log.size else -10.0) - 8.0
    out = np.full((bins, wanted), (max(-10.0, floor) + 4.0) / 4.0, np.float32)
    out[:, :heard] = ((np.maximum(log, floor) + 4.0) / 4.0).T
    return out


def _power(samples: np.ndarray, frames: int, total: int) -> np.ndarray:
    """Power spectrum float32 [F, 201] of the first `frames` frames of the samples padded with zeros to `total`."""
    half = N_FFT // 2
    if not frames:
        return np.zeros((0, half + 1), np.float32)
    if len(samples) > total - half:  # the mirror at the right end sees sound: fill up to the end first
        samples = np.pad(samples, (0, total - len(samples)))
    padded = np.zeros(max((frames - 1) * HOP + N_FFT, len(samples) + 2 * half), np.float32)
    padded[half : half + len(samples)] = samples
    left = samples[1 : half + 1]
    padded[half - len(left) : half] = left[::-1]
    if len(samples) == total:
        right = samples[-2 : -half - 2 : -1]
        padded[half + total : half + total + len(right)] = right
    view = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP][:frames]
    spectrum = np.fft.rfft(view * _window(), axis=-1)
    power: np.ndarray = spectrum.real**2 + spectrum.imag**2
    return power.astype(np.float32, copy=False)


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    n = np.arange(N_FFT)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)).astype(np.float32)


@lru_cache(maxsize=4)
def mel_filters(bins: int, *, n_fft: int = N_FFT, rate_hz: int = RATE_HZ) -> np.ndarray:
    """Slaney mel filters up to half the rate, float32 [n_fft / 2 + 1, M].

    Triangles of equal area, linear below 1 kHz and logarithmic above.
    """
    step, knee, ratio = 200.0 / 3.0, 1000.0, np.log(6.4) / 27.0

    def hz(mel: np.ndarray) -> np.ndarray:
        return np.where(mel < knee / step, mel * step, knee * np.exp(ratio * (mel - knee / step)))

    top = knee / step + np.log(rate_hz / 2 / knee) / ratio
    edges = hz(np.linspace(0.0, top, bins + 2))
    grid = np.linspace(0.0, rate_hz / 2, n_fft // 2 + 1)
    rise = (grid[:, None] - edges[:-2]) / (edges[1:-1] - edges[:-2])
    fall = (edges[2:] - grid[:, None]) / (edges[2:] - edges[1:-1])
    area = 2.0 / (edges[2:] - edges[:-2])
    filters: np.ndarray = np.maximum(0.0, np.minimum(rise, fall)) * area
    return filters.astype(np.float32)
