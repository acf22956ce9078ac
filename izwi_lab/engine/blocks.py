"""BlockManager: paged caches by reference counts, shared between sequences that begin with the same tokens.

After vLLM's prefix caching: full blocks are found by chained digests. Three rules keep it right:
- A block is found by others only once it is full and computed ("published"), and is never written again after that.
- One digest has one block: a sequence that computed the same gives its own up for the published one. So whoever holds
  a block of a chain holds all blocks before it.
- Tables are freed from their end, so that in the order of last use a block comes before the one it continues; evicting
  the first of that order never cuts a chain in the middle.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from izwi_lab.engine.chain import Chain, Scope, pack
from izwi_lab.engine.prefixes import PrefixIndex, Published, ensure
from izwi_lab.engine.tables import BlockCopy, BlockEntry, BlockStats, BlockTable, Match
from izwi_lab.errors import InvalidInputError, OutOfBlocksError


class BlockManager:
    """Who holds which of `num_blocks` blocks of `block_size` positions and `block_bytes` bytes each.

    cache_bytes: at most so much is kept of what nobody uses; None: all of it, until the room is needed.

    One thread at a time.

    >>> blocks = BlockManager(8, 4, 1024)
    >>> first, second = blocks.table(Scope()), blocks.table(Scope())
    >>> blocks.allocate(first, range(10))
    0
    >>> blocks.publish(first, range(10), 10)
    >>> blocks.allocate(second, range(10))  # the blocks 0..3 and 4..7 are there; 8 and 9 fill none
    8
    """

    rewritable = True

    def __init__(self, num_blocks: int, block_size: int, block_bytes: int, *, cache_bytes: int | None = None) -> None:
        sizes = (("num_blocks", num_blocks, 1), ("block_size", block_size, 1), ("block_bytes", block_bytes, 1))
        for name, value, least in (*sizes, ("cache_bytes", cache_bytes, 0)):
            if value is not None and (type(value) is not int or value < least):
                raise InvalidInputError(f"{name} must be a whole number from {least}, got {value!r:.80}.")
        self.num_blocks, self.block_size, self.block_bytes = num_blocks, block_size, block_bytes
        self.cache_bytes = cache_bytes
        self._free = list(range(num_blocks - 1, -1, -1))  # the last is taken first
        self._refs = [0] * num_blocks
        self._index = PrefixIndex()
        self._queries = self._hits = 0

    def __repr__(self) -> str:
        s = self.stats()
        return f"BlockManager({s.total} blocks of {s.block_size}: {s.used} used, {s.cached} cached, {s.free} free)"

    # looking

    def table(self, scope: Scope, *, shared_tokens: int | None = None) -> BlockTable:
        """An empty table for a new sequence. shared_tokens: how many first positions may be shared; None: all."""
        return BlockTable(Chain(scope, self.block_size) if shared_tokens != 0 else None, shared_tokens)

    def fits(self, positions: int) -> bool:
        """True if a sequence of so many positions has room when it is alone."""
        return self._blocks_of(positions) <= self.num_blocks

    def match(self, tokens: Sequence[int], scope: Scope) -> Match:
        """The longest beginning of `tokens` in the caches, in full blocks; never all of it.

        The last token is always computed: somebody wants its logits.
        """
        found = self._matched(self.table(scope), tokens)
        return Match(tuple(found), len(found) * self.block_size)

    def shortage(
        self, table: BlockTable, tokens: Sequence[int], *, reserve: int = 0, given_up: Iterable[BlockTable] = ()
    ) -> int:
        """How many blocks are lacking to hold `tokens` and leave `reserve` more; 0 or less where there is room.

        given_up: tables that would be freed before.
        """
        found = set(self._matched(table, tokens))
        given = Counter(block for other in given_up for block in other.ids)
        gained = sum(self._refs[block] == times and block not in found for block, times in given.items())
        room = self._room() - sum(block in self._index.unused for block in found)
        return self._blocks_of(len(tokens)) - len(found) + reserve - room - gained

    def can_allocate(self, table: BlockTable, tokens: Sequence[int]) -> bool:
        """True if `allocate` would succeed."""
        return self.shortage(table, tokens) <= 0

    def can_append(self, table: BlockTable, positions: int) -> bool:
        """True if there is room for a table to hold `positions` in all."""
        return self._blocks_of(positions) - len(table.ids) <= self._room()

    def can_fork(self, table: BlockTable, computed: int) -> bool:
        """True if there is room to fork a table: for one block, if the last is not full."""
        return computed % self.block_size == 0 or self._room() > 0

    def pending(self, table: BlockTable, tokens: Sequence[int], start: int, stop: int) -> tuple[bytes, ...]:
        """Digests of the blocks that others could share once the positions start .. stop are computed."""
        if table.chain is None:
            return ()
        blocks = range(start // self.block_size, self._sharable(table, stop))
        return tuple(table.chain.digest(block, tokens) for block in blocks)

    # taking and giving back

    def allocate(self, table: BlockTable, tokens: Sequence[int]) -> int:
        """Give an empty table room for `tokens`; returns how many of them are in the caches already.

        Raises:
            OutOfBlocksError: there is no room; nothing was taken.
        """
        if table.ids:
            raise InvalidInputError("This table holds blocks.", hint="append makes it longer, free empties it.")
        found = self._matched(table, tokens)
        self._demand(self.shortage(table, tokens), len(tokens))
        if table.chain is not None:
            self._queries += self._sharable(table, len(tokens) - 1)
            self._hits += len(found)
        for block in found:
            self._take(block)
        fresh = self._blocks_of(len(tokens)) - len(found)
        table.ids.extend([*found, *(self._fresh() for _ in range(fresh))])
        table.published = len(found)
        return len(found) * self.block_size

    def append(self, table: BlockTable, positions: int) -> None:
        """Let a table hold `positions` in all.

        Raises:
            OutOfBlocksError: there is no room; nothing was taken.
        """
        missing = self._blocks_of(positions) - len(table.ids)
        self._demand(missing - self._room(), positions)
        table.ids.extend(self._fresh() for _ in range(missing))

    def catch_up(self, table: BlockTable, tokens: Sequence[int], computed: int) -> int:
        """Take what others have computed since of what comes next; returns how many are computed then.

        So of several prompts with the same beginning that arrive together, one computes it.
        """
        if table.chain is None or computed != table.published * self.block_size:
            return computed
        for block in range(table.published, self._sharable(table, len(tokens) - 1)):
            known = self._index.find(table.chain.digest(block, tokens))
            if known is None:
                break
            self._swap(table, block, known)
            self._hits += 1
        return table.published * self.block_size

    def publish(self, table: BlockTable, tokens: Sequence[int], computed: int) -> None:
        """Let others find the full blocks among the first `computed` positions.

        Where others were faster, the table holds their block instead of its own after this.
        """
        if table.chain is None:
            return
        for block in range(table.published, self._sharable(table, computed)):
            digest, own = table.chain.digest(block, tokens), table.ids[block]
            known = self._index.find(digest)
            if known is None:
                parent = table.ids[block - 1] if block else None
                packed = pack(tokens, block, self.block_size)
                self._index.publish(own, Published(digest, parent, table.chain.scope, packed))
            self._swap(table, block, own if known is None else known)

    def fork(self, table: BlockTable, computed: int) -> tuple[BlockTable, BlockCopy | None]:
        """A second table of the first `computed` positions: full blocks are shared, the last is copied if it is not.

        Raises:
            OutOfBlocksError: there is no block for the copy; nothing was taken.
        """
        self._demand(0 if self.can_fork(table, computed) else 1, computed)
        full = computed // self.block_size
        chain = table.chain.copy(full) if table.chain is not None else None
        other = BlockTable(chain, table.shared_tokens, table.ids[:full], min(table.published, full))
        for block in other.ids:
            self._take(block)
        if computed % self.block_size == 0:
            return other, None
        other.ids.append(self._fresh())
        return other, BlockCopy(table.ids[full], other.ids[-1])

    def free(self, table: BlockTable) -> None:
        """Give back what a table holds; an empty one holds nothing. Published blocks stay findable until evicted."""
        for block in reversed(table.ids):
            self._release(block)
        table.ids.clear()
        table.published = 0
        if self.cache_bytes is not None:
            while len(self._index.unused) * self.block_bytes > self.cache_bytes:
                self._free.append(self._index.evict())

    # telling

    def withdraw(self, first: int) -> None:
        """There is no memory for the blocks from number `first` on: they are given out no more."""
        self.num_blocks = min(self.num_blocks, first)
        self._free = [block for block in self._free if block < first]

    def stats(self) -> BlockStats:
        """How the blocks stand."""
        free, cached = len(self._free), len(self._index.unused)
        used, counts = self.num_blocks - free - cached, (self._queries, self._hits, self._index.evictions)
        return BlockStats(self.num_blocks, used, cached, free, self.block_size, self.block_bytes, *counts)

    def entries(self) -> tuple[BlockEntry, ...]:
        """All blocks that are in use or cached, by number."""
        found = []
        for block, refs in enumerate(self._refs):
            known = self._index.published.get(block)
            if known is not None:
                about = known.parent, known.scope, known.digest, known.tokens
                found.append(BlockEntry(block, refs, True, *about))
            elif refs:
                found.append(BlockEntry(block, refs, False))
        return tuple(found)

    def check(self, tables: Iterable[BlockTable] | None = None) -> None:
        """Raise AssertionError where the books are wrong. tables: all there are, to count the references against."""
        used = {block for block, refs in enumerate(self._refs) if refs > 0}
        free, unused = set(self._free), set(self._index.unused)
        ensure(min(self._refs) >= 0 and len(free) == len(self._free), "a block was given back twice")
        there = set(range(self.num_blocks)) | {block for block in used if block >= self.num_blocks}  # withdrawn
        ensure(len(used) + len(free) + len(unused) == len(there), "a block was lost")
        ensure(used | free | unused == there, "a block is in two places")
        self._index.check(used)
        within = self.cache_bytes is None or len(unused) * self.block_bytes <= self.cache_bytes
        ensure(within, "more is cached than the budget allows")
        if tables is not None:
            held = Counter(block for table in tables for block in table.ids)
            ensure(held == Counter(dict(enumerate(self._refs))), "the references do not match the tables")

    # the books

    def _blocks_of(self, positions: int) -> int:
        return -(-positions // self.block_size)

    def _room(self) -> int:
        return len(self._free) + len(self._index.unused)

    def _sharable(self, table: BlockTable, positions: int) -> int:
        """How many full blocks of the first `positions` may be shared."""
        most = positions if table.shared_tokens is None else min(positions, table.shared_tokens)
        return most // self.block_size

    def _matched(self, table: BlockTable, tokens: Sequence[int]) -> list[int]:
        found: list[int] = []
        if table.chain is not None:
            for block in range(self._sharable(table, len(tokens) - 1)):
                known = self._index.find(table.chain.digest(block, tokens))
                if known is None:
                    break
                found.append(known)
        return found

    def _demand(self, lacking: int, positions: int) -> None:
        if lacking > 0:
            raise OutOfBlocksError(
                f"{positions} positions need {lacking} more blocks of {self.block_size} than the "
                f"{self._room()} that are left of {self.num_blocks}.",
                hint="Preempt a sequence, or make more blocks.",
            )

    def _take(self, block: int) -> None:
        self._index.hold(block)
        self._refs[block] += 1

    def _fresh(self) -> int:
        block = self._free.pop() if self._free else self._index.evict()
        self._refs[block] = 1
        return block

    def _swap(self, table: BlockTable, place: int, known: int) -> None:
        """Hold the published block `known` at `place`, and give back the one that was there if it is another."""
        own = table.ids[place]
        if own != known:
            self._take(known)
            table.ids[place] = known
            self._release(own)
        table.published = place + 1

    def _release(self, block: int) -> None:
        self._refs[block] -= 1
        if self._refs[block] == 0 and not self._index.park(block) and block < self.num_blocks:
            self._free.append(block)
