"""An answer from a text model: the loop over its verbs as a course, streamed or gathered into a whole."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from izwi_lab.cancel import CancelToken, check_cancel
from izwi_lab.errors import Cancelled, InvalidInputError
from izwi_lab.families.shared import answer, speculative
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.course import Alone, Course, Decode, Prefill, followed
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.families.shared.steps import Prompt, Session, Step
from izwi_lab.families.shared.text_session import check_step
from izwi_lab.families.shared.truncation import fitted
from izwi_lab.results import ChatReply, TextDelta, Timing, Usage

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

Messages = str | Sequence[Mapping[str, Any]]


@dataclass(slots=True)
class Telling:
    """What is known of an answer besides its deltas. read_s: seconds of reading the prompt."""

    read_s: float = 0.0


def reply(
    model: TextModel,
    prompt: Messages | Prompt,
    options: ChatOptions,
    *,
    session: Session | None = None,
    cache: PromptCache | None = None,
    cancel: CancelToken | None = None,
) -> ChatReply:
    """Answer it all. The reply's tokens include the end token; a cancelled answer keeps what was said."""
    started_s, telling = time.perf_counter(), Telling()
    said = deltas(model, prompt, options, session=session, cache=cache, cancel=cancel, telling=telling)
    return gathered(model, said, telling, started_s)


def deltas(
    model: TextModel,
    prompt: Messages | Prompt,
    options: ChatOptions,
    *,
    session: Session | None = None,
    cache: PromptCache | None = None,
    cancel: CancelToken | None = None,
    telling: Telling | None = None,
) -> Iterator[TextDelta]:
    """Answer as it comes: one delta a token, then a last one with the finish reason and text held back.

    session: one to go on from, which stays its owner's; of its max_tokens and that of the options the smaller counts.
    cache: where sessions wait for the next turn; it lends one to this answer and gets it back, also when the answer is
    stopped or left. An answer that must be repeatable (sampled, with a seed) borrows none.
    """
    said = course(model, prompt, options, session=session, cache=cache, cancel=cancel, telling=telling)
    yield from followed(model, said, cancel)


def gathered(model: TextModel, said: Iterable[TextDelta], telling: Telling, started_s: float) -> ChatReply:
    """The whole of an answer's deltas. started_s: when it was asked for, by time.perf_counter()."""
    first_s, found = 0.0, []
    for delta in said:
        first_s = first_s or time.perf_counter() - started_s
        found.append(delta)
    total_s = time.perf_counter() - started_s
    last, usage = found[-1], found[-1].usage or Usage()
    tokens = tuple(d.token for d in found if d.token is not None)
    timing = Timing(
        total_s=total_s,
        first_s=first_s,
        prefill_s=telling.read_s,
        decode_s=total_s - first_s,
        prompt_tokens=usage.prompt_tokens,
        tokens=len(tokens),
    )
    return ChatReply(
        "".join(d.text for d in found),
        last.finish_reason or "cancelled",
        tokens,
        model.variant.id,
        f"{model.plan.backend} {model.plan.device} {model.plan.dtype}",
        timing,
        reasoning="".join(d.reasoning for d in found),
        tool_calls=last.tool_calls,
        logprobs=tuple(d.logprob for d in found if d.logprob is not None),
        usage=usage,
    )


def course(
    model: TextModel,
    prompt: Messages | Prompt,
    options: ChatOptions,
    *,
    session: Session | None = None,
    cache: PromptCache | None = None,
    cancel: CancelToken | None = None,
    telling: Telling | None = None,
    tenant: str = "",
) -> Course:
    """The course of an answer, whose pieces are those of `deltas`. What cannot be honoured raises at this call.

    tenant: whose sessions the cache may lend.
    """
    check_cancel(cancel)
    if session is not None:
        check_step(session)
    if session is not None and options.seed is not None:
        raise InvalidInputError("seed belongs to a new session; one was given.", hint="Use model.session(seed=...).")
    read = prompt if isinstance(prompt, Prompt) else _tokenized(model, prompt, options, session)
    said = answer.begin(model, read, options)
    telling = telling or Telling()
    if session is not None:
        return _borrowed(model, read, said, options, session, cancel, telling)
    if cache is None:
        session = model.session(seed=options.seed, max_tokens=options.max_tokens)
        return _said(model, read, said, options, session, cancel, telling)
    return _cached(model, read, said, options, cancel, telling, cache, tenant)


def _borrowed(
    model: TextModel,
    prompt: Prompt,
    said: answer.Answer,
    options: ChatOptions,
    session: Session,
    cancel: CancelToken | None,
    telling: Telling,
) -> Course:
    """With a session that is somebody's."""
    most = session.max_tokens
    session.max_tokens = options.max_tokens if most is None else min(most, options.max_tokens)
    try:
        yield from _said(model, prompt, said, options, session, cancel, telling)
    finally:
        session.max_tokens = most  # its owner's again


def _cached(
    model: TextModel,
    prompt: Prompt,
    said: answer.Answer,
    options: ChatOptions,
    cancel: CancelToken | None,
    telling: Telling,
    cache: PromptCache,
    tenant: str,
) -> Course:
    """With a session that the cache lends."""
    # A session that went on reads its prompt in other pieces, which rounds otherwise: a seed would draw otherwise.
    give = model.session if options.repeatable else partial(cache.take, model, prompt.ids, tenant=tenant)
    session: Session | None = give(seed=options.seed, max_tokens=options.max_tokens)
    assert session is not None
    try:
        yield from _said(model, prompt, said, options, session, cancel, telling, cache, tenant)
    except Exception:
        session = None  # it may be half written
        raise
    finally:
        if session is not None:
            cache.park(model, session, tenant=tenant)


def _tokenized(model: TextModel, messages: Messages, options: ChatOptions, session: Session | None) -> Prompt:
    def tokenize(given: Messages) -> Prompt:
        return model.tokenize(given, tools=options.shown_tools, thinking=options.thinking)

    held = len(session.prompt_ids) + len(session.tokens) if session is not None else 0
    return fitted(
        messages,
        tokenize,
        context=model.config.max_positions - held,
        max_tokens=options.max_tokens,
        truncation=options.truncation,
    )


def _said(
    model: TextModel,
    prompt: Prompt,
    said: answer.Answer,
    options: ChatOptions,
    session: Session,
    cancel: CancelToken | None,
    telling: Telling,
    cache: PromptCache | None = None,
    tenant: str = "",
) -> Course:
    held, index = session.position if cache is not None else 0, 0
    before = 0 if cache is not None else len(session.prompt_ids) + len(session.tokens)
    source = _Source(model, session, said, options)
    asked = Prefill(
        session, Prompt(prompt.ids[held:]) if held else prompt, options.max_tokens, options.repeatable, held
    )
    try:
        _check(cancel)
        yield from source.read(asked, cancel)
        telling.read_s = source.step.seconds
        if cache is not None:
            cache.park_prompt(model, session, tenant=tenant)
        while (drawn := (yield from source.drawn(cancel))) is not None:
            token, drawn_from = drawn
            shown = said.push(token)
            logprob = said.logprob(token, drawn_from)
            if said.complete:
                session.done, session.finish_reason = True, "stop"
            yield TextDelta(shown.text, index, token, logprob, reasoning=shown.thought)
            index += 1
    except Cancelled:
        session.finish_reason = "cancelled"
    rest = said.finish()
    session.finish_reason = said.reason(session.finish_reason or "cancelled")
    yield TextDelta(
        rest.text,
        index,
        finish_reason=session.finish_reason,
        reasoning=rest.thought,
        tool_calls=tuple(said.calls),
        usage=Usage(before + len(prompt), index, asked.cached, said.reasoning_tokens),
    )


class _Source:
    """Where the tokens of an answer come from, and the step that each was drawn from."""

    def __init__(self, model: TextModel, session: Session, said: answer.Answer, options: ChatOptions) -> None:
        self._model, self._session, self._said, self._options = model, session, said, options
        self._token: int | None = None
        self._guessed: Iterator[tuple[int, Step]] | None = None
        self.step: Step

    def read(self, asked: Prefill, cancel: CancelToken | None) -> Generator[Any, Any, None]:
        """Read the prompt. Many guesses are checked at once, which is no step that others could share."""
        if (drafts := self._options.speculative) is None:
            self.step = yield asked
            return
        model, session, sampling = self._model, self._session, self._options.sampling
        self.step = yield Alone(lambda: model.prefill(session, asked.prompt, cancel=cancel))
        self._guessed = speculative.drawn(model, session, self.step, sampling, drafts)

    def drawn(self, cancel: CancelToken | None) -> Generator[Any, Any, tuple[int, Step] | None]:
        """The next token with its step; None when the session is done, which whoever hears the tokens may set, too."""
        if (guessed := self._guessed) is not None:
            _check(cancel)
            found: tuple[int, Step] | None = yield Alone(lambda: next(guessed, None))
            return found
        model, session = self._model, self._session
        if self._token is not None:
            if _ended(session):  # the hearer has heard enough
                session.tokens.append(self._token)
                return None
            model.say(session, self._token)
            if _ended(session):
                return None
            _check(cancel)
            self.step = yield Decode(session)
        _check(cancel)
        self._token = model.sample(session, self.step, self._options.sampling, allowed=self._said.mask())
        return self._token, self.step


def _ended(session: Session) -> bool:
    return session.done


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()
