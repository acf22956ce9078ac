"""What every command prints with: results on stdout, everything else on stderr, plain text without colours."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from izwi_lab.errors import InvalidInputError

_KEPT = "\t\u200c\u200d"  # tabs, and what is part of how words and emoji are written


def say(text: str = "") -> None:
    """A line of result."""
    print(text, flush=True)


def note(text: str) -> None:
    """A line about the work, kept apart from the result. What would steer the terminal is shown, not done."""
    sys.stdout.flush()
    print("\n".join(map(plain, text.split("\n"))), file=sys.stderr, flush=True)


def plain(text: str) -> str:
    r"""Text of a file on one line, with what is no visible character written out: a name may hold an escape sequence.

    >>> print(plain("Anna\x1b[2J"))
    Anna\x1b[2J
    """
    return "".join(c if c.isprintable() or c in _KEPT else repr(c)[1:-1] for c in text)


def say_json(value: Any) -> None:
    """A result for programs."""
    say(json.dumps(value, ensure_ascii=False, indent=2))


def table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Columns as wide as their longest cell, each `plain`, two spaces apart. right: headers of columns of numbers.

    >>> print(table(["id", "MB"], [["Whisper-base", "145"]], right=["MB"]))
    id             MB
    Whisper-base  145
    """
    rows = [[plain(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [headers, *rows]) for i in range(len(headers))]
    lines = []
    for row in [headers, *rows]:
        cells = [
            cell.rjust(width) if head in right else cell.ljust(width)
            for cell, width, head in zip(row, widths, headers, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def confirm(question: str) -> bool:
    """Ask at the terminal. Raises InvalidInputError where there is none to ask."""
    if not sys.stdin.isatty():
        raise InvalidInputError(f"{question} There is no terminal to ask.", hint="Pass -y to say yes.")
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:  # Ctrl-D
        note("")
        return False


def size(count: int) -> str:
    """Bytes in decimal units: "145.2 MB"."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 999.95 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def clock(seconds: float) -> str:
    """Seconds as "0:42" or "1:02:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
