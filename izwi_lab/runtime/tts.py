"""Text to speech as the engine runs it: what a request must look like, said whole or chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.protocols import Model, SpeechModel
from izwi_lab.results import AudioChunk, Speech
from izwi_lab.runtime.registry import Lease
from izwi_lab.runtime.types import Limits, SpeechRequest, check_text

TASK = Task.TTS


def check(request: SpeechRequest, limits: Limits) -> SpeechRequest:
    """The request, or InvalidInputError saying what is wrong with it; no model is needed to know."""
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
    for name, value in (("voice", request.voice), ("language", request.language)):
        if value is not None and (not isinstance(value, str) or not value.strip()):
            raise InvalidInputError(f"{name} must be a name or None, got {value!r}.", hint="None takes the default.")
    speed = request.speed
    if isinstance(speed, bool) or not isinstance(speed, (int, float)) or not (math.isfinite(speed) and speed > 0):
        raise InvalidInputError(f"speed must be a number above 0, got {speed!r}.", hint="1.0 is the voice's own pace.")
    return request


def run(lease: Lease, request: SpeechRequest, cancel: CancelToken) -> Speech:
    """Say it all, then return."""
    return _speaker(lease.model).generate(
        request.text,
        voice=request.voice,
        language=request.language,
        speed=request.speed,
        seed=request.seed,
        cancel=cancel,
    )


def stream(lease: Lease, request: SpeechRequest, cancel: CancelToken) -> Iterator[AudioChunk]:
    """Say it piece by piece; the pieces joined are what `run` gives."""
    return _speaker(lease.model).stream(
        request.text,
        voice=request.voice,
        language=request.language,
        speed=request.speed,
        seed=request.seed,
        cancel=cancel,
    )


def measure(piece: AudioChunk) -> tuple[float, int]:
    """Seconds of audio and tokens in a piece."""
    return piece.audio.duration_s, 0


def _speaker(model: Model) -> SpeechModel:
    return cast(SpeechModel, model)
