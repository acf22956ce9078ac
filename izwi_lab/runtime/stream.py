"""Stream: the pieces of one request as they are made. Closing it stops the work and lets the model go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Generic, TypeVar

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled
from izwi_lab.results import Timing
from izwi_lab.runtime.executor import Executor
from izwi_lab.runtime.registry import Lease

T = TypeVar("T")
_END = object()


class Stream(Generic[T]):
    """An iterator over the pieces of one answer, bound to the model that makes them.

    Work happens only inside `next()`. When it is cancelled or late, `next()` raises Cancelled; a chat ends instead with
    a piece whose finish_reason is "cancelled". The end, an error, `close()`, leaving a `with` block or losing the last
    reference stops the work and releases the model. `close()` may be called from any thread; a reader on another one
    then gets Cancelled, so that it cannot take what it has for the whole.

    >>> with engine.stream_speak("Hello there.") as chunks:    # doctest: +SKIP
    ...     for chunk in chunks:
    ...         player.play(chunk.audio)
    """

    def __init__(
        self,
        pieces: Callable[[], Iterator[T]],
        *,
        lease: Lease,
        executor: Executor,
        token: CancelToken,
        backend: str,
        measure: Callable[[T], tuple[float, int]],
    ) -> None:
        self.model = lease.variant.id
        self.backend = backend
        self._pieces = pieces
        self._iterator: Iterator[T] | None = None
        self._lease, self._executor, self._token, self._measure = lease, executor, token, measure
        self._turn = threading.Lock()
        self._closed = False
        self._closed_by: int | None = None  # the thread that called close() before the end was reached
        self._busy_s = self._first_s = self._audio_s = 0.0
        self._tokens = self._count = 0

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        with self._turn:
            if self._closed:
                if self._closed_by not in (None, threading.get_ident()):
                    raise Cancelled("The stream was closed before its end, by another thread.")
                raise StopIteration
            began = time.perf_counter()
            try:
                piece = self._executor.run(self._next, self._token)
            except BaseException:
                self._finish()
                raise
            finally:
                self._busy_s += time.perf_counter() - began
            if piece is _END:
                self._finish()
                raise StopIteration
            self._note(piece)  # type: ignore[arg-type]
            return piece  # type: ignore[return-value]

    def _next(self) -> T | object:
        if self._iterator is None:
            self._token.check()
            self._iterator = iter(self._pieces())
        return next(self._iterator, _END)

    def _note(self, piece: T) -> None:
        if not self._count:
            self._first_s = self._busy_s
        self._count += 1
        audio_s, tokens = self._measure(piece)
        self._audio_s += audio_s
        self._tokens += tokens

    @property
    def timing(self) -> Timing:
        """Seconds so far. Only time spent inside `next()` counts: neither loading nor a slow reader does."""
        after_first = max(0.0, self._busy_s - self._first_s)
        return Timing(self._busy_s, self._first_s, 0.0, after_first, self._audio_s, 0, self._tokens)

    @property
    def closed(self) -> bool:
        """True once the end was reached or the work was stopped."""
        return self._closed

    def close(self) -> None:
        """Stop the work after its current step and release the model."""
        self._token.cancel()
        with self._turn:
            if not self._closed:
                self._closed_by = threading.get_ident()
            self._finish()

    def _finish(self) -> None:
        if self._closed:
            return
        self._closed = True
        stop = getattr(self._iterator, "close", None)
        try:
            if stop is not None:
                with suppress(Cancelled):  # the thread it ran on is gone, and the work with it
                    self._executor.run(stop, self._token)
        finally:
            self._iterator = None
            self._lease.release()

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
