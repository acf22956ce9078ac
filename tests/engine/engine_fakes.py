"""A runner without tensors: it keeps ids where keys and values would lie, and looks whether they are the right ones."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict

from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.plan import Limits, Policy, Result
from izwi_lab.engine.request import FinishReason, Request
from izwi_lab.engine.scheduler import Scheduler

STOP = 7  # the end token of the fake model
_numbers = itertools.count()


def request(prompt=(1, 2, 3), new=4, at=0.0, **options) -> Request:
    options.setdefault("id", f"r{next(_numbers)}")
    return Request(prompt=tuple(prompt), max_new_tokens=new, arrival_s=at, **options)


def limits(**options) -> Limits:
    return Limits(**{"max_tokens": 64, "max_sequences": 8, "min_prefill": 4, "max_prefill": 64} | options)


def scheduler(blocks=64, block_size=4, policy=Policy.FCFS, cache_bytes=None, **options) -> Scheduler:
    manager = BlockManager(blocks, block_size, 1, cache_bytes=cache_bytes)
    return Scheduler(policy, limits(**options), manager)


def next_token(asked: Request, tokens) -> int:
    """What the fake model says after `tokens`: it depends on all of them, and on whose they are."""
    whole = repr((asked.tenant, asked.extra_key, tuple(tokens))).encode()
    return hashlib.blake2b(whole, digest_size=2).digest()[0] % 32


def alone(asked: Request) -> tuple[int, ...]:
    """The answer to a request that nobody disturbs."""
    tokens = list(asked.prompt)
    while len(tokens) < len(asked.prompt) + asked.max_new_tokens:
        tokens.append(next_token(asked, tokens))
        if tokens[-1] == STOP:
            break
    return tuple(tokens[len(asked.prompt) :])


class PagedRunner:
    """Keeps (whose, id) at every position of every block, and refuses to read or write what is not right."""

    def __init__(self, manager: BlockManager) -> None:
        self.manager, self.size = manager, manager.stats().block_size
        self.content = defaultdict(dict)
        self.computed = defaultdict(list)  # by sequence: (preemptions, start, stop) of its pieces

    def run(self, plan) -> dict[str, Result]:
        for copy in plan.copies:
            self.content[copy.target] = dict(self.content[copy.source])
        for piece in plan.pieces:  # all reads see what was there before the step
            self.read(piece.sequence, piece.start)
        entries = {entry.id: entry for entry in self.manager.entries()}
        for piece in plan.pieces:
            self.write(piece, entries)
            self.computed[piece.sequence.id].append((piece.sequence.preemptions, piece.start, piece.stop))
        return {p.sequence.id: self.chosen(p.sequence) for p in plan.pieces if p.wants_logits}

    def key(self, sequence, position):
        return sequence.request.tenant, sequence.request.extra_key, sequence.tokens[position]

    def read(self, sequence, stop) -> None:
        for position in range(stop):
            held = self.content[sequence.table.ids[position // self.size]].get(position % self.size)
            assert held == self.key(sequence, position), f"{sequence}: position {position} holds {held}"

    def write(self, piece, entries) -> None:
        for position in range(piece.start, piece.stop):
            block = piece.sequence.table.ids[position // self.size]
            assert entries[block].refs == 1 and not entries[block].published, f"block {block} is not to be written"
            self.content[block][position % self.size] = self.key(piece.sequence, position)

    def chosen(self, sequence) -> Result:
        token = next_token(sequence.request, sequence.tokens)
        return Result(token=token, finish=FinishReason.STOP if token == STOP else None)


class SlotRunner(PagedRunner):
    """Keeps the whole history of a sequence as the state in its slot, which only goes forward."""

    def read(self, sequence, stop) -> None:
        state = self.content[sequence.table.ids[0]]
        if stop == 0:
            state.clear()
        assert [state[p] for p in sorted(state)] == [self.key(sequence, p) for p in range(stop)]

    def write(self, piece, entries) -> None:
        for position in range(piece.start, piece.stop):
            self.content[piece.sequence.table.ids[0]][position] = self.key(piece.sequence, position)


def finish(scheduler: Scheduler, runner=None, now=0.0, step_s=0.1, most=1000) -> tuple[list, float]:
    """Run until nobody is left; the ended sequences in their order, and the time."""
    runner, ended = runner or PagedRunner(scheduler.blocks), []
    for _ in range(most):
        if not len(scheduler):
            return [*ended, *scheduler.plan(now).finished], now
        ended += step(scheduler, runner, now, step_s)
        now += step_s
    raise AssertionError(f"{scheduler} does not end")


def step(scheduler: Scheduler, runner, now=0.0, step_s=0.1) -> list:
    """One step; the sequences that ended before or with it."""
    plan = scheduler.plan(now)
    assert plan or not len(scheduler)
    ended = scheduler.done(plan, runner.run(plan), now=now + step_s) if plan else ()
    return [*plan.finished, *ended]
