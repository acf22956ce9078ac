"""Where sentences and clauses end, and long text in pieces that can be spoken one at a time.

No character that could be spoken is lost: the pieces, joined, are the text less white space between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

MAX_CHARACTERS = 400  # of one sentence, where nothing else is said

_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]」』）]*(?=\s|$)|[。！？]+[”’»」』）]*")
_CLAUSE = re.compile(r"[,;:—–)\]][\"'”’]*\s|[，；：、」』）][”’]*")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
_CLOSING = "\"'”’»)]」』）"
_UNSPACED = re.compile(r"[぀-ヿ㐀-鿿豈-﫿\U00020000-\U0003ffff。！？，；：、」』）…]")
# A period after one of these does not end a sentence.
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "mt", "ft", "gen", "gov", "sen", "rep", "capt", "lt", "col", "sgt"),
        *("cmdr", "rev", "hon", "pres", "supt", "cpl", "maj", "adm", "fr", "msgr", "jr", "sr", "no", "nos", "vs"),
        *("vol", "fig", "approx", "est", "dept", "ave", "blvd", "eg", "ie", "cf", "al"),
    )
)
# Scripts written without spaces say a syllable or a word in a character: about three Latin letters' worth of time.
_DENSE = re.compile(r"[぀-ヿ㐀-鿿豈-﫿가-힣\U00020000-\U0003ffff]")
_DENSITY = 3


def sentences(text: str, limit: int = MAX_CHARACTERS) -> Iterator[str]:
    """The sentences of a text, none longer than `limit` characters, without the white space around them."""
    for paragraph in re.split(r"\n+", text):
        start = 0
        for end in _END.finditer(paragraph):
            if _ends(paragraph, end.start(), end.end()):
                yield from _bounded(paragraph[start : end.end()], limit, len)
                start = end.end()
        yield from _bounded(paragraph[start:], limit, len)


def weight(text: str) -> int:
    """How long a text takes to say, in Latin letters: characters of dense scripts count for three."""
    return len(text) + (_DENSITY - 1) * len(_DENSE.findall(text))


def pieces(text: str, limit: int) -> Iterator[str]:
    """The text in pieces of whole sentences, as many in each as fit a `weight` of `limit`; a text that fits is one.

    Sentences over the limit are cut at clauses, else between words.
    """
    if weight(text) <= limit:
        if text.strip():
            yield text.strip()
        return
    held = ""
    for sentence in sentences(text, limit):
        for part in _bounded(sentence, limit, weight):
            joined = part if not held else held + _between(held, part) + part
            if held and weight(joined) > limit:
                yield held
                held = part
            else:
                held = joined
    if held:
        yield held


def _between(before: str, after: str) -> str:
    """A space, but not between characters of scripts that have none."""
    return "" if _UNSPACED.match(after[0]) and not before[-1].isascii() else " "


def _ends(paragraph: str, start: int, end: int) -> bool:
    """Whether punctuation at [start, end) ends a sentence."""
    following = paragraph[end:].lstrip()[:1]
    if not following:
        return False  # the rest of the paragraph is taken as it is
    if following.islower():
        return False
    if paragraph[end - 1] in "”’»」』）" and not paragraph[end].isspace():
        return False  # who said it follows the quotation
    if paragraph[start:end].rstrip(_CLOSING) != ".":
        return True
    word = paragraph[max(0, start - 40) : start].rpartition(" ")[2].lstrip("(\"“'‘[")
    return not (word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word))


def _bounded(sentence: str, limit: int, measure: Callable[[str], int]) -> Iterator[str]:
    """The sentence, cut at clauses, else between words, where it measures more than `limit`."""
    rest = sentence.strip()
    while measure(rest) > limit:
        head = rest[: _fit(rest, limit, measure)]
        clauses = [m.end() for m in _CLAUSE.finditer(head) if m.end() > len(head) // 4]
        at = clauses[-1] if clauses else head.rfind(" ") + 1 or len(head)
        yield rest[:at].strip()
        rest = rest[at:].strip()
    if rest:
        yield rest


def _fit(text: str, limit: int, measure: Callable[[str], int]) -> int:
    """How many first characters measure at most `limit`; at least one."""
    low, high = 1, min(len(text), limit)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if measure(text[:middle]) <= limit else (low, middle - 1)
    return low
