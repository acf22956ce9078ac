"""Word error rate: how far a transcript is from what was said, with the alignment that proves it.

Texts are normalised first (`normalise_words`): compatibility forms unified, lower case, curly apostrophes made
straight, everything dropped that is no letter, mark or digit. An apostrophe inside a word and a point, comma or colon
between two digits stay ("don't", "3.5", "10:30"); a hyphen or dash separates words. Numbers are left as they are
written: "two" and "2" differ, as do "Mr" and "mister". Nothing here knows a language's spelling rules.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

_APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "＇": "'", "`": "'"})


@dataclass(frozen=True, slots=True)
class Alignment:
    """A cheapest way to turn the reference into the hypothesis.

    pairs: (reference, hypothesis) in order; None stands for a word that was inserted (left) or deleted (right).
    reference_words: the length of the reference, the divisor of `rate`.
    """

    substitutions: int
    deletions: int
    insertions: int
    reference_words: int
    pairs: tuple[tuple[str | None, str | None], ...] = ()

    @property
    def errors(self) -> int:
        """Substitutions + deletions + insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def hits(self) -> int:
        """Reference words that came through unchanged."""
        return self.reference_words - self.substitutions - self.deletions

    @property
    def rate(self) -> float:
        """Errors per reference word; over 1 when much was inserted. An empty reference counts as one word."""
        return self.errors / max(1, self.reference_words)

    def __str__(self) -> str:
        return (
            f"WER {100 * self.rate:.2f} % ({self.substitutions} substituted, {self.deletions} deleted, "
            f"{self.insertions} inserted of {self.reference_words})"
        )


def normalise_words(text: str) -> list[str]:
    """Words of `text` as the error rate compares them.

    >>> normalise_words("Well - “Don't pay £3.50, Mr. O’Hara!”")
    ['well', "don't", 'pay', '3.50', 'mr', "o'hara"]
    """
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).translate(_APOSTROPHES).lower())
    kept = [c if unicodedata.category(c)[0] in "LMN" else " " for c in text]
    for i in range(1, len(text) - 1):
        before, c, after = text[i - 1], text[i], text[i + 1]
        inside_word = c == "'" and before.isalnum() and after.isalnum()
        inside_number = c in ".,:" and before.isdigit() and after.isdigit()
        if inside_word or inside_number:
            kept[i] = c
    return "".join(kept).split()


def align(reference: Sequence[str], hypothesis: Sequence[str]) -> Alignment:
    """Align two sequences with the fewest edits (Levenshtein), every edit costing one. Time and memory O(R·H)."""
    table = _edit_table(reference, hypothesis)
    pairs: list[tuple[str | None, str | None]] = []
    substitutions = deletions = insertions = 0
    r, h = len(reference), len(hypothesis)
    while r or h:
        cost = table[r][h]
        same = r > 0 and h > 0 and reference[r - 1] == hypothesis[h - 1]
        if r and h and cost == table[r - 1][h - 1] + (not same):
            r, h = r - 1, h - 1
            pairs.append((reference[r], hypothesis[h]))
            substitutions += not same
        elif r and cost == table[r - 1][h] + 1:
            r -= 1
            pairs.append((reference[r], None))
            deletions += 1
        else:
            h -= 1
            pairs.append((None, hypothesis[h]))
            insertions += 1
    return Alignment(substitutions, deletions, insertions, len(reference), tuple(reversed(pairs)))


def align_words(reference: str, hypothesis: str) -> Alignment:
    """Align two texts word by word, normalised.

    >>> print(align_words("The cat sat on the mat.", "the cat sat on a mat mat"))
    WER 33.33 % (1 substituted, 0 deleted, 1 inserted of 6)
    """
    return align(normalise_words(reference), normalise_words(hypothesis))


def word_error_rate(reference: str, hypothesis: str) -> float:
    """Errors per word of the reference, 0 for a perfect transcript.

    >>> word_error_rate("Hello, world!", "hello world")
    0.0
    """
    return align_words(reference, hypothesis).rate


def character_error_rate(reference: str, hypothesis: str) -> float:
    """Errors per character of the reference without spaces, for scripts that write no spaces between words."""
    return align("".join(normalise_words(reference)), "".join(normalise_words(hypothesis))).rate


def _edit_table(reference: Sequence[str], hypothesis: Sequence[str]) -> list[list[int]]:
    """Distances between all prefixes: table[r][h] edits turn reference[:r] into hypothesis[:h]."""
    table = [list(range(len(hypothesis) + 1))]
    for r, word in enumerate(reference, start=1):
        above, row = table[-1], [r]
        for h, other in enumerate(hypothesis, start=1):
            if word == other:
                row.append(above[h - 1])
            else:
                row.append(1 + min(above[h - 1], above[h], row[h - 1]))
        table.append(row)
    return table
