"""Block map: the blocks of a model's caches as a grid: free, cached, used, shared, and whose."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from izwi_lab.engine.block_view import BlockView
from izwi_lab.engine.timeline import Explanation
from izwi_lab.lab import engine_ink as ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLUMNS = 32
_MOST = 2048  # blocks that are drawn
_LETTERED = 512  # blocks that are drawn with their letters
_OWNERS = (ink.BLUE, ink.ORANGE, ink.GREEN, ink.SKY, ink.RED, ink.YELLOW)
_SHARED = ink.PURPLE
_CACHED = "#9a9a9a"
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def shown(blocks: tuple[BlockView, ...]) -> int:
    """How many blocks are drawn: whole rows up to the last that is not free, and one row at least."""
    last = max((place for place, block in enumerate(blocks) if block.state != "free"), default=0)
    rows = math.ceil((last + 1) / _COLUMNS)
    return min(len(blocks), rows * _COLUMNS, _MOST)


def owners(blocks: tuple[BlockView, ...]) -> dict[str, str]:
    """A letter for each request that holds a block, in the order of blocks; a star where letters run out."""
    names = dict.fromkeys(ink.request_of(sequence) for block in blocks for sequence in block.sequences)
    return {name: _ALPHABET[at] if at < len(_ALPHABET) else "*" for at, name in enumerate(names)}


def colour(block: BlockView, letters: dict[str, str]) -> str | None:
    """A block's colour: its owner's, or that of all shared or cached ones; None for a free one."""
    if block.state == "free":
        return None
    if block.state == "cached":
        return _CACHED
    if block.state == "shared" or not block.sequences:
        return _SHARED
    return _OWNERS[list(letters).index(ink.request_of(block.sequences[0])) % len(_OWNERS)]


def block_map(explanation: Explanation) -> Figure:
    """A cell for each block. Letters say whose it is, numbers how many share it. Free ones at the end are left out.

    Raises:
        MissingExtraError: without matplotlib.

    >>> izwi.lab.block_map(engine.explain("SmolLM2-135M-Instruct"))     # doctest: +SKIP
    """
    every = explanation.blocks.blocks
    drawn, letters = every[: shown(every)], owners(every)
    columns = min(_COLUMNS, max(1, len(drawn)))
    rows = max(1, math.ceil(len(drawn) / columns))
    made, axis = ink.sheet(11.0, 0.6 + 0.36 * rows + 0.2 * math.ceil((len(letters) + 3) / 6))
    _cells(axis, drawn, letters, columns)
    axis.set(xlim=(-0.05, columns + 0.05), ylim=(rows + 0.05, -0.05), aspect="equal")
    axis.set_xticks([])
    axis.set_yticks([row + 0.5 for row in range(rows)], [str(row * columns) for row in range(rows)])
    axis.tick_params(length=0)
    axis.set_title(_title(explanation, len(drawn)), color=ink.INK, fontsize=9)
    _legend(axis, every, letters)
    return made


def _cells(axis: Axes, drawn: tuple[BlockView, ...], letters: dict[str, str], columns: int) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    colours = [colour(block, letters) for block in drawn]
    places = [(at % columns, at // columns) for at in range(len(drawn))]
    squares = [Rectangle((x + 0.06, y + 0.06), 0.88, 0.88) for x, y in places]
    axis.add_collection(
        PatchCollection(squares, facecolor=[c or "none" for c in colours], edgecolor=ink.INK, linewidth=0.5)
    )
    if len(drawn) > _LETTERED:
        return
    for block, filled, (x, y) in zip(drawn, colours, places, strict=True):
        if filled is not None and block.refs:
            mark = letters[ink.request_of(block.sequences[0])] if len(block.sequences) == 1 else str(block.refs)
            axis.text(x + 0.5, y + 0.5, mark, ha="center", va="center", fontsize=8, color=ink.on(filled))


def _title(explanation: Explanation, drawn: int) -> str:
    every = explanation.blocks.blocks
    rest = every[drawn:]
    left = (
        ""
        if not rest
        else f", {len(rest)} more are " + ("free" if all(block.state == "free" for block in rest) else "not drawn")
    )
    return f"{len(every)} blocks of {explanation.blocks.block_size} positions{left}"


def _legend(axis: Axes, every: tuple[BlockView, ...], letters: dict[str, str]) -> None:
    from matplotlib.patches import Patch

    states = [block.state for block in every]
    handles: list[object] = [
        Patch(facecolor="none", edgecolor=ink.INK, label=f"free: {states.count('free')}"),
        Patch(facecolor=_CACHED, edgecolor=ink.INK, label=f"cached, nobody's now: {states.count('cached')}"),
        Patch(facecolor=_SHARED, edgecolor=ink.INK, label=f"shared (by how many): {states.count('shared')}"),
    ]
    for at, (name, letter) in enumerate(letters.items()):
        held = sum(name in map(ink.request_of, block.sequences) for block in every)
        handles.append(
            Patch(facecolor=_OWNERS[at % len(_OWNERS)], edgecolor=ink.INK, label=f"{letter} {ink.short(name)}: {held}")
        )
    ink.legend(axis, handles, columns=6)
