"""How often each token was said, kept up to date while a session grows: what penalties look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from izwi_lab.backends.base import Backend


class Tally:
    """Counts of one session's ids. seen: bool [V], said in prompt or output; counts: int32 [V], put out so often.

    The arrays are where tokens are chosen: numpy on the CPU, native on another device. `follow` reads only what is
    new since the last call; ids that were taken back (trim) or another prompt make it count again from the start.
    """

    def __init__(self, size: int, backend: Backend) -> None:
        self._size, self._backend = size, backend
        self._prompt: Sequence[int] | None = None
        self._tokens: Sequence[int] | None = None
        self._read = self._last = 0
        self.seen: Any = None
        self.counts: Any = None

    def follow(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        """Count the ids of `prompt` and `tokens`: the session's own growing lists."""
        known = prompt is self._prompt and tokens is self._tokens and self._read <= len(tokens)
        if not known or (self._read and tokens[self._read - 1] != self._last):
            self._start(prompt, tokens)
        for token in tokens[self._read :]:
            self.seen[token] = True
            self.counts[token] += 1
        self._read, self._last = len(tokens), tokens[-1] if tokens else 0

    def _start(self, prompt: Sequence[int], tokens: Sequence[int]) -> None:
        counts = np.bincount(np.asarray(tokens, np.int64), minlength=self._size).astype(np.int32)
        seen = counts > 0
        seen[np.asarray(prompt, np.int64)] = True
        if self._backend.device != "cpu":
            self.seen, self.counts = self._backend.array(seen), self._backend.array(counts)
        else:
            self.seen, self.counts = seen, counts
        self._prompt, self._tokens, self._read = prompt, tokens, len(tokens)
