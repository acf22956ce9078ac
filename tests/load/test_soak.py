"""An engine under mixed load for IZWI_SOAK_S seconds: answers stay right, and nothing is left behind.

IZWI_SOAK_S=7200 python -m pytest tests/load/test_soak.py -s      # two hours; without the variable twenty seconds
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections import Counter

import numpy as np
import pytest
import torch
from family_checkpoints import write_folder
from soak_work import Soak

from izwi_lab import InferenceEngine
from izwi_lab.bench.worker import resident_bytes
from izwi_lab.cancel import CancelToken
from izwi_lab.engine.admission import QueueLimits
from izwi_lab.engine.job import Job
from izwi_lab.engine.lane import LaneOptions
from izwi_lab.engine.outbox import Outbox
from izwi_lab.engine.request import Sequence
from izwi_lab.families.shared.steps import Session, Step
from izwi_lab.runtime.stream import Stream
from izwi_lab.settings import Settings

SOAK_S = float(os.environ.get("IZWI_SOAK_S", "20"))
CLIENTS = 6
WARM = 0.4  # of the time, after which memory must not grow any more
MOST_GROWTH = 24 << 20  # bytes: what an allocator may still take for its own order
LIVING = (Job, Outbox, Sequence, Session, Step, Stream)
PATIENCE_S = 30.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(SOAK_S + 300)]


@pytest.fixture
def models(tmp_path):
    """One whose caches are pages, and one that has a state of its own for each sequence."""
    return tuple(write_folder(tmp_path / name, name) for name in ("llama", "lfm2"))


@pytest.fixture
def engine(tmp_path, models):
    # So few blocks that sequences are preempted and prefixes forgotten, and so short a queue that some are refused.
    batching = LaneOptions(sequences=4, block=8, kv_bytes=1 << 20)
    with InferenceEngine(
        tmp_path / "home", backend="torch", device="cpu", dtype="float32", config=Settings(), batching=batching,
        queue=QueueLimits(requests=5), prompt_cache_bytes=1 << 19,
    ) as made:  # fmt: skip
        # Models so small gain nothing by a second thread, and would wait for it where others use the processor.
        with made.use(models[0]) as model:
            made._batching.loop(model.backend).call(lambda: torch.set_num_threads(1), CancelToken())
        yield made


def alive():
    gc.collect()
    return Counter(type(o).__name__ for o in gc.get_objects() if issubclass(type(o), LIVING))


def until(true, what):
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def soaked(soak, seconds):
    """Run the clients so long. Resident bytes at the times looked at, [n, 2]."""
    threads = [threading.Thread(target=soak.client, args=(n,), name=f"client {n}") for n in range(CLIENTS)]
    for thread in threads:
        thread.start()
    rng, looks, began = np.random.default_rng(99), [], time.monotonic()
    while (spent := time.monotonic() - began) < seconds and not soak.faults:
        time.sleep(0.25)
        looks.append((spent, resident_bytes()))
        if rng.random() < 0.05:
            soak.unload(rng)
    soak.stop.set()
    for thread in threads:
        thread.join(PATIENCE_S)
    stuck = [thread.name for thread in threads if thread.is_alive()]
    assert not stuck, f"still waiting for an answer: {stuck}"
    return np.array(looks)


def test_a_soak_leaves_nothing_behind(engine, models):
    before = {thread.name for thread in threading.enumerate()}
    soak = Soak(engine, models)
    soak.learn()
    looks = soaked(soak, SOAK_S)
    print(f"\n{sum(soak.done.values())} things done in {SOAK_S:.0f} s: {dict(soak.done)}")
    assert not soak.faults, "\n".join(soak.faults[:5])

    admission = engine._batching.admission
    until(lambda: not len(admission), f"somebody still waits: {admission!r}")
    until(lambda: not any(m.in_use for m in engine.loaded()), "a model is still held")
    soak.learn()  # both are in memory again, and say what they said
    for model in models:
        states = Counter(block.state for block in engine.explain(model).blocks.blocks)
        assert not states["used"] and not states["shared"], states
    metrics = engine.metrics
    assert {g.value(*key) for g in (metrics.running, metrics.waiting) for key in g.series()} == {0.0}

    until(lambda: not alive()["Job"], "requests are left in memory")
    for model in models:
        assert engine.unload(model)
    until(lambda: not alive().total(), f"left in memory: {alive()}")
    engine.close()
    until(lambda: {t.name for t in threading.enumerate()} <= before, f"threads: {threading.enumerate()}")

    warm, last = looks[looks[:, 0] >= WARM * SOAK_S, 1], looks[-max(4, len(looks) // 20) :, 1]
    first = warm[: max(4, len(looks) // 20)]
    print(f"resident: {np.median(first) / 1e6:.1f} MB after warming up, {np.median(last) / 1e6:.1f} MB at the end")
    assert np.median(last) - np.median(first) < MOST_GROWTH
