"""The checkpoint's own chat template (Jinja), in a sandbox that cannot reach Python and bounds loops and texts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from izwi_lab.errors import CheckpointError, InvalidInputError

ROLES = ("system", "developer", "user", "assistant", "tool")
_MAX_TURNS = 1_000_000  # of all loops over ranges together
_MAX_PRODUCT = 10_000  # factors of a text or list, powers
_MAX_CHARACTERS = 50_000_000
_MAX_S = 10.0


def checked_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Messages with a known role and text content, as new dicts.

    Raises:
        InvalidInputError: no messages, a role that is not one of ROLES, content that is not text, nothing said at all.
    """
    out = []
    for number, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") not in ROLES:
            got = message.get("role") if isinstance(message, Mapping) else message
            raise InvalidInputError(f"Message {number} has the role {got!r}.", hint=f"Roles are {', '.join(ROLES)}.")
        content = message.get("content")
        if not isinstance(content, str) and not (content is None and message["role"] == "assistant"):
            raise InvalidInputError(f"Message {number} ({message['role']}) has no text content, got {content!r:.80}.")
        out.append({**message, "content": content or ""})
    if not any(m["content"].strip() for m in out):
        raise InvalidInputError("The prompt is empty.", hint="Give at least one message with some text.")
    return out


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

    try:
        compiled = _compiled(template)
        parts, size, started_s = [], 0, time.monotonic()
        for part in compiled.generate(
            **{**dict(variables or {}), "range": _ranges()},
            messages=list(messages),
            add_generation_prompt=add_generation_prompt,
        ):
            parts.append(part)
            size += len(part)
            if size > _MAX_CHARACTERS or time.monotonic() - started_s > _MAX_S:
                raise _endless()
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


@lru_cache(maxsize=16)
def _compiled(template: str) -> Any:
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    # Trimmed blocks and loop controls are what transformers gives templates; they are written for it.
    class Environment(ImmutableSandboxedEnvironment):
        """Where products are looked at before they are computed: 'x' * 10**10 would fill the memory."""

        intercepted_binops = frozenset(("*", "**"))

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            if operator == "**" or isinstance(left, (str, list, tuple)) or isinstance(right, (str, list, tuple)):
                size = max(len(v) if isinstance(v, (str, list, tuple)) else abs(v) for v in (left, right))
                if size > _MAX_PRODUCT:
                    raise _endless()
            return super().call_binop(context, operator, left, right)

    environment = Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.globals.update(raise_exception=_refuse, strftime_now=_strftime_now)
    environment.filters["tojson"] = _tojson
    return environment.from_string(template)


def _refuse(message: str) -> None:
    raise InvalidInputError(f"The chat template refuses these messages: {message}.")


def _ranges() -> Callable[..., range]:
    """`range` for one rendering; nested ranges draw on one account."""
    left = _MAX_TURNS

    def counted(*bounds: int) -> range:
        nonlocal left
        span = range(*bounds)
        left -= len(span)
        if left < 0:
            raise _endless()
        return span

    return counted


def _endless() -> CheckpointError:
    return CheckpointError("The chat template does not come to an end.", hint="Use template=False.")


def _strftime_now(format: str) -> str:
    from datetime import datetime

    return datetime.now().strftime(format)


def _tojson(value: Any, indent: int | None = None, ensure_ascii: bool = False) -> str:
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii)
