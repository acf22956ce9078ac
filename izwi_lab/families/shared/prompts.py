"""Text to prompt ids. What a user typed can never become a control token.

In control tokens typed inside messages and tools a guard character follows every letter before the chat template runs,
so that afterwards, whatever the template cut or joined, they can be told from those it wrote itself, and are encoded
as plain letters. All other text is encoded together with the template's, which keeps the ids equal to the reference's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chat_form import ChatForm, form_of
from izwi_lab.families.shared.chat_template import checked_messages, render
from izwi_lab.families.shared.detokenizer import CONTROL_SHAPE
from izwi_lab.families.shared.steps import Prompt, Span

_MODELS_OWN = ("content", "reasoning", "reasoning_content")  # words of the model in a message, with marks in them


class PromptEncoder:
    """Builds prompts with one `tokenizers.Tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        added = tokenizer.get_added_tokens_decoder()
        special = [t.content for t in added.values() if t.special]
        marks = [t.content for t in added.values() if not t.special and CONTROL_SHAPE.fullmatch(t.content)]
        self._tokenizer = tokenizer
        self._special = _any_of(special)
        self._control = _any_of([*special, *marks])

    def form(self, template: str | None) -> ChatForm:
        """How answers to prompts of this template mark thoughts and calls."""
        return form_of(self._tokenizer, template)

    def chat(
        self,
        template: str,
        messages: Sequence[Mapping[str, Any]],
        *,
        variables: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """Messages through the chat template. tools, thinking: see ChatOptions.

        Raises:
            InvalidInputError: empty or malformed messages, or what the template has no place for: tools, calls, or a
                choice about thinking.
            CheckpointError: the template is at fault.
        """
        checked, form = checked_messages(messages), self.form(template)
        told = {**(variables or {}), **_asked(form, tools, thinking)}
        guard = _free_character([checked, list(tools)])
        if tools:
            told["tools"] = [self._guard(dict(t), guard) for t in tools]
        guarded = [self._message(m, form, guard) for m in checked]
        text = render(template, guarded, variables=told, add_generation_prompt=add_generation_prompt)
        ids: list[int] = []
        spans: list[Span] = []
        for number, part in enumerate(re.split(f"((?:[^{guard}]{guard})+)", text)):
            start, part = len(ids), part.replace(guard, "")
            ids += self._plain(part) if number % 2 else self._encode(part)
            if number % 2:
                spans.append(Span("typed control token", start, len(ids)))
        return self._prompt(ids, text.replace(guard, ""), spans)

    def _message(self, message: Mapping[str, Any], form: ChatForm, guard: str) -> dict[str, Any]:
        """A message for the template, with nothing in it that could be taken for control."""
        # The model's own words may hold marks such as </think>, which templates look for; special tokens never.
        own = _MODELS_OWN if message["role"] == "assistant" else ()
        made = {k: v if k == "role" else self._guard(v, guard, special=k in own) for k, v in message.items()}
        if not message.get("tool_calls"):
            return made
        calls = made["tool_calls"]
        if form.shows_calls:
            for call in [] if form.keeps_text else calls:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        elif form.calls is not None:
            said = [(c["function"]["name"], json.loads(c["function"]["arguments"])) for c in calls]
            made["content"] += form.calls.write(said)
        else:
            raise InvalidInputError(
                "The chat template of this model has no place for tool_calls.", hint="Leave them out of the messages."
            )
        return made

    def text(self, text: str, *, special_tokens: bool = True) -> Prompt:
        """Text as it is; special_tokens False encodes control tokens in it as plain letters."""
        if not text:
            raise InvalidInputError("The prompt is empty.", hint="Give some text.")
        if special_tokens:
            return self._prompt(self._tokenizer.encode(text).ids, text, [])
        return self._prompt(self.letters(text), text, [])

    def letters(self, text: str) -> list[int]:
        """Ids of a text with the control tokens in it spelt out as plain letters."""
        ids: list[int] = []
        for number, part in enumerate(re.split(f"({self._control.pattern})", text) if self._control else [text]):
            ids += self._plain(part) if number % 2 else self._encode(part)
        return ids

    def _guard(self, value: Any, guard: str, *, special: bool = False) -> Any:
        """The value with guards in its control tokens. special: leave marks that are not special tokens as they are."""
        pattern = self._special if special else self._control
        if pattern is None:
            return value
        if isinstance(value, str):
            return pattern.sub(lambda m: "".join(c + guard for c in m[0]), value)
        if isinstance(value, Mapping):
            return {self._guard(k, guard): self._guard(v, guard, special=special) for k, v in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._guard(v, guard, special=special) for v in value]
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


def _asked(form: ChatForm, tools: Sequence[Mapping[str, Any]], thinking: bool | None) -> dict[str, Any]:
    """What the template is told of thinking; raises for what it cannot be asked."""
    if tools and not form.takes_tools:
        raise InvalidInputError("The chat template of this model has no tools.", hint="Leave tools out.")
    if thinking is None:
        return {}
    if form.switchable:
        return {"enable_thinking": thinking}
    if thinking and form.thoughts is None:
        raise InvalidInputError("This model knows no thinking.", hint="Leave thinking out.")
    if not thinking and form.thoughts is not None:
        raise InvalidInputError("The thinking of this model cannot be switched off.", hint="Leave thinking out.")
    return {}


def _free_character(values: Any) -> str:
    """A private-use character that the values do not hold."""
    used = {c for text in _texts(values) for c in text}
    if half := next((c for c in used if "\ud800" <= c <= "\udfff"), None):
        raise InvalidInputError(
            f"The messages hold {half!r}, which is no character.", hint="Decode them with the encoding they came in."
        )
    free = next((c for c in map(chr, range(0xE000, 0xF8FF)) if c not in used), None)
    if free is None:
        raise InvalidInputError("The messages use every private-use character; none is left to mark control tokens.")
    return free


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
