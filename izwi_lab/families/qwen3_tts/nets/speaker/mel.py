"""Log-mel features of the speaker encoder, in numpy.

Source: qwen-tts 0.1.1, `mel_spectrogram` of modeling_qwen3_tts.py with the constants of `extract_speaker_embedding`:
24 kHz, 1024-sample periodic Hann windows every 256 samples, (1024 - 256) / 2 samples reflected at each end and no
further centring, magnitudes sqrt(re^2 + im^2 + 1e-9), Slaney mel filters 0-12000 Hz, natural logarithm floored at 1e-5.
Shapes: S samples, F frames, M mel bins.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from izwi_lab.families.shared.mel import mel_filters

N_FFT = 1024
HOP = 256
RATE_HZ = 24_000
MARGIN = (N_FFT - HOP) // 2  # samples reflected at each end; a clip must be longer
_POWER_FLOOR, _MEL_FLOOR = 1e-9, 1e-5
_BLOCK = 2048  # frames at a time: bounds the memory of the spectrum


def speaker_mel(samples: np.ndarray, bins: int = 128) -> np.ndarray:
    """Samples float32 [S] at 24 kHz, S > MARGIN -> features float32 [F, M], F = S // 256."""
    padded = np.pad(np.asarray(samples, np.float32), MARGIN, mode="reflect")
    view = np.lib.stride_tricks.sliding_window_view(padded, N_FFT)[::HOP]
    filters = mel_filters(bins, n_fft=N_FFT, rate_hz=RATE_HZ)
    out = np.empty((len(view), bins), np.float32)
    for start in range(0, len(view), _BLOCK):
        spectrum = np.fft.rfft(view[start : start + _BLOCK] * _window(), axis=-1)
        magnitude = np.sqrt(spectrum.real**2 + spectrum.imag**2 + _POWER_FLOOR).astype(np.float32)
        out[start : start + _BLOCK] = np.log(np.maximum(magnitude @ filters, _MEL_FLOOR))
    return out


@lru_cache(maxsize=1)
def _window() -> np.ndarray:
    n = np.arange(N_FFT)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / N_FFT)).astype(np.float32)
