"""Any order of calls: no block is lost, given twice, written while others read it, or seen by another tenant."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.chain import Scope
from izwi_lab.errors import OutOfBlocksError

SIZE = 2
# Two ids only, so that prompts often begin alike.
prompts = st.lists(st.integers(0, 1), min_size=1, max_size=12)
tenants = st.sampled_from(["ada", "bob"])


class Held:
    """A sequence: its tokens, how many are computed, and its table."""

    def __init__(self, tokens, tenant, table, computed=0):
        self.tokens, self.tenant, self.table, self.computed = tokens, tenant, table, computed


class Blocks(RuleBasedStateMachine):
    held = Bundle("held")

    @initialize(blocks=st.integers(4, 16), cached=st.none() | st.integers(0, 16))
    def begin(self, blocks, cached):
        self.manager = BlockManager(blocks, SIZE, 10, cache_bytes=None if cached is None else 10 * cached)
        self.content: dict[tuple[int, int], tuple[str, int]] = {}
        self.alive: list[Held] = []

    @rule(target=held, tokens=prompts, tenant=tenants, shared=st.sampled_from([None, None, None, 0, 5]))
    def come(self, tokens, tenant, shared):
        table = self.manager.table(Scope("m", tenant), shared_tokens=shared)
        lacking, before = self.manager.shortage(table, tokens), self.manager.stats()
        try:
            computed = self.manager.allocate(table, tokens)
        except OutOfBlocksError:
            assert lacking > 0 and self.manager.stats() == before and not table.ids
            return multiple()
        assert lacking <= 0 and computed < len(tokens)
        new = Held(list(tokens), tenant, table, computed)
        self.alive.append(new)
        return new

    @rule(it=held, count=st.integers(1, 6))
    def compute(self, it, count):
        entries = {entry.id: entry for entry in self.manager.entries()}
        stop = min(len(it.tokens), it.computed + count)
        for position in range(it.computed, stop):
            block = it.table.ids[position // SIZE]
            assert entries[block].refs == 1 and not entries[block].published
            self.content[block, position % SIZE] = it.tenant, it.tokens[position]
        it.computed = stop
        self.manager.publish(it.table, it.tokens, stop)

    @rule(it=held, token=st.integers(0, 1))
    def say(self, it, token):
        room = self.manager.can_append(it.table, len(it.tokens) + 1)
        try:
            self.manager.append(it.table, len(it.tokens) + 1)
        except OutOfBlocksError:
            assert not room
        else:
            assert room
            it.tokens.append(token)

    @rule(it=held)
    def catch_up(self, it):
        caught_up = self.manager.catch_up(it.table, it.tokens, it.computed)
        assert it.computed <= caught_up < max(len(it.tokens), it.computed + 1)
        it.computed = caught_up

    @rule(target=held, it=held)
    def fork(self, it):
        room = self.manager.can_fork(it.table, it.computed)
        try:
            table, copy = self.manager.fork(it.table, it.computed)
        except OutOfBlocksError:
            assert not room
            return multiple()
        assert room and (copy is None) == (it.computed % SIZE == 0)
        if copy is not None:
            for place in range(SIZE):
                if (copy.source, place) in self.content:
                    self.content[copy.target, place] = self.content[copy.source, place]
        new = Held(it.tokens[: it.computed], it.tenant, table, it.computed)
        self.alive.append(new)
        return new

    @rule(it=consumes(held))
    def leave(self, it):
        self.manager.free(it.table)
        self.alive.remove(it)

    @invariant()
    def books_are_right(self):
        self.manager.check([it.table for it in self.alive])
        stats = self.manager.stats()
        assert stats.used + stats.cached + stats.free == stats.total
        assert 0 <= stats.hits <= stats.queries

    @invariant()
    def everybody_reads_what_is_his(self):
        for it in self.alive:
            for position in range(it.computed):
                found = self.content[it.table.ids[position // SIZE], position % SIZE]
                assert found == (it.tenant, it.tokens[position])

    def teardown(self):
        for it in self.alive:
            self.manager.free(it.table)
        self.manager.check([])
        assert self.manager.stats().used == 0


Blocks.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBlocks = Blocks.TestCase
