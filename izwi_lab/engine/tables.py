"""What the keepers of caches share: a sequence's table, what they tell, and the protocol that the scheduler speaks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from izwi_lab.engine.chain import Chain, Scope


@dataclass(slots=True, eq=False)
class BlockTable:
    """Where a sequence's positions lie: position p in block ids[p // block_size], at p % block_size.

    A table belongs to one sequence, whose tokens only grow: the digests of its blocks are made once.
    chain: the digests of its blocks; None where nothing may be shared. shared_tokens: how many first positions may be;
    None: all. published: how many first blocks can be found by others, and are never written again. held: positions
    that a slot's state holds from before, when it is first taken.
    """

    chain: Chain | None = None
    shared_tokens: int | None = None
    ids: list[int] = field(default_factory=list)
    published: int = 0
    held: int = 0


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """A block (or slot) whose content must be copied to another before the next step writes to either."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Match:
    """The beginning of a prompt that is in the caches: `tokens` of it, in these blocks."""

    blocks: tuple[int, ...] = ()
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class BlockStats:
    """How the blocks (or slots) stand. used + cached + free = total.

    cached: nobody's at the moment, kept because a later prompt may begin with them. queries, hits: full blocks of
    prompts that were looked up and found, evictions: cached blocks given up for room, all since the beginning.
    """

    total: int
    used: int
    cached: int
    free: int
    block_size: int
    block_bytes: int
    queries: int = 0
    hits: int = 0
    evictions: int = 0

    @property
    def misses(self) -> int:
        """Full blocks of prompts that had to be computed."""
        return self.queries - self.hits

    @property
    def usage(self) -> float:
        """The share of blocks in use, 0..1; what is only cached can be had at any time and does not count."""
        return self.used / self.total


@dataclass(frozen=True, slots=True)
class BlockEntry:
    """One block that is in use or cached. parent: the block before it in the chain, None for a first or unshared one.

    tokens: the ids in a published block, packed (`chain.unpack`); empty for others.
    """

    id: int
    refs: int
    published: bool
    parent: int | None = None
    scope: Scope | None = None
    digest: bytes = b""
    tokens: bytes = b""


class StateManager(Protocol):
    """What the scheduler asks of the keeper of a model's caches: `BlockManager` or `SlotManager`.

    rewritable: positions can be computed again where they lie. A recurrent state cannot: it goes on from itself.
    """

    rewritable: bool

    def table(self, scope: Scope, *, shared_tokens: int | None = None) -> BlockTable:
        """An empty table for a new sequence."""

    def fits(self, positions: int) -> bool:
        """True if a sequence of so many positions has room when it is alone."""

    def shortage(
        self, table: BlockTable, tokens: Sequence[int], *, reserve: int = 0, given_up: Iterable[BlockTable] = ()
    ) -> int:
        """How many blocks are lacking to hold `tokens` and leave `reserve` more; 0 or less where there is room.

        given_up: tables that would be freed before.
        """

    def allocate(self, table: BlockTable, tokens: Sequence[int]) -> int:
        """Give an empty table room for `tokens`; returns how many of them are in the caches already.

        Raises OutOfBlocksError, and changes nothing then.
        """

    def can_append(self, table: BlockTable, positions: int) -> bool:
        """True if there is room for a table to hold `positions` in all."""

    def append(self, table: BlockTable, positions: int) -> None:
        """Let a table hold `positions` in all. Raises OutOfBlocksError, and changes nothing then."""

    def catch_up(self, table: BlockTable, tokens: Sequence[int], computed: int) -> int:
        """Take what others have computed since of what comes next; returns how many are computed then."""

    def pending(self, table: BlockTable, tokens: Sequence[int], start: int, stop: int) -> tuple[bytes, ...]:
        """Digests of the blocks that others could share once the positions start .. stop are computed."""

    def publish(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Let others find the full blocks among the first `computed` positions."""

    def can_fork(self, table: BlockTable, computed: int) -> bool:
        """True if there is room to fork a table."""

    def fork(self, table: BlockTable, computed: int) -> tuple[BlockTable, BlockCopy | None]:
        """A second table of the first `computed` positions, and what must be copied for it.

        Raises OutOfBlocksError, and changes nothing then.
        """

    def free(self, table: BlockTable) -> None:
        """Give back what a table holds; an empty one holds nothing."""

    def stats(self) -> BlockStats:
        """How the blocks stand."""

    def entries(self) -> tuple[BlockEntry, ...]:
        """All blocks that are in use or cached, by number."""

    def check(self, tables: Iterable[BlockTable] | None = None) -> None:
        """Raise AssertionError where the books are wrong. tables: all there are, to count the references against."""
