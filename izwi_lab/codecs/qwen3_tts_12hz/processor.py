"""What may go into the codec: codes and audio, checked before anything is computed."""

from __future__ import annotations

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.codecs.qwen3_tts_12hz.config import CodecConfig
from izwi_lab.errors import AudioError, InvalidInputError


def checked_codes(codes: np.ndarray, config: CodecConfig) -> np.ndarray:
    """Codes as int32 [K, F]. Raises InvalidInputError for another shape, another type, or a code out of range."""
    k, size = config.codebooks, config.decoder.codebook_size
    array = np.asarray(codes)
    if array.ndim != 2 or array.shape[0] != k:
        raise InvalidInputError(
            f"The codec expects codes [{k}, F], one row for each codebook, got {list(array.shape)}.",
            hint="Transpose frames-first codes: codes.T." if array.ndim == 2 and array.shape[1] == k else "",
        )
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"The codec expects whole numbers, got {array.dtype}.", hint="Use int32.")
    if array.size and not (array.min() >= 0 and array.max() < size):
        book, frame = (int(i) for i in np.argwhere((array < 0) | (array >= size))[0])
        raise InvalidInputError(
            f"Code {int(array[book, frame])} of codebook {book} in frame {frame} is out of range.",
            hint=f"Expected 0 to {size - 1}; end and padding tokens are no codes and must be cut off.",
        )
    return np.ascontiguousarray(array, np.int32)


def checked_samples(audio: Audio, config: CodecConfig) -> np.ndarray:
    """Samples at the codec's rate, float32 [S].

    Raises:
        InvalidInputError: no Audio.
        AudioError: empty audio, NaN or infinity.
    """
    if not isinstance(audio, Audio):
        raise InvalidInputError(f"An Audio was expected, got {audio!r:.80}.", hint="Audio.open(path) reads a file.")
    if audio.samples.size == 0:
        raise AudioError("The audio is empty.", hint="Expected at least one sample.")
    if not np.isfinite(audio.samples).all():
        raise AudioError("The audio holds NaN or infinite samples.", hint="Check how it was decoded or computed.")
    found = audio if audio.rate_hz == config.rate_hz else audio.resample(config.rate_hz)
    return found.samples
