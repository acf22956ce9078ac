"""Outbox: what a job has made and nobody has taken yet, between the device's thread and the reader's."""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any


class End:
    """What `take` gives when nothing more comes."""


END = End()


class Outbox:
    """Pieces of one answer in order, then its end or its error. One writer; readers on any thread.

    room: pieces after which it is full; room_again: called when it is not any more. started_s, first_s, last_s: when
    the work began, gave its first piece and its last, by time.perf_counter(); a slow reader does not show in them.
    """

    def __init__(self, *, room: int = sys.maxsize, room_again: Callable[[], None] = lambda: None) -> None:
        self._changed = threading.Condition()
        self._pieces: deque[Any] = deque()
        self._ended = False
        self._error: BaseException | None = None
        self._room, self._room_again = room, room_again
        self._takers = 0  # who waits for a piece; others need not be woken for one
        self.started_s = time.perf_counter()
        self.first_s: float | None = None
        self.last_s = self.started_s

    def __len__(self) -> int:
        return len(self._pieces)

    @property
    def full(self) -> bool:
        """True while the reader is far behind."""
        return len(self._pieces) >= self._room

    @property
    def ended(self) -> bool:
        """True once no more will come; there may still be pieces to take."""
        return self._ended

    def put(self, piece: Any) -> None:
        """One more piece."""
        with self._changed:
            self.last_s = time.perf_counter()
            self.first_s = self.last_s if self.first_s is None else self.first_s
            self._pieces.append(piece)
            if self._takers:
                self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        """Nothing more comes; `take` raises the error after the last piece."""
        with self._changed:
            if not self._ended:
                self._ended, self._error, self.last_s = True, error, time.perf_counter()
                self._changed.notify_all()

    def take(self) -> Any:
        """The next piece, as soon as there is one; END after the last. Raises what ended the work, each time."""
        with self._changed:
            self._takers += 1
            try:
                while not self._pieces and not self._ended:
                    self._changed.wait()
            finally:
                self._takers -= 1
            if not self._pieces:
                if self._error is not None:
                    raise self._error
                return END
            piece, was_full = self._pieces.popleft(), len(self._pieces) + 1 == self._room
        if was_full:
            self._room_again()
        return piece

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait for the end of the work; False if it did not come in time."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended, timeout_s)
