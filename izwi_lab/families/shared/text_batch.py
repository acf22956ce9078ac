"""Many positions in one pass over a text model's weights: of several sessions, for the engine, or guesses of one."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared import text_session
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.config import CONV, DecoderConfig
from izwi_lab.families.shared.steps import Prompt, Reading, Session, Step

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

_WIDTHS = {"float32": 4, "bfloat16": 2, "float16": 2}


def pageable(config: DecoderConfig) -> bool:
    """Whether a session's state is only keys and values, of which any beginning is a state."""
    return CONV not in config.layer_types


def position_bytes(config: DecoderConfig, dtype: str) -> int:
    """Bytes of the keys and values of one position in all attention layers."""
    layers = sum(kind != CONV for kind in config.layer_types)
    return 2 * layers * config.num_kv_heads * config.head_dim * _WIDTHS[dtype]


def pool(net: Any, backend: Backend, blocks: int, block: int) -> dict[str, list[Any]]:
    """See `BatchModel.pool`."""
    with backend.inference():
        made: dict[str, list[Any]] = net.pool(blocks, block)
        backend.evaluate(made)
    return made


def enter(model: TextModel, session: Session, prompt: Prompt) -> None:
    """Note in a session what it is to read; see `BatchModel.enter`."""
    text_session.check_step(session, prompt, reads=True)
    held = [*session.prompt_ids, *session.tokens]
    adding = len(held) - session.position + len(prompt)
    text_session.check_prompt(session, prompt.ids, adding, model.config, model.variant.id)
    session.prompt_ids, session.tokens = [*held, *prompt.ids.tolist()], []
    session.done, session.finish_reason, session.last = False, None, None


def step_many(model: TextModel, readings: Sequence[Reading], net: Any) -> list[Step | None]:
    """See `BatchModel.step_many`. If it fails, the sessions stand where they stood."""
    started_s, backend = time.perf_counter(), model.backend
    for reading in readings:
        _check(reading)
    try:
        with backend.inference():
            logits, hidden = net.together([piece for r in readings for piece in _pieces(r, backend)])
            backend.evaluate(logits, hidden)
    except BaseException:
        for reading in readings:  # rings may be written up to where the pass would have ended
            reading.session.reach = max(reading.session.reach, reading.stop)
            text_session.rewind(reading.session, reading.start)
        raise
    seconds, steps, row = time.perf_counter() - started_s, list[Step | None](), 0
    for reading in readings:
        session = reading.session
        text_session.rewind(session, reading.stop)
        if not reading.wants:
            steps.append(None)
            continue
        session.last = Step(logits[row], hidden[row], reading.stop - 1, seconds, backend, text=model.text)
        steps.append(session.last)
        row += 1
    return steps


def verified(model: TextModel, session: Session, pending: Sequence[int], drafts: Sequence[int], net: Any) -> list[Step]:
    """See `TextModel.verify`. pending: what was said and not yet read."""
    started_s, backend = time.perf_counter(), model.backend
    ids = np.asarray([*pending, *drafts], np.int32)
    with backend.inference():
        logits, hidden = net.every(backend.array(ids[None]), session.state)
        backend.evaluate(logits, hidden)
    session.reach = max(session.reach, session.position + len(ids))
    text_session.rewind(session, session.position + len(pending))
    first, seconds = len(pending) - 1, time.perf_counter() - started_s
    steps = [
        Step(logits[0, i], hidden[0, i], session.position + i - len(pending), seconds, backend, text=model.text)
        for i in range(first, len(ids))
    ]
    session.last = steps[0]
    return steps


def _pieces(reading: Reading, backend: Backend) -> Iterator[tuple[Native, Any, bool]]:
    """What the net reads: (ids, state, wants).

    In blocks, what was said before is read again one by one, beside each other: so it is rounded as it was when it was
    said, and a seed goes on to draw what it would have drawn.
    """
    session, first = reading.session, len(reading.session.prompt_ids)
    ids = session.prompt_ids[reading.start : reading.stop]
    said = session.tokens[max(0, reading.start - first) : max(0, reading.stop - first)]
    state = session.state
    if not cache.is_paged(state):
        ids, said = [*ids, *said], []
    if ids:
        yield backend.array(np.asarray(ids, np.int32)), state, reading.wants and not said
    for index, token in enumerate(said, 1):
        yield backend.array(np.asarray([token], np.int32)), state, reading.wants and index == len(said)


def _check(reading: Reading) -> None:
    session = reading.session
    known = len(session.prompt_ids) + len(session.tokens)
    if session.position != reading.start or not reading.start < reading.stop <= known:
        raise InvalidInputError(
            f"A session that stands at {session.position} and knows {known} ids cannot read positions "
            f"{reading.start} to {reading.stop}."
        )
