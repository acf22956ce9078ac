"""Long text to pieces that can be spoken one at a time: sentences first, then clauses, then words.

No character that could be spoken is lost: the pieces, joined, are the text less white space between them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence

MAX_CHARACTERS = 400  # of one sentence; more is cut at clauses, so that G2P and memory stay bounded
MAX_WORD = 24  # letters; what the G2P's net for unknown words reads at once
MAX_RUN = 48  # characters without white space

_END = re.compile(r"[.!?…。！？]+[\"'”’»)\]]*(?=\s|$)|(?<=[。！？])")
_CLAUSE = re.compile(r"[,;:—–)\]][\"'”’]*\s")
_LETTERS = re.compile(rf"[^\W\d_]{{{MAX_WORD + 1},}}")
_DIGITS = re.compile(r"\d{16,}")
_RUN = re.compile(rf"\S{{{MAX_RUN + 1},}}")
_INITIALS = re.compile(r"(?:[^\W\d_]\.)*[^\W\d_]")
# A period after one of these does not end a sentence.
_ABBREVIATIONS = frozenset(
    (
        *("mr", "mrs", "ms", "dr", "prof", "st", "mt", "ft", "gen", "gov", "sen", "rep", "capt", "lt", "col", "sgt"),
        *("cmdr", "rev", "hon", "pres", "supt", "cpl", "maj", "adm", "fr", "msgr", "jr", "sr", "no", "nos", "vs"),
        *("vol", "fig", "approx", "est", "dept", "ave", "blvd", "eg", "ie", "cf", "al"),
    )
)


def tidy(text: str) -> str:
    """The text with forms the G2P does not know made plain, one character for one where that is possible.

    Composed accents, full-width forms and other scripts' digits become their plain equals; control and format
    characters become spaces; runs too long for the G2P are broken by spaces.
    """
    plain = "".join(_plain(c) for c in unicodedata.normalize("NFC", text))
    plain = _DIGITS.sub(lambda m: " ".join(m.group()), plain)  # past trillions a number is read digit by digit
    plain = _LETTERS.sub(lambda m: _broken(m.group(), MAX_WORD), plain)
    return _RUN.sub(lambda m: _broken(m.group(), MAX_RUN), plain)


def sentences(text: str) -> Iterator[str]:
    """The sentences of `tidy` text, none longer than MAX_CHARACTERS, without the white space around them."""
    for paragraph in re.split(r"\n+", text):
        start = 0
        for end in _END.finditer(paragraph):
            if _ends(paragraph, end.start(), end.end()):
                yield from _bounded(paragraph[start : end.end()])
                start = end.end()
        yield from _bounded(paragraph[start:])


def cut(lengths: Sequence[int], breaks: Sequence[int], limit: int) -> int:
    """How many of the first items fit `limit`, cut at the best break: the last one of the highest rank.

    lengths: of each item. breaks: rank of cutting after each item (3 sentence, 2 clause, 1 word, 0 not there).
    Always at least one item; all of them if they fit.
    """
    total, fit = 0, 0
    for length in lengths:
        if total + length > limit:
            break
        total += length
        fit += 1
    if fit == len(lengths):
        return fit
    # A break in the first quarter would leave a stump for no gain: the next lower rank is better then.
    for rank in (3, 2, 1):
        for index in range(fit - 1, -1, -1):
            if breaks[index] >= rank and (index + 1 >= fit / 4 or rank == 1):
                return index + 1
    return max(1, fit)


def _plain(character: str) -> str:
    if character in "\n\t ":
        return character
    if "！" <= character <= "～":  # full-width ASCII
        return chr(ord(character) - 0xFEE0)
    decimal = unicodedata.decimal(character, None)
    if decimal is not None:
        return str(decimal)
    category = unicodedata.category(character)
    return " " if category[0] in "CZ" and category != "Co" else character


def _broken(run: str, size: int) -> str:
    return " ".join(run[i : i + size] for i in range(0, len(run), size))


def _ends(paragraph: str, start: int, end: int) -> bool:
    """Whether punctuation at [start, end) ends a sentence."""
    following = paragraph[end:].lstrip()[:1]
    if not following:
        return False  # the rest of the paragraph is taken as it is
    if following.islower():
        return False
    if paragraph[start:end].rstrip("\"'”’»)]") != ".":
        return True
    word = paragraph[max(0, start - 40) : start].rpartition(" ")[2].lstrip("(\"“'‘[")
    return not (word.lower() in _ABBREVIATIONS or _INITIALS.fullmatch(word))


def _bounded(sentence: str) -> Iterator[str]:
    """The sentence, cut at clauses, else between words, where it is over MAX_CHARACTERS."""
    rest = sentence.strip()
    while len(rest) > MAX_CHARACTERS:
        head = rest[:MAX_CHARACTERS]
        clauses = [m.end() for m in _CLAUSE.finditer(head) if m.end() > MAX_CHARACTERS // 4]
        at = clauses[-1] if clauses else head.rfind(" ") + 1 or MAX_CHARACTERS
        yield rest[:at].strip()
        rest = rest[at:].strip()
    if rest:
        yield rest
