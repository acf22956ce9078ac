"""What the pictures of an engine are drawn with: colours that everybody tells apart, on light and on dark pages.

The colours are those of M. Okabe and K. Ito, "Color universal design" (2008). Nothing is told by colour alone: bars
also differ in height, and blocks have letters.
"""

from __future__ import annotations

import re
from functools import cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from izwi_lab.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK = "#7c7c7c"  # text and lines: 4 to 1 against white and against black
BLUE, ORANGE, GREEN, RED, PURPLE = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7"
SKY, YELLOW = "#56b4e9", "#f0e442"
_LIGHT = 0.45  # brightness from which text on a colour is black
_SHORT = 16
_HEX_ID = re.compile(r"[0-9a-f]{32}")
_OF_SEQUENCE = re.compile(r"(.+)/[0-9]+", re.DOTALL)


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure in inches, without a ground of its own: the page shows through."""
    made = _picture()(figsize=(width, height), layout="constrained")
    axis = made.subplots()
    made.patch.set_alpha(0.0)
    axis.patch.set_alpha(0.0)
    axis.tick_params(colors=INK, labelsize=8)
    for side in axis.spines.values():
        side.set_visible(False)
    return made, axis


@cache
def _picture() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("matplotlib", "lab") from error

    class Picture(Figure):
        """A figure that shows itself in a cell also where pyplot was never imported."""

        def _repr_png_(self) -> bytes:
            body = BytesIO()
            self.savefig(body, format="png")
            return body.getvalue()

    return Picture


def legend(axis: Axes, handles: list[object], *, columns: int) -> None:
    """What the colours mean, below the picture."""
    axis.figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=8, labelcolor=INK
    )


def on(colour: str) -> str:
    """Black or white, whichever can be read on a colour such as "#0072b2"."""
    red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "black" if 0.3 * red + 0.59 * green + 0.11 * blue > _LIGHT else "white"


def request_of(sequence: str) -> str:
    """The id of the request that a sequence belongs to: the engine calls its sequences "<request>/<number>"."""
    found = _OF_SEQUENCE.fullmatch(sequence)
    return found[1] if found else sequence


def short(name: str) -> str:
    """A request's id as a label: ids that nobody chose by their beginning, others cut where they are long."""
    if _HEX_ID.fullmatch(name):
        return name[:8]
    return (name if len(name) <= _SHORT else name[: _SHORT - 1] + "…").replace("$", r"\$")
