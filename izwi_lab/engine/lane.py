"""Lane: the requests of one model, and the steps that take them on together. Everything here runs on one thread.

A job's course asks for steps (`families/shared/course.py`). Prefills and decodes become sequences of the scheduler,
whose plans are carried out as one pass of the model; what cannot be shared is done alone, in turns with the passes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from izwi_lab.engine.admission import Admission
from izwi_lab.engine.aside import Aside, kind_of
from izwi_lab.engine.batch import Batch
from izwi_lab.engine.block_view import BlockMap, PrefixTree
from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.job import Job
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.engine.pace import LEAST, Pace
from izwi_lab.engine.plan import Piece, Plan, Policy, Result
from izwi_lab.engine.request import FinishReason, Request, Sequence, Sharing
from izwi_lab.engine.scheduler import Scheduler
from izwi_lab.engine.slots import SlotManager
from izwi_lab.engine.tables import StateManager
from izwi_lab.engine.timeline import Explanation, StepRecord, Timeline
from izwi_lab.errors import Cancelled, InvalidInputError, IzwiError
from izwi_lab.families.protocols import BatchModel
from izwi_lab.families.shared.course import Alone, Ask, Decode, Prefill, Shared
from izwi_lab.results import AudioChunk

if TYPE_CHECKING:
    from izwi_lab.families.protocols import Model
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.families.shared.steps import Session

_IDLE_S = 0.01  # until a pass that had nothing to do is tried again
_SLOT_BYTES = 1  # what one slot's state takes is known only when it has grown
_LEAST = {"sequences": 1, "block": 1, "step_tokens": LEAST, "positions": 1, "kv_bytes": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneOptions:
    """How the requests of a model share a device.

    sequences: in one step at most. block: positions of one. step_s: seconds that a step with prompts should take.
    step_tokens: of prompts in one step at most. positions: of a sequence that there is always room for; None: as many
    as the model's context. kv_bytes: of keys and values in all, if that is more; what does not fit is refused.
    """

    sequences: int = 32
    block: int = 16
    step_s: float = 0.025
    step_tokens: int = 512
    positions: int | None = None
    kv_bytes: int = 4_000_000_000
    policy: Policy = Policy.PRIORITY

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if (value is not None or name != "positions") and (type(value) is not int or value < least):
                raise InvalidInputError(f"LaneOptions: {name} must be a whole number from {least}, got {value!r:.80}.")
        if self.policy not in list(Policy):
            raise InvalidInputError(f"LaneOptions: policy must be one of {[p.value for p in Policy]}.")
        if isinstance(self.step_s, bool) or not isinstance(self.step_s, (int, float)) or not 0 < self.step_s < math.inf:
            raise InvalidInputError(
                f"LaneOptions: step_s must be a number of seconds above 0, got {self.step_s!r:.80}."
            )


class Lane:
    """One model's jobs. name: of the model, in metrics and timeline.

    cache_bytes: of the caches, for what nobody uses but a later prompt may begin with; None: as long as there is room.
    """

    def __init__(
        self,
        name: str,
        model: Model,
        options: LaneOptions,
        *,
        cache_bytes: int | None,
        metrics: EngineMetrics,
        timeline: Timeline,
        admission: Admission,
    ) -> None:
        self.name, self.model, self.options = name, model, options
        self.metrics, self._timeline, self._admission = metrics, timeline, admission
        self._pace = Pace(options.step_s, most=options.step_tokens)
        blocks = _state_manager(model, options, cache_bytes)
        self.scheduler = Scheduler(
            options.policy, self._pace.limits(sequences=options.sequences, answering=False), blocks
        )
        self._batch = Batch(model, blocks) if isinstance(model, BatchModel) else None
        self._jobs: dict[str, Job] = {}  # all of them
        self._reading: dict[str, tuple[Job, Session]] = {}  # by the id of their sequence
        self._aside = Aside(model)
        self._finished: list[tuple[Job, Exception | None]] = []  # their readers are still to be told
        self._passes_next = True
        self._owes = False  # what ended without a step is still to be counted
        self._idle_until_s = 0.0  # after a pass that had nothing to do: readers are to take what there is
        self.nbytes = 0  # of the caches, as others may read it

    def __len__(self) -> int:
        """Jobs under way."""
        return len(self._jobs)

    @property
    def ready(self) -> bool:
        """True if there is something to do now."""
        return bool(self._passes or self._aside.ready)

    @property
    def _passes(self) -> bool:
        """Whether a pass may have something to do: sequences whose readers keep up, or ends that are to be counted."""
        if self._owes:
            return True
        if time.perf_counter() < self._idle_until_s:
            return False
        return len(self.scheduler) > len(self._held())

    def _held(self) -> set[str]:
        """The sequences that wait for the readers of their jobs."""
        return {i for i, (job, _) in self._reading.items() if job.outbox.full}

    def add(self, job: Job) -> None:
        """A new request, which asks for something already."""
        while job.id in self._jobs:
            job.id += "'"
        self._jobs[job.id] = job
        self._idle_until_s = 0.0
        self._met(job)

    def stop_cancelled(self) -> None:
        """End what its caller does not want any more, or what is late."""
        for job in [job for job in self._jobs.values() if job.token.cancelled]:
            try:
                job.token.check()
            except Cancelled as error:
                self._interrupt(job, error)

    def step(self) -> None:
        """One pass over sequences, or one piece of other work; in turns where there are both."""
        if self._aside.ready and not (self._passes_next and self._passes):
            self._passes_next = True
            self._do_aside()
        else:
            self._passes_next = False
            self._pass()

    def settle(self) -> None:
        """Tell the readers of what ended. Models may leave with it, this one too."""
        finished, self._finished = self._finished, []
        for job, error in finished:
            self._count(job, error)
            job.end(error)

    def explain(self) -> Explanation:
        """What ran, where everything lies, and what later prompts would find."""
        blocks = self.scheduler.blocks
        steps = self._timeline.steps(model=self.name)
        return Explanation(steps, BlockMap.of(blocks, self.scheduler.running), PrefixTree.of(blocks))

    def close(self, error: Callable[[], Exception]) -> None:
        """End all jobs, each with an error of its own."""
        for job in list(self._jobs.values()):
            self._interrupt(job, error())
        self.metrics.forget(self.name)

    # a pass over the model

    def _pass(self) -> None:
        self._owes = False
        answering = any(sequence.decoding for sequence in self.scheduler.running)
        self.scheduler.limits = self._pace.limits(sequences=self.options.sequences, answering=answering)
        plan = self.scheduler.plan(time.perf_counter(), held=self._held())
        self._let_go(plan)
        if not plan or self._batch is None:
            self._idle_until_s = time.perf_counter() + _IDLE_S
            self.nbytes = self._batch.nbytes if self._batch is not None else 0
            self.metrics.stepped(self.name, plan, (), self.scheduler, seconds=0.0, now=time.perf_counter())
            return
        for piece in plan.pieces:
            self._admit(piece.sequence)
        began = time.perf_counter()
        found = self._batch.run(plan, {piece.sequence.id: self._step_of(piece) for piece in plan.pieces})
        if found is None:
            now = time.perf_counter()
            ended = self.scheduler.out_of_memory(plan, now=now)
            self._batch.keep_to_what_there_is()
            for sequence in ended:
                self._ended_without(sequence)
        else:
            results = {i: result for i, step in found.items() if (result := self._told(i, step)) is not None}
            now = time.perf_counter()
            ended = self.scheduler.done(plan, results, now=now)
            for sequence in ended:
                self._ended(sequence)
        self._note(plan, ended, began, now, computed=found is not None)

    def _let_go(self, plan: Plan) -> None:
        """Who gave up their blocks, or ended without a step."""
        for sequence in plan.preempted:
            if sequence.id in self._reading and self._batch is not None:
                self._batch.forget(self._reading[sequence.id][1])
        for sequence in plan.finished:
            self._ended_without(sequence)

    def _ended(self, sequence: Sequence) -> None:
        """A sequence ended with a step, which its course knows; one that does not would wait for ever."""
        job = self._forget(sequence)
        if job is not None and isinstance(job.ask, Decode):
            self._answer(job, IzwiError(f"{job.ask!r:.80} came after the end of its sequence: {sequence}."))

    def _ended_without(self, sequence: Sequence) -> None:
        """A sequence ended though its course goes on: late, or too large for the memory there is."""
        job = self._forget(sequence)
        if job is not None:
            error = sequence.error or Cancelled("The work ran past its deadline.", hint="Give it a longer timeout_s.")
            self._answer(job, error)

    def _told(self, sequence_id: str, step: Any) -> Result | None:
        """Give a job its step, and see what it says: the next token, or the end."""
        job, session = self._reading[sequence_id]
        ask, sequence = job.ask, job.sequence
        if isinstance(step, Exception):
            self._answer(job, step)
            return Result(error=step)
        if step is None:
            return None
        assert sequence is not None
        if isinstance(ask, Prefill):
            ask.cached = sequence.cached
        error = self._answer(job, step)
        token = session.tokens[-1] if len(session.tokens) > sequence.said else None
        if isinstance(job.ask, Decode) and job.sequence is sequence:
            return Result(token=token)  # if it was cancelled just now, too: `stop_cancelled` tells its course before
        if job.token.cancelled:
            return Result(finish=FinishReason.CANCELLED)
        if error is not None:
            return Result(error=error)
        job.reason = FinishReason.LENGTH if session.finish_reason == "length" else FinishReason.STOP
        return Result(token=token, finish=job.reason)

    def _step_of(self, piece: Piece) -> tuple[Session, Sampling | None]:
        """Whose step a piece is, and what a model is told of the choices inside it."""
        job, session = self._reading[piece.sequence.id]
        return session, job.ask.sampling if isinstance(job.ask, Decode) else None

    def _admit(self, sequence: Sequence) -> None:
        """It has its place in the batch now."""
        if sequence.id in self._reading:
            self._leave_queue(self._reading[sequence.id][0])

    def _note(self, plan: Plan, ended: tuple[Sequence, ...], began: float, now: float, *, computed: bool) -> None:
        seconds = now - began
        self.nbytes = self._batch.nbytes if self._batch is not None else 0
        if computed:
            prefill = sum(p.count for p in plan.pieces if not p.decode)
            self._pace.learn(prefill=prefill, answering=any(p.decode for p in plan.pieces), seconds=seconds)
        for piece in plan.pieces:
            if piece.sequence.id in self._reading:
                self._reading[piece.sequence.id][0].work_s += seconds
        self.metrics.stepped(self.name, plan, ended, self.scheduler, seconds=seconds, now=now)
        stats = self.scheduler.blocks.stats()
        self._timeline.add(StepRecord.of(self.name, plan, ended, stats, start_s=began, seconds=seconds))

    # jobs

    def _answer(self, job: Job, met: Any) -> Exception | None:
        """Give a job what it asked for, or the Exception that came instead; the error that it ended with.

        It goes on to what it asks for next, or to its end.
        """
        job.ask = None
        try:
            item = job.course.throw(met) if isinstance(met, Exception) else job.course.send(met)
            while not isinstance(item, Ask):
                self._put(job, item)
                item = next(job.course)
        except StopIteration:
            self._finish(job, None)
            return None
        except Exception as error:
            self._finish(job, error)
            return error
        job.ask = item
        self._met(job)
        return None

    def _put(self, job: Job, piece: Any) -> None:
        if isinstance(piece, AudioChunk):
            if not job.audio_s:
                self.metrics.first_audio(self.name, time.perf_counter() - job.outbox.started_s)
            job.audio_s += piece.audio.duration_s
        job.outbox.put(piece)

    def _met(self, job: Job) -> None:
        """See that what a job asks for is done in some later step."""
        ask = job.ask
        if isinstance(ask, (Alone, Shared)):
            self._aside.add(job)
        elif isinstance(ask, Prefill):
            try:
                self._open(job, ask)
            except Exception as error:
                self._answer(job, error)
        elif job.sequence is None or not isinstance(ask, Decode) or ask.session is not self._session(job):
            self._answer(job, IzwiError(f"A course asked for {ask!r:.80}, which nobody prefilled."))

    def _open(self, job: Job, ask: Prefill) -> None:
        assert self._batch is not None
        held = self._batch.enter(ask.session, ask.prompt)
        job.prefills += 1
        request = Request(
            id=f"{job.id}/{job.prefills}",
            prompt=tuple(ask.session.prompt_ids),
            # The course ends it, not the scheduler: what is said last is not read, nor the frame that is made last.
            max_new_tokens=max(1, min(ask.most, self._batch.max_positions + 1 - len(ask.session.prompt_ids)) + 1),
            arrival_s=time.perf_counter() if job.prefills > 1 else job.outbox.started_s,
            model=self.name,
            tenant=job.tenant,
            priority=job.priority,
            sharing=Sharing.NOTHING if ask.repeatable else Sharing.ALL,
        )
        sequence = self.scheduler.add(request)
        sequence.table.held = held
        job.sequence = sequence
        self._reading[sequence.id] = job, ask.session

    def _do_aside(self) -> None:
        """What a job asks for that is no step, with those who ask for the same kind."""
        jobs = self._aside.take()
        kind, began = kind_of(jobs[0]), time.perf_counter()
        names = tuple(job.id for job in jobs)
        for job in jobs:
            self._leave_queue(job)
        for job, met in zip(jobs, self._aside.meet(jobs), strict=True):
            self._answer(job, met)
        blocks, seconds = self.scheduler.blocks.stats(), time.perf_counter() - began
        for job in jobs:
            job.work_s += seconds
        ended = tuple(name for name in names if name not in self._jobs)
        self._timeline.add(StepRecord.aside(self.name, kind, names, ended, blocks, start_s=began, seconds=seconds))

    def _interrupt(self, job: Job, error: Exception) -> None:
        if job.sequence is not None:
            self._owes = self.scheduler.cancel(job.sequence.id) or self._owes
            self._forget(job.sequence)
        self._aside.discard(job)
        self._answer(job, error)
        if job.id in self._jobs:  # it caught the error and asks for more
            job.course.close()
            self._finish(job, error)

    def _forget(self, sequence: Sequence) -> Job | None:
        """A sequence is over; its job, which may go on."""
        job, session = self._reading.pop(sequence.id, (None, None))
        if session is not None and self._batch is not None:
            self._batch.forget(session)
        if job is not None and job.sequence is sequence:
            job.sequence = None
        return job

    def _session(self, job: Job) -> Session | None:
        return None if job.sequence is None else self._reading[job.sequence.id][1]

    def _finish(self, job: Job, error: Exception | None) -> None:
        if self._jobs.pop(job.id, None) is not None:
            self._finished.append((job, error))

    def _count(self, job: Job, error: Exception | None) -> None:
        reason = FinishReason.STOP if job.reason is None else job.reason
        if job.token.cancelled:
            reason = FinishReason.TIMEOUT if job.token.late else FinishReason.CANCELLED
        elif error is not None:
            reason = FinishReason.ERROR
        self.metrics.finished(self.name, reason, time.perf_counter() - job.outbox.started_s)
        if job.audio_s and error is None:
            self.metrics.audio(self.name, job.audio_s, job.work_s)

    def _leave_queue(self, job: Job) -> None:
        if job.ticket is not None:
            self._admission.leave(job.ticket, now=time.perf_counter())
            job.ticket = None


def _state_manager(model: Model, options: LaneOptions, cache_bytes: int | None) -> StateManager:
    """Blocks where a model's states can be paged, else as many slots as there may be sequences."""
    if not isinstance(model, BatchModel) or not model.pageable:
        return SlotManager(options.sequences, _SLOT_BYTES)
    block_bytes = options.block * model.position_bytes
    longest = -(-(min(model.max_positions, options.positions or model.max_positions) + 1) // options.block)
    blocks = max(options.kv_bytes // block_bytes, longest)
    return BlockManager(blocks, options.block, block_bytes, cache_bytes=cache_bytes)
