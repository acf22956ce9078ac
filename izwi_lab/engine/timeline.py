"""Timeline: the last steps of an engine, as plain values. With the blocks it is what `engine.explain()` shows."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from izwi_lab.engine.block_view import BlockMap, PrefixTree
from izwi_lab.engine.plan import Plan
from izwi_lab.engine.request import Sequence
from izwi_lab.engine.tables import BlockStats
from izwi_lab.errors import InvalidInputError

_SHOWN = 8  # pieces in a repr, steps in another


@dataclass(frozen=True, slots=True)
class PieceRecord:
    """Positions start .. start + count of a sequence, computed in one step."""

    sequence: str
    start: int
    count: int
    decode: bool

    @property
    def request(self) -> str:
        """The request that the sequence belongs to: "id/n" is the n-th prompt of request "id"."""
        head, _, number = self.sequence.rpartition("/")
        return head if head and number.isdecimal() else self.sequence

    def __str__(self) -> str:
        return self.sequence if self.decode else f"{self.sequence}[{self.start}:{self.start + self.count}]"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step: when (seconds on the engine's clock), how long, of which model, what, and the blocks after it.

    preempted, finished: ids of the sequences that gave up their blocks before it, or ended before or with it. kind:
    "pass" over sequences, or other work: "alone", or what a model does for many at once, such as "encode".
    """

    step: int
    model: str
    start_s: float
    seconds: float
    pieces: tuple[PieceRecord, ...]
    preempted: tuple[str, ...]
    finished: tuple[str, ...]
    blocks_used: int
    blocks_cached: int
    blocks_total: int
    kind: str = "pass"

    @classmethod
    def aside(
        cls,
        model: str,
        kind: str,
        who: tuple[str, ...],
        ended: tuple[str, ...],
        stats: BlockStats,
        *,
        start_s: float,
        seconds: float,
    ) -> StepRecord:
        """The record of work that was no pass. who: ids of the requests; ended: of those that it was the last of."""
        pieces = tuple(PieceRecord(name, 0, 1, decode=False) for name in who)
        use = stats.used, stats.cached, stats.total
        return cls(-1, model, start_s, seconds, pieces, (), ended, *use, kind)

    @classmethod
    def of(
        cls, model: str, plan: Plan, ended: Iterable[Sequence], stats: BlockStats, *, start_s: float, seconds: float
    ) -> StepRecord:
        """The record of a plan that was carried out. ended: what `Scheduler.done` returned."""
        return cls(
            plan.step,
            model,
            start_s,
            seconds,
            tuple(PieceRecord(p.sequence.id, p.start, p.count, p.decode) for p in plan.pieces),
            tuple(sequence.id for sequence in plan.preempted),
            tuple(sequence.id for sequence in (*plan.finished, *ended)),
            stats.used,
            stats.cached,
            stats.total,
        )

    @property
    def prefill_tokens(self) -> int:
        """Tokens of prompts that it read."""
        return sum(piece.count for piece in self.pieces if not piece.decode)

    @property
    def decode_tokens(self) -> int:
        """Tokens that it went on from."""
        return sum(piece.count for piece in self.pieces if piece.decode)

    def __repr__(self) -> str:
        if self.kind != "pass":
            who = _listed(piece.sequence for piece in self.pieces)
            return f"Step({self.kind} {self.model}, {self.seconds * 1000:.1f} ms: {who})"
        read = [str(p) for p in self.pieces if not p.decode]
        said = [str(p) for p in self.pieces if p.decode]
        told = [f"{what} {_listed(names)}" for what, names in (("prefill", read), ("decode", said)) if names]
        told += [
            f"{what} {_listed(who)}" for what, who in (("preempted", self.preempted), ("ended", self.finished)) if who
        ]
        use = f"blocks {self.blocks_used} used, {self.blocks_cached} cached of {self.blocks_total}"
        return f"Step({self.step} {self.model}, {self.seconds * 1000:.1f} ms: {'; '.join([*told, use])})"


class Timeline:
    """The last `capacity` steps of all models of an engine. Safe to use from many threads."""

    def __init__(self, capacity: int = 1024) -> None:
        if type(capacity) is not int or capacity < 1:
            raise InvalidInputError(f"capacity must be a whole number from 1, got {capacity!r:.80}.")
        self._lock = threading.Lock()
        self._steps: deque[StepRecord] = deque(maxlen=capacity)

    def __len__(self) -> int:
        return len(self._steps)

    def add(self, record: StepRecord) -> None:
        """One more step; the oldest is forgotten when there are too many."""
        with self._lock:
            self._steps.append(record)

    def clear(self) -> None:
        """Forget all steps."""
        with self._lock:
            self._steps.clear()

    def steps(self, *, last: int | None = None, model: str | None = None) -> tuple[StepRecord, ...]:
        """The steps, oldest first. last: so many at most; model: only its."""
        with self._lock:
            found = [record for record in self._steps if model is None or record.model == model]
        return tuple(found if last is None else found[len(found) - min(last, len(found)) :])


@dataclass(frozen=True, slots=True, repr=False)
class Explanation:
    """What ran in each step, where everything lies now, and what later prompts would find."""

    steps: tuple[StepRecord, ...]
    blocks: BlockMap
    prefixes: PrefixTree

    def rows(self) -> list[dict[str, object]]:
        """A row for each piece of each step, for pandas."""
        return [
            {
                "step": step.step,
                "model": step.model,
                "start_s": step.start_s,
                "seconds": step.seconds,
                "sequence": piece.sequence,
                "kind": step.kind if step.kind != "pass" else "decode" if piece.decode else "prefill",
                "first": piece.start,
                "tokens": piece.count,
                "blocks_used": step.blocks_used,
                "blocks_cached": step.blocks_cached,
            }
            for step in self.steps
            for piece in step.pieces
        ]

    def __repr__(self) -> str:
        earlier = [f"… {len(self.steps) - _SHOWN} steps before"] if len(self.steps) > _SHOWN else []
        shown = [repr(step) for step in self.steps[-_SHOWN:]]
        return "\n".join([*earlier, *shown, repr(self.blocks), repr(self.prefixes)])


def _listed(names: Iterable[str]) -> str:
    found = list(names)
    return " ".join(found[:_SHOWN]) + (f" … {len(found) - _SHOWN} more" if len(found) > _SHOWN else "")
