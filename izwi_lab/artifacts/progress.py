"""How far a fetch is: a Meter that the workers feed, a frozen Progress that anyone may read."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from izwi_lab.cancel import CancelToken

_WINDOW_S = 6.0
_SETTLED_S = 0.5  # a rate over less than this says nothing


class State(StrEnum):
    """What a job is doing. The last three are final."""

    QUEUED = "queued"
    WAITING = "waiting"  # for another process that is fetching the same model
    DOWNLOADING = "downloading"
    VERIFYING = "verifying"  # assembling, hashing, linking
    DONE = "done"
    ERROR = "error"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """True when nothing will change any more."""
        return self in (State.DONE, State.ERROR, State.CANCELLED)


@dataclass(frozen=True, slots=True)
class Progress:
    """One reading. rate_bytes_s is over the last seconds and without what was already here; eta_s None if unknown."""

    state: State
    bytes_done: int = 0
    bytes_total: int = 0
    files_done: int = 0
    files_total: int = 0
    current_file: str = ""
    rate_bytes_s: float = 0.0
    eta_s: float | None = None
    error: str = ""

    @property
    def fraction(self) -> float:
        """Bytes done as 0..1."""
        return min(1.0, self.bytes_done / self.bytes_total) if self.bytes_total else float(self.state is State.DONE)


class Meter:
    """Counts for one job. Thread-safe; every count call also ends the work when it was cancelled."""

    def __init__(self, cancel: CancelToken, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.cancel = cancel
        self._clock = clock
        self._lock = threading.Lock()
        self._parts: dict[str, int] = {}
        self._finished: set[str] = set()
        self._totals = (0, 0)
        self._moved_bytes = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._now = Progress(State.QUEUED)
        self._current = ""

    def check(self) -> None:
        """Raise Cancelled when the job should stop."""
        self.cancel.check()

    def state(self, state: State, error: str = "") -> None:
        """Enter a state."""
        with self._lock:
            self._now = Progress(state, error=error)

    def plan(self, bytes_total: int, files_total: int) -> None:
        """How much there is to do, including what is already here."""
        with self._lock:
            self._totals = (bytes_total, files_total)

    def now(self, part: str) -> None:
        """What is being worked on, for display."""
        with self._lock:
            self._current = part

    def kept(self, part: str, bytes_done: int) -> None:
        """A part that was already here: counts as done, not as speed."""
        with self._lock:
            self._parts[part] = bytes_done
            self._finished.add(part)

    def at(self, part: str, bytes_done: int, *, resumed_bytes: int = 0) -> None:
        """A part has come this far; resumed_bytes of it were here before the job began."""
        self.check()
        with self._lock:
            before = self._parts.get(part, resumed_bytes)
            self._moved_bytes += max(0, bytes_done - before)
            self._parts[part] = bytes_done
            self._current = part
            now = self._clock()
            self._samples.append((now, self._moved_bytes))
            while self._samples[0][0] < now - _WINDOW_S:
                self._samples.popleft()

    def finished(self, part: str, bytes_done: int) -> None:
        """A part is complete."""
        self.at(part, bytes_done)
        with self._lock:
            self._finished.add(part)

    def read(self) -> Progress:
        """The state of things now."""
        with self._lock:
            done = sum(self._parts.values())
            total = max(self._totals[0], done)
            rate = self._rate()
            if self._now.state is State.DONE:
                total = done
            moving = self._now.state is State.DOWNLOADING and rate > 0
            return Progress(
                self._now.state,
                done,
                total,
                len(self._finished),
                max(self._totals[1], len(self._finished)),
                "" if self._now.state.final else self._current,
                rate if moving else 0.0,
                (total - done) / rate if moving else None,
                self._now.error,
            )

    def _rate(self) -> float:
        if len(self._samples) < 2:
            return 0.0
        (start, first), (_, last) = self._samples[0], self._samples[-1]
        elapsed = self._clock() - start
        return (last - first) / elapsed if elapsed >= _SETTLED_S else 0.0
