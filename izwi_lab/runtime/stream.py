"""Stream: the pieces of one request as they are made. Closing it stops the work and lets the model go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Generic, TypeVar

from izwi_lab.cancel import CancelToken
from izwi_lab.engine.outbox import END, Outbox
from izwi_lab.errors import Cancelled
from izwi_lab.results import Timing

T = TypeVar("T")


class Stream(Generic[T]):
    """An iterator over the pieces of one answer, bound to the model that makes them.

    The engine works ahead of the reader, by a few pieces where they are large. When the work is cancelled or late,
    `next()` raises Cancelled; a chat ends instead with a piece whose finish_reason is "cancelled". The end, an error,
    `close()`, leaving a `with` block or losing the last reference stops the work and releases the model. `close()` may
    be called from any thread; a reader on another one then gets Cancelled, so that it cannot take what it has for the
    whole.

    >>> with engine.stream_speak("Hello there.") as chunks:    # doctest: +SKIP
    ...     for chunk in chunks:
    ...         player.play(chunk.audio)
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        token: CancelToken,
        model: str,
        backend: str,
        measure: Callable[[T], tuple[float, int]],
        engine: object = None,
    ) -> None:
        self.model, self.backend = model, backend
        self._engine = engine  # who holds only the stream still wants the whole answer
        self._outbox, self._token, self._measure = outbox, token, measure
        self._closed = False
        self._whole = False  # the work had ended when it was closed: what was made is still there to be read
        self._closed_by: int | None = None  # the thread that called close() before the end was reached
        self._audio_s = 0.0
        self._tokens = 0

    def __iter__(self) -> Stream[T]:
        return self

    def __next__(self) -> T:
        if self._closed and not (self._whole and len(self._outbox)):
            if self._closed_by not in (None, threading.get_ident()) and not self._whole:
                raise Cancelled("The stream was closed before its end, by another thread.")
            raise StopIteration
        try:
            piece = self._outbox.take()
        except BaseException:
            self._stop()
            raise
        if piece is END:
            if self._closed_by is not None and not self._whole:
                raise Cancelled("The stream was closed before its end, by another thread.")
            self._closed = True
            raise StopIteration
        audio_s, tokens = self._measure(piece)
        self._audio_s += audio_s
        self._tokens += tokens
        found: T = piece
        return found

    @property
    def timing(self) -> Timing:
        """Seconds so far, of what was read: a slow reader does not count, loading neither."""
        began, first = self._outbox.started_s, self._outbox.first_s
        if first is None:
            return Timing()
        total = self._outbox.last_s - began
        return Timing(total, first - began, 0.0, self._outbox.last_s - first, self._audio_s, 0, self._tokens)

    @property
    def closed(self) -> bool:
        """True once the end was reached or the work was stopped."""
        return self._closed

    def close(self) -> None:
        """Stop the work after its current step and release the model. What it made is lost, unless that was all."""
        if not self._closed:
            self._closed_by, self._whole = threading.get_ident(), self._outbox.ended
            self._stop()

    def _stop(self) -> None:
        self._closed = True
        stop(self._outbox, self._token)

    def __del__(self) -> None:
        token = getattr(self, "_token", None)
        if token is not None and not self._closed:
            token.cancel()  # the work ends at its next step; nothing waits here, where the collector may run

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def read(outbox: Outbox, token: CancelToken) -> Iterator[Any]:
    """All pieces of an outbox, once it has ended: nobody is woken for each of them, while the device computes.

    A reader that is interrupted stops the work, and waits until nothing of it runs.
    """
    try:
        outbox.wait()
        while (piece := outbox.take()) is not END:
            yield piece
    finally:
        if not outbox.ended:
            stop(outbox, token)


def stop(outbox: Outbox, token: CancelToken) -> None:
    """End the work behind an outbox after its current step; returns when nothing of it runs any more."""
    if outbox.ended:
        return
    token.cancel()
    outbox.wait()
