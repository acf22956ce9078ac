"""Pressure: what memory allows of a step where that is less than the limits."""

from __future__ import annotations

from izwi_lab.engine.plan import Limits

_GROWTH = 8  # a step that went well allows an eighth more


class Pressure:
    """Halved by a step that ran out of memory, grown slowly by those that do not, until the limits count again."""

    def __init__(self) -> None:
        self._tokens: int | None = None
        self._sequences: int | None = None

    def allowed(self, limits: Limits) -> tuple[int, int]:
        """Tokens of a step, and sequences that run at the same time."""
        tokens = limits.max_tokens if self._tokens is None else min(self._tokens, limits.max_tokens)
        sequences = limits.max_sequences if self._sequences is None else min(self._sequences, limits.max_sequences)
        return tokens, sequences

    def tighten(self, tokens: int, sequences: int) -> None:
        """So many were too many: half of them is allowed from here on, one at least."""
        self._tokens, self._sequences = max(1, tokens // 2), max(1, sequences // 2)

    def relax(self, limits: Limits) -> None:
        """A step went well."""
        self._tokens = _grown(self._tokens, limits.max_tokens)
        self._sequences = _grown(self._sequences, limits.max_sequences)


def _grown(allowed: int | None, limit: int) -> int | None:
    if allowed is None:
        return None
    grown = allowed + max(1, allowed // _GROWTH)
    return grown if grown < limit else None
