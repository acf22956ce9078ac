"""BlockMap and PrefixTree: where everything lies in the caches, and what later prompts would find, as plain values."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from izwi_lab.engine.chain import Scope, unpack
from izwi_lab.engine.request import Sequence
from izwi_lab.engine.tables import BlockEntry, StateManager

_WIDTH = 64
_MARKS = {"free": "·", "cached": "░", "used": "▓", "shared": "█"}
_LEAVES = 24  # lines of a tree in a repr
_SOME = 6  # ids shown of a stretch


@dataclass(frozen=True, slots=True)
class BlockView:
    """One block. state: free, cached (nobody's now), used (by one) or shared. sequences: ids of those that hold it."""

    id: int
    state: str
    refs: int = 0
    published: bool = False
    sequences: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, repr=False)
class BlockMap:
    """All blocks of a model, by number."""

    blocks: tuple[BlockView, ...]
    block_size: int

    @classmethod
    def of(cls, manager: StateManager, sequences: Iterable[Sequence]) -> BlockMap:
        """As it is now. sequences: those that run."""
        holders = defaultdict(list)
        for sequence in sequences:
            for block in sequence.table.ids:
                holders[block].append(sequence.id)
        stats, entries = manager.stats(), {entry.id: entry for entry in manager.entries()}
        views = (_view(block, entries.get(block), tuple(holders[block])) for block in range(stats.total))
        return cls(tuple(views), stats.block_size)

    def rows(self) -> list[dict[str, object]]:
        """A row for each block, for pandas."""
        return [
            {"block": b.id, "state": b.state, "refs": b.refs, "published": b.published, "sequences": list(b.sequences)}
            for b in self.blocks
        ]

    def __repr__(self) -> str:
        marks = "".join(_MARKS[block.state] for block in self.blocks)
        last = len(marks.rstrip(_MARKS["free"]))
        shown = marks[: -(-last // _WIDTH) * _WIDTH]
        counts = {state: marks.count(mark) for state, mark in _MARKS.items()}
        head = ", ".join(f"{_MARKS[state]} {count} {state}" for state, count in counts.items())
        lines = [shown[at : at + _WIDTH] for at in range(0, len(shown), _WIDTH)]
        lines += [f"… {len(marks) - len(shown)} free"] if len(shown) < len(marks) else []
        return "\n".join([f"BlockMap({len(marks)} blocks of {self.block_size}: {head})", *lines])


def _view(block: int, entry: BlockEntry | None, holders: tuple[str, ...]) -> BlockView:
    if entry is None:
        return BlockView(block, "free")
    state = "cached" if entry.refs == 0 else "used" if entry.refs == 1 else "shared"
    return BlockView(block, state, entry.refs, entry.published, holders)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PrefixNode:
    """A published block: its token ids, how many sequences hold it, and what goes on from it."""

    block: int
    tokens: tuple[int, ...]
    refs: int
    children: tuple[PrefixNode, ...] = ()

    def __repr__(self) -> str:
        return f"PrefixNode(block {self.block}, {len(self.tokens)} tokens, {len(self.children)} children)"


@dataclass(frozen=True, slots=True, repr=False)
class PrefixTree:
    """What prompts would find in the caches: beginnings by scope (model, tenant, extra key)."""

    roots: tuple[tuple[Scope, tuple[PrefixNode, ...]], ...]

    @classmethod
    def of(cls, manager: StateManager) -> PrefixTree:
        """As it is now."""
        children: dict[tuple[Scope, int | None], list[BlockEntry]] = defaultdict(list)
        for entry in manager.entries():
            if entry.published and entry.scope is not None:
                children[entry.scope, entry.parent].append(entry)
        scopes = dict.fromkeys(scope for scope, _ in children)
        return cls(tuple((scope, _nodes(children, scope)) for scope in scopes))

    def rows(self) -> list[dict[str, object]]:
        """A row for each block, for pandas; depth is its place in its chain."""
        return [
            {
                "model": scope.model,
                "tenant": scope.tenant,
                "depth": depth,
                "block": node.block,
                "parent": parent,
                "refs": node.refs,
                "tokens": list(node.tokens),
            }
            for scope, nodes in self.roots
            for node, depth, parent in _walk(nodes)
        ]

    def show(self, text: Callable[[tuple[int, ...]], str] | None = None) -> str:
        """The tree as lines: one for each stretch without a branch. text: shows ids as what they say."""
        lines = []
        for scope, nodes in self.roots:
            key = f", key {scope.extra_key.hex()[:8]}" if scope.extra_key else ""
            lines.append(f"{scope.model or 'model'}, tenant {scope.tenant or '-'}{key}")
            lines += _lines(nodes, text)
        return "\n".join(lines)

    def __repr__(self) -> str:
        lines = self.show().splitlines()
        count = sum(1 for _, nodes in self.roots for _ in _walk(nodes))
        more = [f"… {len(lines) - _LEAVES} lines more"] if len(lines) > _LEAVES else []
        return "\n".join([f"PrefixTree({count} blocks)", *lines[:_LEAVES], *more])


def _nodes(children: dict[tuple[Scope, int | None], list[BlockEntry]], scope: Scope) -> tuple[PrefixNode, ...]:
    """The trees of a scope. Built from the leaves: a chain may be longer than Python's stack is deep."""
    order: list[tuple[int | None, BlockEntry]] = [(None, entry) for entry in children[scope, None]]
    for _, entry in order:
        order += [(entry.id, child) for child in children.get((scope, entry.id), [])]
    done: dict[int | None, list[PrefixNode]] = defaultdict(list)
    for parent, entry in reversed(order):
        node = PrefixNode(entry.id, unpack(entry.tokens), entry.refs, tuple(reversed(done.pop(entry.id, []))))
        done[parent].append(node)
    return tuple(reversed(done[None]))


def _walk(nodes: tuple[PrefixNode, ...]) -> Iterator[tuple[PrefixNode, int, int | None]]:
    """All nodes with depth and parent, each before its children."""
    waiting: list[tuple[PrefixNode, int, int | None]] = [(node, 0, None) for node in reversed(nodes)]
    while waiting:
        node, depth, parent = waiting.pop()
        yield node, depth, parent
        waiting += [(child, depth + 1, node.block) for child in reversed(node.children)]


def _lines(nodes: tuple[PrefixNode, ...], text: Callable[[tuple[int, ...]], str] | None) -> list[str]:
    lines = []
    waiting = [(node, 1) for node in reversed(nodes)]
    while waiting:
        node, depth = waiting.pop()
        blocks, ids, refs = 1, node.tokens, node.refs
        while len(node.children) == 1 and node.children[0].refs == refs:
            node = node.children[0]
            blocks, ids = blocks + 1, ids + node.tokens
        said = repr(text(ids)) if text else " ".join(map(str, ids[:_SOME])) + (" …" if len(ids) > _SOME else "")
        held = f", held by {refs}" if refs else ""
        lines.append(f"{'  ' * depth}{blocks} blocks, {len(ids)} tokens{held}: {said}")
        waiting += [(child, depth + 1) for child in reversed(node.children)]
    return lines
