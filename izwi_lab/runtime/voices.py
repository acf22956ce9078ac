"""Voices as the engine makes them of a recording, and the presets that a model has."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from izwi_lab import settings
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Family, ModelVariant, Task
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.protocols import DirectedSpeechModel
from izwi_lab.runtime.model_router import ModelRouter
from izwi_lab.runtime.registry import Lease
from izwi_lab.runtime.tts import directions_of, opened
from izwi_lab.runtime.types import Limits, ModelName, VoiceRequest

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.voice import Voice

TASK = Task.TTS


def check(request: VoiceRequest, limits: Limits) -> VoiceRequest:
    """The request with its audio decoded, or an error saying what is wrong; no model is needed to know.

    Raises:
        InvalidInputError, AudioError: what no voice can be made of, or kept under.
    """
    from izwi_lab.families.qwen3_tts.voice import check_texts

    said = "" if request.transcript is None else request.transcript
    check_texts(name=request.name, transcript=said, language=request.language)
    return replace(request, audio=opened(request.audio, limits))


def fits(request: VoiceRequest, variant: ModelVariant) -> None:
    """Raise InvalidInputError for a variant that is known to clone no voices, before its files are fetched."""
    asking = directions_of(variant)
    if asking is None:
        raise _no_cloning(variant.id)
    asking.check_clones(variant)
    asking.check_clip(request.audio, request.transcript)


def run(lease: Lease, request: VoiceRequest, cancel: CancelToken) -> Voice:
    """Make it."""
    cancel.check()
    model = lease.model
    if not isinstance(model, DirectedSpeechModel):
        raise _no_cloning(model.variant.id)
    return model.voice(request.audio, request.transcript, name=request.name, language=request.language, cancel=cancel)


def _no_cloning(model: str) -> InvalidInputError:
    return InvalidInputError(f"{model} clones no voices.", hint="Use a Base model, such as Qwen3-TTS-12Hz-0.6B-Base.")


def presets(model: ModelName) -> tuple[ModelVariant, tuple[str, ...]]:
    """A model of the catalog, a hub repo or a folder, and the names of its voices; nothing is loaded.

    Raises:
        UnknownModelError: no such model. CheckpointError: a folder that is damaged.
    """
    variant, folder = ModelRouter(models_dir=settings.load().models_dir).find(model)
    if folder is None or variant.family is not Family.QWEN3_TTS:
        return variant, variant.voices
    from izwi_lab.families.qwen3_tts.loader import voices

    return variant, voices(folder)
