"""Putting windows' results together: nothing lost, nothing said twice, time never runs backwards. Pure functions."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import replace

from izwi_lab.results import Segment, Word

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def words_of(text: str) -> list[str]:
    """Text as comparable words: lower case, without punctuation."""
    flat = unicodedata.normalize("NFKC", text).casefold()
    return _WORD.findall(flat)


def repeated_prefix(before: str, after: str, *, most: int = 12, least: int = 2) -> int:
    """How many words at the start of `after` repeat the end of `before`; 0 below `least`.

    Only for windows that overlap in time: people do say things twice.
    """
    left, right = words_of(before), words_of(after)
    for count in range(min(most, len(left), len(right)), least - 1, -1):
        if left[-count:] == right[:count]:
            return count
    return 0


def without_words(text: str, count: int) -> str:
    """`text` without its first `count` words and the punctuation that follows them."""
    if not count:
        return text
    for seen, match in enumerate(_WORD.finditer(text)):
        if seen == count:
            return " " + text[match.start() :]
    return ""


def monotone(
    segments: Iterable[Segment], *, duration_s: float, first_id: int = 0, after_s: float = 0.0
) -> list[Segment]:
    """The segments numbered, inside the audio, each starting no earlier than the one before it ends."""
    out: list[Segment] = []
    clock = after_s
    for segment in segments:
        start = min(max(segment.start_s, clock), duration_s)
        end = min(max(segment.end_s, start), duration_s)
        out.append(
            replace(
                segment,
                id=first_id + len(out),
                start_s=round(start, 3),
                end_s=round(end, 3),
                words=monotone_words(segment.words, start, end),
            )
        )
        clock = end
    return out


def monotone_words(words: Sequence[Word], start_s: float, end_s: float) -> tuple[Word, ...]:
    """The words inside [start_s, end_s], in order, none ending before it starts."""
    out: list[Word] = []
    clock = start_s
    for word in words:
        start = min(max(word.start_s, clock), end_s)
        end = min(max(word.end_s, start), end_s)
        out.append(replace(word, start_s=round(start, 3), end_s=round(end, 3)))
        clock = end
    return tuple(out)


def joined_text(segments: Iterable[Segment]) -> str:
    """The transcript of segments: their texts as the model spaced them, trimmed."""
    return "".join(s.text for s in segments).strip()
