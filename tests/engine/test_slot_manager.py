"""Slots: one state a sequence, nothing shared."""

from __future__ import annotations

import pytest

from izwi_lab.engine.chain import Scope
from izwi_lab.engine.slots import SlotManager
from izwi_lab.engine.tables import BlockCopy
from izwi_lab.errors import InvalidInputError, OutOfBlocksError


def test_a_slot_is_all_that_a_sequence_needs():
    slots = SlotManager(2, 100, max_positions=50)
    tables = [slots.table(Scope()) for _ in range(3)]
    assert [slots.allocate(t, range(40)) for t in tables[:2]] == [0, 0]
    assert tables[0].ids != tables[1].ids
    assert slots.can_append(tables[0], 50) and not slots.can_append(tables[0], 51)
    slots.append(tables[0], 50)
    with pytest.raises(OutOfBlocksError, match="do not fit a slot of 50"):
        slots.append(tables[0], 51)
    assert slots.fits(50) and not slots.fits(51) and SlotManager(1, 1).fits(10**9)
    assert slots.shortage(tables[2], range(4), reserve=5) == 1
    assert slots.shortage(tables[2], range(4), given_up=tables[:1]) == 0
    assert not slots.can_allocate(tables[2], range(4))
    with pytest.raises(OutOfBlocksError, match="All 2 slots"):
        slots.allocate(tables[2], range(4))
    slots.check(tables)
    slots.free(tables[0])
    slots.free(tables[0])
    assert slots.allocate(tables[2], range(4)) == 0
    slots.check(tables)
    stats = slots.stats()
    assert (stats.total, stats.used, stats.free, stats.usage) == (2, 2, 0, 1.0)
    assert [entry.id for entry in slots.entries()] == [0, 1]


def test_nothing_is_found_again_and_a_fork_is_a_copy():
    slots = SlotManager(2, 100)
    table, other = slots.table(Scope()), slots.table(Scope())
    slots.allocate(table, range(9))
    slots.publish(table, range(9), 9)
    assert slots.pending(table, range(9), 0, 9) == () and slots.catch_up(other, range(9), 0) == 0
    fork, copy = slots.fork(table, 9)
    assert copy == BlockCopy(table.ids[0], fork.ids[0])
    assert not slots.can_fork(table, 9)
    with pytest.raises(OutOfBlocksError):
        slots.fork(table, 9)
    with pytest.raises(InvalidInputError, match="holds a slot"):
        slots.allocate(table, range(9))
    slots.check([table, fork])


def test_check_finds_broken_books():
    slots = SlotManager(2, 100)
    table = slots.table(Scope())
    slots.allocate(table, range(9))
    with pytest.raises(AssertionError, match="do not match"):
        slots.check([])
    slots._free.append(1)
    with pytest.raises(AssertionError, match="twice"):
        slots.check()
    with pytest.raises(InvalidInputError):
        SlotManager(0, 1)
