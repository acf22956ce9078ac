"""Roster: the sequences of one model in their order of service; who gets room, and who gives way."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator

from izwi_lab.engine.plan import Policy
from izwi_lab.engine.request import FinishReason, Request, Sequence, State
from izwi_lab.engine.tables import StateManager
from izwi_lab.errors import InvalidInputError


class Roster:
    """Who waits and who runs, both by `Sequence.rank`, first who is served first.

    The rank is the moment of arrival, and for the priority policy as many times `ageing_s` earlier as the priority has
    levels. It never changes. Whoever is first always gets room and is never preempted, so every sequence comes first in
    the end: nobody starves, and no two can push each other out by turns.
    """

    def __init__(self, policy: Policy, blocks: StateManager) -> None:
        self.policy, self.blocks = policy, blocks
        self.by_id: dict[str, Sequence] = {}
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self._arrivals = 0

    def enter(self, request: Request, ageing_s: float) -> Sequence:
        """A new sequence, which waits.

        Raises:
            InvalidInputError: it cannot fit even when it is alone, or its id is taken.
        """
        if request.id in self.by_id:
            raise InvalidInputError(f"A request {request.id!r} is under way.", hint="Give each request its own id.")
        if not self.blocks.fits(request.positions):
            raise InvalidInputError(
                f"Request {request.id!r} needs {request.positions} positions ({len(request.prompt)} of its prompt, up "
                f"to {request.max_new_tokens} of the answer), more than all caches of the model hold.",
                hint="Shorten the prompt, ask for fewer tokens, or give the engine more memory for caches.",
            )
        ahead_s = request.priority * ageing_s if self.policy is Policy.PRIORITY else 0.0
        rank = (request.arrival_s - ahead_s, self._arrivals)
        self._arrivals += 1
        table = self.blocks.table(request.scope, shared_tokens=request.shared_tokens)
        sequence = self.by_id[request.id] = Sequence(request, rank, table, list(request.prompt))
        insort(self.waiting, sequence, key=_rank)
        return sequence

    def seat(self, sequence: Sequence) -> None:
        """A waiting sequence, which has its room, runs."""
        self.waiting.remove(sequence)
        sequence.state = State.RUNNING
        insort(self.running, sequence, key=_rank)

    def preempt(self, sequence: Sequence) -> None:
        """Back to the queue, to its old place; its tokens stay, and what it computed is computed again."""
        self.running.remove(sequence)
        self.blocks.free(sequence.table)
        sequence.state, sequence.computed = State.WAITING, 0
        sequence.preemptions += 1
        insort(self.waiting, sequence, key=_rank)

    def end(self, sequence: Sequence, reason: FinishReason, error: BaseException | None = None) -> Sequence:
        """The sequence is over, and its room free."""
        (self.running if sequence.state is State.RUNNING else self.waiting).remove(sequence)
        self.blocks.free(sequence.table)
        del self.by_id[sequence.id]
        sequence.state, sequence.finish, sequence.error = State.FINISHED, reason, error
        return sequence

    def expire(self, now: float) -> list[Sequence]:
        """End whoever is past its deadline."""
        deadlines = [(s, s.request.deadline_s) for s in self.by_id.values()]
        late = [s for s, deadline_s in deadlines if deadline_s is not None and deadline_s <= now]
        return [self.end(sequence, FinishReason.TIMEOUT) for sequence in late]

    def admit(self, now: float, seats: int) -> list[Sequence]:
        """Give room to those who wait, in order, while fewer than `seats` run; returns who was preempted for it.

        The first who has no room keeps all others waiting: passing it by would starve it.
        """
        preempted: list[Sequence] = []
        for sequence in list(self.waiting):
            victims = self._victims(sequence, seats)
            if victims is None or any(victim.rank < sequence.rank for victim in preempted):
                break
            for victim in victims:
                self.preempt(victim)
            preempted += victims
            sequence.computed = self.blocks.allocate(sequence.table, sequence.tokens)
            sequence.cached += 0 if sequence.preemptions else sequence.computed
            sequence.started_s = now if sequence.started_s is None else sequence.started_s
            self.seat(sequence)
        return preempted

    def _victims(self, sequence: Sequence, seats: int) -> list[Sequence] | None:
        """Who must be preempted for a waiting sequence to run; None if that is not possible."""
        victims: list[Sequence] = []
        behind = self._behind(sequence)
        while True:
            rest = len(self.running) - len(victims)
            # One more block for everyone who runs: without it somebody is preempted a few tokens later.
            lacking = self.blocks.shortage(
                sequence.table, sequence.tokens, reserve=rest, given_up=[victim.table for victim in victims]
            )
            if rest < seats and lacking <= 0:
                return victims
            victim = next(behind, None)
            if victim is None:
                return None
            victims.append(victim)

    def _behind(self, sequence: Sequence) -> Iterator[Sequence]:
        """Those behind a waiting one that also were given less priority: such a victim can never do the same to it."""
        if self.policy is Policy.PRIORITY:
            for other in reversed(self.running):
                if other.rank > sequence.rank and other.request.priority < sequence.request.priority:
                    yield other

    def make_room(self, sequence: Sequence) -> list[Sequence]:
        """Room for one more position of a running sequence; returns who was preempted for it.

        The last in rank gives way first. If it is the last itself it gives way to the others, and waits after this.
        """
        preempted: list[Sequence] = []
        while not self.blocks.can_append(sequence.table, len(sequence.tokens)):
            victim = self.running[-1]
            self.preempt(victim)
            preempted.append(victim)
            if victim is sequence:
                return preempted
        self.blocks.append(sequence.table, len(sequence.tokens))
        return preempted


def _rank(sequence: Sequence) -> tuple[float, int]:
    return sequence.rank
