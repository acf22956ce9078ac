"""Paged caches: what is shared, what never is, and what is given up first."""

from __future__ import annotations

import pytest

from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.chain import Chain, Scope, unpack
from izwi_lab.errors import InvalidInputError, OutOfBlocksError

ADA, BOB = Scope("m", "ada"), Scope("m", "bob")


def computed(manager, tokens, scope=ADA, **options):
    """A table whose tokens are all in the caches."""
    table = manager.table(scope, **options)
    manager.allocate(table, tokens)
    manager.publish(table, tokens, len(tokens))
    return table


def test_a_prompt_is_found_in_full_blocks_but_never_its_last_token():
    manager = BlockManager(16, 4, 10)
    computed(manager, range(12))
    assert manager.match(range(12), ADA).tokens == 8  # one row is needed for logits
    assert manager.match(range(13), ADA).tokens == 12
    assert manager.match(range(11), ADA).tokens == 8
    assert manager.match((0, 1, 2, 9, 4, 5, 6, 7, 8), ADA).tokens == 0
    assert manager.match((0, 1, 2, 3, 9, 5, 6, 7, 8), ADA).tokens == 4
    table = manager.table(ADA)
    assert manager.allocate(table, range(12)) == 8
    assert table.ids[:2] == list(manager.match(range(12), ADA).blocks)
    stats = manager.stats()
    assert (stats.used, stats.queries, stats.hits, stats.misses) == (4, 4, 2, 2)


@pytest.mark.parametrize("other", [BOB, Scope("n", "ada"), Scope("m", "ada", b"voice"), Scope("ma", "da")], ids=repr)
def test_no_scope_sees_another(other):
    manager = BlockManager(16, 4, 10)
    computed(manager, range(12))
    assert manager.match(range(12), other).tokens == 0
    assert other.root() != ADA.root()


def test_scopes_whose_parts_run_together_are_told_apart():
    roots = {Scope(a, b, c).root() for a, b, c in (("x", "", b"y"), ("", "x", b"y"), ("xy", "", b""), ("", "", b"xy"))}
    assert len(roots) == 4


def test_equal_blocks_after_different_beginnings_differ():
    first, second = Chain(ADA, 2), Chain(ADA, 2)
    assert first.digest(1, (1, 2, 3, 4)) != second.digest(1, (9, 2, 3, 4))
    assert Chain(ADA, 2).digest(1, (1, 2, 3, 4)) == first.digest(1, (1, 2, 3, 4))
    assert Chain(ADA, 1).digest(0, (-1,)) != Chain(ADA, 1).digest(0, (255,))


def test_blocks_that_are_not_full_or_not_computed_are_not_found():
    manager = BlockManager(16, 4, 10)
    table = manager.table(ADA)
    manager.allocate(table, range(12))
    assert manager.match(range(13), ADA).tokens == 0
    manager.publish(table, range(12), 7)
    assert manager.match(range(13), ADA).tokens == 4


def test_what_may_not_be_shared_is_not():
    manager = BlockManager(16, 4, 10)
    computed(manager, range(12), shared_tokens=0)
    assert manager.match(range(13), ADA).tokens == 0 and manager.stats().queries == 0
    table = computed(manager, range(12), shared_tokens=6)
    assert manager.match(range(13), ADA).tokens == 4
    manager.free(table)
    assert manager.allocate(table, range(13)) == 4
    assert manager.pending(table, range(13), 4, 13) == ()


def test_a_freed_prompt_comes_back_until_its_room_is_needed_its_end_first():
    manager = BlockManager(6, 4, 10)
    old, new = computed(manager, range(12)), computed(manager, range(50, 58))
    order = [*reversed(old.ids), *reversed(new.ids)]
    manager.free(old)
    manager.free(new)
    assert manager.stats().cached == 5 and manager.stats().free == 1
    taken = manager.table(BOB)
    manager.allocate(taken, range(100, 116))  # one was free, three must go
    assert taken.ids[1:] == order[:3]
    assert manager.match(range(13), ADA).tokens == 0 and manager.match(range(50, 59), ADA).tokens == 8
    assert manager.stats().evictions == 3
    manager.check([taken])


def test_use_makes_a_prompt_young_again():
    manager = BlockManager(6, 4, 10)
    for start in (0, 50):
        manager.free(computed(manager, range(start, start + 8)))
    manager.free(computed(manager, range(9)))
    manager.allocate(manager.table(BOB), range(100, 116))
    assert manager.match(range(9), ADA).tokens == 8
    assert manager.match(range(50, 59), ADA).tokens == 0


def test_a_budget_of_bytes_keeps_beginnings():
    manager = BlockManager(16, 4, 10, cache_bytes=29)
    manager.free(computed(manager, range(16)))
    assert manager.stats().cached == 2 and manager.match(range(17), ADA).tokens == 8
    none = BlockManager(16, 4, 10, cache_bytes=0)
    none.free(computed(none, range(16)))
    assert none.stats().free == 16


def test_room_is_asked_for_before_anything_is_taken():
    manager = BlockManager(4, 4, 10)
    held = computed(manager, range(8))
    table = manager.table(ADA)
    assert manager.can_allocate(table, range(16)) and not manager.can_allocate(table, range(17))
    assert manager.shortage(table, range(16), reserve=1) == 1
    assert manager.shortage(manager.table(BOB), range(16)) == 2
    assert manager.shortage(manager.table(BOB), range(16), given_up=[held]) == 0
    assert manager.shortage(table, range(17), given_up=[held]) == 1, "what it shares with a victim is no gain"
    with pytest.raises(OutOfBlocksError, match="1 more blocks of 4 than the 2 that are left of 4"):
        manager.allocate(table, range(17))
    assert not manager.can_append(held, 17)
    with pytest.raises(OutOfBlocksError):
        manager.append(held, 17)
    assert len(held.ids) == 2
    manager.append(held, 16)
    assert not manager.can_fork(held, 15)
    with pytest.raises(OutOfBlocksError):
        manager.fork(held, 15)
    assert manager.can_fork(held, 16)
    manager.check([held])


def test_shared_blocks_of_two_victims_are_gained_only_together():
    manager = BlockManager(4, 4, 10)
    first = computed(manager, range(9))
    second = computed(manager, range(9))
    asked = manager.table(BOB)
    assert manager.shortage(asked, range(16)) == 4
    assert manager.shortage(asked, range(16), given_up=[first]) == 3
    assert manager.shortage(asked, range(16), given_up=[first, second]) == 0


def test_two_that_computed_the_same_hold_one_block_after_it():
    manager = BlockManager(16, 4, 10)
    tables = [manager.table(ADA) for _ in range(2)]
    for table in tables:
        manager.allocate(table, range(9))
    assert manager.stats().used == 6
    for table in tables:
        manager.publish(table, range(9), 9)
    assert tables[0].ids[:2] == tables[1].ids[:2] and tables[0].ids[2] != tables[1].ids[2]
    assert manager.stats().used == 4
    manager.check(tables)


def test_catching_up_takes_what_another_computed_meanwhile():
    manager = BlockManager(16, 4, 10)
    fast, slow = manager.table(ADA), manager.table(ADA)
    manager.allocate(fast, range(12))
    manager.allocate(slow, range(10))
    assert manager.catch_up(slow, range(10), 0) == 0
    assert manager.pending(fast, range(12), 0, 6)[0] == manager.pending(slow, range(10), 0, 4)[0]
    manager.publish(fast, range(12), 12)
    assert manager.catch_up(slow, range(10), 2) == 2, "only from the beginning of a block"
    assert manager.catch_up(slow, range(10), 0) == 8
    assert slow.ids[:2] == fast.ids[:2] and manager.stats().hits == 2
    manager.check([fast, slow])


def test_a_fork_shares_full_blocks_and_copies_the_last():
    manager = BlockManager(8, 4, 10)
    table = computed(manager, range(9))
    manager.append(table, 20)
    fork, copy = manager.fork(table, 9)
    assert fork.ids[:2] == table.ids[:2] and len(fork.ids) == 3
    assert (copy.source, copy.target) == (table.ids[2], fork.ids[2])
    whole, none = manager.fork(table, 8)
    assert whole.ids == table.ids[:2] and none is None
    manager.free(table)
    manager.check([fork, whole])
    assert manager.match(range(9), ADA).blocks == tuple(fork.ids[:2])


def test_a_fork_may_go_on_otherwise_than_its_source_was_going_to():
    manager = BlockManager(8, 4, 10)
    table = manager.table(ADA)
    manager.allocate(table, range(9))  # all its digests are known, but nothing is computed
    fork, _ = manager.fork(table, 0)
    manager.append(fork, 4)
    manager.publish(fork, (9, 9, 9, 9), 4)
    assert manager.match(range(9), ADA).tokens == 0 and manager.match((9, 9, 9, 9, 1), ADA).tokens == 4


def test_freeing_twice_is_freeing_once():
    manager = BlockManager(8, 4, 10)
    table, other = computed(manager, range(9)), computed(manager, range(9))
    manager.free(table)
    manager.free(table)
    manager.check([other])
    with pytest.raises(InvalidInputError, match="holds blocks"):
        manager.allocate(other, range(9))


def test_entries_say_what_lies_where():
    manager = BlockManager(8, 4, 10)
    table = computed(manager, range(9))
    first, second, last = sorted(manager.entries(), key=lambda e: table.ids.index(e.id))
    assert (first.published, first.parent, unpack(first.tokens)) == (True, None, (0, 1, 2, 3))
    assert (second.parent, unpack(second.tokens), second.scope) == (first.id, (4, 5, 6, 7), ADA)
    assert (last.published, last.refs, last.tokens) == (False, 1, b"")


def test_check_finds_broken_books():
    manager = BlockManager(8, 4, 10)
    table = computed(manager, range(9))
    manager.check([table])
    with pytest.raises(AssertionError, match="references"):
        manager.check([])
    manager._free.append(table.ids[0])
    with pytest.raises(AssertionError):
        manager.check([table])


@pytest.mark.parametrize("sizes", [(0, 4, 1), (4, 0, 1), (4, 4, 0), (4, True, 1), (4, 4, 1.5)])
def test_sizes_are_whole_and_positive(sizes):
    with pytest.raises(InvalidInputError):
        BlockManager(*sizes)
    with pytest.raises(InvalidInputError):
        BlockManager(4, 4, 1, cache_bytes=-1)
