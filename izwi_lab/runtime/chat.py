"""Chat as the engine runs it: what a request must look like, answered whole or as text arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.protocols import ChatModel, Model
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.results import ChatReply, TextDelta
from izwi_lab.runtime.types import ChatRequest, Limits, check_text

TASK = Task.CHAT
_HINT = "Pass a string, or messages like {'role': 'user', 'content': 'Hello.'}."


def check(request: ChatRequest, limits: Limits) -> ChatRequest:
    """The request, or InvalidInputError saying what is wrong with it; no model is needed to know."""
    texts = _texts(request.messages)
    if not any(t.strip() for t in texts):
        raise InvalidInputError("There is nothing to answer: every message is empty.", hint=_HINT)
    chars = sum(map(len, texts))
    if chars > limits.chat_chars:
        raise InvalidInputError(
            f"The messages have {chars} characters, more than the {limits.chat_chars} of one request.",
            hint="Shorten them, or make the engine with larger limits=Limits(chat_chars=...).",
        )
    if isinstance(request.max_tokens, bool) or not isinstance(request.max_tokens, int) or request.max_tokens < 1:
        raise InvalidInputError(f"max_tokens must be a whole number of 1 or more, got {request.max_tokens!r}.")
    if request.sampling is not None and not isinstance(request.sampling, Sampling):
        raise InvalidInputError(f"sampling must be a Sampling or None, got {request.sampling!r:.80}.")
    stop: object = request.stop
    if not isinstance(stop, Sequence) or isinstance(stop, str) or not all(isinstance(s, str) and s for s in stop):
        raise InvalidInputError(f"stop must be a list of non-empty strings, got {request.stop!r}.")
    return request


def _texts(messages: str | Sequence[Mapping[str, object]]) -> list[str]:
    if isinstance(messages, str):
        return [check_text("the message", messages)]
    if not isinstance(messages, Sequence) or not messages:
        raise InvalidInputError(
            f"messages must be a string or a list with a message, got {messages!r:.80}.", hint=_HINT
        )
    texts = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidInputError(f"messages[{i}] has no role: {message!r:.80}.", hint=_HINT)
        content = message.get("content")
        if not isinstance(content, str):
            raise InvalidInputError(f"messages[{i}]: content must be a str, got {type(content).__name__}.", hint=_HINT)
        texts.append(check_text(f"messages[{i}]", content))
    return texts


def run(model: Model, request: ChatRequest, cancel: CancelToken) -> ChatReply:
    """Answer it all, then return."""
    return _talker(model).generate(
        request.messages,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        stop=request.stop,
        seed=request.seed,
        cancel=cancel,
    )


def stream(model: Model, request: ChatRequest, cancel: CancelToken) -> Iterator[TextDelta]:
    """Answer as text arrives; the texts joined are what `run` gives."""
    return _talker(model).stream(
        request.messages,
        sampling=request.sampling,
        max_tokens=request.max_tokens,
        stop=request.stop,
        seed=request.seed,
        cancel=cancel,
    )


def measure(piece: TextDelta) -> tuple[float, int]:
    """Seconds of audio and tokens in a piece."""
    return 0.0, 0 if piece.token is None else 1


def _talker(model: Model) -> ChatModel:
    return cast(ChatModel, model)
