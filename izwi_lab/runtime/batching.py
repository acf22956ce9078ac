"""Batching: the engine's devices, and how a request becomes a job on one of them."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from izwi_lab.cancel import CancelToken
from izwi_lab.engine.admission import Admission, QueueLimits
from izwi_lab.engine.device import DeviceLoop
from izwi_lab.engine.job import Job
from izwi_lab.engine.lane import Lane, LaneOptions
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.engine.outbox import Outbox
from izwi_lab.engine.request import Priority
from izwi_lab.engine.timeline import Explanation, Timeline
from izwi_lab.errors import IzwiError, QueueFullError
from izwi_lab.families.shared.course import Ask, Course, Prefill

if TYPE_CHECKING:
    from izwi_lab.backends.base import Backend
    from izwi_lab.families.protocols import Model
    from izwi_lab.runtime.entry import ModelKey

T = TypeVar("T")


class Batching:
    """One loop a device, one lane a model. Safe to use from many threads. cache_bytes: see Lane."""

    def __init__(
        self, options: LaneOptions | None = None, queue: QueueLimits | None = None, *, cache_bytes: int | None = None
    ) -> None:
        self.options, self._cache_bytes = options or LaneOptions(), cache_bytes
        self.metrics, self.timeline, self.admission = EngineMetrics(), Timeline(), Admission(queue)
        self._guard = threading.Lock()
        self._names: dict[ModelKey, str] = {}
        self._loops: dict[tuple[str, str], DeviceLoop] = {}
        self._closed = False

    def loop(self, backend: Backend) -> DeviceLoop:
        """The loop of the device that a backend computes on."""
        key = (backend.name, backend.device)
        with self._guard:
            if key not in self._loops:
                self._loops[key] = DeviceLoop(f"izwi-{backend.name}-{backend.device}")
                if self._closed:
                    self._loops[key].close()
            return self._loops[key]

    def call(self, backend: Backend, work: Callable[[], T], token: CancelToken) -> T:
        """Run work that is no step: on the device's thread where arrays are bound to it, else here."""
        return self.loop(backend).call(work, token) if getattr(backend, "thread_bound", False) else work()

    def start(
        self,
        key: ModelKey,
        model: Model,
        course: Callable[[], Course],
        token: CancelToken,
        *,
        id: str,
        tenant: str = "",
        priority: Priority = Priority.NORMAL,
        audio_s: float = 0.0,
        ahead: int | None = None,
        on_end: Callable[[], None] = lambda: None,
    ) -> Outbox:
        """Queue a request; its pieces come out of the outbox. course: made here, and taken to what it asks for first.

        ahead: pieces that work may be ahead of its reader; None: it waits for nobody.
        Raises what the course does before it asks for anything, and QueueFullError. on_end is not called then.
        """
        loop = self.loop(model.backend)
        outbox = Outbox(room=ahead or sys.maxsize, room_again=loop.wake)
        job = self.call(
            model.backend, lambda: _begun(Job(id, course(), token, outbox, tenant, priority, on_end)), token
        )
        job.audio_s = audio_s
        if job.ask is None:  # it had nothing to ask
            on_end()
            outbox.end()
            return outbox
        tokens = len(job.ask.prompt) if isinstance(job.ask, Prefill) else 0
        try:
            job.ticket = self.admission.admit(tenant, tokens, now=time.perf_counter())
        except IzwiError as error:
            self.call(model.backend, job.course.close, token)
            if isinstance(error, QueueFullError):
                self.metrics.refuse(self._name(key, model))
            raise
        ticket = job.ticket

        def ended() -> None:  # perhaps before its turn; else this does nothing
            self.admission.leave(ticket, now=time.perf_counter(), started=False)
            on_end()

        job.on_end = ended
        loop.submit(job, lambda: self._lane(key, model), str(key))
        return outbox

    def explain(self, key: ModelKey) -> Explanation | None:
        """What ran on a model; None where nothing did."""
        loop = self._loops.get((key.backend, key.device))
        if loop is None:
            return None

        def ask() -> Explanation | None:
            lane = loop.lane(str(key))
            return lane.explain() if lane is not None else None

        return loop.call(ask, CancelToken())

    def nbytes(self, key: ModelKey) -> int:
        """Bytes of a model's caches."""
        loop = self._loops.get((key.backend, key.device))
        lane = loop.lane(str(key)) if loop is not None else None
        return lane.nbytes if lane is not None else 0

    def drop(self, key: ModelKey) -> None:
        """Let go of what a model holds here, before it is closed."""
        loop = self._loops.get((key.backend, key.device))
        if loop is not None:
            loop.drop(str(key))

    def close(self) -> None:
        """End all jobs and all threads."""
        with self._guard:
            self._closed = True
            loops = list(self._loops.values())
        for loop in loops:
            loop.close()

    def _name(self, key: ModelKey, model: Model) -> str:
        """What metrics and timelines call a model: its id, with more of its key where another has that."""
        with self._guard:
            taken = {name for other, name in self._names.items() if other != key}
            name = model.variant.id
            if name in taken:
                name = f"{name} ({key.dtype} on {key.backend} {key.device})"
            if name in taken:
                name = str(key)
            self._names[key] = name
            return name

    def _lane(self, key: ModelKey, model: Model) -> Lane:
        return Lane(
            self._name(key, model),
            model,
            self.options,
            cache_bytes=self._cache_bytes,
            metrics=self.metrics,
            timeline=self.timeline,
            admission=self.admission,
        )


def _begun(job: Job) -> Job:
    """A job at what its course asks for first; at None where it ended without asking."""
    for item in job.course:
        if isinstance(item, Ask):
            job.ask = item
            break
        job.outbox.put(item)
    return job
