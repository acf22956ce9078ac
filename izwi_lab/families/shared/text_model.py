"""A text model on the shared decoder, step by step. One class serves every family of this kind.

| verb | takes | gives |
|---|---|---|
| tokenize | text or messages | Prompt: ids [T] |
| session | seed, max_tokens | Session: caches, random numbers, ids so far |
| prefill | session, prompt | Step: logits [V], hidden [D] of the last position |
| sample | session, step, sampling | token id |
| decode | session, token | Step |
| detokenize | tokens | text |
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
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.describe import describe
from izwi_lab.families.shared.detokenizer import Detokenizer, StopStrings
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.sampling import GREEDY, Sampling, sample_token
from izwi_lab.families.shared.steps import Prompt, Session, Step
from izwi_lab.families.shared.taps import Replace, Taps, tapping
from izwi_lab.families.shared.text_processor import TextProcessor
from izwi_lab.results import ChatReply, TextDelta, Timing

PREFILL_CHUNK = 512  # tokens read at once: bounds memory, and how long a cancel waits

Messages = str | Sequence[Mapping[str, Any]]


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
        """Read or replace intermediates by name, for example "layers.*.attn"."""

        def array(values: np.ndarray, like: Native) -> Native:
            return self.backend.array(values, dtype=str(like.dtype).rpartition(".")[2])

        return tapping(patterns, numpy=self.backend.numpy, array=array, replace=replace)

    def tokenize(self, messages: Messages, *, template: bool = True) -> Prompt:
        """Text or chat messages to ids. template=False takes text as it is, control tokens and all.

        Raises:
            InvalidInputError: nothing was said, or a message has an unknown role or no text.
        """
        return self._processor().tokenize(messages, template=template)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens; control tokens show nothing."""
        return self._processor().detokenize(tokens)

    def session(self, *, seed: int | None = None, max_tokens: int | None = None) -> Session:
        """A new session. It is done after max_tokens, at the end token, or when the context is full."""
        state = self._net().state()
        return Session(self.backend, state, seed=seed, trim=_trim, max_tokens=max_tokens, adopt=self._adopt)

    def prefill(self, session: Session, prompt: Prompt, *, cancel: CancelToken | None = None) -> Step:
        """Read the prompt, after whatever the session already holds; logits are those of the last position.

        Raises:
            InvalidInputError: an empty prompt, an id out of range, or more ids than the context has room for.
            Cancelled: stopped by `cancel`; the session is as it was.
        """
        started_s = time.perf_counter()
        held = [*session.prompt_ids, *session.tokens]
        ids = np.asarray([*held[session.position :], *prompt.ids.tolist()], np.int32)  # incl. an undecoded last token
        self._check_prompt(session, prompt.ids, len(ids))
        before = session.position
        try:
            for start in range(0, len(ids), PREFILL_CHUNK):
                if cancel is not None:
                    cancel.check()
                chunk = ids[start : start + PREFILL_CHUNK]
                logits, hidden = self._run(session, chunk)
                session.position += len(chunk)
        except BaseException:  # cancelled or out of memory: the session is as it was
            session.state["length"] = session.position = before
            raise
        session.prompt_ids, session.tokens = [*held, *prompt.ids.tolist()], []
        session.done, session.finish_reason = False, None
        return self._step(session, logits, hidden, started_s)

    def sample(self, session: Session, step: Step, sampling: Sampling | None = None) -> int:
        """Choose the next token; draws from the session's random numbers unless greedy."""
        chosen = sampling or GREEDY
        return sample_token(step.logits, chosen, session.rng, session.tokens, self.backend, prompt=session.prompt_ids)

    def decode(self, session: Session, token: int) -> Step:
        """Take `token` as said and compute what follows.

        When it ends the answer (end token, max_tokens or context reached) the session is done and nothing is computed:
        the step before is given back.
        """
        if not 0 <= token < self.config.vocab_size:
            raise InvalidInputError(f"Token {token} is not in the vocabulary of {self.config.vocab_size}.")
        if session.position == 0:
            raise InvalidInputError("This session is empty.", hint="Call prefill first.")
        session.tokens.append(int(token))
        pending = session.tokens[session.position - len(session.prompt_ids) :]  # not yet in the caches
        full = session.position + len(pending) > self.config.max_positions
        if token in self._stops:
            session.done, session.finish_reason = True, "stop"
        elif full or (session.max_tokens is not None and len(session.tokens) >= session.max_tokens):
            session.done, session.finish_reason = True, "length"
        if session.done and session.last is not None:
            return session.last
        started_s = time.perf_counter()
        logits, hidden = self._run(session, np.asarray(pending, np.int32))
        session.position += len(pending)
        return self._step(session, logits, hidden, started_s)

    def generate(
        self,
        prompt: Messages | Prompt,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        cancel: CancelToken | None = None,
    ) -> ChatReply:
        """Answer it all. The reply's tokens include the end token; a cancelled answer keeps what was said."""
        started_s, first_s = time.perf_counter(), 0.0
        texts: list[str] = []
        session = self.session(seed=seed, max_tokens=max_tokens)
        read_s = 0.0
        for delta in self._talk(session, prompt, sampling, stop, cancel):
            if not first_s:
                first_s = time.perf_counter() - started_s
                read_s = session.last.seconds if session.last else 0.0
            texts.append(delta.text)
        total_s = time.perf_counter() - started_s
        timing = Timing(
            total_s=total_s,
            first_s=first_s,
            prefill_s=read_s,
            decode_s=total_s - first_s,
            prompt_tokens=len(session.prompt_ids),
            tokens=len(session.tokens),
        )
        return ChatReply(
            "".join(texts),
            session.finish_reason or "cancelled",
            tuple(session.tokens),
            self.variant.id,
            f"{self.plan.backend} {self.plan.device} {self.plan.dtype}",
            timing,
        )

    def stream(
        self,
        prompt: Messages | Prompt,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[TextDelta]:
        """Answer as it comes: one delta a token, then a last one with the finish reason and text held back."""
        yield from self._talk(self.session(seed=seed, max_tokens=max_tokens), prompt, sampling, stop, cancel)

    def _talk(
        self,
        session: Session,
        prompt: Messages | Prompt,
        sampling: Sampling | None,
        stop: Sequence[str],
        cancel: CancelToken | None,
    ) -> Iterator[TextDelta]:
        """The loop over the verbs that generate and stream share."""
        if session.max_tokens is not None and session.max_tokens < 1:
            raise InvalidInputError(f"max_tokens must be at least 1, got {session.max_tokens}.")
        if isinstance(stop, str):
            raise InvalidInputError(f"stop takes a list of texts, got {stop!r}.", hint=f"Expected stop=[{stop!r}].")
        read = prompt if isinstance(prompt, Prompt) else self.tokenize(prompt)
        text, stops, index = Detokenizer(self._processor().token_bytes), StopStrings(stop), 0
        if cancel is None or not cancel.cancelled:
            step = self._read(session, read, cancel)
            while step is not None and not session.done:
                if cancel is not None and cancel.cancelled:
                    break
                token = self.sample(session, step, sampling)
                shown = stops.push(text.push(token))
                if stops.found is not None:
                    session.tokens.append(token)
                    session.done, session.finish_reason = True, "stop"
                yield TextDelta(shown, index, token)
                index += 1
                if not session.done:
                    step = self.decode(session, token)
        if session.finish_reason is None:
            session.finish_reason = "cancelled"
        yield TextDelta(stops.flush(), index, finish_reason=session.finish_reason)

    def _read(self, session: Session, prompt: Prompt, cancel: CancelToken | None) -> Step | None:
        from izwi_lab.errors import Cancelled

        try:
            return self.prefill(session, prompt, cancel=cancel)
        except Cancelled:
            return None

    def _run(self, session: Session, ids: np.ndarray) -> tuple[Native, Native]:
        with self.backend.inference():
            logits, hidden = self._net()(self.backend.array(ids[None]), session.state)
            self.backend.evaluate(logits, hidden)
        return logits[0], hidden[0]

    def _step(self, session: Session, logits: Native, hidden: Native, started_s: float) -> Step:
        step = Step(logits, hidden, session.position - 1, time.perf_counter() - started_s, self.backend)
        session.last = step
        return step

    def _check_prompt(self, session: Session, ids: np.ndarray, adding: int) -> None:
        limit = self.config.max_positions
        if not len(ids):
            raise InvalidInputError("The prompt is empty.", hint="Give at least one token.")
        if ids.min() < 0 or ids.max() >= self.config.vocab_size:
            raise InvalidInputError(
                f"The prompt holds ids from {ids.min()} to {ids.max()}; the vocabulary has {self.config.vocab_size}."
            )
        if session.position + adding > limit:
            have = f" after {session.position} already read" if session.position else ""
            raise InvalidInputError(
                f"The prompt has {adding} tokens{have}, more than the context of {limit} of {self.variant.id}.",
                hint="Shorten the prompt.",
            )

    def _adopt(self, state: Any) -> Any:
        """A state from a file, in the compute dtype. What does not fit this net would be read out of bounds."""
        if not _fits(state, self.config):
            c = self.config
            raise CheckpointError(
                "The session was saved by another model.",
                hint=f"Expected {c.num_layers} layers of caches [1, {c.num_kv_heads}, positions, {c.head_dim}].",
            )
        with self.backend.inference():
            return {"length": state["length"], **{n: [self._native(a) for a in state[n]] for n in ("k", "v")}}

    def _native(self, values: Native) -> Native:
        same = str(values.dtype).rpartition(".")[2] == self.backend.dtype
        return values if same else self.backend.array(self.backend.numpy(values))

    def _processor(self) -> TextProcessor:
        if self.processor is None:
            raise InvalidInputError("A dummy model has no tokenizer.", hint="Take the steps with Prompt(ids=...).")
        return self.processor

    def _net(self) -> Any:
        if self.net is None:
            raise InvalidInputError(f"{self.variant.id} was closed.", hint="Load it again.")
        return self.net


def _trim(session: Session, position: int) -> None:
    """Forget ids after `position`; the caches keep their room and are written over."""
    ids = [*session.prompt_ids, *session.tokens][:position]
    session.tokens = ids[len(session.prompt_ids) :]
    session.prompt_ids = ids[: len(session.prompt_ids)]
    session.state["length"] = session.position = position
    session.done, session.finish_reason, session.last = False, None, None


def _fits(state: Any, c: DecoderConfig) -> bool:
    """True for a decoder state [1, Hkv, capacity, d] of this config, every layer with room for what it holds."""
    try:
        length, keys, values = state["length"], state["k"], state["v"]
        shapes = {tuple(a.shape) for a in (*keys, *values)} or {(1, c.num_kv_heads, 0, c.head_dim)}
        ((batch, heads, room, dim),) = shapes
    except (KeyError, TypeError, ValueError, AttributeError):
        return False
    whole = len(keys) == len(values) and len(keys) in (0, c.num_layers)
    same = (batch, heads, dim) == (1, c.num_kv_heads, c.head_dim)
    return whole and same and isinstance(length, int) and 0 <= length <= min(room, c.max_positions)
