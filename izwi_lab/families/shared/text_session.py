"""What holds for sessions of text models: when they end, how far they go back, which saved ones fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.cancel import check_cancel
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Session, Step


def check_step(session: object, prompt: object = None, cancel: object = None, *, reads: bool = False) -> None:
    """Raise InvalidInputError for what is no Session, no CancelToken or, where one is read, no Prompt."""
    check_cancel(cancel)
    if not isinstance(session, Session):
        raise InvalidInputError(f"A Session was expected, got {session!r:.80}.", hint="Make one: model.session().")
    if reads and not isinstance(prompt, Prompt):
        raise InvalidInputError(
            f"A Prompt was expected, got {prompt!r:.80}.", hint="Make one: model.tokenize(text), or Prompt(ids=[...])."
        )


def check_choice(step: object, sampling: object) -> None:
    """Raise InvalidInputError for what is no Step, and for what is neither None nor a Sampling."""
    if not isinstance(step, Step):
        raise InvalidInputError(f"A Step was expected, got {step!r:.80}.", hint="It is what prefill and decode give.")
    if sampling is not None and not isinstance(sampling, Sampling):
        raise InvalidInputError(f"sampling must be a Sampling or None, got {sampling!r:.80}.")


def check_prompt(session: Session, ids: np.ndarray, adding: int, config: DecoderConfig, name: str) -> None:
    """Raise InvalidInputError for an empty prompt, an id out of range, or `adding` more ids than there is room for."""
    if not len(ids):
        raise InvalidInputError("The prompt is empty.", hint="Give at least one token.")
    check_ids(ids, config)
    if session.position + adding > config.max_positions:
        have = f" after {session.position} already read" if session.position else ""
        raise InvalidInputError(
            f"The prompt has {adding} tokens{have}, more than the context of {config.max_positions} of {name}.",
            hint="Shorten the prompt.",
        )


def check_ids(ids: np.ndarray, config: DecoderConfig) -> None:
    """Raise InvalidInputError for ids [T] that the vocabulary does not have."""
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        raise InvalidInputError(
            f"The prompt holds ids from {ids.min()} to {ids.max()}; the vocabulary has {config.vocab_size}."
        )


def say(session: Session, token: int, stops: frozenset[int], config: DecoderConfig) -> None:
    """Take `token` as said. It ends the session if it is an end token, the last allowed, or the context is full."""
    check_step(session)
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise InvalidInputError(f"A token id was expected, got {token!r:.80}.", hint="It is what sample gives.")
    if not 0 <= token < config.vocab_size:
        raise InvalidInputError(f"Token {token} is not in the vocabulary of {config.vocab_size}.")
    if session.position == 0:
        raise InvalidInputError("This session is empty.", hint="Call prefill first.")
    session.tokens.append(int(token))
    full = len(session.prompt_ids) + len(session.tokens) > config.max_positions
    if token in stops:
        session.done, session.finish_reason = True, "stop"
    elif full or (session.max_tokens is not None and len(session.tokens) >= session.max_tokens):
        session.done, session.finish_reason = True, "length"


def cuts(count: int, size: int) -> Iterator[slice]:
    """Pieces of `count` positions of at most `size`, none of them a single one that is left over.

    Kernels may round a lone row otherwise than one of several; so how a prompt is cut does not show in its logits.
    """
    start = 0
    while start < count:
        left = count - start
        step = size - 1 if left == size + 1 and size > 2 else min(size, left)
        yield slice(start, start + step)
        start += step


def rewind(session: Session, position: int) -> None:
    """The caches count `position` ids from here on; what lies behind is written over."""
    session.state["length"] = session.position = position
    session.reach = 0 if position == 0 else max(session.reach, position)


def trimmer(config: DecoderConfig) -> Callable[[Session, int], None]:
    """`Session.trim` for a net of this config: forget ids after a position."""

    def trim(session: Session, position: int) -> None:
        reach = max(session.reach, session.position)
        if not config.rewindable(reach, position):
            first = next(p for p in range(position + 1, reach + 1) if config.rewindable(reach, p))
            raise InvalidInputError(
                f"This session can go back to position {first} at most, not to {position}: "
                "its sliding-window or convolution layers keep no more.",
                hint="Fork it before the step to undo, or trim(0) and prefill again.",
            )
        said = position - len(session.prompt_ids)
        session.tokens = session.tokens[: max(0, said)]
        session.prompt_ids = session.prompt_ids[:position]
        rewind(session, position)
        session.done, session.finish_reason, session.last = False, None, None

    return trim


def adopter(config: DecoderConfig, backend: Backend, kv_dtype: str | None) -> Callable[[Any], Any]:
    """What takes a state from a file and gives it in the net's dtypes; one that does not fit is refused."""

    def adopt(state: Any) -> Any:
        if not cache.fits(state, config):  # it would be read out of bounds
            raise CheckpointError(
                "The session was saved by another model.",
                hint=f"Expected {config.num_layers} layers of caches [1, {config.num_kv_heads}, positions, "
                f"{config.head_dim}], of kinds {sorted(set(config.layer_types))}.",
            )
        int8 = cache.is_int8(state)
        if int8 != (kv_dtype == cache.INT8):
            raise CheckpointError(
                f"The session was saved with kv_dtype={cache.INT8 if int8 else None!r}, this one has {kv_dtype!r}.",
                hint=f"Load it into model.session(kv_dtype={cache.INT8 if int8 else None!r}).",
            )
        kinds = cache.dtypes(int8, backend.dtype)
        with backend.inference():
            lists = {n: [None if a is None else _as(a, kind, backend) for a in state[n]] for n, kind in kinds.items()}
        return {"length": state["length"], **lists}

    return adopt


def _as(values: Native, dtype: str, backend: Backend) -> Native:
    same = str(values.dtype).rpartition(".")[2] == dtype
    return values if same else backend.array(backend.numpy(values), dtype=dtype)
