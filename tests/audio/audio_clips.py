"""Speech-like clips, and how alike two clips are, for the tests of audio formats."""

import numpy as np

from izwi_lab.audio import Audio

LOSSLESS = ("wav", "flac")
LOSSY = ("mp3", "opus", "aac", "m4a")
DECODABLE = LOSSLESS + LOSSY


def speechlike(seconds=2.0, rate=24000, seed=0):
    """Harmonics of 120 Hz under a syllable envelope: what speech codecs are made for."""
    t = np.arange(round(seconds * rate)) / rate
    envelope = 0.5 - 0.5 * np.cos(2 * np.pi * 3 * t)
    voice = sum(np.sin(2 * np.pi * 120 * k * t + k * k) / k for k in range(1, 20))
    return Audio((0.15 * envelope * voice).astype(np.float32), rate)


def aligned_snr_db(reference, decoded):
    """SNR after the best delay and gain (codecs delay, LAME scales by 0.95)."""
    decoded = decoded.resample(reference.rate_hz)
    n = 1 << (len(reference) + len(decoded)).bit_length()
    cross = np.fft.irfft(np.fft.rfft(decoded.samples, n) * np.conj(np.fft.rfft(reference.samples, n)), n)
    delay = int(np.argmax(cross))
    delay = delay - n if delay > n // 2 else delay
    a = reference.samples[max(0, -delay) :]
    b = decoded.samples[max(0, delay) :]
    count = min(len(a), len(b))
    a, b = a[:count].astype(np.float64), b[:count].astype(np.float64)
    error = a - b * (a @ b) / (b @ b)
    return 10 * np.log10((a @ a) / (error @ error + 1e-30)), delay / reference.rate_hz
