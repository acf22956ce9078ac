"""A prompt that fits the context: an error that names the numbers, or the oldest turns left out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.steps import Prompt

Message = Mapping[str, Any]
_INSTRUCTIONS = ("system", "developer")


def fitted(
    messages: str | Sequence[Message],
    tokenize: Callable[[str | Sequence[Message]], Prompt],
    *,
    context: int,
    max_tokens: int,
    truncation: str,
) -> Prompt:
    """The prompt of the messages. context: positions there are for prompt and answer.

    truncation "oldest": where the whole prompt is too long, turns are left out from the oldest on, until it fits and
    leaves room for max_tokens, but for at most a quarter of the context. System messages, all before the first user
    turn, and the last turn stay. A turn is what a user says and all that follows until the user speaks again.

    Raises:
        InvalidInputError: it does not fit, or not even without the older turns.
    """
    prompt = tokenize(messages)
    if len(prompt) <= context:
        return prompt
    if truncation != "oldest" or isinstance(messages, str):
        raise too_long(len(prompt), context, max_tokens, whole=truncation == "oldest")
    head, turns = _turns(messages)
    if not turns:
        raise too_long(len(prompt), context, max_tokens, whole=True)
    room = context - min(max_tokens, context // 4)

    def without(count: int) -> Prompt:
        kept = (m for n, turn in enumerate(turns) for m in turn if n >= count or m.get("role") in _INSTRUCTIONS)
        return tokenize([*head, *kept])

    low, high = 1, len(turns) - 1  # the fewest turns left out for which it fits
    shortest = without(high) if high else prompt
    if len(shortest) > context:
        raise too_long(len(shortest), context, max_tokens, whole=True)
    found = shortest
    while low < high:
        middle = (low + high) // 2
        tried = without(middle)
        if len(tried) <= room:
            high, found = middle, tried
        else:
            low = middle + 1
    return found


def _turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    head: list[Message] = []
    turns: list[list[Message]] = []
    for message in messages:
        if message.get("role") == "user":
            turns.append([message])
        elif turns:
            turns[-1].append(message)
        else:
            head.append(message)
    return head, turns


def too_long(tokens: int, context: int, max_tokens: int, *, whole: bool) -> InvalidInputError:
    """The error for a prompt that does not fit. whole: leaving turns out did not help."""
    least = "The system and last turn alone have" if whole else "The prompt has"
    hint = "Shorten it." if whole else 'Shorten it, or use truncation="oldest" to leave out the oldest turns.'
    return InvalidInputError(
        f"{least} {tokens} tokens, more than the context of {context}, and up to {max_tokens} more are asked for.",
        hint=hint,
    )
