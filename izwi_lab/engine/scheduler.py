"""Scheduler: who computes which positions in the next step, and what became of them.

After vLLM and nano-vllm: one token budget for prompts (in pieces) and answers alike; preemption by recomputing. The
order of service is the `Roster`'s.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import replace

from izwi_lab.engine.plan import Limits, Piece, Plan, Policy, Result
from izwi_lab.engine.pressure import Pressure
from izwi_lab.engine.request import FinishReason, Request, Sequence, State
from izwi_lab.engine.roster import Roster
from izwi_lab.engine.tables import BlockCopy, StateManager
from izwi_lab.errors import InvalidInputError, IzwiError, MemoryBudgetError


class Scheduler:
    """The queue and the running sequences of one model.

    limits may be replaced between steps. One thread at a time; `now` is any clock that does not go back, the same as
    the requests' arrival_s.

    >>> from izwi_lab.engine.blocks import BlockManager
    >>> scheduler = Scheduler(Policy.FCFS, Limits(), BlockManager(64, 16, 1024))
    >>> sequence = scheduler.add(Request(id="a", prompt=(5, 6, 7), max_new_tokens=1, arrival_s=0.0))
    >>> plan = scheduler.plan(0.0)
    >>> [(piece.sequence.id, piece.start, piece.count) for piece in plan.pieces]
    [('a', 0, 3)]
    >>> scheduler.done(plan, {"a": Result(token=8)}, now=0.1)
    (Sequence('a', finished (length), 3 of 4 computed),)
    """

    def __init__(self, policy: Policy, limits: Limits, blocks: StateManager) -> None:
        self.policy, self.limits, self.blocks = Policy(policy), limits, blocks
        self._roster = Roster(self.policy, blocks)
        self._pressure = Pressure()
        self._ended: list[Sequence] = []
        self._preempted: list[Sequence] = []
        self._copies: list[BlockCopy] = []
        self._under_way: Plan | None = None
        self._steps = 0

    def __len__(self) -> int:
        """Sequences that have not ended."""
        return len(self._roster.by_id)

    def __repr__(self) -> str:
        return f"Scheduler({self.policy.value}: {len(self.running)} running, {len(self.waiting)} waiting)"

    @property
    def waiting(self) -> tuple[Sequence, ...]:
        """Those in the queue, in the order in which they will get room."""
        return tuple(self._roster.waiting)

    @property
    def running(self) -> tuple[Sequence, ...]:
        """Those in the caches, first the one that would be preempted last."""
        return tuple(self._roster.running)

    # coming and going

    def add(self, request: Request) -> Sequence:
        """Put a request in the queue.

        Raises:
            InvalidInputError: it cannot fit even when it is alone, or its id is taken.
        """
        return self._roster.enter(request, self.limits.ageing_s)

    def fork(self, source_id: str, request_id: str) -> Sequence:
        """A second sequence that has read and said what the source has, and goes on by itself.

        It shares the source's full blocks. Without room for that, and while the source still reads, it waits and
        computes its tokens anew.

        Raises:
            InvalidInputError: there is no such source, or the new id is taken.
            IzwiError: a step is under way.
        """
        self._between_steps()
        source = self._roster.by_id.get(source_id)
        if source is None:
            raise InvalidInputError(f"No sequence {source_id!r} is under way.", hint="Fork it before it ends.")
        sequence = self.add(replace(source.request, id=request_id))
        sequence.tokens = list(source.tokens)
        talks = source.state is State.RUNNING and source.decoding
        seat = len(self._roster.running) < self._pressure.allowed(self.limits)[1]
        if talks and seat and self.blocks.can_fork(source.table, source.computed):
            sequence.table, copy = self.blocks.fork(source.table, source.computed)
            sequence.computed, sequence.started_s = source.computed, source.started_s
            self._roster.seat(sequence)
            self._copies += [copy] if copy is not None else []
        return sequence

    def cancel(self, sequence_id: str) -> bool:
        """End a sequence; True if it was under way. Its blocks are free at once, or when the step under way is done."""
        sequence = self._roster.by_id.get(sequence_id)
        if sequence is None:
            return False
        if self._under_way is not None and any(p.sequence is sequence for p in self._under_way.pieces):
            sequence.stopping = True  # its blocks are being written
        else:
            self._ended.append(self._roster.end(sequence, FinishReason.CANCELLED))
        return True

    # steps

    def plan(self, now: float, *, held: Container[str] = ()) -> Plan:
        """What to compute next. A plan with pieces must be told `done` or `out_of_memory` before the next one is made.

        Never without pieces while a sequence has not ended. held: ids of those that keep their room but take no part.

        Raises:
            IzwiError: a step is under way.
        """
        self._between_steps()
        self._ended += self._roster.expire(now)
        tokens, seats = self._pressure.allowed(self.limits)
        ran = set(self._roster.running)
        pieces, preempted = self._decodes(tokens, seats, held)
        if not preempted:  # who was preempted for room must not take it back in the same step
            preempted = self._roster.admit(now, seats)
            pieces = [piece for piece in pieces if piece.sequence.state is State.RUNNING]
        # Who was admitted with all in the caches but the token said last has nothing to read, and no piece yet.
        reading = [s for s in self._roster.running if (not s.decoding or s not in ran) and s.id not in held]
        left = min(tokens - len(pieces), self.limits.max_prefill)
        pieces += self._prefills(reading, now, left, patient=tokens == self.limits.max_tokens)
        for piece in pieces:
            piece.sequence.last_step = self._steps
        for sequence in self._ended:
            sequence.ended_s = now
        told = (*self._preempted, *preempted), tuple(self._ended), tuple(self._copies)
        plan = Plan(self._steps, tuple(pieces), *told)
        self._steps += 1
        self._preempted, self._ended, self._copies = [], [], []
        self._under_way = plan if pieces else None
        return plan

    def done(self, plan: Plan, results: Mapping[str, Result], *, now: float) -> tuple[Sequence, ...]:
        """Take in what a step gave; returns the sequences that ended with it.

        results: by sequence id, for every piece that wants logits; for others only how they end.

        Raises:
            InvalidInputError: a result is missing, or one too many; nothing was taken in.
            IzwiError: another step is under way, or none.
        """
        self._ends(plan)
        for piece in plan.pieces:
            _check(piece, results.get(piece.sequence.id))
        self._under_way = None
        self._pressure.relax(self.limits)
        ended = []
        for piece in plan.pieces:
            sequence, result = piece.sequence, results.get(piece.sequence.id) or Result()
            if result.error is None and not sequence.stopping:  # else nobody knows what was computed
                sequence.computed = piece.stop
                self.blocks.publish(sequence.table, sequence.tokens, sequence.computed)
            reason = _taken(sequence, result, now)
            if reason is not None:
                sequence.ended_s = now
                ended.append(self._roster.end(sequence, reason, result.error))
        return tuple(ended)

    def out_of_memory(self, plan: Plan, *, now: float) -> tuple[Sequence, ...]:
        """Take a plan back whose step ran out of memory; returns the sequences that ended with it.

        Half of its sequences are preempted and the next steps are half as large; both grow again while steps go well.
        Where a state cannot be computed again in place, all are preempted: nobody knows how far it got. A single token
        that is too much ends its sequence with a MemoryBudgetError.

        Raises:
            IzwiError: another step is under way, or none.
        """
        self._ends(plan)
        self._under_way = None
        self._copies = [*plan.copies, *self._copies]  # they may not have been made
        sequences = [piece.sequence for piece in plan.pieces]
        ended = [self._roster.end(s, FinishReason.CANCELLED) for s in sequences if s.stopping]
        left = sorted((s for s in sequences if not s.stopping), key=lambda s: s.rank)
        if plan.tokens == 1 and left:
            problem = MemoryBudgetError(
                "A step of a single token ran out of memory.", hint="Unload a model, or make the caches smaller."
            )
            ended.append(self._roster.end(left.pop(), FinishReason.ERROR, problem))
        for sequence in left[-(-len(left) // 2) if self.blocks.rewritable else 0 :]:
            self._roster.preempt(sequence)
            self._preempted.append(sequence)
        self._pressure.tighten(plan.tokens, len(plan.pieces))
        for sequence in ended:
            sequence.ended_s = now
        return tuple(ended)

    # who is in the step

    def _decodes(self, tokens: int, seats: int, held: Container[str]) -> tuple[list[Piece], list[Sequence]]:
        """One token of everybody who has said something; and who was preempted to make room for it."""
        running = self._roster.running
        chosen = [s for s in running if s.decoding and s.id not in held]
        if len(chosen) < len(running) or (self._roster.waiting and len(running) < seats):
            tokens = max(1, tokens - min(self.limits.min_prefill, tokens // 2))
        if len(chosen) > tokens:  # only under pressure: they take turns
            chosen = sorted(sorted(chosen, key=lambda s: s.last_step)[:tokens], key=lambda s: s.rank)
        pieces: list[Piece] = []
        preempted: list[Sequence] = []
        for sequence in chosen:
            if sequence.state is State.RUNNING:  # else one before it took its room
                preempted += self._roster.make_room(sequence)
            if sequence.state is State.RUNNING:
                pieces.append(Piece(sequence, sequence.computed, 1, wants_logits=True, decode=True))
        return pieces, preempted

    def _prefills(self, reading: list[Sequence], now: float, left: int, *, patient: bool) -> list[Piece]:
        """Pieces of prompts, of at most `left` in all. patient: see `_cut`.

        Within a level (the priority, and one more for each ageing_s of waiting) the one that needs least is first.
        """
        for sequence in reading:
            caught_up = self.blocks.catch_up(sequence.table, sequence.tokens, sequence.computed)
            sequence.cached += 0 if sequence.preemptions else caught_up - sequence.computed
            sequence.computed = caught_up
        pieces: list[Piece] = []
        pending: set[bytes] = set()
        for sequence in sorted(reading, key=lambda s: (-self._level(s, now), s.remaining, s.rank)):
            count = _cut(sequence.remaining, left, patient=patient and self.limits.min_prefill > 2)
            if not left:
                break
            if not count:
                continue
            start, stop = sequence.computed, sequence.computed + count
            ours = self.blocks.pending(sequence.table, sequence.tokens, start, stop)
            if ours and ours[0] in pending:
                continue  # another computes the same in this step; it will be found in the next
            pending.update(ours)
            wants_logits = stop == len(sequence.tokens)
            pieces.append(Piece(sequence, start, count, wants_logits=wants_logits, decode=sequence.decoding))
            left -= count
        return pieces

    def _level(self, sequence: Sequence, now: float) -> int:
        return int((now - sequence.rank[0]) // self.limits.ageing_s)

    # books

    def _between_steps(self) -> None:
        if self._under_way is not None:
            raise IzwiError(
                f"Step {self._under_way.step} is under way.", hint="Tell the scheduler done or out_of_memory first."
            )

    def _ends(self, plan: Plan) -> None:
        if plan is not self._under_way:
            raise IzwiError(f"Step {plan.step} is not under way.", hint="Give the plan that was made last.")


def _cut(remaining: int, room: int, *, patient: bool) -> int:
    """How many tokens to read now, so that no single one is left over or read alone; 0 to wait for more room.

    Kernels may round a lone row otherwise than one of several, and a seed should not depend on who else was there.
    patient: there will be more room; else a single one is better than waiting without end.
    """
    if remaining <= room:
        return remaining
    count = room - 1 if remaining - room == 1 else room
    return count if count > 1 else 0 if patient else min(1, room)


def _check(piece: Piece, result: Result | None) -> None:
    """Raise InvalidInputError for a result that does not belong to the piece."""
    if piece.sequence.stopping:
        return  # whatever came of it, nobody asks any more
    name, ends = repr(piece.sequence.id), result is not None and (result.error or result.finish)
    if piece.wants_logits and (result is None or (result.token is None and not ends)):
        raise InvalidInputError(f"The step has no token for sequence {name}, which wants one.")
    if not piece.wants_logits and result is not None and (result.token is not None or not ends):
        raise InvalidInputError(f"The step has a token for sequence {name}, whose prompt is not read to its end.")


def _taken(sequence: Sequence, result: Result, now: float) -> FinishReason | None:
    """Write a result down; why the sequence ends, if it does."""
    if result.error is not None:
        return FinishReason.ERROR
    if sequence.stopping:
        return FinishReason.CANCELLED
    if result.token is not None:
        sequence.tokens.append(result.token)
        before_s, sequence.last_token_s = sequence.last_token_s, now
        if before_s is None:
            sequence.first_token_s = now
        else:
            sequence.token_gap_s = now - before_s
    full = sequence.said >= sequence.request.max_new_tokens
    return result.finish or (FinishReason.LENGTH if full else None)
