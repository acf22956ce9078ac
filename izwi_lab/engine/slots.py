"""SlotManager: a fixed number of states for models that cannot be paged; one slot is all that a sequence keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from izwi_lab.engine.chain import Scope
from izwi_lab.engine.tables import BlockCopy, BlockEntry, BlockStats, BlockTable
from izwi_lab.errors import InvalidInputError, OutOfBlocksError


class SlotManager:
    """Who holds which of `num_slots` states of `slot_bytes` bytes. Nothing is shared, nothing is found again.

    A table's ids are the number of its slot. max_positions: the longest sequence that a slot takes; None: any.

    One thread at a time.
    """

    rewritable = False

    def __init__(self, num_slots: int, slot_bytes: int, *, max_positions: int | None = None) -> None:
        for name, value in (("num_slots", num_slots), ("slot_bytes", slot_bytes), ("max_positions", max_positions)):
            if value is not None and (type(value) is not int or value < 1):
                raise InvalidInputError(f"{name} must be a whole number from 1, got {value!r:.80}.")
        self.num_slots, self.slot_bytes, self.max_positions = num_slots, slot_bytes, max_positions
        self._free = list(range(num_slots - 1, -1, -1))  # the last is taken first

    def __repr__(self) -> str:
        return f"SlotManager({self.num_slots} slots: {self.num_slots - len(self._free)} used)"

    def table(self, scope: Scope, *, shared_tokens: int | None = None) -> BlockTable:
        """An empty table for a new sequence. Nothing of it will be shared, whatever may be."""
        return BlockTable()

    def fits(self, positions: int) -> bool:
        """True if a slot takes so many positions."""
        return self.max_positions is None or positions <= self.max_positions

    def shortage(
        self, table: BlockTable, tokens: Sequence[int], *, reserve: int = 0, given_up: Iterable[BlockTable] = ()
    ) -> int:
        """1 if no slot is free, also with those of the tables in `given_up`; 0 or less where one is.

        reserve has no meaning here: a sequence that has its slot never needs another.
        """
        return 1 - len(self._free) - sum(len(other.ids) for other in given_up)

    def can_allocate(self, table: BlockTable, tokens: Sequence[int]) -> bool:
        """True if a slot is free."""
        return bool(self._free)

    def allocate(self, table: BlockTable, tokens: Sequence[int]) -> int:
        """Give an empty table a slot; returns how many positions its state holds from before: once, then none.

        Raises:
            OutOfBlocksError: none is free.
        """
        if table.ids:
            raise InvalidInputError("This table holds a slot.", hint="free empties it.")
        table.ids.append(self._fresh())
        held, table.held = table.held, 0
        return held

    def can_append(self, table: BlockTable, positions: int) -> bool:
        """True if a slot takes so many positions."""
        return self.fits(positions)

    def append(self, table: BlockTable, positions: int) -> None:
        """Check that the slot takes so many positions; there is nothing to take.

        Raises:
            OutOfBlocksError: it does not.
        """
        if not self.fits(positions):
            raise OutOfBlocksError(
                f"{positions} positions do not fit a slot of {self.max_positions}.", hint="Ask for fewer tokens."
            )

    def catch_up(self, table: BlockTable, tokens: Sequence[int], computed: int) -> int:
        """What was computed; others' states are of no use."""
        return computed

    def pending(self, table: BlockTable, tokens: Sequence[int], start: int, stop: int) -> tuple[bytes, ...]:
        """Nothing that others could share."""
        return ()

    def publish(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Nothing is found by others."""

    def can_fork(self, table: BlockTable, computed: int) -> bool:
        """True if a slot is free."""
        return bool(self._free)

    def fork(self, table: BlockTable, computed: int) -> tuple[BlockTable, BlockCopy | None]:
        """A second table, whose slot must become a copy of the first's.

        Raises:
            OutOfBlocksError: no slot is free.
        """
        other = BlockTable(ids=[self._fresh()])
        return other, BlockCopy(table.ids[0], other.ids[0])

    def free(self, table: BlockTable) -> None:
        """Give back a table's slot; an empty one holds none."""
        self._free.extend(table.ids)
        table.ids.clear()

    def stats(self) -> BlockStats:
        """How the slots stand."""
        free = len(self._free)
        return BlockStats(self.num_slots, self.num_slots - free, 0, free, 1, self.slot_bytes)

    def entries(self) -> tuple[BlockEntry, ...]:
        """The slots in use, by number."""
        return tuple(BlockEntry(slot, 1, False) for slot in sorted(set(range(self.num_slots)) - set(self._free)))

    def check(self, tables: Iterable[BlockTable] | None = None) -> None:
        """Raise AssertionError where a slot was lost or given twice. tables: all there are."""
        free = set(self._free)
        if len(free) != len(self._free) or not free <= set(range(self.num_slots)):
            raise AssertionError("a slot was given back twice")
        if tables is not None:
            held = Counter(slot for table in tables for slot in table.ids)
            if held != Counter(set(range(self.num_slots)) - free):
                raise AssertionError("the slots in use do not match the tables")

    def _fresh(self) -> int:
        if not self._free:
            raise OutOfBlocksError(f"All {self.num_slots} slots are in use.", hint="Preempt a sequence.")
        return self._free.pop()
