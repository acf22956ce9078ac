"""A text model on the shared decoder, step by step. One class serves every family of this kind.

| verb | takes | gives |
|---|---|---|
| tokenize | text or messages | Prompt: ids [T] |
| session | seed, max_tokens, kv_dtype | Session: caches, random numbers, ids so far |
| prefill | session, prompt | Step: logits [V], hidden [D] of the last position |
| sample | session, step, sampling | token id |
| decode | session, token | Step |
| verify | session, drafts | a Step for the last token and each draft, in one pass |
| score | prompt | log-probabilities [T - 1] of each id after those before |
| detokenize | tokens | text |
| read_out | residual stream [..., D] | logits [..., V] |
| tap | name patterns | embed, layers.N.attn, layers.N.mlp, layers.N [B, T, D], norm, logits |

generate and stream are loops over exactly these verbs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from izwi_lab.backends.base import Backend, BackendPlan, Native
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared import talk, text_batch, text_session
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.describe import describe
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.prompt_cache import PromptCache
from izwi_lab.families.shared.sampling import GREEDY, Sampling, sample_token
from izwi_lab.families.shared.scoring import scored
from izwi_lab.families.shared.speculative import Drafts
from izwi_lab.families.shared.steps import Prompt, Reading, Session, Step
from izwi_lab.families.shared.tally import Tally
from izwi_lab.families.shared.taps import Replace, Taps, tapping
from izwi_lab.families.shared.text_processor import TextProcessor
from izwi_lab.results import ChatReply, TextDelta

PREFILL_CHUNK = 512  # tokens read at once: bounds memory, and how long a cancel waits

Messages = talk.Messages


class TextModel:
    """A loaded text model. Immutable; sessions hold all state. processor: None for load_format="dummy"."""

    def __init__(
        self,
        variant: ModelVariant,
        plan: BackendPlan,
        backend: Backend,
        net: Any,
        config: DecoderConfig,
        processor: TextProcessor | None,
    ) -> None:
        self.variant, self.plan, self.backend, self.net = variant, plan, backend, net
        self.config, self.processor = config, processor
        self._stops = processor.stop_ids if processor else frozenset()

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held in memory."""
        return int(self.net.weight_bytes()) if self.net is not None else 0

    __repr__ = describe

    def close(self) -> None:
        """Drop the weights; the model cannot be used afterwards."""
        self.net = None

    def tap(self, patterns: str | Sequence[str], *, replace: Replace | None = None) -> AbstractContextManager[Taps]:
        """Read or replace intermediates by name, for example "layers.*.attn". A pattern may match nothing."""

        def array(values: np.ndarray, like: Native) -> Native:
            return self.backend.array(values, dtype=str(like.dtype).rpartition(".")[2])

        return tapping(patterns, numpy=self.backend.numpy, array=array, replace=replace)

    def read_out(self, stream: np.ndarray, *, normed: bool = False) -> np.ndarray:
        """Logits, float32 [..., V], that the last norm and the head read from a residual stream [..., D].

        stream: what a tap saw, such as "layers.3"; normed: it is the tap "norm", past the last norm.
        """
        net = self._net()
        with self.backend.inference():
            x = self.backend.array(stream)
            logits = net.head(x if normed else net.model.norm(x))
            self.backend.evaluate(logits)
        return self.backend.numpy(logits)

    def tokenize(
        self,
        messages: Messages,
        *,
        template: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
    ) -> Prompt:
        """Text or chat messages to ids. template=False takes text as it is, control tokens and all.

        tools, thinking: what the template is told of; see ChatOptions.

        Raises:
            InvalidInputError: nothing was said, a message has an unknown role or no text, or the template has no place
                for tools or for a choice about thinking.
        """
        return self.text_processor().tokenize(messages, template=template, tools=tools, thinking=thinking)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens show nothing."""
        return self.text_processor().detokenize(tokens)

    def session(
        self, *, seed: int | None = None, max_tokens: int | None = None, kv_dtype: str | None = None
    ) -> Session:
        """A new session. It is done after max_tokens, at the end token, or when the context is full.

        kv_dtype: None keeps keys and values in the compute dtype, "int8" in half the memory of bfloat16.
        """
        return Session(
            self.backend,
            self._net().state(kv_dtype),
            seed=seed,
            trim=text_session.trimmer(self.config),
            max_tokens=max_tokens,
            adopt=text_session.adopter(self.config, self.backend, kv_dtype),
            model=self.variant.id,
        )

    def prefill(self, session: Session, prompt: Prompt, *, cancel: CancelToken | None = None) -> Step:
        """Read the prompt, after whatever the session already holds; logits are those of the last position.

        Raises:
            InvalidInputError: an empty prompt, an id out of range, or more ids than the context has room for.
            Cancelled: stopped by `cancel`; the session is as it was.
        """
        text_session.check_step(session, prompt, cancel, reads=True)
        started_s = time.perf_counter()
        held = [*session.prompt_ids, *session.tokens]
        ids = np.asarray([*held[session.position :], *prompt.ids.tolist()], np.int32)  # incl. an undecoded last token
        text_session.check_prompt(session, prompt.ids, len(ids), self.config, self.variant.id)
        before, reach = session.position, session.reach
        # Rings may write over what an undone prefill needs again.
        kept = None if self.config.rewindable(before + len(ids), before) else self.backend.copy(session.state)
        try:
            for run in text_session.cuts(len(ids), PREFILL_CHUNK):
                if cancel is not None:
                    cancel.check()
                logits, hidden = self._run(session, ids[run])
        except BaseException:  # cancelled or out of memory: the session is as it was
            if kept is not None:
                session.state, session.reach = kept, reach
            text_session.rewind(session, before)
            raise
        session.prompt_ids, session.tokens = [*held, *prompt.ids.tolist()], []
        session.done, session.finish_reason = False, None
        return self._step(session, logits, hidden, started_s)

    def sample(
        self,
        session: Session,
        step: Step,
        sampling: Sampling | None = None,
        *,
        allowed: np.ndarray | None = None,
    ) -> int:
        """Choose the next token; draws from the session's random numbers unless greedy.

        allowed: the only tokens that may come, int32 [ceil(V / 32)]: bit t % 32 of word t // 32; None for all.
        """
        text_session.check_step(session)
        text_session.check_choice(step, sampling)
        if session.tally is None:
            session.tally = Tally(self.config.vocab_size, self.backend)
        return sample_token(
            step.logits,
            sampling or GREEDY,
            session.rng,
            session.tokens,
            self.backend,
            prompt=session.prompt_ids,
            allowed=allowed,
            tally=session.tally,
        )

    def decode(self, session: Session, token: int) -> Step:
        """Take `token` as said and compute what follows.

        When it ends the answer (end token, max_tokens or context reached) the session is done and nothing is computed:
        the step before is given back.
        """
        self.say(session, token)
        if session.done and session.last is not None:
            return session.last
        return self.advance(session)

    def say(self, session: Session, token: int) -> None:
        """Take `token` as said without computing what follows; `advance` or `verify` does. See `decode`."""
        text_session.say(session, token, self._stops, self.config)

    def advance(self, session: Session, *, sampling: Sampling | None = None) -> Step:
        """Read what was said but is not in the caches yet: the step after it. sampling has no meaning here."""
        started_s = time.perf_counter()
        ids = np.asarray(self._pending(session), np.int32)
        for start in range(0, len(ids), PREFILL_CHUNK):
            logits, hidden = self._run(session, ids[start : start + PREFILL_CHUNK])
        return self._step(session, logits, hidden, started_s)

    def verify(self, session: Session, drafts: Sequence[int]) -> list[Step]:
        """Steps after what was said and after each of `drafts`, in one pass: the first is that of `advance`.

        The session counts no draft. `follow` takes one as said: the first of them, then the next.
        """
        return text_batch.verified(self, session, self._pending(session), drafts, self._net())

    def follow(self, session: Session, step: Step) -> Step:
        """Count the token said last as read: it is the next draft of the last `verify`, which gave `step` for it."""
        text_session.rewind(session, session.position + 1)
        session.last = step
        return step

    def score(self, prompt: str | Prompt, *, cancel: CancelToken | None = None) -> np.ndarray:
        """Log-probabilities, float32 [T - 1], of each id of the prompt after the first, given those before it.

        A text is taken as it is, without template. exp(-mean) is its perplexity.

        Raises:
            InvalidInputError: fewer than two ids, an id out of range, or more than the context has room for.
            Cancelled: stopped by `cancel`.
        """
        return scored(self, prompt, cancel)

    def generate(
        self,
        prompt: Messages | Prompt,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        response_format: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
        truncation: str = "error",
        speculative: Drafts | None = None,
        session: Session | None = None,
        cache: PromptCache | None = None,
        cancel: CancelToken | None = None,
    ) -> ChatReply:
        """Answer it all; the options are those of ChatOptions. session: one to go on from, instead of a new one.

        cache: where sessions wait for the next turn of their conversation; not looked at with `session`.

        The reply's tokens include the end token; a cancelled answer keeps what was said.
        """
        options = ChatOptions(
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            thinking=thinking,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            logprobs=logprobs,
            truncation=truncation,
            speculative=speculative,
        )
        return talk.reply(self, prompt, options, session=session, cache=cache, cancel=cancel)

    def stream(
        self,
        prompt: Messages | Prompt,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        response_format: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
        truncation: str = "error",
        speculative: Drafts | None = None,
        session: Session | None = None,
        cache: PromptCache | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[TextDelta]:
        """Answer as it comes: one delta a token, then a last one with the finish reason and text held back."""
        options = ChatOptions(
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            thinking=thinking,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            logprobs=logprobs,
            truncation=truncation,
            speculative=speculative,
        )
        yield from talk.deltas(self, prompt, options, session=session, cache=cache, cancel=cancel)

    # steps of many sessions, for the engine; see BatchModel

    @property
    def pageable(self) -> bool:
        """Whether sessions may share their caches' memory, and what they read."""
        return text_batch.pageable(self.config)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in the caches."""
        return text_batch.position_bytes(self.config, self.backend.dtype)

    @property
    def max_positions(self) -> int:
        """The longest that a session can be."""
        return self.config.max_positions

    def pool(self, blocks: int, block: int) -> dict[str, list[Any]]:
        """Caches for many sessions: `blocks` of `block` positions."""
        return text_batch.pool(self._net(), self.backend, blocks, block)

    def enter(self, session: Session, prompt: Prompt) -> None:
        """Note in a session what it is to read. Raises as `prefill` does."""
        text_batch.enter(self, session, prompt)

    def caches(self, session: Session) -> dict[str, Any]:
        """The state in which a session's positions are counted."""
        state: dict[str, Any] = session.state
        return state

    def stand(self, session: Session, position: int) -> None:
        """A session has read `position` of what it knows."""
        text_session.rewind(session, position)

    def step_many(self, readings: Sequence[Reading]) -> list[Step | None]:
        """What all of these read, in one pass: a Step for each that wants one. If it fails, nobody has moved."""
        return text_batch.step_many(self, readings, self._net())

    def text(self, token: int) -> str:
        """A token as text, control tokens by their names; "" without a tokenizer."""
        if self.processor is None:
            return ""
        said = self.processor.token_bytes(token).decode("utf-8", "replace")
        return said or self.processor.tokenizer.id_to_token(token) or ""

    def _pending(self, session: Session) -> list[int]:
        """What the session should hold but is not in its caches yet."""
        said = session.position - len(session.prompt_ids)
        pending = session.tokens[said:] if said >= 0 else [*session.prompt_ids[said:], *session.tokens]
        if not pending:
            raise InvalidInputError("Nothing was said since the last step.", hint="Call decode with a token.")
        return pending

    def _run(self, session: Session, ids: np.ndarray) -> tuple[Native, Native]:
        with self.backend.inference():
            logits, hidden = self._net()(self.backend.array(ids[None]), session.state)
            self.backend.evaluate(logits, hidden)
        text_session.rewind(session, session.position + len(ids))
        return logits[0], hidden[0]

    def _step(self, session: Session, logits: Native, hidden: Native, started_s: float) -> Step:
        seconds = time.perf_counter() - started_s
        step = Step(logits, hidden, session.position - 1, seconds, self.backend, text=self.text)
        session.last = step
        return step

    def text_processor(self) -> TextProcessor:
        """Tokenizer and template. Raises InvalidInputError for a dummy model, which has none."""
        if self.processor is None:
            raise InvalidInputError(
                "A dummy model has no tokenizer, which text, generate and stream need.",
                hint="Take the steps prefill, sample and decode with Prompt(ids=[...]).",
            )
        return self.processor

    def _net(self) -> Any:
        if self.net is None:
            raise InvalidInputError(f"{self.variant.id} was closed.", hint="Load it again.")
        return self.net
