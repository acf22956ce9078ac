"""Work done for many at once, whose failures are each one's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any


def tried(rows: Sequence[Any], run: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    """What `run` gives for each row. If it fails, which must change nothing, each row alone: its value or Exception."""
    try:
        return list(run(list(rows)))
    except Exception as error:
        if len(rows) == 1:
            return [error]
    return [met for row in rows for met in tried([row], run)]
