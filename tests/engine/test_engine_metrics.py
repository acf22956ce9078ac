"""What an engine counts and times, from the steps of a scheduler to the text that a scraper reads."""

from __future__ import annotations

import math

import pytest
from engine_fakes import STOP, PagedRunner, alone, request, scheduler, step
from exposition_text import parsed

from izwi_lab.engine.blocks import BlockManager
from izwi_lab.engine.metrics import EngineMetrics
from izwi_lab.engine.plan import Result
from izwi_lab.engine.request import FinishReason


def told(s, metrics, results, now, seconds=0.1):
    """A step with given tokens, told to the metrics; it ends at `now`."""
    plan = s.plan(now - seconds)
    wanted = {p.sequence.id: results.get(p.sequence.id, Result(token=1)) for p in plan.pieces if p.wants_logits}
    ended = s.done(plan, wanted, now=now) if plan else ()
    metrics.stepped("m", plan, ended, s, seconds=seconds, now=now)
    return ended


def test_times_of_one_request():
    s, metrics = scheduler(), EngineMetrics()
    s.add(request(range(9), new=3, id="a", at=10.0))
    for now in (12.1, 12.5, 13.0):
        told(s, metrics, {}, now)
    assert metrics.queue_s.mean("m") == pytest.approx(2.0)
    assert metrics.first_token_s.mean("m") == pytest.approx(2.1)
    assert metrics.inter_token_s.count("m") == 2 and metrics.inter_token_s.mean("m") == pytest.approx(0.45)
    assert metrics.prefill_s.mean("m") == pytest.approx(0.1)
    assert metrics.decode_s.mean("m") == pytest.approx(0.9)
    assert metrics.generation_tokens.value("m") == 3 and metrics.prompt_tokens.value("m") == 9
    assert metrics.step_tokens.count("m") == 3 and metrics.step_s.mean("m") == pytest.approx(0.1)
    assert metrics.running.value("m") == 0 and metrics.kv_usage.value("m") == 0


def test_a_request_is_counted_once_however_many_sequences_it_had():
    metrics = EngineMetrics()
    for reason, seconds in ((FinishReason.STOP, 3.0), (FinishReason.TIMEOUT, 1.0)):
        metrics.finished("m", reason, seconds)
    assert metrics.whole_s.mean("m") == pytest.approx(2.0)
    assert [metrics.ended.value("m", r) for r in ("stop", "timeout", "error")] == [1, 1, 0]


def test_ends_without_a_start_are_no_times():
    s, metrics = scheduler(max_sequences=2), EngineMetrics()
    for name in "abc":
        s.add(request((ord(name), 1), new=9, id=name))
    told(s, metrics, {"a": Result(error=RuntimeError())}, 1.0)
    assert metrics.running.value("m") == 1 and metrics.waiting.value("m") == 1
    s.cancel("c")
    told(s, metrics, {}, 2.0)
    s.add(request(id="d", deadline_s=2.5))
    told(s, metrics, {}, 3.0)
    told(s, metrics, {}, 4.0)
    assert metrics.queue_s.count("m") == 1, "c and d never started, b has not ended"
    assert metrics.generation_tokens.value("m") == 4 and metrics.first_token_s.count("m") == 1, "all are b's"


def test_prefixes_and_preemptions():
    s, metrics = scheduler(blocks=7, block_size=4), EngineMetrics()
    runner, now = PagedRunner(s.blocks), 0.0
    for name in "abc":
        s.add(request((ord(name), 1, 2, 3), new=9, id=name))
    preempted = 0
    while len(s):
        plan = s.plan(now)
        preempted += len(plan.preempted)
        metrics.stepped("m", plan, s.done(plan, runner.run(plan), now=now), s, seconds=0.1, now=now)
        now += 0.1
    stats = s.blocks.stats()
    assert metrics.preemptions.value("m") == preempted > 0
    assert metrics.prefix_queries.value("m") == stats.queries * 4
    assert metrics.prefix_hits.value("m") == stats.hits * 4 > 0


def test_counts_go_on_when_a_model_is_loaded_anew():
    metrics, before = EngineMetrics(), 0.0
    for _ in range(2):
        s = scheduler()
        s.add(request(range(9), new=9))
        told(s, metrics, {}, 1.0)
        assert metrics.prefix_queries.value("m") == before + 8
        before += 8
        metrics.forget("m")
        assert math.isnan(metrics.running.value("m"))


def test_a_smaller_count_is_that_of_a_new_beginning():
    metrics = EngineMetrics()
    for count in (2, 1):
        s = scheduler()
        for _ in range(count):
            s.add(request(range(9), new=9))
        told(s, metrics, {}, 1.0)
        told(s, metrics, {}, 2.0)
    assert metrics.prefix_queries.value("m") == 24


def test_audio_and_refusals():
    metrics = EngineMetrics()
    metrics.refuse("m")
    metrics.first_audio("m", 0.3)
    metrics.audio("m", 4.0, 1.0)
    metrics.audio("m", 0.0, 1.0)
    assert metrics.refused.value("m") == 1 and metrics.audio_s.value("m") == 4.0
    assert metrics.rtf.count("m") == 1 and metrics.rtf.mean("m") == 0.25
    assert metrics.first_audio_s.mean("m") == pytest.approx(0.3)


def filled() -> EngineMetrics:
    metrics, s = EngineMetrics(), scheduler()
    for name in "ab":
        s.add(request((ord(name), 2, 3, 4, 5), new=6, id=name))
    for now in range(1, 9):
        told(s, metrics, {"b": Result(token=STOP, finish=FinishReason.STOP)}, float(now))
    metrics.finished("m", FinishReason.STOP, 8.0)
    metrics.audio("m", 2.0, 1.0)
    metrics.first_audio('we"ird\\\n', 0.5)
    return metrics


def test_the_text_holds_everything_under_the_fields_names():
    metrics = filled()
    text, found = metrics.text(), parsed(metrics.text())
    at = (("model_name", "m"),)
    assert found["izwi:generation_tokens_total", at] == 7
    assert found["izwi:request_success_total", (*at, ("finished_reason", "stop"))] == 1
    assert found["izwi:time_to_first_audio_seconds_count", (("model_name", 'we"ird\\\n'),)] == 1
    for name in ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time"):
        base = f"izwi:{name}_seconds"
        assert f"# TYPE {base} histogram\n" in text
        assert found[f"{base}_bucket", (*at, ("le", "+Inf"))] == found[f"{base}_count", at]
        buckets = [v for (n, labels), v in found.items() if n == f"{base}_bucket" and labels[0] == at[0]]
        assert buckets == sorted(buckets) and found[f"{base}_sum", at] > 0
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        assert f"# TYPE izwi:{name} gauge\n" in text
    assert {label for _, labels in found for label, _ in labels} == {"model_name", "finished_reason", "le"}


def test_prometheus_own_reader_reads_it():
    parser = pytest.importorskip("prometheus_client.parser")
    families = {family.name: family for family in parser.text_string_to_metric_families(filled().text())}
    assert families["izwi:time_to_first_token_seconds"].type == "histogram"
    assert families["izwi:generation_tokens"].samples[0].value == 7
    odd = families["izwi:time_to_first_audio_seconds"].samples[0]
    assert odd.labels["model_name"] == 'we"ird\\\n'


def test_rows_are_for_tables():
    rows = filled().rows()
    row = next(r for r in rows if r["metric"] == "izwi:inter_token_latency_seconds")
    assert row["model"] == "m" and row["count"] == 5 and row["mean"] == pytest.approx(1.0)
    assert 0.5 < row["p50"] <= row["p90"] <= row["p99"] <= 1.0
    assert repr(filled()) == "EngineMetrics(m)"


def test_what_is_cached_is_not_in_use():
    s, metrics = scheduler(blocks=10), EngineMetrics()
    assert isinstance(s.blocks, BlockManager)
    asked = request(range(9), new=2)
    s.add(asked)
    step(s, PagedRunner(s.blocks))
    metrics.standing("m", s)
    assert metrics.kv_usage.value("m") == pytest.approx(0.3) and len(alone(asked)) <= 2
