"""Executors: on which thread a model's steps run. This is the seam where continuous batching goes in.

torch computes on the caller's thread, so requests run side by side. MLX ties unfinished arrays to the thread that
made them, so all work of one MLX device runs on one thread; streams hand it one step at a time and so take turns.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

from izwi_lab.backends.base import Backend
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled

T = TypeVar("T")


class Executor(Protocol):
    """Runs a piece of work and gives its value or its exception to the caller, who waits."""

    def run(self, work: Callable[[], T], token: CancelToken) -> T:
        """Run `work`. If the waiting caller is interrupted, `token` is cancelled and the work ends first."""

    def close(self) -> None:
        """Let the work under way finish, then take no more."""


class CallerThread:
    """Work runs where it is asked for."""

    def run(self, work: Callable[[], T], token: CancelToken) -> T:
        """Run `work` here."""
        return work()

    def close(self) -> None:
        """Nothing to stop."""


class DeviceThread:
    """Work of one device runs on one thread, in the order it was asked for."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name, initializer=self._remember)
        self._ident: int | None = None
        self._native_id: int | None = None

    def _remember(self) -> None:
        self._ident, self._native_id = threading.get_ident(), threading.get_native_id()

    def run(self, work: Callable[[], T], token: CancelToken) -> T:
        """Run `work` on the device's thread; at once when called from there."""
        if threading.get_ident() == self._ident:
            return work()
        try:
            future = self._pool.submit(work)
        except RuntimeError:  # closed, or Python is ending and has stopped all pools
            raise Cancelled("The device's thread has ended.", hint="Make a new InferenceEngine.") from None
        try:
            return future.result()
        except KeyboardInterrupt:
            # The model must not be let go while a step still reads it.
            token.cancel()
            if not future.cancel():
                future.exception()
            raise

    def close(self) -> None:
        """Finish what is queued and end the thread."""
        if threading.get_ident() != self._ident:
            self._pool.shutdown()
            _wait_for_the_end(self._native_id)


def _wait_for_the_end(native_id: int | None) -> None:
    """Wait until the operating system has ended a thread that Python has already joined.

    MLX keeps compiled functions per thread and drops them, taking Python's lock, when the thread ends: after the join.
    If Python is ending by then, the process aborts.
    """
    if native_id is None:
        return
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():  # macOS does not list threads; what is left to do there takes microseconds
        time.sleep(0.05)
        return
    end_s = time.monotonic() + 5.0
    while (tasks / str(native_id)).exists() and time.monotonic() < end_s:
        time.sleep(0.001)


class Executors:
    """One executor per device that needs its own thread; the caller's thread for all others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._threads: dict[tuple[str, str], DeviceThread] = {}
        self._here = CallerThread()

    def of(self, backend: Backend) -> Executor:
        """The executor that work on `backend` must use."""
        if not getattr(backend, "thread_bound", False):
            return self._here
        key = (backend.name, backend.device)
        with self._lock:
            if key not in self._threads:
                self._threads[key] = DeviceThread(f"izwi-{backend.name}-{backend.device}")
            return self._threads[key]

    def close(self) -> None:
        """End all device threads."""
        with self._lock:
            threads = list(self._threads.values())
            self._threads.clear()
        for thread in threads:
            thread.close()
