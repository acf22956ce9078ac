"""Decoding: tells a format by its first bytes, reads WAV itself and everything else through PyAV (FFmpeg).

The demuxer is named explicitly from the magic bytes, never probed: FFmpeg's own probing would also try playlist
formats, whose text can name other files and addresses.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np

from izwi_lab import audio_wav
from izwi_lab.errors import AudioError, MissingExtraError

READABLE = "wav, flac, mp3, ogg (opus, vorbis), m4a/mp4, aac, webm/mkv, aiff, caf"
_HEAD_BYTES = 4096
# Streams that resynchronise at every frame and declare no length: a torn first or last frame is normal in them.
_SELF_SYNCHRONISING = ("mp3", "aac")
# Containers whose header states the true duration, so that a shorter decode means a cut file.
_DURATION_IN_HEADER = ("flac", "mov", "matroska", "aiff", "caf")
_SHORTFALL_S = 0.15  # encoders pad and trim within a few frames; more is missing audio


def sniff(head: bytes) -> str | None:
    """FFmpeg's name of the demuxer for these first bytes; None when they are no audio format we read."""
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "wav"
    if head[:3] == b"ID3" and len(head) >= 10:
        size = (head[6] & 127) << 21 | (head[7] & 127) << 14 | (head[8] & 127) << 7 | head[9] & 127
        after = head[10 + size :]
        return "flac" if after[:4] == b"fLaC" else "aac" if _adts(after) else "mp3"
    for start, magic, name in (
        (0, b"fLaC", "flac"), (0, b"OggS", "ogg"), (4, b"ftyp", "mov"), (0, b"\x1a\x45\xdf\xa3", "matroska"),
        (0, b"caff", "caf"),
    ):  # fmt: skip
        if head[start : start + len(magic)] == magic:
            return name
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return "aiff"
    if _adts(head):
        return "aac"
    return "mp3" if _mpeg_frame(head) else None


def _mpeg_frame(head: bytes) -> bool:
    """An MPEG audio frame header of layer III or II (ISO/IEC 11172-3), with a bit rate and a sample rate that exist."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 not in (0xE2, 0xE4):
        return False
    return head[1] & 0x18 != 0x08 and head[2] >> 4 not in (0, 15) and head[2] & 0x0C != 0x0C


def _adts(head: bytes) -> bool:
    return len(head) >= 4 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0


def decode(file: BinaryIO, *, name: str, max_s: float, allow_damaged: bool = False) -> tuple[np.ndarray, int]:
    """Decode a seekable file from its start: (float32 [S] mono, rate in hertz).

    name: how messages call the input. allow_damaged: keep what can be decoded of a cut or corrupt file.
    """
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    if not head:
        raise AudioError(f"{name} is empty (0 bytes).", hint="Record or copy it again.")
    kind = sniff(head)
    if kind is None:
        raise _not_audio(name, head)
    if kind == "wav":
        header = audio_wav.read_header(file)
        if header.format.plain:
            samples = audio_wav.read_samples(file, header, max_s=max_s, allow_damaged=allow_damaged)
            return _checked(samples, header.format.rate_hz, name)
        file.seek(0)
    samples, rate_hz = _decode_av(file, kind, head, name=name, max_s=max_s, allow_damaged=allow_damaged)
    return _checked(samples, rate_hz, name)


def _not_audio(name: str, head: bytes) -> AudioError:
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 or byte >= 128 for byte in head)
    if printable == len(head):
        start = head[:24].decode("utf-8", "replace")
        return AudioError(
            f"{name} is a text file, not audio: it starts with {start!r}.", hint="Check that you passed the right file."
        )
    return AudioError(
        f"{name} is no audio format that can be read: it starts with the bytes {head[:8].hex(' ')}.",
        hint=f"Readable are {READABLE}. Convert it to one of these.",
    )


def _checked(samples: np.ndarray, rate_hz: int, name: str) -> tuple[np.ndarray, int]:
    if not samples.size:
        raise AudioError(f"{name} holds no samples (0 s of audio).", hint="Record or export it again.")
    if not np.isfinite(samples).all():
        bad = int(np.count_nonzero(~np.isfinite(samples)))
        first_s = int(np.argmin(np.isfinite(samples))) / rate_hz
        raise AudioError(
            f"{name} holds {bad} samples that are NaN or infinite, the first at {first_s:.3f} s.",
            hint="Export it again; such samples come from a fault in the program that wrote it.",
        )
    return samples, rate_hz


def load_av() -> Any:
    """PyAV, or the error that names the extra."""
    try:
        return importlib.import_module("av")
    except ImportError as error:
        raise MissingExtraError("PyAV (av)", "audio") from error


def _decode_av(
    file: BinaryIO, kind: str, head: bytes, *, name: str, max_s: float, allow_damaged: bool
) -> tuple[np.ndarray, int]:
    av = load_av()
    try:
        container = av.open(file, mode="r", format=kind, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise AudioError(
            f"{name} looks like {kind} but cannot be opened: {_reason(error)}.",
            hint="It may be cut or damaged; copy it again or convert it to WAV or FLAC.",
        ) from error
    with container:
        if not container.streams.audio:
            raise AudioError(f"{name} ({kind}) has no audio track.", hint="Pass a file with sound in it.")
        stream = container.streams.audio[0]
        if kind == "flac":  # its frames carry checksums, which FFmpeg ignores unless told
            stream.codec_context.options = {"err_detect": "crccheck+explode"}
        decoder = _Packets(container, stream, max_s)
        samples = decoder.run()
        problem = decoder.damage(kind)
        rate_hz = decoder.rate_hz or 1  # nothing was decoded
        counted = kind == "mp3" and (b"Xing" in head or b"Info" in head)  # LAME's tag holds the number of frames
        if problem is None and (counted or kind in _DURATION_IN_HEADER):
            problem = _shortfall(container, stream, len(samples) / rate_hz, exact=kind == "flac")
    if problem is None and kind == "ogg":
        problem = _ogg_tail(file)
    if problem is not None and not allow_damaged:
        raise AudioError(
            f"{name} ({kind}) is damaged: {problem}.",
            hint="Copy it again, or pass allow_damaged=True to use what can be decoded.",
        )
    return samples, rate_hz


def _reason(error: Exception) -> str:
    return str(getattr(error, "strerror", None) or error)


class _Packets:
    """Decodes the packets of one stream, counting those that cannot be decoded, up to the cap."""

    def __init__(self, container: Any, stream: Any, max_s: float) -> None:
        self.container, self.stream, self.max_s = container, stream, max_s
        self.rate_hz = 0
        self.packets = 0
        self.bad: list[tuple[int, str]] = []
        self.ended_early: str | None = None

    def run(self) -> np.ndarray:
        blocks: list[np.ndarray] = []
        total = 0
        for frame in self._frames():
            if self.rate_hz and frame.sample_rate != self.rate_hz:
                raise AudioError(
                    f"The sample rate changes inside the file, from {self.rate_hz} to {frame.sample_rate} Hz.",
                    hint="Convert it to WAV or FLAC of one rate.",
                )
            self.rate_hz = int(frame.sample_rate)
            blocks.append(_frame_to_mono(frame))
            total += len(blocks[-1])
            if total > self.max_s * self.rate_hz:
                raise audio_wav.too_long(total / self.rate_hz, self.max_s)
        return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)

    def _frames(self) -> Iterator[Any]:
        av = load_av()
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as error:
                self.ended_early = _reason(error)
                return
            self.packets += 1
            try:
                yield from packet.decode()
            except av.FFmpegError as error:
                self.bad.append((self.packets - 1, _reason(error)))

    def damage(self, kind: str) -> str | None:
        """What is wrong with the stream, in words; None when nothing is."""
        if self.ended_early:
            return f"reading stopped with {self.ended_early!r}"
        # The demuxer ends with one empty packet that flushes the decoder, hence the two last indices.
        edges = {0, self.packets - 1, self.packets - 2} if kind in _SELF_SYNCHRONISING else set()
        bad = [why for index, why in self.bad if index not in edges]
        return f"{len(bad)} of {self.packets} packets cannot be decoded ({bad[0]})" if bad else None


def _frame_to_mono(frame: Any) -> np.ndarray:
    """An FFmpeg frame to float32 [S]: full scale of its sample format to +-1, channels averaged."""
    values = frame.to_ndarray()  # planar [C, S], packed [1, S * C]
    if not frame.format.is_planar:
        values = values.reshape(-1, len(frame.layout.channels)).T
    if values.dtype == np.uint8:
        values = (values.astype(np.float32) - 128.0) / 128.0
    elif values.dtype.kind == "i":
        values = values / float(2 ** (8 * values.dtype.itemsize - 1))
    return np.ascontiguousarray(values.mean(axis=0) if len(values) > 1 else values[0], np.float32)


def _shortfall(container: Any, stream: Any, decoded_s: float, *, exact: bool) -> str | None:
    if stream.duration is not None:
        promised_s = float(stream.duration * stream.time_base)
    elif container.duration is not None:
        promised_s = container.duration / 1e6  # AV_TIME_BASE
    else:
        return None
    if decoded_s >= promised_s - (1e-4 if exact else max(_SHORTFALL_S, 0.01 * promised_s)):
        return None
    return f"its header promises {promised_s:.2f} s, {decoded_s:.2f} s are there"


def _ogg_tail(file: BinaryIO) -> str | None:
    """An Ogg file is made of pages (RFC 3533); a cut one ends inside its last page."""
    file.seek(0, 2)
    end = file.tell()
    start = max(0, end - 2 * 65307)  # a page has at most 65307 bytes
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    while page >= 0:
        count = tail[page + 26] if page + 26 < len(tail) else None
        if count is not None and len(tail) >= page + 27 + count:
            whole = page + 27 + count + sum(tail[page + 27 : page + 27 + count])
            return None if whole <= len(tail) else "its last page is cut"
        return "its last page is cut"
    return "no page starts near its end"
