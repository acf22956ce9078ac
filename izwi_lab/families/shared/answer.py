"""One answer as it grows: its tokens as text, told apart, held to a grammar, cut at stop strings, and counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chat_form import ChatForm
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.detokenizer import Detokenizer, StopStrings
from izwi_lab.families.shared.grammar import Grammar, grammar_of
from izwi_lab.families.shared.sections import Part, Piece, Sections, Tags
from izwi_lab.families.shared.steps import Prompt, Step
from izwi_lab.families.shared.tool_calls import MAX_CALLS
from izwi_lab.results import TokenLogprob, ToolCall

if TYPE_CHECKING:
    from izwi_lab.families.shared.constraint import Constraint
    from izwi_lab.families.shared.text_model import TextModel


@dataclass(slots=True)
class Shown:
    """What a token, or the end, added to what the user sees."""

    text: str = ""
    thought: str = ""


@dataclass(slots=True)
class Answer:
    """The state of one answer. Make it with `begin`."""

    model: TextModel
    form: ChatForm
    options: ChatOptions
    sections: Sections
    text: Detokenizer
    stops: StopStrings
    constraint: Constraint | None
    may_think: bool
    calls: list[ToolCall] = field(default_factory=list)
    reasoning_tokens: int = 0
    said: bool = False  # the last token was content

    def mask(self) -> np.ndarray | None:
        """Which tokens may come next; None for all. The grammar begins after the thought, which must end before it."""
        if self.constraint is None:
            return None
        if self.sections.part is Part.THOUGHT:
            everything = np.full(-(-self.model.config.vocab_size // 32), -1, np.int32)
            return _with(everything, self.model.text_processor().stop_ids, allowed=False)
        mask, tags = self.constraint.mask(), self.form.thoughts
        if mask is None or not self.may_think or tags is None or tags.open_id is None:
            return mask
        return _with(mask.copy(), (tags.open_id,), allowed=True)

    def push(self, token: int) -> Shown:
        """Take a token as said."""
        processor = self.model.text_processor()
        before, ends = self.sections.part, token in processor.stop_ids
        pieces = [] if ends else self.sections.push(token, self.text.push(token))
        after = self.sections.part
        thought = Part.THOUGHT in (before, after)
        if self.constraint is not None and not thought:
            self.constraint.accept(token)
        self.may_think = False
        self.reasoning_tokens += thought
        newlines = not processor.token_bytes(token).strip(b"\n")
        dropped = before is Part.SAID and newlines and self.sections.drops_newlines
        self.said = not (thought or ends or dropped or Part.CALL in (before, after))
        return self._shown(pieces)

    def finish(self) -> Shown:
        """No more comes: what was held back."""
        shown = self._shown(self.sections.flush(), closed=False)
        shown.text += self.stops.flush()
        return shown

    @property
    def complete(self) -> bool:
        """True when nothing may follow: a stop string was found, or the grammar is at its end."""
        if self.stops.found is not None:
            return True
        return self.constraint is not None and self.sections.part is not Part.THOUGHT and self.constraint.finished

    def reason(self, reason: str) -> str:
        """The finish reason of the answer, given that of its session."""
        return "tool_calls" if reason == "stop" and self.calls else reason

    def logprob(self, token: int, step: Step) -> TokenLogprob | None:
        """How likely a token was; None where it was not asked for or the token is no content."""
        if self.options.logprobs is None or not self.said:
            return None
        top = step.logprobs(self.options.logprobs) if self.options.logprobs else []
        named = (self._named(t, p) for t, p in top)
        return self._named(token, step.logprob(token), tuple(named))

    def _named(self, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
        raw = self.model.text_processor().token_bytes(token)
        return TokenLogprob(token, self.model.text(token), logprob, raw, top)

    def _shown(self, pieces: list[Piece], *, closed: bool = True) -> Shown:
        shown = Shown()
        for part, text in pieces:
            if part is Part.CALL:
                text = self._called(text, closed)
            if part is Part.THOUGHT:
                shown.thought += text
            else:
                shown.text += self.stops.push(text)
        return shown

    def _called(self, body: str, closed: bool) -> str:
        """Note the calls between tags; a malformed one is text, tags included."""
        form = self.form.calls
        assert form is not None
        calls = form.parse(body)
        self.calls += calls
        return "" if calls else f"{form.tags.open}{body}{form.tags.close if closed else ''}"


def _with(mask: np.ndarray, tokens: Iterable[int], *, allowed: bool) -> np.ndarray:
    """The bitmask, changed in place: these tokens may come, or may not."""
    words = mask.view(np.uint32)
    for token in tokens:
        bit = np.uint32(1 << (token % 32))
        words[token // 32] = words[token // 32] | bit if allowed else words[token // 32] & ~bit
    return mask


def begin(model: TextModel, prompt: Prompt, options: ChatOptions) -> Answer:
    """The answer to a prompt, before its first token.

    Raises:
        InvalidInputError: the grammar cannot be used, or the checkpoint has no form for the calls asked for.
        MissingExtraError: a grammar is asked for and llguidance is not installed.
    """
    processor = model.text_processor()
    form = processor.encoder.form(processor.template)
    grammar = _grammar(form, options)
    constraint = Grammar(grammar, processor, model.config.vocab_size) if grammar is not None else None
    opened = form.opens_thought(prompt.ids, prompt.text)
    if opened and constraint is not None and form.thoughts is not None and not form.thoughts.exact:
        raise InvalidInputError(
            "The prompt opens a thought, and where it ends is not told by one token: no grammar can begin there.",
            hint="Use a prompt without <think>.",
        )
    verbatim = constraint is not None and not options.forces_call
    return Answer(
        model,
        form,
        options,
        Sections(form.thoughts, _call_tags(form, options), opened=opened, verbatim=verbatim),
        Detokenizer(processor.token_bytes, keep_space=verbatim),
        StopStrings(options.stop),
        constraint,
        may_think=not form.closed_thought(prompt.ids, prompt.text) and options.thinking is not False,
    )


def _call_tags(form: ChatForm, options: ChatOptions) -> Tags | None:
    if not options.shown_tools:
        return None
    if form.calls is None:
        raise InvalidInputError(
            "How this model writes calls is not known: neither its tokenizer nor its template has the tags.",
            hint="Leave tools out.",
        )
    return form.calls.tags


def _grammar(form: ChatForm, options: ChatOptions) -> str | None:
    if options.forces_call and _call_tags(form, options) is not None and form.calls is not None:
        most = 1 if isinstance(options.tool_choice, Mapping) else MAX_CALLS
        return form.calls.grammar(options.forced_functions, most=most)
    return grammar_of(options.response_format) if options.response_format is not None else None
