"""An answer from a text model: the loop over its verbs, streamed or whole."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from izwi_lab.cancel import CancelToken, check_cancel
from izwi_lab.errors import Cancelled, InvalidInputError
from izwi_lab.families.shared import answer, speculative
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.families.shared.steps import Prompt, Session, Step
from izwi_lab.families.shared.text_session import check_step
from izwi_lab.families.shared.truncation import fitted
from izwi_lab.results import ChatReply, TextDelta, Timing, Usage

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

Messages = str | Sequence[Mapping[str, Any]]


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
    started_s, first_s, course = time.perf_counter(), 0.0, _Course()
    said: list[TextDelta] = []
    for delta in _deltas(model, prompt, options, session, cache, cancel, course):
        first_s = first_s or time.perf_counter() - started_s
        said.append(delta)
    total_s = time.perf_counter() - started_s
    last, usage = said[-1], said[-1].usage or Usage()
    tokens = tuple(d.token for d in said if d.token is not None)
    timing = Timing(
        total_s=total_s,
        first_s=first_s,
        prefill_s=course.read_s,
        decode_s=total_s - first_s,
        prompt_tokens=usage.prompt_tokens,
        tokens=len(tokens),
    )
    return ChatReply(
        "".join(d.text for d in said),
        last.finish_reason or "cancelled",
        tokens,
        model.variant.id,
        f"{model.plan.backend} {model.plan.device} {model.plan.dtype}",
        timing,
        reasoning="".join(d.reasoning for d in said),
        tool_calls=last.tool_calls,
        logprobs=tuple(d.logprob for d in said if d.logprob is not None),
        usage=usage,
    )


def deltas(
    model: TextModel,
    prompt: Messages | Prompt,
    options: ChatOptions,
    *,
    session: Session | None = None,
    cache: PromptCache | None = None,
    cancel: CancelToken | None = None,
) -> Iterator[TextDelta]:
    """Answer as it comes: one delta a token, then a last one with the finish reason and text held back.

    session: one to go on from, which stays its owner's; of its max_tokens and that of the options the smaller counts.
    cache: where sessions wait for the next turn; it lends one to this answer and gets it back, also when the answer is
    stopped or left. An answer that must be repeatable (sampled, with a seed) borrows none.
    """
    yield from _deltas(model, prompt, options, session, cache, cancel, _Course())


@dataclass(slots=True)
class _Course:
    """What is known of an answer besides its deltas. read_s: seconds of reading the prompt."""

    read_s: float = 0.0


def _deltas(
    model: TextModel,
    prompt: Messages | Prompt,
    options: ChatOptions,
    session: Session | None,
    cache: PromptCache | None,
    cancel: CancelToken | None,
    course: _Course,
) -> Iterator[TextDelta]:
    check_cancel(cancel)
    if session is not None:
        check_step(session)
    if session is not None and options.seed is not None:
        raise InvalidInputError("seed belongs to a new session; one was given.", hint="Use model.session(seed=...).")
    read = prompt if isinstance(prompt, Prompt) else _tokenized(model, prompt, options, session)
    said = answer.begin(model, read, options)
    if session is not None:
        most = session.max_tokens
        session.max_tokens = options.max_tokens if most is None else min(most, options.max_tokens)
        try:
            yield from _said(model, read, said, options, session, cancel, course)
        finally:
            session.max_tokens = most  # its owner's again
    elif cache is None:
        session = model.session(seed=options.seed, max_tokens=options.max_tokens)
        yield from _said(model, read, said, options, session, cancel, course)
    else:
        # A session that went on reads its prompt in other pieces, which rounds otherwise: a seed would draw otherwise.
        give = model.session if options.repeatable else partial(cache.take, model, read.ids)
        session = give(seed=options.seed, max_tokens=options.max_tokens)
        try:
            yield from _said(model, read, said, options, session, cancel, course, cache)
        except Exception:
            session = None  # it may be half written
            raise
        finally:
            if session is not None:
                cache.park(model, session)


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
    course: _Course,
    cache: PromptCache | None = None,
) -> Iterator[TextDelta]:
    cached, index = session.position if cache is not None else 0, 0
    before = 0 if cache is not None else len(session.prompt_ids) + len(session.tokens)
    step = _read(model, session, prompt, cached, cancel)
    if step is not None:
        course.read_s = step.seconds
        if cache is not None:
            cache.park_prompt(model, session)
        for token, drawn_from in _drawn(model, session, step, said, options, cancel):
            shown = said.push(token)
            logprob = said.logprob(token, drawn_from)
            if said.complete:
                session.done, session.finish_reason = True, "stop"
            yield TextDelta(shown.text, index, token, logprob, reasoning=shown.thought)
            index += 1
    held = said.finish()
    session.finish_reason = said.reason(session.finish_reason or "cancelled")
    yield TextDelta(
        held.text,
        index,
        finish_reason=session.finish_reason,
        reasoning=held.thought,
        tool_calls=tuple(said.calls),
        usage=Usage(before + len(prompt), index, cached, said.reasoning_tokens),
    )


def _read(model: TextModel, session: Session, prompt: Prompt, cached: int, cancel: CancelToken | None) -> Step | None:
    """The step after the prompt, of which the session holds the first ids already; None where it was cancelled."""
    if cancel is not None and cancel.cancelled:
        return None
    try:
        return model.prefill(session, Prompt(prompt.ids[cached:]) if cached else prompt, cancel=cancel)
    except Cancelled:
        return None


def _drawn(
    model: TextModel,
    session: Session,
    step: Step,
    said: answer.Answer,
    options: ChatOptions,
    cancel: CancelToken | None,
) -> Iterator[tuple[int, Step]]:
    """Each token with the step it was drawn from, until the session is done; the reader may end it with `done`."""
    if options.speculative is not None:
        for token, drawn_from in speculative.drawn(model, session, step, options.sampling, options.speculative):
            yield token, drawn_from
            if session.done or (cancel is not None and cancel.cancelled):
                return
        return
    while not _ended(session):
        if cancel is not None and cancel.cancelled:
            return
        token = model.sample(session, step, options.sampling, allowed=said.mask())
        yield token, step
        if _ended(session):  # the reader has heard enough
            session.tokens.append(token)
        else:
            step = model.decode(session, token)


def _ended(session: Session) -> bool:
    return session.done
