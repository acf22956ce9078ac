"""The harness: contenders on one workload, each loaded in its own process, run in turn.

On a shared machine speed drifts by the minute, so contenders alternate (A B A B …), all of them loaded and the idle
ones waiting; ratios are then formed run by run between neighbours in time, and their median is what to quote.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial

from izwi_lab.bench import machine
from izwi_lab.bench.contender import CaseResult, ContenderSpec, Measurement, Workload
from izwi_lab.bench.process import CaseError, WorkerProcess
from izwi_lab.errors import InvalidInputError

Say = Callable[[str], None]
DISTURBED = 0.15
_BYTES = ("peak_bytes", "device_bytes", "base_bytes", "working_bytes", "needed_bytes")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much to run.

    warmup: runs that are not counted. loads: fresh processes whose load is timed, after one that is not (it may
    convert a checkpoint and fills the page cache). settle_s: rest between turns, so that spinning threads go to sleep.
    timeout_s: bound on each load and each run.
    retakes: rounds that may be taken again because other programs used more than DISTURBED of the processors during
    one of their turns. What decides is the others' use, never how long a turn took.
    """

    runs: int = 5
    warmup: int = 1
    loads: int = 3
    timeout_s: float = 600.0
    settle_s: float = 0.1
    retakes: int = 0

    def __post_init__(self) -> None:
        if self.runs < 1 or self.warmup < 0 or self.loads < 1:
            raise InvalidInputError(
                f"A benchmark needs runs >= 1, warmup >= 0, loads >= 1; got {self.runs}, {self.warmup}, {self.loads}."
            )
        if self.timeout_s <= 0 or self.settle_s < 0 or self.retakes < 0:
            raise InvalidInputError(
                "timeout_s must be positive, settle_s and retakes not negative; "
                f"got {self.timeout_s}, {self.settle_s}, {self.retakes}."
            )


class _Case:
    """What is being learnt about one contender; ends at the first fault."""

    def __init__(self, spec: ContenderSpec) -> None:
        self.spec = spec
        self.worker: WorkerProcess | None = None
        self.discarded = 0
        self.loads: list[float] = []
        self.runs: list[Measurement] = []
        self.facts: dict[str, object] = {}
        self.memory: dict[str, object] = {}
        self.loaded_bytes = 0
        self.status, self.reason = ("missing", spec.unavailable) if spec.unavailable else ("ok", "")

    @property
    def alive(self) -> bool:
        return self.status == "ok"

    def attempt(self, work: Callable[[], None]) -> None:
        try:
            work()
        except CaseError as error:
            self.status, self.reason = error.status, error.reason
            self.close()

    def close(self) -> None:
        if self.worker is not None:
            self.worker.close()
            self.worker = None

    def start(self, *, timeout_s: float) -> None:
        """Load in a fresh process; the one before it is closed."""
        self.close()
        self.worker = WorkerProcess(self.spec, timeout_s=timeout_s)
        answer = self.worker.load()
        self.loads.append(answer["load_s"])
        self.loaded_bytes = answer["loaded_bytes"]
        self.facts = {**answer["facts"], **self.worker.ready()}

    def turn(self, workload: Workload) -> Measurement:
        assert self.worker is not None
        before_s, start_s = machine.busy_s(), time.perf_counter()
        measurement = self.worker.run(workload)
        after_s, elapsed_s = machine.busy_s(), time.perf_counter() - start_s
        if before_s is None or after_s is None or measurement.cpu_s is None or not elapsed_s:
            return measurement
        others_s = max(0.0, after_s - before_s - measurement.cpu_s)
        return replace(measurement, others=min(1.0, others_s / (elapsed_s * machine.cores())))

    def discard(self) -> None:
        if self.alive and self.runs:
            self.runs.pop()
            self.discarded += 1

    def look_at_memory(self) -> None:
        assert self.worker is not None
        self.memory = self.worker.memory()

    def result(self) -> CaseResult:
        memory = self.memory
        return CaseResult(
            contender=self.spec.name,
            role=self.spec.role,
            status=self.status,
            reason=self.reason,
            settings=self.spec.settings,
            facts=self.facts,
            prepare_s=self.loads[0] if self.loads else None,
            load_s=tuple(self.loads[1:]),
            loaded_bytes=self.loaded_bytes,
            **{name: int(memory.get(name, 0)) for name in _BYTES},  # type: ignore[call-overload]
            runs=tuple(self.runs),
            discarded=self.discarded,
            packages=tuple(memory.get("packages", ())),  # type: ignore[arg-type]
        )


def run_in_turn(
    workload: Workload,
    contenders: Sequence[ContenderSpec],
    *,
    plan: Plan | None = None,
    say: Say = lambda line: None,
) -> tuple[CaseResult, ...]:
    """Run every contender on `workload`, in turn, and return one result each, in the order given.

    A contender that is missing, fails or runs out of time is recorded with its reason and the others go on.
    """
    plan = plan or Plan()
    names = [c.name for c in contenders]
    if len(set(names)) != len(names):
        raise InvalidInputError(f"Contenders of one workload need different names, got {names}.")
    cases = [_Case(spec) for spec in contenders]
    with ExitStack() as stack:
        for case in cases:
            stack.callback(case.close)
        _load_in_turn(cases, plan, say)
        for _ in range(plan.warmup):
            _one_round(None, workload, cases, plan, say)
        retakes = plan.retakes
        n = 0
        while n < plan.runs and any(_alive(cases)):
            disturbed = _one_round(n, workload, cases, plan, say)
            if disturbed and retakes:
                retakes -= 1
                say("  other programs disturbed this round; it is taken again")
                for case in cases:
                    case.discard()
            else:
                n += 1
        for case in _alive(cases):
            case.attempt(case.look_at_memory)
    return tuple(case.result() for case in cases)


def _load_in_turn(cases: Sequence[_Case], plan: Plan, say: Say) -> None:
    for n in range(plan.loads + 1):
        for case in _alive(cases):
            case.attempt(partial(case.start, timeout_s=plan.timeout_s))
            outcome = f"loaded in {case.loads[-1]:.2f} s" if case.alive else f"{case.status}: {case.reason}"
            say(f"  {case.spec.name}: {'first load, ' if n == 0 else ''}{outcome}")


def _one_round(n: int | None, workload: Workload, cases: Sequence[_Case], plan: Plan, say: Say) -> bool:
    """One turn of each contender; None is a warm-up. True when other programs disturbed a turn."""
    disturbed = False
    for case in _alive(cases):
        time.sleep(plan.settle_s)
        taken: list[Measurement] = []
        case.attempt(lambda case=case, taken=taken: taken.append(case.turn(workload)))  # type: ignore[misc]
        if not taken:
            say(f"  {case.spec.name}: {case.status}: {case.reason}")
            continue
        measurement = taken[0]
        if n is not None:
            case.runs.append(measurement)
        disturbed |= (measurement.others or 0.0) > DISTURBED
        say(f"  {case.spec.name}: {'warm-up' if n is None else f'run {n + 1}'} {measurement.total_s:.2f} s")
    return disturbed


def _alive(cases: Iterable[_Case]) -> Iterable[_Case]:
    return (case for case in cases if case.alive)
