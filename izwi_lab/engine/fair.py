"""FairShare: which model runs the next step on a device. Deficit round robin by the seconds that steps really took.

M. Shreedhar and G. Varghese, Efficient fair queuing using deficit round-robin, 1995; with costs known only afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from izwi_lab.errors import InvalidInputError


class FairShare:
    """Turns of the models (or tasks) of one device. Of two that always have work, each gets seconds by its weight.

    quantum_s: seconds that a weight of 1 may use in one turn. A step is paid for when it is over: a long one is owed
    and its model waits until the others had theirs. Who has nothing to do costs nothing, and saves nothing up.

    One thread at a time.

    >>> turns = FairShare(quantum_s=0.1)
    >>> turns.add("chat")
    >>> turns.add("speech", weight=2.0)
    >>> turns.choose({"chat", "speech"})
    'chat'
    >>> turns.charge("chat", 0.3)
    >>> turns.choose({"chat", "speech"})
    'speech'
    """

    def __init__(self, *, quantum_s: float = 0.02) -> None:
        if not 0 < quantum_s < math.inf:
            raise InvalidInputError(f"quantum_s must be above 0, got {quantum_s!r}.")
        self.quantum_s = quantum_s
        self._weights: dict[str, float] = {}  # in the order of turns
        self._credit_s: dict[str, float] = {}
        self._used_s: dict[str, float] = {}
        self._turn: str | None = None

    def __repr__(self) -> str:
        return f"FairShare({', '.join(f'{name} x{weight:g}' for name, weight in self._weights.items())})"

    def add(self, name: str, *, weight: float = 1.0) -> None:
        """A new one takes part, with no credit.

        Raises:
            InvalidInputError: it takes part already, or its weight is not above 0.
        """
        if name in self._weights:
            raise InvalidInputError(f"{name!r} has its turns already.", hint="Remove it first to change its weight.")
        if not 0 < weight < math.inf:
            raise InvalidInputError(f"The weight of {name!r} must be above 0, got {weight!r}.")
        self._weights[name], self._credit_s[name], self._used_s[name] = weight, 0.0, 0.0

    def remove(self, name: str) -> None:
        """It takes part no more; unknown ones never did."""
        for held in (self._weights, self._credit_s, self._used_s):
            held.pop(name, None)
        if self._turn == name:
            self._turn = None

    def choose(self, ready: Iterable[str]) -> str | None:
        """Who of those that have work runs the next step; None if nobody has.

        Raises:
            InvalidInputError: one of them takes no part.
        """
        working = set(ready)
        if unknown := working - set(self._weights):
            raise InvalidInputError(f"{sorted(unknown)} have no turns.", hint="Add them first.")
        for name in self._weights.keys() - working:
            self._credit_s[name] = min(0.0, self._credit_s[name])
        if not working:
            return None
        if self._turn in working and self._credit_s[self._turn] > 0:
            return self._turn
        self._skip_rounds(working)
        while True:  # at most a round more
            self._turn = self._next(working)
            self._credit_s[self._turn] += self.quantum_s * self._weights[self._turn]
            if self._credit_s[self._turn] > 0:
                return self._turn

    def charge(self, name: str, seconds: float) -> None:
        """A step of `name` took so long. One that was removed meanwhile pays nothing.

        Raises:
            InvalidInputError: seconds below 0, or not a number.
        """
        if not 0 <= seconds < math.inf:
            raise InvalidInputError(f"A step takes 0 seconds or more, got {seconds!r}.")
        if name in self._weights:
            self._credit_s[name] -= seconds
            self._used_s[name] += seconds

    @property
    def used_s(self) -> dict[str, float]:
        """Seconds that each has used since it was added."""
        return dict(self._used_s)

    def _skip_rounds(self, working: set[str]) -> None:
        """Pay out at once the rounds in which everybody is still in debt."""
        rounds = min(-self._credit_s[name] // (self.quantum_s * self._weights[name]) for name in working)
        if rounds > 0:
            for name in working:
                self._credit_s[name] += rounds * self.quantum_s * self._weights[name]

    def _next(self, working: set[str]) -> str:
        """The one after the last that had its turn."""
        order = list(self._weights)
        start = order.index(self._turn) + 1 if self._turn in self._weights else 0
        return next(name for name in order[start:] + order[:start] if name in working)
