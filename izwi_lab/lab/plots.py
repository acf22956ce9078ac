"""Figures of the lab, and the two packages that show things: matplotlib and pandas, imported when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DARK = 0.55  # of the colour scale: text on darker cells is white


def pandas() -> Any:
    """The package, or MissingExtraError."""
    try:
        import pandas
    except ImportError as error:
        raise MissingExtraError("pandas", "lab") from error
    return pandas


def figure(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in inches with one axis; it belongs to no window and shows itself in a cell."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "lab") from error
    made = Figure(figsize=(width, height), layout="constrained")
    return made, made.subplots()


def grid(
    values: np.ndarray, texts: Sequence[Sequence[str]], *, rows: Sequence[str], columns: Sequence[str], label: str
) -> Figure:
    """Values [rows, columns] from 0 to 1 as colours with a text in each cell, the first row at the bottom."""
    made, axis = figure(1.6 + 0.75 * len(columns), 0.9 + 0.24 * len(rows))
    shown = axis.imshow(values, aspect="auto", origin="lower", cmap="Blues", vmin=0.0, vmax=1.0)
    for row, line in enumerate(texts):
        for column, text in enumerate(line):
            colour = "white" if values[row, column] > _DARK else "black"
            axis.text(column, row, _plain(text), ha="center", va="center", color=colour, fontsize=7)
    _ticks(axis, rows, columns)
    made.colorbar(shown, label=label)
    return made


def image(values: np.ndarray, tokens: Sequence[str], *, title: str) -> Figure:
    """A square of values [T, T], queries down and keys along."""
    side = 2.2 + 0.16 * len(tokens)
    made, axis = figure(side + 0.8, side)
    shown = axis.imshow(values, cmap="magma", vmin=0.0)
    _ticks(axis, tokens, tokens)
    axis.set(title=title, ylabel="looks from", xlabel="at")
    made.colorbar(shown, shrink=0.8, label="attention")
    return made


def _ticks(axis: Axes, rows: Sequence[str], columns: Sequence[str]) -> None:
    axis.set_yticks(range(len(rows)), [_plain(row) for row in rows], fontsize=7)
    axis.set_xticks(range(len(columns)), [_plain(column) for column in columns], rotation=90, fontsize=7)


def _plain(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")
