"""Under any load everyone gets the answer it would get alone, computed once, within the limits of every step."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from engine_fakes import PagedRunner, SlotRunner, alone, limits, request
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.plan import Policy
from izwi_lab.engine.request import FinishReason, Priority, Sharing, State
from izwi_lab.engine.scheduler import Scheduler
from izwi_lab.engine.slots import SlotManager

REQUESTS = 64


def requests(rng: random.Random) -> list:
    """Mixed ones: prompts that begin alike, of two tenants and two voices, some with deadlines."""
    beginnings = [[rng.randrange(32) for _ in range(rng.choice((0, 8, 30)))] for _ in range(3)]
    found = []
    for number in range(REQUESTS):
        at = rng.uniform(0.0, 4.0)
        own = [rng.randrange(32) for _ in range(rng.choice((1, 3, 10, 60)))]
        asked = request(
            (*rng.choice(beginnings), *own),
            new=rng.choice((1, 4, 20)),
            at=at,
            id=f"r{number}",
            tenant=rng.choice(("ada", "bob")),
            extra_key=rng.choice((b"", b"voice")),
            priority=rng.choice(list(Priority)),
            deadline_s=at + rng.uniform(0.01, 1.0) if rng.random() < 0.1 else None,
            sharing=rng.choice((Sharing.ALL, Sharing.ALL, Sharing.PROMPT, Sharing.NOTHING)),
        )
        found.append(asked)
    return sorted(found, key=lambda r: r.arrival_s)


class Load:
    """A run of all requests with cancels, forks, and steps that run out of memory."""

    def __init__(self, seed: int, manager, runner, policy: Policy) -> None:
        self.rng = random.Random(seed)
        self.coming = requests(self.rng)
        self.s = Scheduler(policy, limits(max_tokens=48, max_sequences=12, min_prefill=6, max_prefill=20), manager)
        self.runner, self.now = runner(manager), 0.0
        self.sequences, self.ended, self.cancelled = {}, [], set()
        self.preempted = self.forked = self.copied = 0

    def run(self) -> Load:
        for _ in range(4000):
            while self.coming and self.coming[0].arrival_s <= self.now:
                asked = self.coming.pop(0)
                self.sequences[asked.id] = self.s.add(asked)
            if not self.coming and not len(self.s):
                self.ended += self.s.plan(self.now).finished
                return self
            self.step()
        raise AssertionError(f"{self.s} does not end")

    def step(self) -> None:
        self.maybe_cancel()
        self.maybe_fork()
        ran = set(self.s.running)
        plan = self.s.plan(self.now)
        self.check(plan)
        self.check_order(plan, ran)
        self.ended += plan.finished
        self.preempted += len(plan.preempted)
        self.copied += len(plan.copies)
        step_s = 0.002 + 0.0005 * plan.tokens
        if plan.tokens > 1 and self.rng.random() < 0.02:
            self.ended += self.s.out_of_memory(plan, now=self.now)
        elif plan:
            results = self.runner.run(plan)
            self.maybe_cancel()
            self.ended += self.s.done(plan, results, now=self.now + step_s)
        self.s.blocks.check([s.table for s in self.sequences.values()])
        self.now += step_s

    def maybe_cancel(self) -> None:
        if self.sequences and self.rng.random() < 0.05:
            name = self.rng.choice(list(self.sequences))
            alive = self.sequences[name].state is not State.FINISHED and not self.sequences[name].stopping
            found = self.s.cancel(name)
            if alive:
                assert found
                self.cancelled.add(name)

    def maybe_fork(self) -> None:
        if len(self.s) and self.rng.random() < 0.03:
            source = self.rng.choice([*self.s.running, *self.s.waiting])
            self.forked += 1
            fork = self.s.fork(source.id, f"fork{self.forked}")
            self.sequences[fork.id] = fork

    def check(self, plan) -> None:
        bounds, sizes = self.s.limits, {d: [p.count for p in plan.pieces if p.decode is d] for d in (True, False)}
        assert plan.tokens <= bounds.max_tokens and len(self.s.running) <= bounds.max_sequences
        assert bool(plan) == bool(len(self.s)), "a step without work while somebody waits"
        assert len({p.sequence.id for p in plan.pieces}) == len(plan.pieces)
        assert sum(sizes[False]) <= bounds.max_prefill
        for piece in plan.pieces:
            assert piece.sequence.state is State.RUNNING and piece.start == piece.sequence.computed
            assert piece.wants_logits == (piece.stop == len(piece.sequence.tokens))

    def check_order(self, plan, ran) -> None:
        """Nobody is let in before one that ranks before it, and the first of all who run is not preempted."""
        let_in = [s.rank for s in self.s.running if s not in ran]
        if let_in and self.s.waiting:
            assert max(let_in) < min(s.rank for s in self.s.waiting)
        given_way = [s for s in plan.preempted if s in ran]
        if given_way:
            assert min((*ran, *self.s.running), key=lambda s: s.rank) not in given_way

    def judge(self) -> None:
        assert sorted(e.id for e in self.ended) == sorted(self.sequences), "each ends once"
        assert len(self.sequences) == REQUESTS + self.forked and not len(self.s)
        assert self.s.blocks.stats().used == 0
        for e in self.ended:
            whole = alone(e.request)
            assert e.output == whole[: e.said], f"{e}: its answer is not what it is alone"
            if e.finish in (FinishReason.STOP, FinishReason.LENGTH):
                assert e.output == whole
            else:
                late = e.finish is FinishReason.TIMEOUT and e.request.deadline_s <= self.now
                assert late or (e.finish is FinishReason.CANCELLED and e.id in self.cancelled)


def check_computed_once(load: Load) -> None:
    """Between two preemptions the pieces of a sequence follow each other; gaps are what others had computed."""
    for name, pieces in load.runner.computed.items():
        for (lives, _, stop), (next_lives, start, _) in pairwise(pieces):
            assert next_lives > lives or start >= stop, f"{name} computed {start} again"
            found = start if load.sequences[name].preemptions else load.sequences[name].cached  # then it is not counted
            assert next_lives > lives or start == stop or found >= start - stop


@pytest.mark.parametrize("policy", Policy)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from([32, 45, 80, 400]), kept=st.sampled_from([None, 0, 20]))
def test_any_load_in_blocks(policy, seed, blocks, kept):
    load = Load(seed, BlockManager(blocks, 4, 1, cache_bytes=kept), PagedRunner, policy).run()
    load.judge()
    check_computed_once(load)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), slots=st.integers(1, 12))
def test_any_load_in_slots(seed, slots):
    load = Load(seed, SlotManager(slots, 1), SlotRunner, Policy.PRIORITY).run()
    load.judge()
    check_computed_once(load)
    assert all(s.cached == 0 for s in load.sequences.values())


def test_the_load_is_one():
    """The property above means something: sequences are preempted, prompts are found, and steps are shared."""
    load = Load(26, BlockManager(32, 4, 1), PagedRunner, Policy.PRIORITY).run()
    load.judge()
    assert load.preempted > 5 and load.cancelled and load.copied
    assert sum(s.cached for s in load.sequences.values()) > 100
    assert load.s.blocks.stats().evictions > 20
    assert {e.finish for e in load.ended} >= {FinishReason.STOP, FinishReason.LENGTH, FinishReason.CANCELLED}
