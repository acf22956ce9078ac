"""Batch: carries a scheduler's plan out as one pass of a model over the caches of all its sequences."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from izwi_lab.backends.memory import is_out_of_memory
from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.plan import Piece, Plan
from izwi_lab.engine.pool import Pool
from izwi_lab.engine.tables import StateManager
from izwi_lab.families.shared.steps import Prompt, Reading, Session, Step
from izwi_lab.families.shared.text_session import cuts

if TYPE_CHECKING:
    from izwi_lab.families.protocols import BatchModel
    from izwi_lab.families.shared.sampling import Sampling

_log = logging.getLogger(__name__)
Found = Step | Exception | None
Steps = Mapping[str, tuple["Session", "Sampling | None"]]  # by the id of a sequence: whose step, and how it chooses
_AGAIN = 256  # positions at once of a state that is read again


class Batch:
    """The sessions of a model that are stepped together. blocks: who says where their positions lie."""

    def __init__(self, model: BatchModel, blocks: StateManager) -> None:
        self._model, self._blocks, self._rewritable = model, blocks, blocks.rewritable
        stats = blocks.stats()
        self._pool = Pool(model, stats.total, stats.block_size) if model.pageable else None
        self._slots: set[Session] = set()

    @property
    def max_positions(self) -> int:
        """The longest that a sequence can be."""
        return self._model.max_positions

    def keep_to_what_there_is(self) -> None:
        """After a lack of memory: if it was the pool that could not grow, blocks without memory are given up."""
        if self._pool is not None and self._pool.stuck and isinstance(self._blocks, BlockManager):
            self._blocks.withdraw(max(1, self._pool.blocks))

    @property
    def nbytes(self) -> int:
        """Bytes of the caches."""
        if self._pool is not None:
            return self._pool.nbytes
        return sum(session.nbytes for session in self._slots)

    def enter(self, session: Session, prompt: Prompt) -> int:
        """Let a session in, to read a prompt; returns how many positions it holds already."""
        held = session.position
        self._model.enter(session, prompt)
        if self._pool is None:
            self._slots.add(session)
        return held

    def forget(self, session: Session) -> None:
        """A session is over, or gave its room up."""
        if self._pool is not None:
            self._pool.forget(session)
        self._slots.discard(session)

    def run(self, plan: Plan, steps: Steps) -> dict[str, Found] | None:
        """What came of each piece, by sequence: a Step where logits are wanted, or the error of this piece alone.

        None where there was no memory for it, and the plan must be taken back.
        """
        try:
            if self._pool is not None:
                self._pool.copy(plan.copies)
            readings = [self._reading(piece, steps) for piece in plan.pieces]
            found = self._model.step_many(readings)
        except Exception as error:
            return self._failed(error, plan, steps)
        return {piece.sequence.id: each for piece, each in zip(plan.pieces, found, strict=True)}

    def _reading(self, piece: Piece, steps: Steps) -> Reading:
        sequence = piece.sequence
        session, sampling = steps[sequence.id]
        if self._pool is not None:
            self._pool.give(session, sequence.table.ids)
        if session.position != piece.start:  # others had read what comes before, or it must be read again
            self._model.stand(session, piece.start)
        return Reading(session, piece.start, piece.stop, piece.wants_logits, sampling)

    def _failed(self, error: Exception, plan: Plan, steps: Steps) -> dict[str, Found] | None:
        if is_out_of_memory(error):
            _log.warning("a step of %d tokens ran out of memory; it is tried again in parts", plan.tokens)
            return None
        found: dict[str, Found] = {}
        for piece in plan.pieces:
            try:
                found[piece.sequence.id] = self._again(piece, steps)
            except Exception as its_own:
                if is_out_of_memory(its_own):
                    return None
                found[piece.sequence.id] = its_own
        return found

    def _again(self, piece: Piece, steps: Steps) -> Step | None:
        """A piece of a pass that failed, alone: whose fault it was, this will tell.

        A state that cannot be written again where it stands is read again from its first position on.
        """
        reading = self._reading(piece, steps)
        first = reading.start if self._rewritable else 0
        step: Step | Exception | None = None
        for run in cuts(reading.stop - first, reading.stop if self._rewritable else _AGAIN):
            start, stop = first + run.start, first + run.stop
            self._model.stand(reading.session, start)
            (step,) = self._model.step_many([replace(reading, start=start, stop=stop)])
        if isinstance(step, Exception):
            raise step
        return step
