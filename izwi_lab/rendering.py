"""How results look: HTML that a saved, untrusted notebook keeps, and the waveform picture. Standard library and numpy.

JupyterLab's sanitiser keeps tables, inline style with plain colours, `<img src="data:...">` and
`<audio src="data:...">`; it drops `<source>`, `<svg>`, scripts and style values with var(). All text goes through
`html.escape`.
"""

from __future__ import annotations

import base64
import math
import struct
import zlib
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab import subtitles
from izwi_lab.errors import MissingExtraError

if TYPE_CHECKING:
    from izwi_lab.audio import Audio
    from izwi_lab.results import ChatReply, Segment, Speech, Timing, Transcript, Usage

EMBED_MAX_S = 120.0
_WAVE_WIDTH, _WAVE_HEIGHT = 600, 64
_INK = (99, 125, 190, 255)  # reads on white and on black
_MAX_ROWS = 200
_MAX_CHARS = 2000
_GREY = "opacity:.75;font-size:90%"


def describe_audio(audio: Audio) -> str:
    """Seconds, rate, peak, clipping: one line of plain text."""
    if not math.isfinite(audio.peak):  # NaN is not more than 0 either, and must not be called silence
        return f"{audio.duration_s:.2f} s, {audio.rate_hz / 1000:g} kHz, HOLDS NaN OR INFINITE SAMPLES"
    level = f"peak {audio.peak_dbfs:.1f} dBFS" if audio.peak > 0 else "silent"
    clipped = audio.clipped
    warning = f", CLIPPED ({clipped} samples at full scale)" if clipped else ""
    return f"{audio.duration_s:.2f} s, {audio.rate_hz / 1000:g} kHz, {level}{warning}"


@dataclass(frozen=True, slots=True)
class Player:
    """What `Audio.play()` shows: waveform, controls, facts."""

    audio: Audio
    embed: bool | None = None

    def __repr__(self) -> str:
        return f"Player({describe_audio(self.audio)})"

    def _repr_html_(self) -> str:
        return audio_html(self.audio, embed=self.embed)


def audio_html(audio: Audio, *, embed: bool | None = None, facts: str = "") -> str:
    """Waveform, `<audio controls>` and one line of facts. facts: more of them, plain text."""
    line = describe_audio(audio) + (f" · {facts}" if facts else "")
    parts = [
        f'<img alt="waveform" width="{_WAVE_WIDTH}" height="{_WAVE_HEIGHT}" '
        f'src="data:image/png;base64,{_base64(waveform_png(audio))}">'
    ]
    if not len(audio) or not math.isfinite(audio.peak):
        pass  # nothing that could be played; the line of facts says why
    elif embed if embed is not None else audio.duration_s <= EMBED_MAX_S:
        mime, body = _playable(audio)
        parts.append(f'<audio controls src="data:{mime};base64,{_base64(body)}" style="width:{_WAVE_WIDTH}px"></audio>')
    else:
        parts.append(
            f'<span style="{_GREY}">Too long to store in the notebook: '
            "<code>.play(embed=True)</code> does so all the same, <code>.save('clip.mp3')</code> writes a file.</span>"
        )
    parts.append(f'<span style="{_GREY}">{escape(line)}</span>')
    return "<div>" + "<br>".join(parts) + "</div>"


def _playable(audio: Audio) -> tuple[str, bytes]:
    """Small where an encoder is there, WAV where not: every browser plays both."""
    try:
        return "audio/mpeg", audio.encode("mp3")
    except MissingExtraError:
        return "audio/wav", audio.encode("wav")


def _base64(body: bytes) -> str:
    return base64.b64encode(body).decode("ascii")


def waveform_png(audio: Audio, *, width: int = _WAVE_WIDTH, height: int = _WAVE_HEIGHT) -> bytes:
    """The extremes of each column of samples, on a transparent ground."""
    middle = (height - 1) / 2
    low, high = _extremes(audio.samples, width)
    rows = np.arange(height)[:, None]
    top = np.floor(middle - np.clip(high, -1, 1) * middle)
    bottom = np.ceil(middle - np.clip(low, -1, 1) * middle)
    inked = (rows >= top[None, :]) & (rows <= bottom[None, :])
    pixels = np.where(inked[:, :, None], np.array(_INK, np.uint8), np.zeros(4, np.uint8))
    return _png(pixels)


def _extremes(samples: np.ndarray, columns: int) -> tuple[np.ndarray, np.ndarray]:
    if not len(samples):
        return np.zeros(columns), np.zeros(columns)
    starts = (np.arange(columns) * len(samples)) // columns  # equal starts (short clips) repeat one sample
    return np.minimum.reduceat(samples, starts), np.maximum.reduceat(samples, starts)


def _png(pixels: np.ndarray) -> bytes:
    """RGBA uint8 [height, width, 4] as a PNG (ISO/IEC 15948): one filter byte 0 before each row."""
    height, width, _ = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels.reshape(height, -1)], axis=1)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    image = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + image


def speech_html(speech: Speech) -> str:
    """The clip, the words, and where they came from."""
    seed = "" if speech.seed is None else f"seed {speech.seed}"
    facts = _facts(speech.model, speech.voice and f"voice {speech.voice}", speech.backend, _timed(speech.timing), seed)
    notes = "".join(f'<div style="{_GREY}">⚠ {escape(note)}</div>' for note in speech.notes)
    return audio_html(speech.audio, facts=facts) + f"<div>{_paragraph(_shortened(speech.text))}</div>{notes}"


def transcript_html(transcript: Transcript) -> str:
    """A table of segments, start to end and text; letters fade with the model's confidence. At most 200 rows."""
    facts = _facts(
        transcript.language,
        f"{len(transcript.segments)} segments",
        f"{seconds_text(transcript.duration_s)} of audio",
        transcript.model,
        transcript.backend,
        _timed(transcript.timing),
    )
    head = f'<div style="{_GREY}">{escape(facts)}</div>'
    if not transcript.segments:
        return f"<div>{head}{_paragraph(transcript.text)}</div>"
    rows = "".join(
        f'<tr><td style="text-align:right;white-space:nowrap;vertical-align:top;{_GREY}">'
        f"{escape(seconds_text(s.start_s))} – {escape(seconds_text(s.end_s))}</td>"
        f'<td style="text-align:left">{_segment_words(s)}</td></tr>'
        for s in transcript.segments[:_MAX_ROWS]
    )
    hidden = len(transcript.segments) - _MAX_ROWS
    more = (
        f'<div style="{_GREY}">and {hidden} more segments: <code>.to_srt()</code> has all</div>' if hidden > 0 else ""
    )
    return f"<div>{head}<table>{rows}</table>{more}</div>"


def chat_html(reply: ChatReply) -> str:
    """The answer, its thoughts folded away, its calls, and where it came from. The text is shown as it is, not run."""
    stopped = "" if reply.finish_reason == "stop" else f"finished by {reply.finish_reason}"
    count = f"{len(reply.tokens)} tokens"
    facts = _facts(reply.model, reply.backend, count, _counted(reply.usage), _timed(reply.timing), stopped)
    thought = ""
    if reply.reasoning:
        size = f" ({reply.usage.reasoning_tokens} tokens)" if reply.usage.reasoning_tokens else ""
        thought = f'<details><summary style="{_GREY}">Reasoning{size}</summary>{_paragraph(reply.reasoning)}</details>'
    calls = "".join(f"<div>calls <code>{escape(c.name)}({escape(c.arguments)})</code></div>" for c in reply.tool_calls)
    said = _paragraph(reply.text) if reply.text or not calls else ""
    return f'<div>{thought}{said}{calls}<div style="{_GREY}">{escape(facts)}</div></div>'


def _counted(usage: Usage) -> str:
    if not usage.prompt_tokens:
        return ""
    cached = f", {usage.cached_tokens} of them kept from before" if usage.cached_tokens else ""
    return f"after {usage.prompt_tokens} of prompt{cached}"


def timing_html(timing: Timing) -> str:
    """A table of the seconds and the rates that follow from them."""
    rows = "".join(
        f'<tr><td style="text-align:left">{escape(name)}</td><td style="text-align:right">{escape(value)}</td></tr>'
        for name, value in (
            ("whole", seconds_text(timing.total_s)),
            ("first output after", seconds_text(timing.first_s)),
            ("prefill", seconds_text(timing.prefill_s)),
            ("decode", seconds_text(timing.decode_s)),
            ("audio", seconds_text(timing.audio_s)),
            ("real-time factor", _number(timing.rtf)),
            ("tokens read / generated", f"{timing.prompt_tokens} / {timing.tokens}"),
            ("tokens per second", _number(timing.tokens_per_s)),
        )
    )
    return f"<table>{rows}</table>"


def _segment_words(segment: Segment) -> str:
    if not segment.words:
        return escape(segment.text.strip())
    shown = []
    pieces = subtitles.word_pieces(" ".join(segment.text.split()), segment.words)
    for word, piece in zip(segment.words, pieces, strict=True):
        opacity = 0.4 + 0.6 * min(max(word.probability, 0.0), 1.0)
        title = f"{word.start_s:.2f}–{word.end_s:.2f} s, probability {word.probability:.2f}"
        shown.append(f'<span title="{escape(title)}" style="opacity:{opacity:.2f}">{escape(piece)}</span>')
    return "".join(shown)


def _paragraph(text: str) -> str:
    return f'<span style="white-space:pre-wrap">{escape(text)}</span>'


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_CHARS else text[:_MAX_CHARS] + "…"


def _facts(*parts: str) -> str:
    return " · ".join(part for part in parts if part)


def _timed(timing: Timing) -> str:
    return str(timing) if timing.total_s else ""


def _number(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "–"


def seconds_text(value: float) -> str:
    """Seconds to read at a glance: "2.34 s", "1:02:03.4" from one minute on."""
    if not math.isfinite(value) or value < 60:
        return f"{value:.2f} s"
    minutes, seconds = divmod(value, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{seconds:04.1f}" if hours else f"{minutes}:{seconds:04.1f}"
