"""Where sentences and clauses end, and long text in pieces that can be spoken one at a time.

No character that could be spoken is lost: the pieces, joined, are the text less white space between them. A period that
may belong to an abbreviation, an initial or a number ends no sentence: a piece too long is cut elsewhere, a sentence
broken at "Dr." is heard.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

from izwi_lab.families.shared.abbreviations import abbreviated

MAX_CHARACTERS = 400  # of one sentence, where nothing else is said

Span: TypeAlias = tuple[int, int]  # from, to: of a text

_CLOSING = "\"'”’“‘»«›‹)]」』）"  # German closes with what English opens with
_END = re.compile(
    rf"[.!?…。！？؟۔।॥]+(?:[{re.escape(_CLOSING)}]|[ \u00a0\u202f]»(?!\S))*(?=\s|$)|[。！？]+[”’»」』）]*"
)  # « Oui ? » has a space before its last mark
_CLAUSE = re.compile(r"[,;:—–)\]][\"'”’]*\s|[，；：、،؛」』）][”’]*")
_YEAR = re.compile(r"(?<![\d.,])\d{3,4}$")  # a number that is no ordinal
_DOUBTFUL = re.compile(r"\d[.]\s+(?=[^\W\d_])")  # after a number that may be one
_LINE = re.compile(r"[\n\u2028]\s*")
_SPACE = re.compile(r"\s+")
_PARAGRAPH = re.compile(r"(?:\n[^\S\n]*\n|\u2029)\s*")
_NEXT = re.compile(r"\s*(\S?)")
# Scripts written without spaces say a syllable or a word in a character: about three Latin letters' worth of time.
_WIDE = r"぀-ヿ㐀-鿿가-힣豈-﫿\U00020000-\U0003ffff"
_DENSE = re.compile(f"[{_WIDE}]")
_DENSITY = 3
_WORD = re.compile(rf"(?:(?![{_WIDE}])[^\W\d_])+$")
_LONGEST = 24  # letters: more than any abbreviation has
_OPENING = re.compile(rf"[\s.(\[{{\"“”„«»‹›‘¿¡—–‑/-]|[{_WIDE}、。，；：！？「『（》《…]")  # what an initial may follow


def sentences(text: str, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """The sentences of a text, none longer than `limit` characters, without the white space around them.

    Every line ends one.
    """
    for line in re.split(r"\n+", text):
        for start, end in _sentences(line, 0, len(line)):
            yield from (line[a:b] for a, b in _bounded(line, start, end, limit, len))


def weight(text: str) -> int:
    """How long a text takes to say, in Latin letters: characters of dense scripts count for three."""
    return len(text) + (_DENSITY - 1) * len(_DENSE.findall(text))


@dataclass(frozen=True, slots=True)
class _Unit:
    """A sentence of a text, or a part of one that is too long. last: of its paragraph."""

    start: int
    end: int
    last: bool


def pieces(text: str, limit: int) -> Iterator[str]:
    """The text in pieces of whole sentences, as many in each as fit a `weight` of `limit`; a text that fits is one.

    Pieces end with a paragraph where that leaves them half full; what stands between the sentences of a piece stays as
    it is. Sentences over the limit are cut at line ends, else at clauses, else after numbers that may end one, else
    between words.
    """
    if weight(text) <= limit:
        if text.strip():
            yield text.strip()
        return
    held: list[_Unit] = []
    for unit in _units(text, limit):
        while held and weight(text[held[0].start : unit.end]) > limit:
            count = _cut(text, held, limit)
            yield text[held[0].start : held[count - 1].end]
            held = held[count:]
        held.append(unit)
    if held:
        yield text[held[0].start : held[-1].end]


def _cut(text: str, held: list[_Unit], limit: int) -> int:
    """How many of the held units the next piece takes."""
    for count in range(len(held), 0, -1):
        if held[count - 1].last and weight(text[held[0].start : held[count - 1].end]) >= limit // 2:
            return count
    return len(held)


def _units(text: str, limit: int) -> Iterator[_Unit]:
    for start, end in _paragraphs(text):
        spans = [part for a, b in _sentences(text, start, end) for part in _bounded(text, a, b, limit, weight)]
        yield from (_Unit(a, b, index == len(spans) - 1) for index, (a, b) in enumerate(spans))


def _paragraphs(text: str) -> Iterator[Span]:
    start = 0
    for gap in _PARAGRAPH.finditer(text):
        yield start, gap.start()
        start = gap.end()
    yield start, len(text)


def _sentences(text: str, start: int, end: int) -> Iterator[Span]:
    """The sentences of a paragraph, with the white space around them."""
    for mark in _END.finditer(text, start, end):
        if _ends(text, mark.start(), mark.end(), end):
            yield start, mark.end()
            start = mark.end()
    yield start, end


def _ends(text: str, start: int, end: int, most: int) -> bool:
    """Whether punctuation at [start, end) ends a sentence of a paragraph that ends at `most`."""
    following = str(_NEXT.match(text, end, most)[1])  # type: ignore[index]
    if not following:
        return False  # the rest of the paragraph is taken as it is
    if following.islower():
        return False
    if text[end - 1] in "”’»」』）" and not text[end].isspace():
        return False  # who said it follows the quotation
    if text[start:end].rstrip(_CLOSING + " \u00a0\u202f") != ".":
        return True
    if text[start - 1 : start].isdecimal():  # "in 1990. They", but "am 3. Oktober"
        return _YEAR.search(text, max(0, start - _LONGEST), start) is not None and following.isupper()
    return not (following.isdecimal() or _shortened(text, start))


def _shortened(text: str, start: int) -> bool:
    """Whether the word before a period at `start` is an initial or an abbreviation."""
    word = _WORD.search(text, max(0, start - _LONGEST), start)
    if word is None:
        return False
    before = text[word.start() - 1 : word.start()]
    if word[0] == "No":  # "at No. Ten", and the answer
        return text[max(0, word.start() - 2) : word.start()].rstrip().isalnum()
    if len(word[0]) > 1:
        return not before.isdecimal() and abbreviated(word[0])
    if before in ("'", "’"):  # "don't." against 'J. S.'
        return not text[max(0, word.start() - 2) : word.start() - 1].isalnum()
    return not before or _OPENING.match(before) is not None


def _bounded(text: str, start: int, end: int, limit: int, measure: Callable[[str], int]) -> Iterator[Span]:
    """A sentence less the white space around it, cut where it measures more than `limit`."""
    start, end = _stripped(text, start, end)
    while start < end and measure(text[start:end]) > limit:
        head = text[start : start + _fit(text[start:end], limit, measure)]
        kinds = (_LINE, _CLAUSE, _DOUBTFUL)
        at = next(filter(None, (_last(kind, head) for kind in kinds)), 0)
        at = at or _last(_SPACE, head, least=0) or _whole(text, start, len(head))
        yield _stripped(text, start, start + at)
        start, end = _stripped(text, start + at, end)
    if start < end:
        yield start, end


def _last(kind: re.Pattern[str], head: str, least: int | None = None) -> int:
    """Where the last of its matches ends, past the first quarter; 0 where there is none."""
    least = len(head) // 4 if least is None else least
    return max((m.end() for m in kind.finditer(head) if m.end() > least), default=0)


def _whole(text: str, start: int, count: int) -> int:
    """How many of `count` characters leave none apart from its accents and joiners; at least one."""
    at = count
    while at > 1 and (
        unicodedata.category(text[start + at])[0] == "M" or "\u200d" in text[start + at - 1 : start + at + 1]
    ):
        at -= 1
    return at if at > 1 else count


def _stripped(text: str, start: int, end: int) -> Span:
    while start < end and text[start].isspace():
        start += 1
    while end > start and text[end - 1].isspace():
        end -= 1
    return start, end


def _fit(text: str, limit: int, measure: Callable[[str], int]) -> int:
    """How many first characters measure at most `limit`; at least one."""
    low, high = 1, min(len(text), limit)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(text[:middle]) <= limit else (low, middle - 1)
    return low
