"""Pace: how many tokens of prompts fit a step that should not take longer than others can wait."""

from __future__ import annotations

from collections import deque

from izwi_lab.engine.plan import Limits

LEAST = 16  # tokens of prompts in a step, however slow the machine
_MEASURED = 8  # steps, the last of their kind, that a cost is taken from
_LEAST_PART = 0.05  # of a step, that its prompts take


class Pace:
    """Learns what a step and each token of a prompt cost, and bounds steps by time.

    seconds: that a step should take. A request that comes in the middle of one waits for its end, and everybody who
    answers waits for it between two tokens; longer steps would read long prompts a little faster. Where all else that a
    step does takes more than half of that, prompts still get half of it on top: small pieces would only read slower.

    >>> pace = Pace(0.05, most=512)
    >>> pace.tokens(answering=False)
    128
    >>> pace.learn(prefill=100, answering=False, seconds=0.1)  # 1 ms a token
    >>> pace.learn(prefill=0, answering=True, seconds=0.01)
    >>> pace.tokens(answering=False), pace.tokens(answering=True)
    (50, 40)
    """

    def __init__(self, seconds: float, *, most: int, first: int = 128) -> None:
        self.seconds, self.most = seconds, most
        self._first = first
        self._besides_s: deque[float] = deque(maxlen=_MEASURED)  # of steps that read no prompt
        self._token_s: deque[float] = deque(maxlen=_MEASURED)  # of a token of a prompt

    def tokens(self, *, answering: bool) -> int:
        """Tokens of prompts of one step. answering: whether anybody says something in it."""
        if not self._token_s:
            return min(self._first, self.most)
        room_s = max(self.seconds - self._beside(answering), self.seconds / 2)
        return max(LEAST, min(self.most, round(room_s / _undisturbed(self._token_s))))

    def learn(self, *, prefill: int, answering: bool, seconds: float) -> None:
        """A step with so many tokens of prompts took so long; answering: whether others said something in it."""
        if not prefill:
            self._besides_s.append(seconds)
        elif prefill >= LEAST or not self._token_s:  # the rest of a prompt would make its tokens seem dear
            besides_s = self._beside(answering)
            if besides_s > (1 - _LEAST_PART) * seconds:  # it is out of date: dear answers have ended
                self._besides_s.clear()
                besides_s = 0.0
            self._token_s.append((seconds - besides_s) / prefill)

    def _beside(self, answering: bool) -> float:
        """Seconds of a step that its prompts do not account for: the answers, or no less than the weights take."""
        return _undisturbed(self._besides_s) if answering else min(self._besides_s, default=0.0)

    def limits(self, *, sequences: int, answering: bool) -> Limits:
        """What bounds the next step."""
        tokens = self.tokens(answering=answering)
        return Limits(max_tokens=sequences + tokens, max_sequences=sequences, min_prefill=LEAST, max_prefill=tokens)


def _undisturbed(measured: deque[float]) -> float:
    """What it costs where nothing else wants the device, which only adds: the second lowest of the last."""
    return sorted(measured)[:2][-1] if measured else 0.0
