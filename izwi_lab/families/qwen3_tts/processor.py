"""Text, voice, language and instruction to Prompts: token ids, their layout, and long text in pieces.

Source of the wording and of the defaults: qwen-tts 0.1.1, inference/qwen3_tts_model.py.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.asking import (
    AUTO,
    DESIGN,
    MODES,
    Asked,
    asked,
    checked_text,
    voices,
)
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.prompt import SpeechPrompt, Words, lay_out
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.prompts import PromptEncoder
from izwi_lab.families.shared.qwen_tokenizer import qwen_tokenizer
from izwi_lab.families.shared.sentences import pieces, weight

PIECE = 600  # weight (sentences.weight) of a piece of long text: about 40 s of speech, a quarter of the 2048 frames
_EDGE = re.compile(r"^\s*[\r\n]")  # a line end before any word would melt into the role's own


class Processor:
    """What turns text into what the talker reads. Immutable."""

    def __init__(self, tokenizer: Any, config: TTSConfig) -> None:
        """Tokenizer: a `tokenizers.Tokenizer`. Raises CheckpointError where it is not the one of the config."""
        self.tokenizer, self.config = tokenizer, config
        self._encoder = PromptEncoder(tokenizer)
        for name in ("im_start", "im_end"):
            token, wanted = f"<|{name}|>", getattr(config.ids, name)
            if (found := tokenizer.token_to_id(token)) != wanted:
                raise CheckpointError(
                    f"The tokenizer has {token} at {found}; config.json says {wanted}.", hint="Fetch the model again."
                )
        self._newline = self._plain("\n")
        self._role = [config.ids.im_start, *self._plain("assistant\n")]
        if len(self._role) != 3:  # the reference cuts three ids off
            raise CheckpointError("The tokenizer has no token for 'assistant'.", hint="Fetch the model again.")

    @classmethod
    def from_folder(cls, folder: Path, config: TTSConfig) -> Self:
        """With the tokenizer of a checkpoint's folder. Raises CheckpointError where it is missing or damaged."""
        return cls(qwen_tokenizer(folder), config)

    @property
    def voices(self) -> tuple[str, ...]:
        """Preset voices, in the order of the checkpoint; none where a voice is cloned or described."""
        return voices(self.config)

    @property
    def default_voice(self) -> str | None:
        """The preset voice that speaks where none is named: the checkpoint's first."""
        return next(iter(self.voices), None)

    def prompt(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        instruct: str | None = None,
        text_mode: str | None = None,
    ) -> SpeechPrompt:
        """The whole text as one Prompt. ids: the text side [T]; extras: layout, voice, language, text_mode and more.

        Control tokens in the text, the instruction and the transcript are read as letters.

        Args:
            text: what to say.
            voice: a preset's name in any case (CustomVoice; default: the first), a Voice (Base); None for VoiceDesign.
            language: an English name or ISO code ("English", "en", "en-US"); "auto" or None: the model finds out.
            instruct: how to speak (CustomVoice 1.7B), or what the voice is like (VoiceDesign, where it is needed, and
                where "" leaves it to the model).
            text_mode: "whole" reads all the text before the first frame; "streaming" a token with every frame. Default:
                whole, for Base streaming.

        Raises:
            InvalidInputError: empty text, or an option that this model has not; the message says what it has.
        """
        asked = self._asked(voice, language, instruct, text_mode)
        return self._prompt(checked_text(text, "The text"), asked)

    def prompts(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        instruct: str | None = None,
        text_mode: str | None = None,
    ) -> Iterator[SpeechPrompt]:
        """A long text as Prompts of whole sentences, about 40 s of speech each, all with the same voice; see `prompt`.

        A described voice is another one with every prompt: such a text is never cut. Errors are raised here, not when
        the first Prompt is taken.
        """
        asked = self._asked(voice, language, instruct, text_mode)
        text = checked_text(text, "The text")
        whole = self.config.kind == DESIGN or weight(text) <= PIECE  # what fits is said as `prompt` says it
        parts = [text] if whole else pieces(text, PIECE)
        return (self._prompt(part, asked) for part in parts)

    def _prompt(self, text: str, asked: Asked) -> SpeechPrompt:
        ids = self.config.ids
        words = Words(
            role=self._role,
            text=self._letters(text),
            instruct=self._turn(asked.instruct) if asked.instruct else (),
            reference=self._letters(asked.reference) if asked.reference else (),
        )
        layout, spans = lay_out(self.config, words, asked.speaker, language=asked.language, whole=asked.whole)
        known = {int(i): self._piece(int(i)) for i in np.unique(np.concatenate([layout.text, layout.trailing]))}
        extras = {
            "layout": layout,
            "codec_pieces": layout.codec_names,
            "trailing_pieces": tuple(known[int(i)] for i in layout.trailing),
            "voice": asked.speaker.name,
            "language": asked.language or AUTO,
            "instruct": asked.instruct,
            "text_mode": MODES[0] if asked.whole else MODES[1],
        }
        most = self.config.talker.max_positions
        if len(layout) + len(layout.trailing) >= most:
            raise InvalidInputError(
                f"The prompt has {len(layout)} positions and {len(layout.trailing)} text ids to follow; the model has "
                f"room for {most}.",
                hint="Give less text, or a shorter instruction or reference.",
            )
        shown = tuple(known[int(i)] if i != ids.tts_pad else "" for i in layout.text)
        return SpeechPrompt(layout.text, text, shown, spans, MappingProxyType(extras))

    def _asked(self, voice: Any, language: str | None, instruct: str | None, text_mode: str | None) -> Asked:
        return asked(self.config, voice=voice, language=language, instruct=instruct, text_mode=text_mode)

    def _turn(self, instruct: str) -> list[int]:
        """A user's whole turn, up to the line end after <|im_end|>."""
        ids = self.config.ids
        return [ids.im_start, *self._plain("user\n"), *self._letters(instruct), ids.im_end, *self._newline]

    def _letters(self, text: str) -> list[int]:
        return self._encoder.letters(text.lstrip() if _EDGE.match(text) else text)

    def _plain(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def _piece(self, token: int) -> str:
        shown: str = self.tokenizer.decode([token], skip_special_tokens=False)
        return shown
