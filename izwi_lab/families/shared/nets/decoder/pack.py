"""In what order the pieces of several sequences lie side by side in a pack: numbers, for either framework."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, pairwise


@dataclass(frozen=True, slots=True)
class Group:
    """Neighbours in a pack, and the rows they take. pooled: their caches are of one pool."""

    members: tuple[int, ...]
    rows: slice
    pooled: bool


class Rows:
    """Sequences of a pool together, its decodes first; else as they came.

    sizes: rows of each. pools: a number for each, 0 where its caches are its own.

    >>> rows = Rows([3, 1, 2], [7, 0, 7])
    >>> rows.order, rows.edges
    ([0, 2, 1], [(0, 3), (3, 5), (5, 6)])
    """

    def __init__(self, sizes: Sequence[int], pools: Sequence[int]) -> None:
        first = {pool: i for i, pool in reversed(list(enumerate(pools)))}
        self.order = sorted(range(len(sizes)), key=lambda i: (first[pools[i]], sizes[i] > 1))
        self.edges = list(pairwise(accumulate((sizes[i] for i in self.order), initial=0)))
        self._pools = [pools[i] for i in self.order]

    @property
    def groups(self) -> list[Group]:
        """What attends together: all of a pool, and each of the others alone."""
        found = []
        for pool, members in groupby(range(len(self.order)), key=self._pools.__getitem__):
            numbers = tuple(members)
            for some in (numbers,) if pool else ((n,) for n in numbers):
                found.append(Group(some, slice(self.edges[some[0]][0], self.edges[some[-1]][1]), bool(pool)))
        return found

    def after(self, before: int) -> list[int]:
        """Of rows with `before` others before those of each sequence, where its own begin to see only themselves."""
        return [at + i * before for i, (a, b) in enumerate(self.edges) for at in range(a, b)]
