"""Chat as the engine runs it: what a request must look like, answered whole or as text arrives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, cast

from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.protocols import BatchModel, ChatModel
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.nesting import check_depth
from izwi_lab.results import TextDelta
from izwi_lab.runtime.registry import Lease
from izwi_lab.runtime.script import Script, by_itself
from izwi_lab.runtime.types import ChatRequest, Limits, check_text

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

TASK = Task.CHAT
_OPTIONS = tuple(option.name for option in fields(ChatOptions))
_HINT = "Pass a string, or messages like {'role': 'user', 'content': 'Hello.'}."


def check(request: ChatRequest, limits: Limits) -> ChatRequest:
    """The request, or InvalidInputError saying what is wrong with it; no model is needed to know."""
    check_depth("The list of messages", request.messages)
    check_depth("The list of tools", request.tools)
    texts = _texts(request.messages)
    if not any(t.strip() for t in texts):
        raise InvalidInputError("There is nothing to answer: every message is empty.", hint=_HINT)
    chars = sum(map(len, texts)) + sum(map(len, _within(request.tools)))
    if chars > limits.chat_chars:
        raise InvalidInputError(
            f"Messages and tools have {chars} characters, more than the {limits.chat_chars} of one request.",
            hint="Shorten them, or make the engine with larger limits=Limits(chat_chars=...).",
        )
    ChatOptions(**{name: getattr(request, name) for name in _OPTIONS})
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
        calls = message.get("tool_calls")
        if content is None and calls and message["role"] == "assistant":
            content = ""
        if not isinstance(content, str):
            raise InvalidInputError(f"messages[{i}]: content must be a str, got {type(content).__name__}.", hint=_HINT)
        texts.append(check_text(f"messages[{i}]", content))
        texts += [check_text(f"messages[{i}]", text) for key in message for text in _within(message[key], key)]
    return texts


def _within(value: object, key: str = "") -> Iterator[str]:
    """Every text inside what a message holds besides its role and content."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _within(name)
            yield from _within(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _within(inner)
    elif isinstance(value, str) and key not in ("role", "content"):
        yield value


def script(lease: Lease, request: ChatRequest, cancel: CancelToken, *, whole: bool) -> Script:
    """How the engine answers it: streamed or whole, the loop is the same."""
    model, asked = lease.model, {name: getattr(request, name) for name in _OPTIONS}
    if not isinstance(model, BatchModel):
        talker, told = cast(ChatModel, model), {**asked, "cache": lease.cache, "cancel": cancel}
        return by_itself(
            whole, lambda: talker.generate(request.messages, **told), lambda: talker.stream(request.messages, **told)
        )
    from izwi_lab.families.shared import talk

    talks, telling, options = cast("TextModel", model), talk.Telling(), ChatOptions(**asked)
    # What pages read can be found by any later prompt; other states wait for the next turn of their conversation.
    cache = None if model.pageable else lease.cache
    return Script(
        lambda: talk.course(
            talks, request.messages, options, cache=cache, cancel=cancel, telling=telling, tenant=request.tenant
        ),
        lambda said, started_s: talk.gathered(talks, said, telling, started_s),
    )


def measure(piece: TextDelta) -> tuple[float, int]:
    """Seconds of audio and tokens in a piece."""
    return 0.0, 0 if piece.token is None else 1
