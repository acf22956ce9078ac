"""The checkpoint's own chat template (Jinja), and the messages that go through it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.nesting import check_depth
from izwi_lab.families.shared.template_account import MAX_CHARACTERS, Account, account, endless
from izwi_lab.families.shared.template_sandbox import compiled

ROLES = ("system", "developer", "user", "assistant", "tool")


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a known role and text content, as new dicts; arguments of calls as JSON text.

    Raises:
        InvalidInputError: no messages, a role that is not one of ROLES, content that is not text, a malformed call,
            or nothing said at all.
    """
    if not isinstance(messages, Sequence):
        raise InvalidInputError(f"messages must be a list, got {messages!r:.80}.")
    out = []
    for number, message in enumerate(messages):
        check_depth(f"Message {number}", message)
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            got = message.get("role") if isinstance(message, Mapping) else message
            raise InvalidInputError(
                f"Message {number} has the role {got!r:.80}.", hint=f"Roles are {', '.join(ROLES)}."
            )
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
            raise InvalidInputError(f"Message {number} ({message['role']}) has no text content, got {content!r:.80}.")
        made = {**message, "content": content or ""}
        if message.get("tool_calls") is not None:
            made["tool_calls"] = _checked_calls(number, message)
        if isinstance(message.get("reasoning"), str):
            made.setdefault("reasoning_content", message["reasoning"])  # the name that templates know
        out.append(made)
    if not any(m["content"].strip() or m.get("tool_calls") for m in out):
        raise InvalidInputError("The prompt is empty.", hint="Give at least one message with some text.")
    return out


def _checked_calls(number: int, message: Mapping[str, Any]) -> list[dict[str, Any]]:
    calls = message["tool_calls"]
    if message["role"] != "assistant" or not isinstance(calls, Sequence) or isinstance(calls, str):
        raise InvalidInputError(f"Message {number} ({message['role']}) has tool_calls {calls!r:.80}.")
    return [_checked_call(number, call) for call in calls]


def _checked_call(number: int, call: Any) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    given = function.get("arguments", "{}") if isinstance(function, Mapping) else None
    try:
        arguments = json.loads(given) if isinstance(given, str) else given
        text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    except (ValueError, TypeError, RecursionError):
        arguments, text = None, ""
    check_depth(f"Message {number}", arguments)
    if not isinstance(name, str) or not name or not isinstance(arguments, Mapping):
        raise InvalidInputError(
            f"Message {number} has a malformed call: {call!r:.200}.",
            hint='Expected {"type": "function", "function": {"name": ..., "arguments": "{...}"}}.',
        )
    return {**call, "type": "function", "function": {**(function or {}), "name": name, "arguments": text}}


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    variables: Mapping[str, Any] | None = None,
) -> str:
    """The prompt text. variables: what else templates ask for (bos_token, tools, enable_thinking).

    Raises:
        InvalidInputError: the template refuses these messages (its `raise_exception`).
        CheckpointError: the template is malformed, unsafe, or does not come to an end.
    """
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    told = {**(variables or {}), "messages": list(messages), "add_generation_prompt": add_generation_prompt}
    spent = None
    try:
        made = compiled(template)
        spent = account.set(Account())
        parts, size = [], 0
        for part in made.generate(**told):
            account.get().tick()
            parts.append(part)
            size += len(part)
            if size > MAX_CHARACTERS:
                raise endless()
        return "".join(parts)
    except (InvalidInputError, CheckpointError):
        raise
    except SecurityError as error:
        raise CheckpointError(f"The chat template does what it may not: {error}.") from None
    except (
        TemplateError,
        TypeError,
        LookupError,
        AttributeError,
        ValueError,
        ArithmeticError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"The chat template failed: {error}.", hint="Use template=False to give the text as it is."
        ) from None
    finally:
        if spent is not None:
            account.reset(spent)
