"""What was asked of a prompt, checked against what the model has: voice, language, instruction, text mode.

What the vendor's package drops silently (an instruction to a 0.6B CustomVoice model) is an error here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.prompt import Speaker
from izwi_lab.families.qwen3_tts.voice import Voice

MODES = ("whole", "streaming")
AUTO = "auto"
BASE, CUSTOM, DESIGN = "base", "custom_voice", "voice_design"

_CODES = {
    "zh": "chinese",
    "en": "english",
    "de": "german",
    "it": "italian",
    "pt": "portuguese",
    "es": "spanish",
    "ja": "japanese",
    "ko": "korean",
    "fr": "french",
    "ru": "russian",
}
_HALF = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Asked:
    """Checked options of a prompt.

    reference: what the voice's reference says. language: a key of config.languages, None for the model to find out.
    whole: all the text is read before the first frame.
    """

    speaker: Speaker
    reference: str
    language: str | None
    instruct: str
    whole: bool


def voices(config: TTSConfig) -> tuple[str, ...]:
    """Preset voices, in the order of the checkpoint; none where a voice is cloned or described."""
    return tuple(config.voices) if config.kind == CUSTOM else ()


def languages(config: TTSConfig) -> tuple[str, ...]:
    """Languages that can be asked for, beside "auto". Dialects come with their voices."""
    return tuple(n for n in config.languages if "dialect" not in n)


def asked(config: TTSConfig, *, voice: Any, language: str | None, instruct: str | None, text_mode: str | None) -> Asked:
    """The options of `Processor.prompt`, checked. Raises InvalidInputError saying what the model has instead."""
    if text_mode not in (None, *MODES):
        raise InvalidInputError(f"text_mode is {text_mode!r:.40}.", hint='Expected "whole" or "streaming".')
    whole = config.kind != BASE if text_mode is None else text_mode == MODES[0]
    speaker, reference = _speaker(config, voice)
    spoken = _language(config, language)
    if spoken in (None, "chinese") and speaker.id is not None:
        # The vendor's rule: the voice of a dialect speaks it, unless told another language.
        spoken = config.dialects.get(speaker.name, spoken)
    return Asked(speaker, reference, spoken, _instruct(config, instruct), whole)


def _speaker(config: TTSConfig, voice: Any) -> tuple[Speaker, str]:
    """Whose voice, and what its reference says."""
    kind = config.kind
    if voice is not None and not isinstance(voice, (str, Voice)):
        raise InvalidInputError(f"voice is a {type(voice).__name__}.", hint="Expected a name or a Voice.")
    if kind == DESIGN:
        if voice is not None:
            raise InvalidInputError(
                "A VoiceDesign model has no voices to choose from.", hint="Describe the voice with instruct=."
            )
        return Speaker(), ""
    if kind == BASE:
        if not isinstance(voice, Voice):
            came = "none was given" if voice is None else f"got the name {voice!r:.60}"
            raise InvalidInputError(
                f"A Base model speaks in a cloned voice; {came}.",
                hint="Make one with model.voice(audio, transcript), or load one with izwi_lab.Voice.load(path).",
            )
        return _cloned(config, voice), voice.transcript
    if isinstance(voice, Voice):
        raise InvalidInputError(
            f"A CustomVoice model has preset voices only, and cannot speak as {voice.name!r}.",
            hint=f"Use a Base model for cloned voices, or one of: {', '.join(voices(config))}.",
        )
    name = (
        next(iter(voices(config)), None) if voice is None else voice.strip().lower().replace(" ", "_").replace("-", "_")
    )
    number = None if name is None else config.voices.get(name)
    if name is None or number is None:
        raise InvalidInputError(f"Unknown voice {voice!r:.60}.", hint=f"Expected one of: {', '.join(voices(config))}.")
    return Speaker(name, id=number), ""


def _cloned(config: TTSConfig, voice: Voice) -> Speaker:
    by = f", by {voice.source}" if voice.source else ""
    if len(voice.embedding) != (width := config.talker.hidden_size):
        raise InvalidInputError(
            f"Voice {voice.name!r} has a vector of {len(voice.embedding)}{by}; this model's voices have {width}.",
            hint="Make it again with this model: voices belong to one size of model.",
        )
    if voice.codes is not None:
        count, most = config.codebooks, config.predictor_vocab
        if voice.codes.shape[0] != count or voice.codes.max() >= most:
            raise InvalidInputError(
                f"Voice {voice.name!r} has {voice.codes.shape[0]} codebooks with codes up to "
                f"{voice.codes.max()}{by}; this model has {count} with codes below {most}.",
                hint="Make it again with this model.",
            )
    return Speaker(voice.name, vector=voice.embedding, codes=voice.codes)


def _language(config: TTSConfig, language: str | None) -> str | None:
    if language is None:
        return None
    asked = language.strip().lower() if isinstance(language, str) else ""
    if asked == AUTO:
        return None
    for name in (asked, _CODES.get(re.split("[-_]", asked)[0], "")):
        if name in languages(config):
            return name
    hint = f"Expected auto, {', '.join(languages(config))}, or an ISO code."
    if spoken := [v for v, d in config.dialects.items() if d == asked]:
        hint = f"This dialect is spoken by the voice {' or '.join(spoken)}. {hint}"
    raise InvalidInputError(f"Unknown language {language!r:.60}.", hint=hint)


def _instruct(config: TTSConfig, instruct: str | None) -> str:
    kind, size = config.kind, config.size
    if instruct is None and kind == DESIGN:
        raise InvalidInputError(
            "A VoiceDesign model needs a description of the voice.",
            hint='Give instruct=, for example "A calm old man with a deep voice"; "" leaves it to the model.',
        )
    if instruct is not None and not isinstance(instruct, str):
        raise InvalidInputError(f"instruct is a {type(instruct).__name__}.", hint="Expected text.")
    if instruct is None or not instruct.strip():
        return ""
    if kind == BASE:
        raise InvalidInputError(
            "A Base model takes no instructions: it speaks as its reference does.",
            hint="Leave instruct out, or use a 1.7B CustomVoice or a VoiceDesign model.",
        )
    if kind == CUSTOM and size == "0b6":
        raise InvalidInputError(
            "The 0.6B CustomVoice model was not trained on instructions, and its vendor's software ignores them.",
            hint="Leave instruct out, or use the 1.7B CustomVoice model.",
        )
    return checked_text(instruct, "The instruction")


def checked_text(text: Any, what: str) -> str:
    """The text. Raises InvalidInputError for what is no text, says nothing, or holds half a character."""
    if not isinstance(text, str):
        raise InvalidInputError(f"{what} is a {type(text).__name__}.", hint="Expected text.")
    if not text.strip():
        raise InvalidInputError(f"{what} is empty.", hint="Give it at least one word.")
    if half := _HALF.search(text):
        raise InvalidInputError(
            f"{what} holds {half[0]!r}, which is no character.", hint="Decode it with the encoding it came in."
        )
    return text
