"""Text made plain for the G2P, and where to cut a row of tokens; bounded sentences keep G2P and memory bounded."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from izwi_lab.families.shared.sentences import MAX_CHARACTERS, sentences

__all__ = ["MAX_CHARACTERS", "MAX_RUN", "MAX_WORD", "cut", "sentences", "tidy"]

MAX_WORD = 24  # letters; what the G2P's net for unknown words reads at once
MAX_RUN = 48  # characters without white space

_LETTERS = re.compile(rf"[^\W\d_]{{{MAX_WORD + 1},}}")
_DIGITS = re.compile(r"\d{16,}")
_RUN = re.compile(rf"\S{{{MAX_RUN + 1},}}")


def tidy(text: str) -> str:
    """The text with forms the G2P does not know made plain, one character for one where that is possible.

    Composed accents, full-width forms and other scripts' digits become their plain equals; control and format
    characters become spaces; runs too long for the G2P are broken by spaces.
    """
    plain = "".join(_plain(c) for c in unicodedata.normalize("NFC", text))
    plain = _DIGITS.sub(lambda m: " ".join(m.group()), plain)  # past trillions a number is read digit by digit
    plain = _LETTERS.sub(lambda m: _broken(m.group(), MAX_WORD), plain)
    return _RUN.sub(lambda m: _broken(m.group(), MAX_RUN), plain)


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
