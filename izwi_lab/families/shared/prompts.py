"""Text to prompt ids. What a user typed can never become a control token.

Control tokens typed inside a message are set in guard characters before the chat template runs, so that afterwards
they can be told from those the template wrote, and are encoded as plain letters. All other text is encoded together
with the template's, which keeps the ids equal to the reference's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chat_template import checked_messages, render
from izwi_lab.families.shared.steps import Prompt, Span

_CONTROL_SHAPE = re.compile(r"<.+>|\[.+\]", re.DOTALL)


class PromptEncoder:
    """Builds prompts with one `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.get_added_tokens_decoder()
        special = [t.content for t in added.values() if t.special]
        marks = [t.content for t in added.values() if not t.special and _CONTROL_SHAPE.fullmatch(t.content)]
        self._tokenizer = tokenizer
        self._special = _any_of(special)
        self._control = _any_of([*special, *marks])

    def chat(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Messages through the chat template.

        Raises:
            InvalidInputError: empty or malformed messages; CheckpointError: the template is at fault.
        """
        checked = checked_messages(messages)
        opening, closing = _guards(checked)
        # The model's own words may hold marks such as </think>, which templates look for; control tokens never.
        guarded = [
            {
                k: v if k == "role" else self._guard(v, opening, closing, everything=m["role"] != "assistant")
                for k, v in m.items()
            }
            for m in checked
        ]
        text = render(template, guarded, variables=variables, add_generation_prompt=add_generation_prompt)
        ids: list[int] = []
        spans: list[Span] = []
        for number, part in enumerate(re.split(f"{opening}([^{opening}{closing}]*){closing}", text)):
            start = len(ids)
            ids += self._plain(part) if number % 2 else self._encode(part)
            if number % 2:
                spans.append(Span("typed control token", start, len(ids)))
        return self._prompt(ids, text.replace(opening, "").replace(closing, ""), spans)

    def text(self, text: str, *, special_tokens: bool = True) -> Prompt:
        """Text as it is; special_tokens False encodes control tokens in it as plain letters."""
        if not text:
            raise InvalidInputError("The prompt is empty.", hint="Give some text.")
        if special_tokens:
            return self._prompt(self._tokenizer.encode(text).ids, text, [])
        ids: list[int] = []
        for number, part in enumerate(re.split(f"({self._control.pattern})", text) if self._control else [text]):
            ids += self._plain(part) if number % 2 else self._encode(part)
        return self._prompt(ids, text, [])

    def _guard(self, value: Any, opening: str, closing: str, *, everything: bool) -> Any:
        pattern = self._control if everything else self._special
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(lambda m: f"{opening}{m[0]}{closing}", value)
        if isinstance(value, Mapping):
            both = (tuple(self._guard(x, opening, closing, everything=everything) for x in kv) for kv in value.items())
            return dict(both)
        if isinstance(value, (list, tuple)):
            return [self._guard(v, opening, closing, everything=everything) for v in value]
        return value

    def _plain(self, text: str) -> list[int]:
        """Ids of a control token's letters: cut until no part is a control token."""
        if self._control is None or not self._control.search(text):
            return self._encode(text)
        return [i for part in (text[:1], text[1:]) if part for i in self._plain(part)]

    def _encode(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids if text else []
        return ids

    def _prompt(self, ids: list[int], text: str, spans: list[Span]) -> Prompt:
        pieces = tuple(self._tokenizer.decode([i], skip_special_tokens=False) for i in ids[:8192])
        return Prompt(np.asarray(ids, np.int32), text, pieces, tuple(spans))


def _any_of(texts: Sequence[str]) -> re.Pattern[str] | None:
    if not texts:
        return None
    return re.compile("|".join(re.escape(t) for t in sorted(texts, key=len, reverse=True)))


def _guards(messages: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Two private-use characters that the messages do not hold."""
    used = {c for text in _texts(messages) for c in text}
    free = [c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used][:2]
    if len(free) < 2:
        raise InvalidInputError("The messages use every private-use character; none is left to mark control tokens.")
    return free[0], free[1]


def _texts(value: Any) -> Iterator[str]:
    """Every text in nested messages, as it is: `repr` would hide private-use characters behind escapes."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _texts(item)
    else:
        yield str(value)
