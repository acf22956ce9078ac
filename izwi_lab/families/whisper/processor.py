"""Text and ids: control tokens, prompts, detokenising, words. Same for both backends.

Prompt layout (openai/whisper `tokenizer.py`, `decoding.py`): [<|startofprev|> earlier text] <|startoftranscript|>
[language, task] [<|notimestamps|>]; the bracketed language and task are absent in `.en` models.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.tokenizer_json import read_tokenizer
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.steps import Prompt, Span
from izwi_lab.families.whisper.config import SECONDS_PER_TIMESTAMP, WhisperConfig
from izwi_lab.families.whisper.languages import LANGUAGES, UNSPACED, language_code

TASKS = ("transcribe", "translate")


@dataclass(frozen=True, slots=True)
class ControlTokens:
    """Ids of the control tokens. They follow from the vocabulary's size, in OpenAI's fixed order."""

    end: int
    start: int
    languages: tuple[int, ...]
    translate: int
    transcribe: int
    start_of_lm: int
    start_of_prev: int
    no_speech: int
    no_timestamps: int
    first_timestamp: int

    @classmethod
    def of(cls, config: WhisperConfig) -> ControlTokens:
        """For this vocabulary: 51,864 (.en), 51,865 (99 languages) or 51,866 (100)."""
        end = 50_257 if config.multilingual else 50_256
        count = min(config.vocab_size - 51_765 - int(config.multilingual), len(LANGUAGES))
        after = end + 2 + count
        return cls(end, end + 1, tuple(range(end + 2, after)), *range(after, after + 7))


class WhisperProcessor:
    """Between text and ids. Without a vocabulary file (load_format="dummy") text shows as ids."""

    def __init__(self, config: WhisperConfig, vocabulary: Any | None) -> None:
        self.config = config
        self.tokens = ControlTokens.of(config)
        self._vocabulary = vocabulary
        if vocabulary is not None:
            self._check(vocabulary)
            vocabulary.encode_special_tokens = True  # "<|endoftext|>" in a user's prompt stays plain text

    @classmethod
    def from_folder(cls, config: WhisperConfig, folder: Path) -> WhisperProcessor:
        """Read tokenizer.json. Raises CheckpointError if it is missing, broken or of another vocabulary."""
        return cls(config, read_tokenizer(folder / "tokenizer.json"))

    def _check(self, vocabulary: Any) -> None:
        names = {"<|endoftext|>": self.tokens.end, "<|notimestamps|>": self.tokens.no_timestamps}
        for name, expected in names.items():
            found = vocabulary.token_to_id(name)
            if found != expected:
                raise CheckpointError(f"tokenizer.json gives {name} the id {found}, this net expects {expected}.")

    def language(self, language: str | None, task: str) -> str | None:
        """The checked language code, or None to detect. Raises InvalidInputError for what this model cannot do."""
        if task not in TASKS:
            raise InvalidInputError(f"Unknown task {task!r}.", hint=f"Expected one of: {', '.join(TASKS)}.")
        if self.config.multilingual:
            return None if language is None else language_code(language, len(self.tokens.languages))
        code = "en" if language is None else language_code(language, len(LANGUAGES))
        if code != "en" or task != "transcribe":
            raise InvalidInputError(
                f"This is an English-only model; it cannot {task} {LANGUAGES[code]}.",
                hint="Use a multilingual one, such as Whisper-base.",
            )
        return code

    def prompt(
        self, *, language: str | None, task: str, timestamps: bool, text: str | None, previous: Sequence[int] = ()
    ) -> Prompt:
        """The decoder's prompt. text: words to condition on; previous: token ids heard before (instead of text)."""
        if language is None and task != "transcribe":
            raise InvalidInputError(f"Task {task!r} needs a language.", hint="Name it, or ask detect_language() first.")
        t = self.tokens
        before = [i for i in previous if i < t.end]
        if not before and text and text.strip():
            before = self.encode(" " + text.strip())
        before = before[-(self.config.max_target_positions // 2 - 1) :]
        ids = [t.start_of_prev, *before] if before else []
        at = len(ids)
        ids.append(t.start)
        if self.config.multilingual and language is not None:
            ids.append(t.languages[list(LANGUAGES).index(language)])
            ids.append(t.transcribe if task == "transcribe" else t.translate)
        if not timestamps:
            ids.append(t.no_timestamps)
        spans = ([Span("previous", 0, at)] if at else []) + [Span("control", at, len(ids))]
        extras = {"start": at, "timestamps": timestamps, "language": language, "task": task}
        return Prompt(np.array(ids, np.int32), text or "", tuple(self.piece(i) for i in ids), tuple(spans), extras)

    def encode(self, text: str) -> list[int]:
        """Plain text to ids; control tokens in it are spelled out, never obeyed."""
        if self._vocabulary is None:
            raise InvalidInputError("A dummy model has no vocabulary.", hint="Leave out the prompt text.")
        return list(self._vocabulary.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Ids to text; control and timestamp tokens are left out."""
        words = [i for i in ids if i < self.tokens.end]
        if self._vocabulary is None:
            return "".join(f" {i}" for i in words)
        return str(self._vocabulary.decode(words, skip_special_tokens=False))

    def piece(self, token: int) -> str:
        """One id, readable: text, control name, or time."""
        t = self.tokens
        if token >= t.first_timestamp:
            return f"<|{(token - t.first_timestamp) * SECONDS_PER_TIMESTAMP:.2f}|>"
        if token < t.end:
            return self.decode([token])
        if token in t.languages:
            return f"<|{tuple(LANGUAGES)[token - t.languages[0]]}|>"
        names = {t.end: "endoftext", t.start: "startoftranscript", t.translate: "translate"}
        names |= {t.transcribe: "transcribe", t.start_of_lm: "startoflm", t.start_of_prev: "startofprev"}
        names |= {t.no_speech: "nospeech", t.no_timestamps: "notimestamps"}
        return f"<|{names.get(token, token)}|>"

    def split_words(self, ids: Sequence[int], language: str) -> list[tuple[str, list[int]]]:
        """Text ids grouped into words: at spaces, or at characters in languages written without them."""
        pieces = self._whole_characters(ids)
        if language in UNSPACED:
            return pieces
        words: list[tuple[str, list[int]]] = []
        for text, tokens in pieces:
            if text.startswith(" ") or text.strip() in string.punctuation or not words:
                words.append((text, tokens))
            else:
                words[-1] = (words[-1][0] + text, words[-1][1] + tokens)
        return words

    def _whole_characters(self, ids: Sequence[int]) -> list[tuple[str, list[int]]]:
        """Ids grouped so that no character is split between groups."""
        out: list[tuple[str, list[int]]] = []
        held: list[int] = []
        for n, token in enumerate(ids):
            held.append(token)
            text = self.decode(held)
            if not text.endswith("\ufffd") or n == len(ids) - 1:
                out.append((text, held))
                held = []
        return out
