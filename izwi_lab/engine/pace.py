"""Pace: how many tokens of prompts fit a step that should not take longer than others can wait."""

from __future__ import annotations

from izwi_lab.engine.plan import Limits

LEAST = 16  # tokens of prompts in a step, however slow the machine
_MEMORY = 0.95  # what a step's measure keeps of its weight with each later one
_SPREAD = 4.0  # tokens (standard deviation) that the steps must differ by to tell fixed costs from those of a token


class Pace:
    """Learns what a step and each token of a prompt cost, and bounds steps by time.

    seconds: that a step should take. A request that comes in the middle of one waits for its end, and everybody who
    answers waits for it between two tokens; longer steps would read long prompts a little faster. Where a step takes
    most of that without any prompt, prompts get half as much again: very small pieces would only read slower.

    >>> pace = Pace(0.05, most=512)
    >>> pace.tokens
    128
    >>> for prefill in (0, 100, 0, 100):  # 10 ms and 1 ms a token
    ...     pace.learn(prefill=prefill, seconds=0.010 + 0.001 * prefill)
    >>> pace.tokens
    40
    """

    def __init__(self, seconds: float, *, most: int, first: int = 128) -> None:
        self.seconds, self.most = seconds, most
        self._first = first
        self._sums = [0.0] * 5  # weights, tokens, seconds, tokens squared, tokens times seconds

    @property
    def tokens(self) -> int:
        """Tokens of prompts of one step."""
        fixed_s, token_s = self._costs()
        if token_s is None:
            return min(self._first, self.most)
        room_s = max(self.seconds - fixed_s, self.seconds / 2)
        return max(LEAST, min(self.most, round(room_s / token_s)))

    def learn(self, *, prefill: int, seconds: float) -> None:
        """A step with so many tokens of prompts took so long."""
        seen = (1.0, prefill, seconds, prefill * prefill, prefill * seconds)
        self._sums = [_MEMORY * held + new for held, new in zip(self._sums, seen, strict=True)]

    def limits(self, *, sequences: int) -> Limits:
        """What bounds the next step."""
        tokens = self.tokens
        return Limits(
            max_tokens=sequences + tokens, max_sequences=sequences, min_prefill=LEAST, max_prefill_piece=tokens
        )

    def _costs(self) -> tuple[float, float | None]:
        """Seconds of a step without prompts, and of each token of one; None before there was one. Least squares."""
        weight, tokens, seconds, squares, products = self._sums
        if not tokens:
            return 0.0, None
        spread = squares / weight - (tokens / weight) ** 2
        if spread > _SPREAD**2:
            token_s = (products / weight - tokens * seconds / weight**2) / spread
            if token_s > 0:
                return max(0.0, (seconds - token_s * tokens) / weight), token_s
        return 0.0, seconds / tokens  # all steps alike: the whole is laid on the tokens
