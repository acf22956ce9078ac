"""The harness with fake contenders: turns, loads, faults, deadlines, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from izwi_lab.bench import machine
from izwi_lab.bench.contender import CaseResult, ContenderSpec, Workload
from izwi_lab.bench.harness import Plan, run_in_turn
from izwi_lab.bench.process import WorkerProcess
from izwi_lab.bench.stats import ratios, same_input, spread, values_of
from izwi_lab.errors import InvalidInputError

QUICK = Plan(runs=3, warmup=1, loads=1, timeout_s=20, settle_s=0)
Make = Callable[..., ContenderSpec]


def by_name(cases: tuple[CaseResult, ...]) -> dict[str, CaseResult]:
    return {case.contender: case for case in cases}


def test_contenders_alternate_and_stay_loaded(fake: Make, workload: Workload, tmp_path: Path) -> None:
    specs = [fake("ours", seconds=[9, 1, 2, 3], role="ours"), fake("peer", seconds=[9, 2, 2, 2])]
    ours, peer = run_in_turn(workload, specs, plan=QUICK)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [(what, name) for what, name, _ in lines] == [
        ("load", "ours"),
        ("load", "peer"),  # the first, untimed load of each
        ("load", "ours"),
        ("load", "peer"),
        *[("run", "ours"), ("run", "peer")] * 4,
    ]
    pids = {(what, name): [pid for w, n, pid in lines if (w, n) == (what, name)] for what, name, _ in lines}
    assert len(set(pids["load", "ours"])) == 2, "every load is in a fresh process"
    assert set(pids["run", "ours"]) == {pids["load", "ours"][-1]}, "the last one is kept for the runs"
    assert [m.total_s for m in ours.runs] == [1, 2, 3], "the warm-up is not counted"
    assert len(ours.load_s) == len(peer.load_s) == 1
    assert ours.prepare_s and all(s > 0 for s in ours.load_s)
    assert ours.facts == {"threads": 1}
    assert ours.device_bytes == 1234
    assert all(m.cpu_s is not None and m.cpu_s >= 0 for m in ours.runs)


def test_ratios_are_formed_run_by_run(fake: Make, workload: Workload) -> None:
    specs = [fake("ours", seconds=[9, 1, 2, 3], role="ours"), fake("peer", seconds=[9, 2, 1, 3])]
    cases = run_in_turn(workload, specs, plan=QUICK)
    found = {r.metric: r for r in ratios(cases)}
    total = found["total_s"].spread
    assert (total.low, total.median, total.high, total.count) == (0.5, 1.0, 2.0, 3)
    assert found["decode_tps"].spread.median == 1.0
    assert found["real_time"].better == "higher"
    assert {"load_s", "peak_bytes"} <= set(found)
    assert same_input(cases)


def test_peak_memory_is_of_each_process(fake: Make, workload: Workload) -> None:
    specs = [fake("big", seconds=[1] * 4, megabytes=200), fake("small", seconds=[1] * 4)]
    cases = by_name(run_in_turn(workload, specs, plan=QUICK))
    difference = (cases["big"].peak_bytes - cases["small"].peak_bytes) / 2**20
    assert 180 < difference < 230
    assert cases["small"].peak_bytes < 100 << 20


@pytest.mark.parametrize(
    ("at", "how", "status", "said"),
    [
        ("load", "raise", "failed", "ValueError: no such luck"),
        ("run", "raise", "failed", "ValueError: no such luck"),
        ("load", "absent", "missing", "a_package_that_nobody_has"),
        ("load", "no device", "missing", "There is no CUDA device here."),
        ("load", "die", "failed", "ended with code 7 during load: the last words"),
        ("run", "die", "failed", "ended with code 7 during run: the last words"),
    ],
)
def test_a_fault_is_recorded_and_the_others_go_on(
    at: str, how: str, status: str, said: str, fake: Make, broken: Make, workload: Workload
) -> None:
    specs = [broken(at=at, how=how), fake("ours", seconds=[1] * 4, role="ours")]
    cases = by_name(run_in_turn(workload, specs, plan=QUICK))
    assert cases["broken"].status == status
    assert said in cases["broken"].reason
    assert cases["broken"].runs == ()
    assert cases["ours"].status == "ok"
    assert len(cases["ours"].runs) == 3


def test_a_contender_that_hangs_is_killed_at_its_deadline(fake: Make, broken: Make, workload: Workload) -> None:
    plan = Plan(runs=1, warmup=0, loads=1, timeout_s=2, settle_s=0)
    start_s = time.monotonic()
    cases = run_in_turn(workload, [broken(at="run", how="hang"), fake("ours", seconds=[1], role="ours")], plan=plan)
    assert time.monotonic() - start_s < 15
    assert cases[0].status == "timeout"
    assert "longer than 2 s" in cases[0].reason
    assert len(cases[1].runs) == 1


def test_a_busy_worker_ends_when_its_orchestrator_does(broken: Make) -> None:
    """As when the benchmark is killed: nothing is left behind that goes on computing."""
    worker = WorkerProcess(broken(at="run", how="hang"), timeout_s=20)
    worker.load()
    process = worker._process
    assert process.stdin is not None
    process.stdin.write('{"op": "run", "workload": {"name": "w", "task": "chat", "title": ""}}\n')
    process.stdin.close()
    assert process.wait(timeout=10) == 0
    worker.close()


def test_an_unavailable_contender_is_never_started(workload: Workload) -> None:
    (case,) = run_in_turn(workload, [ContenderSpec("gone", "nowhere:At", unavailable="no such device")], plan=QUICK)
    assert (case.status, case.reason, case.runs) == ("missing", "no such device", ())


def test_an_unknown_target_is_missing(workload: Workload) -> None:
    (case,) = run_in_turn(workload, [ContenderSpec("x", "no_such_module:X")], plan=QUICK)
    assert case.status == "missing"
    assert "no_such_module" in case.reason


def test_a_module_of_our_own_that_is_gone_is_a_failure(workload: Workload) -> None:
    (case,) = run_in_turn(workload, [ContenderSpec("x", "izwi_lab.no_such_part:X")], plan=QUICK)
    assert case.status == "failed"


def test_a_disturbed_round_is_taken_again(fake: Make, workload: Workload, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second contender's second turn is disturbed: both lose that round, and the retakes are used up by then."""
    busy = iter([0, 0, 0, 0, 0, 0, 0, 1e6, *[1e6] * 8, 1e6, 2e6, *[2e6] * 8])
    monkeypatch.setattr(machine, "busy_s", lambda: next(busy))
    specs = [fake("a", seconds=[1, 2, 3, 4, 5]), fake("b", seconds=[1, 2, 3, 4, 5])]
    plan = Plan(runs=3, warmup=0, loads=1, timeout_s=20, settle_s=0, retakes=1)
    a, b = run_in_turn(workload, specs, plan=plan)
    assert [m.total_s for m in a.runs] == [m.total_s for m in b.runs] == [1, 3, 4]
    assert a.discarded == b.discarded == 1
    assert all(m.others is not None and 0 <= m.others <= 0.15 for m in a.runs)


def test_names_must_differ(fake: Make, workload: Workload) -> None:
    with pytest.raises(InvalidInputError, match="different names"):
        run_in_turn(workload, [fake("a", seconds=[1]), fake("a", seconds=[1])], plan=QUICK)


@pytest.mark.parametrize(
    "wrong", [{"runs": 0}, {"warmup": -1}, {"loads": 0}, {"timeout_s": 0}, {"settle_s": -1}, {"retakes": -1}]
)
def test_plan_says_what_is_wrong(wrong: dict[str, int]) -> None:
    with pytest.raises(InvalidInputError):
        Plan(**wrong)  # type: ignore[arg-type]


def test_spread() -> None:
    found = spread([3.0, 1.0, 2.0, 10.0])
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (2.5, 1.0, 10.0, 4)
    assert spread([]) is None


def test_a_figure_that_was_not_taken_is_left_out(sample_record: object) -> None:
    from izwi_lab.bench.contender import METRICS, Measurement

    case = CaseResult("x", "ours", "ok", runs=(Measurement(total_s=1.0), Measurement(total_s=2.0, audio_s=4.0)))
    values = {m.name: values_of(case, m) for m in METRICS}
    assert values["real_time"] == [2.0]
    assert values["prefill_tps"] == values["quality"] == []
