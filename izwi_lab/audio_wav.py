"""WAV without any decoder package: reads PCM and float of every width, writes 16-bit PCM or 32-bit float.

Layout: RIFF/WAVE chunks as in Microsoft's "Multimedia Programming Interface" (1991), WAVE_FORMAT_EXTENSIBLE, and RF64
(EBU Tech 3306) for files over 4 GiB.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from izwi_lab.errors import AudioError

PCM, FLOAT, EXTENSIBLE = 1, 3, 0xFFFE
UNKNOWN_SIZE = 0xFFFFFFFF  # what a writer that cannot seek back puts where a size belongs
_BLOCK_BYTES = 1 << 22  # read and converted at a time: a long file never exists twice in memory, and a header that
# claims 65,535 channels does not make us ask for the memory of them all


@dataclass(frozen=True, slots=True)
class WavFormat:
    """The "fmt " chunk. kind: PCM or FLOAT, or another registered number; bits: of one stored sample."""

    kind: int
    channels: int
    rate_hz: int
    bits: int

    @property
    def frame_bytes(self) -> int:
        """Bytes of one sample of every channel."""
        return self.channels * self.bits // 8

    @property
    def plain(self) -> bool:
        """True when `read` can decode it; compressed WAV (ADPCM, A-law) needs a real decoder."""
        return (self.kind == PCM and self.bits in (8, 16, 24, 32)) or (self.kind == FLOAT and self.bits in (32, 64))


@dataclass(frozen=True, slots=True)
class WavHeader:
    """Where the samples are. data_bytes is None when the writer left the size open (a stream)."""

    format: WavFormat
    data_bytes: int | None


def read_header(file: BinaryIO) -> WavHeader:
    """Read up to the first byte of samples. Raises AudioError when the chunks make no sense."""
    magic, riff_size, wave = _unpack(file, "<4sI4s")
    if magic not in (b"RIFF", b"RF64") or wave != b"WAVE":
        raise AudioError("Expected a RIFF/WAVE file, but the header says otherwise.", hint="Save it as WAV again.")
    fmt: WavFormat | None = None
    long_size: int | None = None
    while True:
        chunk, size = _unpack(file, "<4sI")
        if chunk == b"data":
            break
        body = file.read(size + size % 2)  # chunks are padded to even length
        if len(body) < size:
            raise AudioError(
                f"The WAV file ends inside its {chunk!r} chunk, before any sample.", hint="Copy or record it again."
            )
        if chunk == b"fmt ":
            fmt = _parse_format(body)
        elif chunk == b"ds64" and size >= 16:
            long_size = struct.unpack_from("<Q", body, 8)[0]
    if fmt is None:
        raise AudioError("The WAV file has no 'fmt ' chunk before its samples.", hint="Save it as WAV again.")
    if size == UNKNOWN_SIZE:
        return WavHeader(fmt, long_size if magic == b"RF64" else None)
    # Recorders that were streamed through a pipe leave 0 in both places.
    return WavHeader(fmt, None if size == 0 and riff_size in (0, UNKNOWN_SIZE) else size)


def _unpack(file: BinaryIO, layout: str) -> tuple[Any, ...]:
    body = file.read(struct.calcsize(layout))
    if len(body) < struct.calcsize(layout):
        raise AudioError("The WAV file ends before its samples begin.", hint="It was cut; copy or record it again.")
    return struct.unpack(layout, body)


def _parse_format(body: bytes) -> WavFormat:
    if len(body) < 16:
        raise AudioError(f"The WAV 'fmt ' chunk should hold 16 bytes or more, it holds {len(body)}.")
    kind, channels, rate_hz, _, _, bits = struct.unpack_from("<HHIIHH", body)
    if kind == EXTENSIBLE and len(body) >= 26:
        kind = struct.unpack_from("<H", body, 24)[0]  # the first two bytes of the sub-format GUID
    if channels == 0 or rate_hz == 0 or bits == 0:
        raise AudioError(f"The WAV header makes no sense: {channels} channels, {rate_hz} Hz, {bits} bits.")
    return WavFormat(kind, channels, rate_hz, bits)


def read_samples(file: BinaryIO, header: WavHeader, *, max_s: float, allow_damaged: bool = False) -> np.ndarray:
    """Read and downmix what follows the header: float32 [S], +-1 is full scale.

    Raises:
        AudioError: the file ends early (unless allow_damaged), or holds more than max_s seconds.
    """
    fmt = header.format
    cap_frames = int(max_s * fmt.rate_hz)
    promised = None if header.data_bytes is None else header.data_bytes // fmt.frame_bytes
    if promised is not None and promised > cap_frames:
        raise too_long(promised / fmt.rate_hz, max_s)
    blocks: list[np.ndarray] = []
    frames = 0
    block_frames = max(1, _BLOCK_BYTES // fmt.frame_bytes)
    while promised is None or frames < promised:
        ask = block_frames if promised is None else min(block_frames, promised - frames)
        raw = _read_fully(file, ask * fmt.frame_bytes)
        got = len(raw) // fmt.frame_bytes
        blocks.append(_to_mono(raw[: got * fmt.frame_bytes], fmt))
        frames += got
        if frames > cap_frames:
            raise too_long(frames / fmt.rate_hz, max_s)
        if got < ask:
            break
    if promised is not None and frames < promised and not allow_damaged:
        raise AudioError(
            f"The WAV file is cut: its header promises {promised / fmt.rate_hz:.2f} s, "
            f"{frames / fmt.rate_hz:.2f} s are there.",
            hint="Copy it again, or pass allow_damaged=True to use what there is.",
        )
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def too_long(seconds: float, max_s: float) -> AudioError:
    """The error for audio over the cap."""
    return AudioError(
        f"The audio is at least {seconds:.0f} s long, more than the cap of {max_s:g} s.",
        hint="Cut it, or raise max_s.",
    )


def _read_fully(file: BinaryIO, count: int) -> bytes:
    """`count` bytes, or fewer only at the end: one read of a pipe or socket may bring less."""
    parts, left = [], count
    while left and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _to_mono(raw: bytes, fmt: WavFormat) -> np.ndarray:
    """Interleaved bytes to float32 [S], channels averaged."""
    if fmt.kind == FLOAT:
        values = np.frombuffer(raw, "<f4" if fmt.bits == 32 else "<f8").astype(np.float32)
    elif fmt.bits == 8:  # the only unsigned width
        values = (np.frombuffer(raw, np.uint8).astype(np.float32) - 128.0) / 128.0
    elif fmt.bits == 24:
        wide = np.zeros((len(raw) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(raw, np.uint8).reshape(-1, 3)
        values = (wide.view("<i4")[:, 0].astype(np.float64) / 2.0**31).astype(np.float32)
    else:
        integers = np.frombuffer(raw, "<i2" if fmt.bits == 16 else "<i4")
        values = (integers.astype(np.float64) / 2.0 ** (fmt.bits - 1)).astype(np.float32)
    return values if fmt.channels == 1 else values.reshape(-1, fmt.channels).mean(axis=1, dtype=np.float32)


def header_bytes(rate_hz: int, data_bytes: int | None, *, float32: bool = False) -> bytes:
    """The 44 bytes before mono samples. data_bytes None: a stream whose length is not known yet."""
    width = 4 if float32 else 2
    known = data_bytes is not None and data_bytes < UNKNOWN_SIZE - 36
    size = data_bytes if known and data_bytes is not None else UNKNOWN_SIZE
    riff = size + 36 + size % 2 if known else UNKNOWN_SIZE
    kind = FLOAT if float32 else PCM
    return struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", riff, b"WAVE", b"fmt ", 16, kind, 1, rate_hz, rate_hz * width,
                       width, width * 8, b"data", size)  # fmt: skip


def to_int16(samples: np.ndarray) -> tuple[np.ndarray, int]:
    """float32 [S] to little-endian int16 [S], and how many samples were over full scale (they are clipped)."""
    clipped = int(np.count_nonzero(np.abs(samples) > 1.0))
    return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2"), clipped
