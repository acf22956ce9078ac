"""English text to Kokoro's phonemes, offline: hibari-tts' port of misaki 0.9.4, and what it could not say.

`hibari.g2p` needs numpy and its own lexicons; onnxruntime is opened only for the first word outside them.
"""

from __future__ import annotations

import json
import threading
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from izwi_lab.errors import InvalidInputError, MissingExtraError

# What the user may call the languages this G2P reads.
AMERICAN = frozenset({"english", "en", "en-us", "american english", "american"})
BRITISH = frozenset({"en-gb", "en-uk", "british english", "british"})
_LANGUAGES = "English (en, en-us), British English (en-gb)"

_SENTENCE_MARKS, _CLAUSE_MARKS = frozenset("!.?…"), frozenset(":;,—")


@dataclass(frozen=True, slots=True)
class Token:
    """A word or mark as spoken: its text, its phonemes (with the space after it), and the rank of a cut after it."""

    text: str
    phonemes: str
    rank: int


@dataclass(frozen=True, slots=True)
class Reading:
    """A sentence as spoken. dropped: what of the text, or of its phonemes, is not heard."""

    tokens: tuple[Token, ...]
    dropped: tuple[str, ...]

    @property
    def phonemes(self) -> str:
        """The whole phoneme string."""
        return "".join(t.phonemes for t in self.tokens).strip()


def is_british(language: str | None, voice: str) -> bool:
    """Which English to read: the language's, else the voice's (names of British voices begin with b).

    Raises:
        InvalidInputError: another language is asked for; its G2P is not here, but `phonemes=` takes any.
    """
    if language is None or language.strip().lower() in {"english", "en"}:
        return voice.startswith("b")
    name = language.strip().lower().replace("_", "-")
    if name in AMERICAN or name in BRITISH:
        return name in BRITISH
    raise InvalidInputError(
        f"Kokoro cannot read {language!r} text here; it reads {_LANGUAGES}.",
        hint="Leave language out for English, or give phonemes= made elsewhere.",
    )


class EnglishG2P:
    """One accent's reader. Safe to use from several threads."""

    def __init__(self, *, british: bool, vocab: Mapping[str, int]) -> None:
        self._vocab = vocab
        self._lock = threading.Lock()  # hibari makes no promise about threads
        self._reader = _reader(british)
        self._letters = _letters(british)

    def read(self, sentence: str) -> Reading:
        """Phonemes of one sentence of `splitting.tidy` text. Everything that is not heard is in `dropped`."""
        dropped: dict[str, None] = {}
        try:
            plain, spoken = self._spoken(sentence)
        except Exception:  # third-party rules over arbitrary text: then word by word, leaving out what they fail at
            plain, spoken = "", []
            for word in sentence.split():
                try:
                    text, parts = self._spoken(word)
                except Exception:
                    dropped[word] = None
                    continue
                parts[-1:] = [t.copy(whitespace=" ") for t in parts[-1:]]
                plain, spoken = plain + text, spoken + parts
        dropped.update({c: None for c in plain if self._is_unspoken(c)})
        tokens: list[Token] = []
        for token in spoken:
            phonemes = token.phonemes or ""
            if not phonemes and any(c.isalnum() and c not in dropped for c in token.text):
                dropped[token.text] = None
            dropped.update({p: None for p in phonemes if p not in self._vocab})
            heard = "".join(p for p in phonemes if p in self._vocab)
            if heard or token.whitespace:
                tokens.append(Token(token.text, heard + (" " if token.whitespace else ""), _rank(heard, token)))
        return Reading(tuple(tokens), tuple(dropped))

    def _spoken(self, text: str) -> tuple[str, list[Any]]:
        from hibari.g2p.normalize import normalize

        with self._lock:
            plain: str = normalize(text)
            return plain, self._reader.phonemize_tokens(self._reader.tokenize(plain))

    def _is_unspoken(self, character: str) -> bool:
        if character.isalpha():
            return character not in self._letters
        return unicodedata.category(character) in {"So", "Sk", "Sm", "Co", "No"} and character not in _SPOKEN_SYMBOLS


_SPOKEN_SYMBOLS = frozenset("+=<>|~^°²³½¼¾¹")


def _rank(heard: str, token: Any) -> int:
    if heard and heard[-1] in _SENTENCE_MARKS:
        return 3
    if heard and heard[-1] in _CLAUSE_MARKS:
        return 2
    return 1 if token.whitespace else 0


@lru_cache(maxsize=2)
def _reader(british: bool) -> Any:
    try:
        from hibari.g2p import G2P
    except ImportError as error:
        raise MissingExtraError("hibari-tts", "starter") from error
    return G2P(british=british)


@lru_cache(maxsize=2)
def _letters(british: bool) -> frozenset[str]:
    """Letters the reader's net for unknown words was trained on: a word of others has no reading."""
    from hibari.g2p import ASSETS

    table = json.loads((Path(ASSETS) / ("oov_gb.json" if british else "oov.json")).read_text("utf-8"))
    return frozenset(table["in"]) | frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def given(phonemes: str, vocab: Mapping[str, int]) -> Reading:
    """Phonemes made elsewhere, cut into words; symbols outside the vocabulary are dropped and reported."""
    # A composed letter stands for its parts where only those are in the vocabulary (õ is o and a tilde).
    phonemes = "".join(p if p in vocab else unicodedata.normalize("NFD", p) for p in phonemes)
    tokens = []
    for word in phonemes.split():
        heard = "".join(p for p in word if p in vocab)
        rank = 3 if heard[-1:] in _SENTENCE_MARKS else 2 if heard[-1:] in _CLAUSE_MARKS else 1
        if heard:
            tokens.append(Token(heard, heard + " ", rank))
    return Reading(tuple(tokens), tuple(dict.fromkeys(p for p in phonemes if p not in vocab and not p.isspace())))
