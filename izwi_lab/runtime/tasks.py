"""Which module answers a request: tts.py, asr.py or chat.py, and what they have in common."""

from __future__ import annotations

from typing import Any, Protocol, cast

from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.errors import InvalidInputError
from izwi_lab.runtime import asr, chat, tts
from izwi_lab.runtime.registry import Lease
from izwi_lab.runtime.script import Script
from izwi_lab.runtime.types import ChatRequest, GenerationRequest, Limits, SpeechRequest, TranscriptionRequest


class CheckingModule(Protocol):
    """What tts.py, asr.py, chat.py and voices.py have."""

    TASK: Task

    def check(self, request: Any, limits: Limits) -> Any:
        """The request, or an error saying what is wrong with it."""


class TaskModule(CheckingModule, Protocol):
    """What tts.py, asr.py and chat.py have: answers whole, and piece by piece."""

    def script(self, lease: Lease, request: Any, cancel: CancelToken, *, whole: bool) -> Script:
        """What the engine is to do, and what becomes of its pieces."""

    def measure(self, piece: Any) -> tuple[float, int]:
        """Seconds of audio and tokens of a piece."""


_TASKS: dict[type[GenerationRequest], TaskModule] = {
    SpeechRequest: cast(TaskModule, tts),
    TranscriptionRequest: cast(TaskModule, asr),
    ChatRequest: cast(TaskModule, chat),
}


def task_of(request: GenerationRequest) -> TaskModule:
    """The module of a request. Raises InvalidInputError for what is none."""
    task = _TASKS.get(type(request))
    if task is None:
        raise InvalidInputError(
            f"A request must be one of {[c.__name__ for c in _TASKS]}, got {type(request).__name__}."
        )
    return task
