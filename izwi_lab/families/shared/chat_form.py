"""How a checkpoint marks thoughts and calls: read from its template and tokenizer, never from its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from izwi_lab.families.shared.sections import Tags, tags_of
from izwi_lab.families.shared.template_sandbox import variables_of
from izwi_lab.families.shared.tool_calls import CallForm, Hermes, Lfm2

_THINK = ("<think>", "</think>")
_HERMES = ("<tool_call>", "</tool_call>")
_LFM2 = ("<|tool_call_start|>", "<|tool_call_end|>")


@dataclass(frozen=True, slots=True)
class ChatForm:
    """thoughts and calls: their tags, None where there are none. switchable: the template takes enable_thinking.

    takes_tools: the template shows tools. shows_calls: it shows the tool_calls of earlier answers.
    keeps_text: it shows their arguments as the text they came as.
    """

    thoughts: Tags | None = None
    calls: CallForm | None = None
    switchable: bool = False
    takes_tools: bool = False
    shows_calls: bool = False
    keeps_text: bool = False

    def opens_thought(self, ids: np.ndarray, text: str) -> bool:
        """True if a prompt ends inside a thought, which the answer goes on with. ids: [T] with their text."""
        tags = self.thoughts
        if tags is None:
            return False
        if not tags.exact:
            return text.rstrip().endswith(tags.open)
        return bool(len(ids)) and tags.open_id in ids[-4:] and tags.close_id not in ids[-4:]

    def closed_thought(self, ids: np.ndarray, text: str) -> bool:
        """True if a prompt ends with a thought that is over: the answer itself comes next."""
        tags = self.thoughts
        if tags is None:
            return True
        if not tags.exact:
            return text.rstrip().endswith(tags.close)
        return bool(len(ids)) and tags.close_id in ids[-4:]


def form_of(tokenizer: Any, template: str | None) -> ChatForm:
    """The form of a `tokenizers.Tokenizer` and a template."""
    shown = template or ""

    def held(pair: tuple[str, str]) -> Tags | None:
        tags = tags_of(tokenizer, *pair)
        return tags if tags.exact or any(t in shown for t in pair) else None

    hermes, lfm2 = held(_HERMES), held(_LFM2)
    calls: CallForm | None = None
    if hermes is not None and "<function=" not in shown:  # a form of its own between the same tags
        calls = Hermes(hermes)
    elif lfm2 is not None:
        calls = Lfm2(lfm2)
    names = variables_of(shown)
    return ChatForm(
        thoughts=held(_THINK),
        calls=calls,
        switchable="enable_thinking" in names,
        takes_tools="tools" in names,
        shows_calls="tool_calls" in shown,
        keeps_text="arguments is string" in shown,
    )
