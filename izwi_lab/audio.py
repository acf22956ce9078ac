"""Audio: mono float32 samples with their rate, from any common file and to any common format.

Shapes: S samples, C channels. Full scale is +-1. Everything is mono: several channels are averaged on the way in.
"""

from __future__ import annotations

import io
import math
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from izwi_lab import audio_encoding, audio_formats, rendering
from izwi_lab.errors import AudioError

MAX_S = 4 * 3600.0
MAX_BYTES = 2 << 30
FULL_SCALE = 32767 / 32768  # the largest value a 16-bit file can hold; samples at it were most likely cut off
_MAX_CHANNELS = 64
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Audio:
    """A clip. samples: float32 [S], +-1 is full scale; rate_hz: samples per second. Treat both as read-only.

    >>> clip = Audio.silence(0.5, 16000)
    >>> clip.duration_s
    0.5
    >>> clip
    Audio(0.50 s, 16 kHz, silent)
    """

    samples: np.ndarray
    rate_hz: int

    def __post_init__(self) -> None:
        samples = np.asarray(self.samples)
        if samples.ndim != 1 or samples.dtype.kind != "f":
            raise AudioError(
                f"Audio expects float samples [S], got {samples.dtype} {list(samples.shape)}.",
                hint="Audio.from_samples converts integers and channels.",
            )
        object.__setattr__(self, "rate_hz", _whole_rate(self.rate_hz))
        object.__setattr__(self, "samples", np.ascontiguousarray(samples, np.float32))

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        max_s: float = MAX_S,
        max_bytes: int = MAX_BYTES,
        allow_damaged: bool = False,
    ) -> Self:
        """Decode wav, flac, mp3, ogg (opus, vorbis), m4a, aac, webm, aiff or caf, told apart by content, not by name.

        source: a path, the bytes of a file, or an open binary file (read from where it stands).
        max_s, max_bytes: caps, enforced while reading. allow_damaged: keep what can be decoded of a cut file.

        Raises:
            AudioError: not audio, empty, cut, damaged, NaN samples, or over a cap; the message says what to do.
            MissingExtraError: the format needs PyAV (plain WAV does not).
        """
        if isinstance(source, (str, os.PathLike)):
            return cls._open_path(expanded(source), max_s, max_bytes, allow_damaged)
        if isinstance(source, (bytes, bytearray, memoryview)):
            name, body = "The audio", bytes(source)
            if len(body) > max_bytes:
                raise _too_big(name, len(body), max_bytes)
        else:
            if not callable(getattr(source, "read", None)):
                raise AudioError(
                    f"Audio.open expects a path, bytes or an open binary file, got {type(source).__name__}.",
                    hint="Of a Speech give its .audio. Audio.from_samples takes arrays.",
                )
            name = repr(str(source.name)) if isinstance(getattr(source, "name", None), str) else "The audio"
            body = _read_capped(source, name, max_bytes)
        return cls(*audio_formats.decode(io.BytesIO(body), name=name, max_s=max_s, allow_damaged=allow_damaged))

    @classmethod
    def _open_path(cls, path: Path, max_s: float, max_bytes: int, allow_damaged: bool) -> Self:
        name = repr(str(path))
        try:
            if not path.exists():
                raise AudioError(f"There is no file {name}.", hint="Check the path.")
            if path.is_dir():
                raise AudioError(f"{name} is a folder.", hint="Pass one audio file.")
            with path.open("rb") as file:
                if not file.seekable():  # a FIFO or /dev/stdin
                    body = _read_capped(file, name, max_bytes)
                    return cls.open(body, max_s=max_s, max_bytes=max_bytes, allow_damaged=allow_damaged)
                if (size := path.stat().st_size) > max_bytes:
                    raise _too_big(name, size, max_bytes)
                return cls(*audio_formats.decode(file, name=name, max_s=max_s, allow_damaged=allow_damaged))
        except OSError as error:
            raise AudioError(f"{name} cannot be read: {error.strerror}.", hint="Check the path.") from error

    @classmethod
    def from_samples(cls, samples: Any, rate_hz: int) -> Self:
        """Check and convert an array: float or integer, [S] or [S, C] (channels last, averaged).

        Integers are scaled by their width, uint8 is offset by 128. Raises AudioError on NaN, infinity, an empty
        array, or a shape that is not one of these.
        """
        try:
            array = np.asarray(samples)
        except ValueError as error:  # lists of unequal length
            raise AudioError(
                f"from_samples expects an array: {error}.", hint="Pad the channels to one length."
            ) from error
        if array.ndim == 2 and 0 < array.shape[1] <= _MAX_CHANNELS:
            mono = _to_float(array).mean(axis=1)
        elif array.ndim == 1:
            mono = _to_float(array)
        else:
            raise AudioError(
                f"from_samples expects [S] or [S, C] with at most {_MAX_CHANNELS} channels, got {list(array.shape)}.",
                hint="Transpose [C, S] arrays.",
            )
        if not mono.size:
            raise AudioError("The array holds no samples (0 s of audio).", hint="Record or load it again.")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            mono = mono.astype(np.float32)
        if not np.isfinite(mono).all():
            bad = int(np.count_nonzero(~np.isfinite(mono)))
            raise AudioError(
                f"The array holds {bad} samples that are NaN or infinite.", hint="Find the step that made them."
            )
        return cls(mono, rate_hz)

    @classmethod
    def silence(cls, seconds: float, rate_hz: int) -> Self:
        """Zeros."""
        if not 0 <= seconds <= MAX_S:
            raise AudioError(f"silence expects 0 to {MAX_S:.0f} seconds, got {seconds}.")
        rate_hz = _whole_rate(rate_hz)
        return cls(np.zeros(round(seconds * rate_hz), np.float32), rate_hz)

    @classmethod
    def concat(cls, clips: Iterable[Audio]) -> Self:
        """Clips of one rate, one after the other."""
        parts = list(clips)
        rates = sorted({clip.rate_hz for clip in parts})
        if len(rates) != 1:
            raise AudioError(
                f"concat expects one or more clips of equal rate, got {len(parts)} clips with rates {rates}.",
                hint="Call resample() on them first.",
            )
        return cls(np.concatenate([clip.samples for clip in parts]), rates[0])

    @property
    def duration_s(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.rate_hz

    @property
    def peak(self) -> float:
        """The largest absolute sample; 0 for no samples."""
        return float(np.max(np.abs(self.samples), initial=0.0))

    @property
    def peak_dbfs(self) -> float:
        """The peak in decibels relative to full scale; -inf for silence."""
        peak = self.peak
        return 20.0 * math.log10(peak) if peak > 0 else -math.inf

    @property
    def clipped(self) -> int:
        """How many samples are at or over full scale."""
        return int(np.count_nonzero(np.abs(self.samples) >= FULL_SCALE))

    def between(self, start_s: float, end_s: float | None = None) -> Self:
        """The part from start_s to end_s (default: to the end), cut to what exists. A view, not a copy."""
        end_s = self.duration_s if end_s is None else end_s
        if not 0 <= start_s <= end_s:
            raise AudioError(f"between expects 0 <= start_s <= end_s, got {start_s} and {end_s}.")
        start, stop = (round(min(second, self.duration_s) * self.rate_hz) for second in (start_s, end_s))
        return type(self)(self.samples[start:stop], self.rate_hz)

    def resample(self, rate_hz: int) -> Self:
        """The same sound at another rate, band-limited (soxr, HQ: no aliases above -100 dB)."""
        rate_hz = _whole_rate(rate_hz)
        if rate_hz == self.rate_hz:
            return self
        if not len(self.samples):
            return type(self)(self.samples, rate_hz)
        resampled = audio_encoding.load_soxr().resample(self.samples, self.rate_hz, rate_hz, quality="HQ")
        return type(self)(resampled, rate_hz)

    def encode(self, format: str = "wav", *, float32: bool = False, bitrate: int | None = None) -> bytes:
        """The bytes of a file: wav, flac, mp3, opus (in Ogg), aac (ADTS), m4a, or pcm (raw 16-bit).

        float32: 32-bit float samples, wav and pcm only. bitrate: bits per second, lossy formats only. Samples over
        full scale are limited, never wrapped; `clipped` counts them beforehand.
        """
        sink = io.BytesIO()
        audio_encoding.encode(self, format, sink, float32=float32, bitrate=bitrate)
        return sink.getvalue()

    def save(self, path: str | os.PathLike[str], format: str | None = None, *, bitrate: int | None = None) -> Path:
        """Write a file, in the format its suffix asks for unless `format` says otherwise. Returns the path.

        The file appears whole or not at all: it is written beside its place and then moved there.
        """
        target = expanded(path)
        kind = audio_encoding.format_name(format) if format else audio_encoding.format_of(target)
        partial = target.with_name(f".{target.name}.{os.getpid()}-{threading.get_ident()}.partial")
        try:
            with partial.open("wb") as file:
                audio_encoding.encode(self, kind, file, bitrate=bitrate)
            partial.replace(target)
        except (OSError, ValueError) as error:  # ValueError: a name with a NUL in it
            if isinstance(error, AudioError):
                raise
            raise AudioError(
                f"Cannot write {str(target)!r}: {getattr(error, 'strerror', None) or error}.",
                hint="Check the folder and the free space.",
            ) from error
        finally:
            with suppress(OSError, ValueError):  # a name that could not be made cannot be removed either
                partial.unlink(missing_ok=True)
        return target

    def play(self, *, embed: bool | None = None) -> rendering.Player:
        """A player for a notebook: static HTML that a saved, untrusted notebook keeps.

        embed: put the sound into the page; by default only up to 120 s, since it is stored with the notebook.
        """
        return rendering.Player(self, embed=embed)

    def __len__(self) -> int:
        return len(self.samples)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Audio):
            return NotImplemented
        return self.rate_hz == other.rate_hz and np.array_equal(self.samples, other.samples)

    def __hash__(self) -> int:
        return hash((self.rate_hz, len(self.samples)))

    def __repr__(self) -> str:
        return f"Audio({rendering.describe_audio(self)})"

    def _repr_html_(self) -> str:
        return rendering.audio_html(self)


def _whole_rate(rate_hz: Any) -> int:
    if isinstance(rate_hz, (int, float, np.number)) and 0 < rate_hz < math.inf and int(rate_hz) == rate_hz:
        return int(rate_hz)
    raise AudioError(f"rate_hz expects a positive whole number, got {rate_hz!r}.", hint="Rates are in hertz: 24000.")


def expanded(path: str | os.PathLike[str]) -> Path:
    """With the home folder for "~"; the name of an unknown user stays as it is, and is then not found."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError there


def _to_float(array: np.ndarray) -> np.ndarray:
    """Integers to +-1 by their width; floats as they are."""
    if array.dtype.kind == "f":
        return array
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128.0) / 128.0
    if array.dtype.kind == "i":
        return array.astype(np.float64) / float(2 ** (8 * array.dtype.itemsize - 1))
    raise AudioError(f"from_samples expects float or signed integer samples, got {array.dtype}.")


def _read_capped(file: BinaryIO, name: str, max_bytes: int) -> bytes:
    parts, total = [], 0
    while part := file.read(_READ_BYTES):
        if not isinstance(part, bytes):
            raise AudioError(f"{name} is open as text, not as bytes.", hint="Open it with mode 'rb'.")
        parts.append(part)
        total += len(part)
        if total > max_bytes:
            raise _too_big(name, total, max_bytes)
    return b"".join(parts)


def _too_big(name: str, size: int, max_bytes: int) -> AudioError:
    return AudioError(
        f"{name} has at least {size:,} bytes, more than the cap of {max_bytes:,}.", hint="Cut it, or raise max_bytes."
    )
