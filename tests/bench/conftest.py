"""Specs of fake contenders and a record made of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from izwi_lab.bench import record
from izwi_lab.bench.contender import CaseResult, ContenderSpec, Measurement, Workload
from izwi_lab.bench.harness import Plan
from izwi_lab.bench.record import Record, Table

HERE = str(Path(__file__).parent)
WORKLOAD = Workload("chat", "chat", "fake work", {"input": "abc"})


@pytest.fixture
def workload() -> Workload:
    return WORKLOAD


@pytest.fixture
def fake(tmp_path: Path) -> Callable[..., ContenderSpec]:
    """fake("name", seconds=[...], role="ours") logs to tmp_path / "log"."""

    def make(name: str, *, seconds: list[float], role: str = "peer", megabytes: int = 0) -> ContenderSpec:
        options = {"name": name, "log": str(tmp_path / "log"), "seconds": seconds, "megabytes": megabytes}
        return ContenderSpec(name, "fake_contenders:Fake", role, options, {"size": megabytes}, (HERE,))

    return make


@pytest.fixture
def broken() -> Callable[..., ContenderSpec]:
    def make(*, at: str, how: str, name: str = "broken") -> ContenderSpec:
        return ContenderSpec(name, "fake_contenders:Broken", "peer", {"at": at, "how": how}, {}, (HERE,))

    return make


@pytest.fixture
def sample_record() -> Record:
    """Ours at 1, 2, 3 s beside a peer at twice that, and a peer that is not installed."""

    def runs(factor: float) -> tuple[Measurement, ...]:
        return tuple(
            Measurement(total_s=factor * s, first_s=0.1, decode_s=factor * s, tokens=128, input="same")
            for s in (1.0, 3.0, 2.0)
        )

    ours = CaseResult("izwi-lab", "ours", "ok", load_s=(1.0, 2.0), peak_bytes=200 << 20, runs=runs(1.0))
    peer = CaseResult("llama.cpp", "peer", "ok", load_s=(2.0, 2.0), peak_bytes=100 << 20, runs=runs(2.0))
    absent = CaseResult("other", "peer", "missing", "ModuleNotFoundError: No module | named 'other'")
    table = Table("SmolLM2-135M-Instruct", WORKLOAD, (ours, peer, absent))
    return record.take("starter", [table], Plan(runs=3, loads=2))
