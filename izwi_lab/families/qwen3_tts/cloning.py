"""A voice from reference audio: its speaker vector and, with a transcript, its codes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, BinaryIO, TypeAlias

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken, check_cancel
from izwi_lab.families.qwen3_tts.asking import no_cloning
from izwi_lab.families.qwen3_tts.reference import reference
from izwi_lab.families.qwen3_tts.voice import Voice, check_texts

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

AudioSource: TypeAlias = "Audio | str | os.PathLike[str] | bytes | BinaryIO"


def cloned(
    model: Qwen3TTS,
    source: AudioSource,
    transcript: str | None,
    *,
    name: str = "reference",
    language: str = "",
    cancel: CancelToken | None = None,
) -> Voice:
    """The voice of a clip; see `Qwen3TTS.voice`."""
    check_cancel(cancel)
    if model.speaker is None or model.config.speaker is None:
        raise no_cloning(model.variant.id)
    check_texts(name=name, transcript="" if transcript is None else transcript, language=language)  # before the work
    heard, backend = reference(source, transcript), model.backend
    mel = heard.mel(model.config.speaker.mel_bins)
    if cancel is not None:
        cancel.check()
    with backend.inference():
        vector = backend.numpy(model.speaker(backend.array(mel, dtype="float32")))[0]
    codes = model.codec.encode(heard.audio, cancel=cancel) if heard.transcript else None
    return Voice(name, vector, codes, heard.transcript, language, model.variant.id, heard.notes)
