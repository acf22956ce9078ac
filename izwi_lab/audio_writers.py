"""Where encoded samples are put: plain WAV and raw samples by hand, every other container through PyAV (FFmpeg).

A sink is anything with `write`. To one that can seek, the sizes in a header are put right at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np

from izwi_lab import audio_wav
from izwi_lab.audio_formats import load_av

PAGE_US = 100_000  # of streamed Ogg pages and MP4 fragments


def seekable(sink: Any) -> bool:
    """True when the sink can go back to its start."""
    try:
        return bool(sink.seekable())
    except AttributeError:
        return False


class PlainWriter:
    """WAV (with a header) or raw little-endian samples."""

    def __init__(self, sink: Any, rate_hz: int, *, header: bool, float32: bool) -> None:
        self.sink, self.rate_hz, self.header, self.float32 = sink, rate_hz, header, float32
        self.data_bytes = 0
        self.start = sink.tell() if seekable(sink) else None
        if header:
            sink.write(audio_wav.header_bytes(rate_hz, None, float32=float32))

    def write(self, samples: np.ndarray) -> None:
        """Append float samples [S]."""
        values = samples.astype("<f4") if self.float32 else audio_wav.to_int16(samples)[0]
        self.sink.write(values.tobytes())
        self.data_bytes += values.nbytes

    def close(self) -> None:
        """Finish the file; the sink stays open."""
        if self.header and self.start is not None:
            end = self.sink.tell()
            self.sink.seek(self.start)
            self.sink.write(audio_wav.header_bytes(self.rate_hz, self.data_bytes, float32=self.float32))
            self.sink.seek(end)


class _Pipe:
    """A sink for FFmpeg that remembers why a write failed: FFmpeg itself only reports that one did."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self.error: Exception | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._sink.write(bytes(data))
            except Exception as error:
                self.error = error
                raise
        return len(data)


class _File(_Pipe):
    """A sink that can be rewound to put a header right."""

    def __init__(self, sink: Any) -> None:
        super().__init__(sink)
        self.seek, self.tell, self.seekable = sink.seek, sink.tell, sink.seekable


class AvWriter:
    """One audio stream in one FFmpeg container."""

    def __init__(self, sink: Any, container: str, codec: str, rate_hz: int, bitrate: int) -> None:
        self.av = load_av()
        options = {}
        if not seekable(sink):
            options["flush_packets"] = "1"  # each piece leaves when it is ready
            if container == "ipod":
                options |= {"movflags": "empty_moov+default_base_moof", "frag_duration": str(PAGE_US)}
            if container == "ogg":
                options["page_duration"] = str(PAGE_US)  # FFmpeg's default keeps a whole second back
            if container == "mp3":
                options["write_xing"] = "0"  # its frame count could not be put right afterwards
        self.sink = _File(sink) if seekable(sink) else _Pipe(sink)
        self.container = self.av.open(self.sink, mode="w", format=container, options=options)
        self.stream = self.container.add_stream(codec, rate=rate_hz, layout="mono")
        if bitrate:
            self.stream.bit_rate = bitrate
        context = self.stream.codec_context
        context.format = "s16" if codec == "flac" else "flt" if codec == "libopus" else "fltp"
        self.rate_hz, self.position = rate_hz, 0

    def write(self, samples: np.ndarray) -> None:
        """Append float samples [S]."""
        if not len(samples):
            return
        name = self.stream.codec_context.format.name
        values = audio_wav.to_int16(samples)[0] if name == "s16" else np.clip(samples, -1.0, 1.0)
        frame = self.av.AudioFrame.from_ndarray(np.ascontiguousarray(values)[None, :], format=name, layout="mono")
        frame.sample_rate = self.rate_hz
        frame.pts = self.position
        self.position += len(samples)
        self._mux(frame)

    def _mux(self, frame: Any) -> None:
        with self._telling_why():
            for packet in self.stream.encode(frame):
                self.container.mux(packet)

    def close(self) -> None:
        """Finish the file; the sink stays open."""
        if self.sink.error is not None:  # reported when it happened; the trailer has nowhere to go
            with suppress(self.av.FFmpegError):
                self.container.close()
            return
        self._mux(None)
        with self._telling_why():
            self.container.close()

    @contextmanager
    def _telling_why(self) -> Iterator[None]:
        """Raise the sink's own error, such as a full disk, in place of FFmpeg's."""
        try:
            yield
        except self.av.FFmpegError:
            if self.sink.error is None:
                raise
        if self.sink.error is not None:
            raise self.sink.error
