"""Transcripts as SubRip (.srt) and WebVTT (.vtt) cues. Standard library only.

One cue per segment. A segment too long to read at once is split at its words where their times are known; without
word times it stays one cue, because times inside it would be invented.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from izwi_lab.results import Segment, Transcript, Word

# Two lines of 42 characters for at most 7 s: the Netflix timed text style guide, English.
LINE_CHARS = 42
CUE_CHARS = 2 * LINE_CHARS
CUE_S = 7.0
_EVEN_CUES = 8  # of one segment; among more, one short cue is not seen, and evening them out would take long
_ARROW = re.compile(r"-{2,}>")  # of any length: a shorter arrow must not be left of a longer one
_SENTENCE_END = (".", "!", "?", "…", "。", "！", "？")
_CLAUSE_END = (",", ";", ":", "，", "、", "；")


@dataclass(frozen=True, slots=True)
class Cue:
    """A stretch of text on screen."""

    start_s: float
    end_s: float
    text: str


def cues(transcript: Transcript) -> list[Cue]:
    """The cues of a transcript, in order; text without segments becomes one cue over the whole audio."""
    if transcript.segments:
        found = [cue for segment in transcript.segments for cue in _segment_cues(segment)]
    else:
        found = [Cue(0.0, transcript.duration_s, _one_line(transcript.text))]
    return [cue for cue in found if cue.text]


def srt(transcript: Transcript) -> str:
    """SubRip: numbered cues, comma before the milliseconds."""
    return "".join(
        f"{number}\n{_clock(cue.start_s, ',')} --> {_clock(cue.end_s, ',')}\n{_wrapped(cue.text)}\n\n"
        for number, cue in enumerate(cues(transcript), 1)
    )


def vtt(transcript: Transcript) -> str:
    """WebVTT (W3C): a header line, point before the milliseconds, `&`, `<` and `>` escaped."""
    body = "".join(
        f"\n{_clock(cue.start_s, '.')} --> {_clock(cue.end_s, '.')}\n{_escape_vtt(_wrapped(cue.text))}\n"
        for cue in cues(transcript)
    )
    return "WEBVTT\n" + body


def _segment_cues(segment: Segment) -> Iterator[Cue]:
    text = _one_line(segment.text)
    if not segment.words or (len(text) <= CUE_CHARS and segment.end_s - segment.start_s <= CUE_S):
        yield Cue(segment.start_s, segment.end_s, text)
        return
    pieces = word_pieces(text, segment.words)
    start = 0
    for stop in _breaks(pieces, segment.words):
        shown = "".join(pieces[start:stop]).strip()
        yield Cue(segment.words[start].start_s, segment.words[stop - 1].end_s, shown)
        start = stop


def word_pieces(text: str, words: Iterable[Word]) -> list[str]:
    """The text cut before each word, so that the cues together hold it all: spaces, and languages without them."""
    starts, position = [], 0
    for word in words:
        wanted = _one_line(word.text)
        at = text.find(wanted, position)
        starts.append(max(at, position))  # a word spelt otherwise in the text begins where the one before it ended
        position = at + len(wanted) if at >= 0 else position
    starts = [0, *starts[1:], len(text)]
    return [text[a:b] for a, b in itertools.pairwise(starts)]


def _breaks(pieces: list[str], words: tuple[Word, ...]) -> list[int]:
    """Where each cue stops: as few cues as fit the screen, then as even as that many cues can be."""
    stops = _filled(pieces, words, CUE_CHARS)
    if len(stops) > _EVEN_CUES:
        return stops
    for chars in range(len("".join(pieces)) // len(stops), CUE_CHARS):
        even = _filled(pieces, words, chars)
        if len(even) == len(stops):
            return even
    return stops


def _filled(pieces: list[str], words: tuple[Word, ...], chars: int) -> list[int]:
    """As many words as fit into each cue, drawn back to the last sentence or clause end in its later half."""
    stops: list[int] = []
    start = 0
    while start < len(pieces):
        stop = start + 1
        while stop < len(pieces) and _fits(pieces, words, start, stop + 1, chars):
            stop += 1
        if stop < len(pieces):
            stop = _drawn_back(pieces, start, stop)
        stops.append(stop)
        start = stop
    return stops


def _fits(pieces: list[str], words: tuple[Word, ...], start: int, stop: int, chars: int) -> bool:
    text = "".join(pieces[start:stop]).strip()
    return len(text) <= chars and len(_lines(text)) <= 2 and words[stop - 1].end_s - words[start].start_s <= CUE_S


def _drawn_back(pieces: list[str], start: int, stop: int) -> int:
    for marks in (_SENTENCE_END, _CLAUSE_END):
        for end in range(stop, start + (stop - start) // 2, -1):
            if pieces[end - 1].rstrip().endswith(marks):
                return end
    return stop


def _one_line(text: str) -> str:
    """One line without the arrow that both formats use as a sign: a blank line or an arrow would end the cue."""
    return _ARROW.sub("->", " ".join(text.split()))


def _wrapped(text: str) -> str:
    return "\n".join(_lines(text))


def _lines(text: str) -> list[str]:
    return textwrap.wrap(text, LINE_CHARS, break_on_hyphens=False)


def _escape_vtt(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _clock(seconds: float, point: str) -> str:
    """Hours, minutes, seconds, milliseconds: "00:01:02,345"."""
    total_ms = max(0, round(seconds * 1000))
    minutes, ms = divmod(total_ms, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{ms // 1000:02d}{point}{ms % 1000:03d}"
