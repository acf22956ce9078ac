"""Text to Prompts: sentences, phonemes, pieces that fit the net, ids and style vectors."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.g2p import EnglishG2P, Reading, Token, given, is_british
from izwi_lab.families.kokoro.splitting import cut, sentences, tidy
from izwi_lab.families.kokoro.voices import Voices, label
from izwi_lab.families.shared.steps import Prompt, Span

MIN_SPEED, MAX_SPEED = 0.5, 2.0
FIRST_PHONEMES = 120  # of the first piece, about eight seconds: it decides when the first sound is heard
BOUNDARY = "$"  # how the id 0 around every piece is shown


def unheard(prompt: Prompt) -> tuple[str, ...]:
    """What of a prompt's text is not heard, as notes for the listener."""
    dropped = prompt.extras.get("dropped", ())
    return (f"not spoken: {' '.join(map(str, dropped))}",) if dropped else ()


_ENGLISH_VOICES = ("a", "b")  # American, British: the first letter of a voice's name says its language


@dataclass(frozen=True, slots=True)
class Request:
    """Checked options of one request."""

    blend: tuple[tuple[str, float], ...]
    speed: float
    british: bool
    notes: tuple[str, ...] = ()

    @property
    def voice(self) -> str:
        """The voice or blend, as text."""
        return label(self.blend)

    @property
    def language(self) -> str:
        """The language read."""
        return "British English" if self.british else "English"


class Processor:
    """What turns text into what the net reads. Immutable but for the readers it loads when first needed."""

    def __init__(self, config: KokoroConfig, voices: Voices) -> None:
        self.config, self.voices = config, voices
        self._readers: dict[bool, EnglishG2P] = {}
        self._lock = threading.Lock()

    def request(self, voice: str | None, language: str | None, speed: float) -> Request:
        """Check the options of a request. Raises InvalidInputError naming what is accepted."""
        if not (isinstance(speed, (int, float)) and math.isfinite(speed) and MIN_SPEED <= speed <= MAX_SPEED):
            raise InvalidInputError(
                f"speed is {speed!r}; expected {MIN_SPEED} to {MAX_SPEED}.", hint="1.0 is the voice's own pace."
            )
        blend = self.voices.parse(voice)
        loudest = max(blend, key=lambda pair: pair[1])[0]
        british = is_british(language, loudest)
        foreign = [] if language else [name for name, _ in blend if name[:1] not in _ENGLISH_VOICES]
        note = f"{', '.join(foreign)}: made for another language, reads the text as English" if foreign else ""
        return Request(blend, float(speed), british, (note,) if note else ())

    def prompts(self, text: str, request: Request, *, phonemes: str | None = None) -> Iterator[Prompt]:
        """One Prompt per piece, in order, made as they are asked for.

        Pieces are sentences; the first is kept short, and none is over the net's limit. Text between two Prompts that
        cannot be spoken is reported by the first of them that follows (or precedes, at the end).

        Raises:
            InvalidInputError: nothing in the text can be spoken.
        """
        check_text(text, phonemes)
        waiting: Prompt | None = None
        unheard: tuple[str, ...] = ()
        for index, (tokens, dropped) in enumerate(self._pieces(text, request, phonemes)):
            prompt = self._prompt(tokens, dropped if index else (*unheard, *dropped), request)
            if prompt is None:
                if waiting is None:
                    unheard += dropped
                else:
                    waiting = _report(waiting, dropped)
                continue
            if waiting is not None:
                yield waiting
            waiting, unheard = _report(prompt, unheard), ()
        if waiting is None:
            shown = f" ({', '.join(map(repr, unheard[:8]))} cannot be read)" if unheard else ""
            raise InvalidInputError(f"Nothing in this text can be spoken{shown}.", hint="Give it words in English.")
        yield waiting

    def prompt(self, text: str, request: Request, *, phonemes: str | None = None) -> Prompt:
        """The whole text as one Prompt. Raises InvalidInputError where it needs several."""
        check_text(text, phonemes)
        readings = list(self._readings(text, request, phonemes))
        tokens = tuple(t for r in readings for t in (*r.tokens, _SPACE))
        count = len("".join(t.phonemes for t in tokens).strip())
        if count > self.config.max_phonemes:
            raise InvalidInputError(
                f"The text has {count} phonemes; one prompt holds {self.config.max_phonemes}.",
                hint="Use prompts(text), one Prompt per sentence, or generate(text), which speaks them all.",
            )
        dropped = tuple(d for r in readings for d in r.dropped)
        prompt = self._prompt(tokens, dropped, request)
        if prompt is None:
            raise InvalidInputError("Nothing in this text can be spoken.", hint="Give it words in English.")
        return prompt

    def _reader(self, british: bool) -> EnglishG2P:
        with self._lock:
            if british not in self._readers:
                self._readers[british] = EnglishG2P(british=british, vocab=self.config.vocab)
            return self._readers[british]

    def _readings(self, text: str, request: Request, phonemes: str | None) -> Iterator[Reading]:
        if phonemes is not None:
            yield given(phonemes, self.config.vocab)
            return
        reader = self._reader(request.british)
        yield from (reader.read(sentence) for sentence in sentences(tidy(text)))

    def _pieces(
        self, text: str, request: Request, phonemes: str | None
    ) -> Iterator[tuple[tuple[Token, ...], tuple[str, ...]]]:
        """Runs of tokens that fit one Prompt; each sentence's dropped characters come with its first piece."""
        first = True
        for reading in self._readings(text, request, phonemes):
            rest, dropped = _short(reading.tokens, FIRST_PHONEMES), reading.dropped
            while True:
                limit = min(FIRST_PHONEMES, self.config.max_phonemes) if first else self.config.max_phonemes
                count = cut([len(t.phonemes) for t in rest], [t.rank for t in rest], limit) if rest else 0
                yield tuple(rest[:count]), dropped
                first = first and not any(p.isalpha() for t in rest[:count] for p in t.phonemes)
                rest, dropped = rest[count:], ()
                if not rest:
                    break

    def _prompt(self, tokens: Iterable[Token], dropped: tuple[str, ...], request: Request) -> Prompt | None:
        """Ids, spans and style of one piece; None if it is silent."""
        symbols: list[str] = []
        spans: list[Span] = []
        for token in tokens:
            heard = token.phonemes if symbols else token.phonemes.lstrip()
            if symbols and symbols[-1] == " ":
                heard = heard.lstrip(" ")
            if heard.strip():
                spans.append(Span(token.text, len(symbols) + 1, len(symbols) + 1 + len(heard.rstrip())))
            symbols += heard
        while symbols and symbols[-1] == " ":
            symbols.pop()
        if not any(s.isalpha() for s in symbols):  # marks alone would be a stretch of silence
            return None
        vocab = self.config.vocab
        ids = np.array([0, *(vocab[s] for s in symbols), 0], np.int32)
        extras = {
            "voice": request.voice,
            "style": self.voices.style(request.blend, len(symbols)),
            "speed": request.speed,
            "language": request.language,
            "phonemes": "".join(symbols),
            "dropped": tuple(dict.fromkeys(dropped)),
        }
        words = " ".join(s.name for s in spans)
        pieces = (BOUNDARY, *symbols, BOUNDARY)
        return Prompt(ids, text=words, pieces=pieces, spans=tuple(spans), extras=MappingProxyType(extras))


_SPACE = Token("", " ", 3)


def check_text(text: str, phonemes: str | None) -> None:
    """Raise InvalidInputError for text that is not text, or empty, or given twice."""
    if not isinstance(text, str) or not (phonemes is None or isinstance(phonemes, str)):
        raise InvalidInputError(f"Expected text, got {type(text).__name__}.", hint="Give a str.")
    if phonemes is not None and text.strip():
        raise InvalidInputError("Both text and phonemes were given.", hint='Give text, or "" and phonemes=.')
    if not (text if phonemes is None else phonemes).strip():
        raise InvalidInputError("The text is empty.", hint="Give it at least one word.")


def _report(prompt: Prompt, dropped: tuple[str, ...]) -> Prompt:
    if not dropped:
        return prompt
    extras = {**prompt.extras, "dropped": tuple(dict.fromkeys((*prompt.extras["dropped"], *dropped)))}
    return replace(prompt, extras=MappingProxyType(extras))


def _short(tokens: Iterable[Token], limit: int) -> list[Token]:
    """The tokens, with any single one over the limit (a long number) broken: at its spaces first, else anywhere."""
    out: list[Token] = []
    for token in tokens:
        if len(token.phonemes) <= limit:
            out.append(token)
            continue
        for word in token.phonemes.strip().split(" "):
            parts = [word[i : i + limit - 1] for i in range(0, len(word), limit - 1)]
            out += [Token(token.text, p, 0) for p in parts[:-1]] + [Token(token.text, parts[-1] + " ", 1)]
    return out
