"""Aside: work of a model that is no step of a sequence: done alone, or together where the model can share it."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING, Any, cast

from izwi_lab.engine.job import Job
from izwi_lab.engine.plan import Limits
from izwi_lab.families.protocols import SharingModel
from izwi_lab.families.shared.blame import tried
from izwi_lab.families.shared.course import Alone, Shared

if TYPE_CHECKING:
    from izwi_lab.families.protocols import Model

_AGEING_S = Limits().ageing_s


class Aside:
    """The jobs whose asks are met one after the other, those of one kind together. Who is not read from waits."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._jobs: deque[Job] = deque()

    @property
    def ready(self) -> bool:
        """True if there is something to do now."""
        return any(not job.outbox.full for job in self._jobs)

    def add(self, job: Job) -> None:
        """A job that asks for such work."""
        job.turn_s = time.perf_counter()
        self._jobs.append(job)

    def discard(self, job: Job) -> None:
        """It asks no more."""
        if job in self._jobs:
            self._jobs.remove(job)

    def take(self) -> list[Job]:
        """The first in the order of service, with others whose asks are of its kind, as many as the model shares."""
        asking = sorted((job for job in self._jobs if not job.outbox.full), key=_rank)
        taken, first, weight = asking[:1], asking[0].ask, 0
        if isinstance(first, Shared):
            most, taken = cast(SharingModel, self._model).share_limit(first.kind), []
            for job in asking:
                if not isinstance(ask := job.ask, Shared) or ask.kind != first.kind:
                    continue
                if taken and weight + ask.weight > most:
                    break
                taken.append(job)
                weight += ask.weight
        for job in taken:
            self._jobs.remove(job)
        return taken

    def meet(self, jobs: list[Job]) -> list[Any]:
        """What each of them asked for, or the Exception that it met instead."""
        return tried(jobs, self._met)

    def _met(self, jobs: list[Job]) -> list[Any]:
        if isinstance(first := jobs[0].ask, Alone):
            return [first.work()]
        items = [cast(Shared, job.ask).item for job in jobs]
        return list(cast(SharingModel, self._model).share(cast(Shared, first).kind, items))


def _rank(job: Job) -> float:
    """The order of the Roster: arrival, some seconds earlier for each level of priority. Who just had a turn waits."""
    return job.turn_s - _AGEING_S * job.priority


def kind_of(job: Job) -> str:
    """What the work is called that a job asks for."""
    return job.ask.kind if isinstance(job.ask, Shared) else "alone"
