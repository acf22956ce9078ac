"""What was asked of a prompt, checked against what the model has: voice, language, instruction, text mode.

What the vendor's package drops silently (an instruction to a 0.6B CustomVoice model) is an error here.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from izwi_lab import catalog
from izwi_lab.audio import Audio
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.generation import check_predictor
from izwi_lab.families.qwen3_tts.prompt import Speaker
from izwi_lab.families.qwen3_tts.reference import checked
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.sampling import Sampling

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


def check_known(
    variant: ModelVariant,
    *,
    voice: str | Voice | None,
    cloning: bool,
    language: str | None,
    instruct: str | None,
    predictor: Sampling | None,
    speed: float,
) -> None:
    """Raise InvalidInputError for what a variant of the catalog cannot honour, known before its files are here.

    cloning: a reference is given in the place of a voice. Of a variant that the catalog does not know nothing is said.
    """
    check_speed(speed)
    check_predictor(predictor)
    if (config := _known(variant)) is None:
        return
    if not cloning:
        _speaker(config, voice)
    elif config.kind != BASE:
        raise no_cloning(variant.id)
    _language(config, language)
    _instruct(config, instruct)


def check_clones(variant: ModelVariant) -> None:
    """Raise InvalidInputError for a variant of the catalog that clones no voices."""
    if (config := _known(variant)) is not None and config.kind != BASE:
        raise no_cloning(variant.id)


def _known(variant: ModelVariant) -> TTSConfig | None:
    return TTSConfig.from_hf(catalog.config(variant)) if catalog.has_config(variant) else None


def check_clip(audio: Audio, transcript: str | None) -> None:
    """Raise AudioError or InvalidInputError for a clip that no voice can be made of, or a transcript it cannot have."""
    checked(audio, transcript)


def no_cloning(model: str) -> InvalidInputError:
    """What to raise where a model clones no voices."""
    return InvalidInputError(
        f"{model} clones no voices: it has no speaker encoder.",
        hint="Use a Base model, such as Qwen3-TTS-12Hz-0.6B-Base.",
    )


def check_whose(voice: object, reference: object, transcript: object) -> None:
    """Raise InvalidInputError where it is said twice, or by half, whose voice it is."""
    if reference is not None and voice is not None:
        raise InvalidInputError(
            "Both a voice and a reference were given: each says whose voice it is.", hint="Give one of them."
        )
    if transcript is not None and reference is None:
        raise InvalidInputError("A transcript needs the reference audio it belongs to.", hint="Give reference too.")


def check_speed(speed: float) -> None:
    """Raise InvalidInputError for another speed than the model's own."""
    if speed != 1.0:
        raise InvalidInputError(
            f"Qwen3-TTS has no speed, got {speed!r}.",
            hint='Leave speed at 1, or say it in words where the model takes them: instruct="Speak slowly."',
        )


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
                hint="Make one with voice(audio, transcript) of a model or engine, or load one: Voice.load(path).",
            )
        return _cloned(config, voice), voice.transcript
    if isinstance(voice, Voice):
        raise InvalidInputError(
            f"A CustomVoice model has preset voices only, and cannot speak as {voice.name!r}.",
            hint=f"Use a Base model for cloned voices, or one of: {', '.join(voices(config))}.",
        )
    name = next(iter(voices(config)), None) if voice is None else _preset(config, voice)
    if name is None:
        raise InvalidInputError(f"Unknown voice {voice!r:.60}.", hint=f"Expected one of: {', '.join(voices(config))}.")
    return Speaker(name, id=config.voices[name]), ""


def _preset(config: TTSConfig, voice: str) -> str | None:
    """The preset of a name in any case, then also where spaces, "-" and "_" are told apart by nobody."""
    if (name := voice.lower()) in config.voices:
        return name
    alike = [known for known in config.voices if _bare(known) == _bare(voice)]
    if len({config.voices[known] for known in alike}) > 1:
        raise CheckpointError(
            f"The checkpoint has the voices {', '.join(map(repr, alike))}; {voice!r:.60} may be any of them.",
            hint="Write the name as the checkpoint does.",
        )
    return next(iter(alike), None)


def _bare(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


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
