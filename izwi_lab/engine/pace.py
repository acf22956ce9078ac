"""Pace: how many tokens of prompts fit a step that should not take longer than others can wait."""

from __future__ import annotations

from izwi_lab.engine.plan import Limits

_LEAST = 16  # tokens of prompts in a step, however slow the machine
_WEIGHT = 0.25  # of the newest step in the average
_TELLING = 8  # tokens of prompts that make a step tell what one costs


class Pace:
    """Learns what a token of a prompt costs, and bounds steps by time.

    seconds: that a step should take. A request that comes in the middle of one waits for its end, and everybody who
    answers waits for it between two tokens; longer steps would read long prompts a little faster.

    >>> pace = Pace(0.05, most=512)
    >>> pace.tokens
    128
    >>> pace.learn(prefill=128, decode=0, seconds=0.25)  # 2 ms each: 25 of them fit
    >>> pace.tokens
    25
    """

    def __init__(self, seconds: float, *, most: int, first: int = 128) -> None:
        self.seconds, self.most = seconds, most
        self._first = first
        self._token_s: float | None = None

    @property
    def tokens(self) -> int:
        """Tokens of prompts of one step."""
        if self._token_s is None:
            return min(self._first, self.most)
        return max(_LEAST, min(self.most, int(self.seconds / self._token_s)))

    def learn(self, *, prefill: int, decode: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if prefill < _TELLING:
            return
        cost = seconds / (prefill + decode)
        self._token_s = cost if self._token_s is None else (1 - _WEIGHT) * self._token_s + _WEIGHT * cost

    def limits(self, *, sequences: int) -> Limits:
        """What bounds the next step."""
        tokens = self.tokens
        return Limits(
            max_tokens=sequences + tokens, max_sequences=sequences, min_prefill=_LEAST, max_prefill_piece=tokens
        )
