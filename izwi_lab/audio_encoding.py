"""Encoding, whole or in pieces: wav and pcm by hand, flac, mp3, opus, aac and m4a through PyAV (FFmpeg).

`Encoder` writes to any object with `write`. To a seekable file the sizes in the header are put right at the end; to
a pipe, or to a `Drain` whose bytes go out over a socket, each format uses its streaming form.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from izwi_lab.audio_writers import AvWriter, PlainWriter
from izwi_lab.errors import AudioError, MissingExtraError

if TYPE_CHECKING:
    from izwi_lab.audio import Audio


@dataclass(frozen=True, slots=True)
class Format:
    """How a format is made. container and codec are FFmpeg's names, empty for those written by hand."""

    mime: str
    container: str = ""
    codec: str = ""
    rates_hz: tuple[int, ...] = ()  # what the codec takes; empty: any
    bitrate: int = 0


_MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
_AAC_RATES_HZ = (16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)  # below, a frame is over 64 ms
_OPUS_RATES_HZ = (8000, 12000, 16000, 24000, 48000)

_MIN_BITRATE, _MAX_BITRATE = 8_000, 256_000  # what mp3, opus and aac all take for one channel

FORMATS: dict[str, Format] = {
    "wav": Format("audio/wav"),
    "pcm": Format("audio/pcm"),
    "flac": Format("audio/flac", "flac", "flac"),
    "mp3": Format("audio/mpeg", "mp3", "libmp3lame", _MP3_RATES_HZ, 96_000),
    "opus": Format("audio/ogg; codecs=opus", "ogg", "libopus", _OPUS_RATES_HZ, 48_000),
    "aac": Format("audio/aac", "adts", "aac", _AAC_RATES_HZ, 96_000),
    "m4a": Format("audio/mp4", "ipod", "aac", _AAC_RATES_HZ, 96_000),
}
ALIASES = {"wave": "wav", "ogg": "opus", "oga": "opus", "raw": "pcm", "mp4": "m4a", "s16le": "pcm"}


def format_name(name: str) -> str:
    """The key of FORMATS for a format name, a suffix or an alias; raises AudioError when there is none."""
    key = name.lower().lstrip(".") if isinstance(name, str) else ""
    key = ALIASES.get(key, key)
    if key not in FORMATS:
        raise AudioError(f"Cannot write audio as {name!r}.", hint=f"Choose one of {', '.join(FORMATS)}.")
    return key


def format_of(path: str | Path) -> str:
    """The format a file name asks for by its suffix."""
    suffix = Path(path).suffix
    if not suffix:
        raise AudioError(
            f"The file name {str(path)!r} has no suffix to tell the format by.", hint="Add .wav or pass format=."
        )
    return format_name(suffix)


class Sink(Protocol):
    """Where encoded bytes go: an open binary file, a Drain, or anything with `write`."""

    def write(self, data: bytes, /) -> Any:
        """Take the bytes."""


class Drain:
    """A sink that is emptied as it fills: what a server sends out after each piece."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes, /) -> int:
        """Keep a copy of the bytes."""
        self._parts.append(bytes(data))
        return len(data)

    def take(self) -> bytes:
        """What came since the last call."""
        data, self._parts = b"".join(self._parts), []
        return data


class Encoder:
    """Encodes mono audio piece by piece into `sink`.

    rate_hz: of the pieces; a codec that lacks this rate gets the next higher one it has (resampled with state, so
    pieces join without seams). float32: 32-bit float samples, for wav and pcm only. bitrate: bits per second, lossy
    formats only. `clipped` counts the samples that were over full scale; they are limited, never wrapped.

    >>> import io
    >>> from izwi_lab.audio import Audio
    >>> sink = io.BytesIO()
    >>> with Encoder(sink, "wav", 24000) as encoder:
    ...     encoder.write(Audio.silence(0.5, 24000))
    >>> len(sink.getvalue())
    24044
    """

    def __init__(
        self, sink: Sink, format: str, rate_hz: int, *, float32: bool = False, bitrate: int | None = None
    ) -> None:
        self.format = format_name(format)
        self.rate_hz = rate_hz
        self.clipped = 0
        self._resampler: Any = None
        spec = FORMATS[self.format]
        if float32 and spec.container:
            raise AudioError(f"float32 samples are for wav and pcm, not for {self.format}.", hint="Leave float32 out.")
        if bitrate is not None and not spec.bitrate:
            raise AudioError(f"{self.format} keeps every sample and takes no bitrate.", hint="Leave bitrate out.")
        if bitrate is not None and not (isinstance(bitrate, int) and _MIN_BITRATE <= bitrate <= _MAX_BITRATE):
            raise AudioError(
                f"bitrate expects {_MIN_BITRATE} to {_MAX_BITRATE} bits per second, got {bitrate!r}.",
                hint="64000 is plenty for speech.",
            )
        if spec.container:
            out_hz = _codec_rate(rate_hz, spec)
            self._writer: PlainWriter | AvWriter = AvWriter(
                sink, spec.container, spec.codec, out_hz, bitrate or spec.bitrate
            )
            if out_hz != rate_hz:
                self._resampler = load_soxr().ResampleStream(rate_hz, out_hz, 1, dtype="float32")
        else:
            self._writer = PlainWriter(sink, rate_hz, header=self.format == "wav", float32=float32)
        self._float32, self._open = float32, True

    def write(self, audio: Audio) -> None:
        """Append a piece of the encoder's rate. Raises AudioError for another rate, and for NaN or infinite samples."""
        if audio.rate_hz != self.rate_hz:
            raise AudioError(f"This encoder takes {self.rate_hz} Hz, the piece has {audio.rate_hz} Hz.")
        samples = audio.samples
        if not np.isfinite(samples).all():
            raise AudioError("The audio holds samples that are NaN or infinite.", hint="Find the step that made them.")
        if not self._float32:
            self.clipped += int(np.count_nonzero(np.abs(samples) > 1.0))
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples)
        self._writer.write(samples)

    def close(self) -> None:
        """Flush the codec and, where the sink can seek, put the sizes in the header right. Leaves the sink open."""
        if not self._open:
            return
        self._open = False
        if self._resampler is not None:
            self._writer.write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def encode(audio: Audio, format: str, sink: Sink, *, float32: bool = False, bitrate: int | None = None) -> int:
    """Encode a whole clip into sink; returns how many samples had to be clipped. Lossy formats need a sample."""
    if not len(audio) and FORMATS[format_name(format)].bitrate:
        raise AudioError(f"There are no samples to write as {format}.", hint="An empty clip can be a wav or a flac.")
    with Encoder(sink, format, audio.rate_hz, float32=float32, bitrate=bitrate) as encoder:
        encoder.write(audio)
    return encoder.clipped


def load_soxr() -> Any:
    """The resampler, or the error that names the extra."""
    try:
        return importlib.import_module("soxr")
    except ImportError as error:
        raise MissingExtraError("soxr", "audio") from error


def _codec_rate(rate_hz: int, spec: Format) -> int:
    if not spec.rates_hz or rate_hz in spec.rates_hz:
        return rate_hz
    return min((rate for rate in spec.rates_hz if rate > rate_hz), default=spec.rates_hz[-1])
