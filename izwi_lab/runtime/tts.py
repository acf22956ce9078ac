"""Text to speech as the engine runs it: what a request must look like, said whole or chunk by chunk."""

from __future__ import annotations

import importlib
import importlib.util
import math
from dataclasses import replace
from numbers import Integral
from typing import Any, cast

from izwi_lab import families
from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant, Task
from izwi_lab.errors import AudioError, InvalidInputError
from izwi_lab.families.protocols import BatchModel, DirectedSpeechModel, SharingModel
from izwi_lab.results import AudioChunk
from izwi_lab.runtime.registry import Lease
from izwi_lab.runtime.script import Script, by_itself
from izwi_lab.runtime.types import AudioSource, Limits, SpeechRequest, check_text

TASK = Task.TTS
_TEXT_MODES = ("whole", "streaming")
# What a DirectedSpeechModel takes beside the rest.
_DIRECTIONS = ("instruct", "reference", "transcript", "text_mode", "sampling", "predictor", "max_frames")


def check(request: SpeechRequest, limits: Limits) -> SpeechRequest:
    """The request with its reference audio decoded, or an error saying what is wrong; no model is needed to know.

    Raises:
        InvalidInputError, AudioError: what cannot be honoured by any model.
    """
    text = request.text
    if not isinstance(text, str):
        raise InvalidInputError(f"text must be a str, got {type(text).__name__}.", hint="Pass the words to say.")
    check_text("text", text)
    if not text.strip():
        raise InvalidInputError("The text to say is empty.", hint="Pass at least one word.")
    if len(text) > limits.text_chars:
        raise InvalidInputError(
            f"The text has {len(text)} characters, more than the {limits.text_chars} of one request.",
            hint="Split it at paragraphs, or make the engine with larger limits=Limits(text_chars=...).",
        )
    speed = request.speed
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not (math.isfinite(speed) and speed > 0):
        raise InvalidInputError(f"speed must be a number above 0, got {speed!r}.", hint="1.0 is the voice's own pace.")
    _check_voice(request)
    _check_direction(request, limits)
    if request.reference is None:
        return request
    return replace(request, reference=opened(request.reference, limits))


def fits(request: SpeechRequest, variant: ModelVariant) -> None:
    """Raise InvalidInputError for what a variant is known not to do, before its files are fetched."""
    asking = directions_of(variant)
    if asking is None:
        _refuse_directions(variant.id, request)
    else:
        asking.check_known(
            variant,
            voice=request.voice,
            cloning=request.reference is not None,
            language=request.language,
            instruct=request.instruct,
            predictor=request.predictor,
            speed=request.speed,
        )
        if request.reference is not None:
            asking.check_clip(request.reference, request.transcript)


def directions_of(variant: ModelVariant) -> Any:
    """The `asking` module of a family that takes directions, which says what a variant takes; None of another."""
    name = f"{families.__name__}.{variant.family}.asking"
    return importlib.import_module(name) if importlib.util.find_spec(name) is not None else None


def script(lease: Lease, request: SpeechRequest, cancel: CancelToken, *, whole: bool) -> Script:
    """How the engine says it: whole, or piece by piece; the pieces joined are the whole."""
    model: Any = lease.model
    directed = isinstance(model, DirectedSpeechModel)
    if not directed:
        _refuse_directions(model.variant.id, request)
    options = _directed(request, cancel) if directed else _common(request, cancel)
    if directed and isinstance(model, BatchModel):
        return _talked(model, request.text, options)
    if not directed and isinstance(model, SharingModel):
        said: Any = cast(Any, model).course(request.text, **options)
        return Script(said.chunks, lambda pieces, _: said.speech(pieces))
    return by_itself(
        whole, lambda: model.generate(request.text, **options), lambda: model.stream(request.text, **options)
    )


def _talked(model: Any, text: str, options: dict[str, Any]) -> Script:
    """Frame by frame, with the frames of others."""
    from izwi_lab.families.qwen3_tts import talk

    cancel, telling = options.pop("cancel"), talk.Telling()
    asked = talk.SpeechOptions(**options)
    return Script(
        lambda: model.course(text, asked, cancel=cancel, telling=telling),
        lambda said, started_s: talk.gathered(model, text, said, telling, started_s),
    )


def measure(piece: AudioChunk) -> tuple[float, int]:
    """Seconds of audio and tokens in a piece."""
    return piece.audio.duration_s, piece.tokens


def _check_voice(request: SpeechRequest) -> None:
    from izwi_lab.families.qwen3_tts.asking import check_whose
    from izwi_lab.families.qwen3_tts.voice import Voice

    voice, language = request.voice, request.language
    if voice is not None and not isinstance(voice, Voice) and not (isinstance(voice, str) and voice.strip()):
        raise InvalidInputError(
            f"voice must be a name, a Voice or None, got {voice!r:.80}.", hint="None takes the default."
        )
    if language is not None and (not isinstance(language, str) or not language.strip()):
        raise InvalidInputError(f"language must be a name or None, got {language!r}.", hint="None takes the default.")
    check_whose(voice, request.reference, request.transcript)


def _check_direction(request: SpeechRequest, limits: Limits) -> None:
    for name, value in (("instruct", request.instruct), ("transcript", request.transcript)):
        if value is None:
            continue
        if not isinstance(value, str) or (name == "transcript" and not value.strip()):
            raise InvalidInputError(f"{name} must be some text or None, got {value!r:.80}.")
        check_text(name, value)
        if len(value) > limits.text_chars:
            raise InvalidInputError(
                f"{name} has {len(value)} characters, more than the {limits.text_chars} of one request."
            )
    if request.text_mode not in (None, *_TEXT_MODES):
        raise InvalidInputError(f"text_mode must be one of {_TEXT_MODES} or None, got {request.text_mode!r:.80}.")
    _check_choice(request)


def _check_choice(request: SpeechRequest) -> None:
    from izwi_lab.families.shared.sampling import Sampling

    for name in ("sampling", "predictor"):
        value = getattr(request, name)
        if value is not None and not isinstance(value, Sampling):
            raise InvalidInputError(f"{name} must be a Sampling or None, got {value!r:.80}.")
    most: Any = request.max_frames
    if most is not None and (isinstance(most, bool) or not isinstance(most, Integral) or int(most) < 1):
        raise InvalidInputError(f"max_frames must be a whole number of 1 or more, or None, got {most!r:.80}.")


def opened(source: AudioSource, limits: Limits) -> Audio:
    """Reference audio, decoded. Raises AudioError for what is none, holds NaN, or is longer than the limits allow."""
    audio = source if isinstance(source, Audio) else Audio.open(source, max_s=limits.audio_s)
    if audio.duration_s > limits.audio_s:
        raise AudioError(
            f"The reference has {audio.duration_s:.0f} s, more than the {limits.audio_s:.0f} s of one request.",
            hint="A few seconds of speech are enough for a voice.",
        )
    # An Audio made by hand is only typed, not read: a NaN would travel through every layer.
    return Audio.from_samples(audio.samples, audio.rate_hz)


def _common(request: SpeechRequest, cancel: CancelToken) -> dict[str, Any]:
    """The options that every speech model takes."""
    return {
        "voice": request.voice,
        "language": request.language,
        "speed": request.speed,
        "seed": request.seed,
        "cancel": cancel,
    }


def _directed(request: SpeechRequest, cancel: CancelToken) -> dict[str, Any]:
    return _common(request, cancel) | {name: getattr(request, name) for name in _DIRECTIONS}


def _refuse_directions(model: str, request: SpeechRequest) -> None:
    given = [name for name in _DIRECTIONS if getattr(request, name) is not None]
    if request.voice is not None and not isinstance(request.voice, str):
        given.append("a cloned voice")
    if given:
        raise InvalidInputError(
            f"{model} does not take {' or '.join(given)}.",
            hint="Qwen3-TTS models do: CustomVoice and VoiceDesign instructions, Base cloned voices.",
        )
