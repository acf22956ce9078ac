"""DeviceLoop: the one thread that owns a device. It shares the device between models, a step at a time."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from izwi_lab.cancel import CancelToken
from izwi_lab.engine.fair import FairShare
from izwi_lab.engine.job import Job
from izwi_lab.engine.lane import Lane
from izwi_lab.errors import Cancelled, IzwiError

T = TypeVar("T")
_log = logging.getLogger(__name__)
_POLL_S = 0.02  # how soon a token is looked at whose job waits for its reader


class DeviceLoop:
    """Runs the steps of all models of a device, and other work on it, on a thread of its own.

    The thread starts with the first work, and ends with `close` or with Python.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._changed = threading.Condition()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._lanes: dict[str, Lane] = {}
        self._fair = FairShare()
        self._thread: threading.Thread | None = None
        self._closing, self._process = False, os.getpid()

    def __repr__(self) -> str:
        return f"DeviceLoop({self.name}: {sum(map(len, self._lanes.values()))} jobs of {len(self._lanes)} models)"

    def call(self, work: Callable[[], T], token: CancelToken) -> T:
        """Run `work` between two steps and give its value or error to the caller, who waits; at once on this thread.

        If the waiting caller is interrupted, `token` is cancelled and the work ends first.
        """
        if threading.current_thread() is self._thread:
            return work()
        future: Future[T] = Future()
        self._ask(work, future)
        try:
            return future.result()
        except KeyboardInterrupt:
            token.cancel()  # a model must not be let go while a step still reads it
            if not future.cancel():
                future.exception()
            raise

    def submit(self, job: Job, lane: Callable[[], Lane], name: str) -> None:
        """Take a job on. lane: makes the lane `name` if there is none; on the device's thread."""

        def add() -> None:
            try:
                if name not in self._lanes:
                    self._lanes[name] = lane()
                    self._fair.add(name)
                self._lanes[name].add(job)
                self._lanes[name].settle()
            except Exception as error:  # options that fit no model
                job.course.close()
                job.end(error)

        self._ask(add, Future())

    def wake(self) -> None:
        """Something may be ready that was not: a reader took a piece, a token was cancelled."""
        with self._changed:
            self._changed.notify_all()

    def lane(self, name: str) -> Lane | None:
        """The lane of a model, if it has one."""
        return self._lanes.get(name)

    def drop(self, name: str) -> None:
        """Let go of a model's lane; waits for the step under way. Jobs that are left end with an error."""

        def drop() -> None:
            lane = self._lanes.pop(name, None)
            if lane is not None:
                self._fair.remove(name)
                lane.close(lambda: Cancelled("The model was unloaded."))
                lane.settle()

        if self._thread is not None and not self._closing:
            with suppress(Cancelled):  # closed meanwhile: it dropped all
                self.call(drop, CancelToken())

    def close(self) -> None:
        """Finish what was called for, end all jobs, end the thread."""
        if os.getpid() != self._process:
            return
        with self._changed:
            self._closing = True
            thread = self._thread
            self._changed.notify_all()
        if thread is not None and thread is not threading.current_thread():
            native_id = thread.native_id
            thread.join()
            _wait_for_the_end(native_id)

    # on the thread

    def _ask(self, work: Callable[[], Any], future: Future[Any]) -> None:
        with self._changed:
            if self._closing:
                raise Cancelled("The device's thread has ended.", hint="Make a new InferenceEngine.")
            self._calls.append((work, future))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
                _OPEN.add(self)
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._calls and not self._closing and not self._ready():
                    self._changed.wait(_POLL_S if any(map(len, self._lanes.values())) else None)
                calls, closing = list(self._calls), self._closing
                self._calls.clear()
            for work, future in calls:
                _answer(work, future)
            if closing:
                break
            self._turn()
        for lane in self._lanes.values():
            lane.close(lambda: Cancelled("The engine was closed."))
            lane.settle()
        self._lanes.clear()

    def _ready(self) -> list[str]:
        return [name for name, lane in self._lanes.items() if lane.ready]

    def _turn(self) -> None:
        """One step of the model whose turn it is."""
        for name, lane in list(self._lanes.items()):
            self._guarded(name, lane.stop_cancelled)
        chosen = self._fair.choose(self._ready())
        if chosen is not None:
            began = time.perf_counter()
            self._guarded(chosen, self._lanes[chosen].step)
            self._fair.charge(chosen, time.perf_counter() - began)

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """Nothing that a request does may end up here; if it does, the requests of its model end, and no others.

        The next request makes a new lane: nobody knows what state this one is in.
        """
        lane = self._lanes[name]
        try:
            work()
        except Exception as error:
            _log.exception("a step of %s failed; its requests end", name)
            del self._lanes[name]
            self._fair.remove(name)
            said = f"A step failed: {type(error).__name__}: {error}"
            lane.close(lambda: IzwiError(said, hint="This is a fault of izwi_lab; the log has its traceback."))
        lane.settle()


_OPEN: weakref.WeakSet[DeviceLoop] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A thread that is inside a framework while Python takes it down may crash: end them before."""
    for loop in list(_OPEN):
        loop.close()


def _answer(work: Callable[[], Any], future: Future[Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        value = work()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(value)


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
