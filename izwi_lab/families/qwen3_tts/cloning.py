"""A voice from reference audio: its speaker vector and, with a transcript, its codes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from izwi_lab.audio import Audio
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts.reference import reference
from izwi_lab.families.qwen3_tts.voice import Voice

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

AudioSource: TypeAlias = "Audio | str | os.PathLike[str] | bytes | BinaryIO"


def cloned(
    model: Qwen3TTS, source: AudioSource, transcript: str | None, *, name: str = "reference", language: str = ""
) -> tuple[Voice, tuple[str, ...]]:
    """The voice of a clip, and notes on what of the clip was not heard; see `Qwen3TTS.voice`."""
    if model.speaker is None:
        raise InvalidInputError(
            f"{model.variant.id} clones no voices: it has no speaker encoder.",
            hint="Use a Base model, such as Qwen3-TTS-12Hz-0.6B-Base.",
        )
    heard, backend = reference(source, transcript), model.backend
    with backend.inference():
        vector = backend.numpy(model.speaker(backend.array(heard.mel(), dtype="float32")))[0]
    codes = model.codec.encode(heard.audio) if heard.transcript else None
    return Voice(name, vector, codes, heard.transcript, language, model.variant.id), heard.notes
