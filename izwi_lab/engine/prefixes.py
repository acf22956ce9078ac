"""PrefixIndex: the blocks that later prompts can find, and the order in which those that nobody holds are given up."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from izwi_lab.engine.chain import Scope


@dataclass(frozen=True, slots=True)
class Published:
    """What makes a block findable. parent: the block that holds what comes before; tokens: its ids, packed."""

    digest: bytes
    parent: int | None
    scope: Scope
    tokens: bytes


class PrefixIndex:
    """Published blocks by digest, one block a digest. `unused`: those that nobody holds, least recently used first."""

    def __init__(self) -> None:
        self.published: dict[int, Published] = {}
        self.unused: OrderedDict[int, None] = OrderedDict()
        self.evictions = 0
        self._by_digest: dict[bytes, int] = {}

    def find(self, digest: bytes) -> int | None:
        """The block of a digest."""
        return self._by_digest.get(digest)

    def publish(self, block: int, about: Published) -> None:
        """Let a block be found, by a digest that no other has."""
        self.published[block] = about
        self._by_digest[about.digest] = block

    def hold(self, block: int) -> None:
        """Somebody holds the block."""
        self.unused.pop(block, None)

    def park(self, block: int) -> bool:
        """Nobody holds the block any more; False if it is not published, so that nothing is lost with it."""
        if block in self.published:
            self.unused[block] = None
            return True
        return False

    def evict(self) -> int:
        """Forget the least recently used block that nobody holds, and hand it over."""
        block, _ = self.unused.popitem(last=False)
        del self._by_digest[self.published.pop(block).digest]
        self.evictions += 1
        return block

    def check(self, used: set[int]) -> None:
        """Raise AssertionError where a chain is broken or would be cut in its middle. used: blocks that are held."""
        ensure(self._by_digest == {p.digest: block for block, p in self.published.items()}, "one digest, one block")
        ensure(set(self.unused) == set(self.published) - used, "what is cached is what is published and nobody's")
        leaves_at = {block: place for place, block in enumerate(self.unused)}
        never = len(leaves_at)  # what is held leaves after all others
        for block, known in self.published.items():
            if (before := known.parent) is None:
                continue
            ensure(before in self.published, f"block {block} continues a forgotten one")
            first, then = leaves_at.get(block, never), leaves_at.get(before, never)
            ensure(first < then or first == then == never, f"block {before} would leave before {block}")


def ensure(holds: bool, broken: str) -> None:
    """Raise AssertionError(broken) unless it holds, whether Python runs optimised or not."""
    if not holds:
        raise AssertionError(broken)
