"""Speech recognition as the engine runs it: what a request must look like, heard whole or segment by segment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.errors import AudioError, InvalidInputError
from izwi_lab.families.protocols import RecognitionModel, SharingModel
from izwi_lab.results import Segment
from izwi_lab.runtime.registry import Lease
from izwi_lab.runtime.script import Script, by_itself
from izwi_lab.runtime.types import Limits, TranscriptionRequest, check_number, check_text

TASK = Task.ASR
_TASKS = ("transcribe", "translate")
_OPTIONS = ("language", "task", "prompt", "word_times", "temperature", "seed")


def check(request: TranscriptionRequest, limits: Limits) -> TranscriptionRequest:
    """The request with its audio decoded. Raises AudioError or InvalidInputError; no model is needed to know."""
    if request.task not in _TASKS:
        raise InvalidInputError(f"task must be one of {_TASKS}, got {request.task!r}.")
    for name, value in (("language", request.language), ("prompt", request.prompt)):
        if value is not None and not isinstance(value, str):
            raise InvalidInputError(f"{name} must be a str or None, got {type(value).__name__}.")
    if request.language is not None and not request.language.strip():
        raise InvalidInputError("language is empty.", hint="Use a code such as 'en', or None to detect it.")
    if request.prompt is not None:
        check_text("prompt", request.prompt)
    check_number("temperature", request.temperature)
    return replace(request, audio=_opened(request, limits))


def _opened(request: TranscriptionRequest, limits: Limits) -> Audio:
    source = request.audio
    audio = source if isinstance(source, Audio) else Audio.open(source, max_s=limits.audio_s)
    # An Audio made by hand is only typed, not read: a NaN would travel through every layer and come out as silence.
    audio = Audio.from_samples(audio.samples, audio.rate_hz)
    if audio.duration_s > limits.audio_s:
        raise AudioError(
            f"The recording has {audio.duration_s:.0f} s, more than the {limits.audio_s:.0f} s of one request.",
            hint="Split it with Audio.between, or make the engine with larger limits=Limits(audio_s=...).",
        )
    return audio


def script(lease: Lease, request: TranscriptionRequest, cancel: CancelToken, *, whole: bool) -> Script:
    """How the engine hears it: whole, or segment by segment; the segments are the same."""
    model, audio = cast(RecognitionModel, lease.model), cast(Audio, request.audio)
    options: dict[str, Any] = {name: getattr(request, name) for name in _OPTIONS} | {"cancel": cancel}
    heard_s = audio.duration_s
    if isinstance(model, SharingModel):
        heard: Any = cast(Any, model).course(audio, streaming=not whole, **options)
        return Script(heard.segments, lambda pieces, _: heard.transcript(tuple(pieces)), heard_s)
    return by_itself(
        whole, lambda: model.generate(audio, **options), lambda: model.stream(audio, **options), audio_s=heard_s
    )


def measure(piece: Segment) -> tuple[float, int]:
    """Seconds of audio and tokens in a piece."""
    return max(0.0, piece.end_s - piece.start_s), len(piece.tokens)
