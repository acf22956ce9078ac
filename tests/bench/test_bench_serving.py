"""The serving benchmark: what its figures are made of, what meets what, and that ours answers as it asks."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from starter_weights import fetched

from izwi_lab.bench import record, report
from izwi_lab.bench.contender import CaseResult, Measurement
from izwi_lab.bench.harness import Plan
from izwi_lab.bench.record import Table
from izwi_lab.bench.stats import quantile
from izwi_lab.errors import InvalidInputError

ROOT = Path(__file__).parents[2]
SMOL = "SmolLM2-135M-Instruct"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    monkeypatch.syspath_prepend(str(ROOT))
    names = ("served", "serving", "serving_ours", "serving_speech", "serving_work")
    return SimpleNamespace(**{name: importlib.import_module(f"benchmarks.{name}") for name in names})


def arguments(serving: ModuleType, *given: str):
    import argparse

    parser = argparse.ArgumentParser()
    serving.add_arguments(parser)
    return parser.parse_args(given)


def test_a_quantile_lies_between_two_values_in_proportion():
    assert quantile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert quantile([float(n) for n in range(101)], 0.95) == 95.0
    assert quantile([7.0], 0.95) == 7.0


def test_decoding_is_the_time_in_which_nobody_waits_for_a_first_token(modules):
    made = modules.served.Served
    # The first waits from 0 to 1, the second from 2 to 3; one of the first one's tokens comes in between.
    served = [made(0.0, [1.0, 2.5, 4.0], [5, 6, 7], 10), made(2.0, [3.0, 5.0], [8, 9], 20)]
    found = modules.served.measured(served)
    assert (found.total_s, found.decode_s, found.served, found.tokens) == (5.0, 3.0, 5, 2)
    assert found.served_tps == 1.0 and found.decode_tps == pytest.approx(2 / 3) and found.prompt_tokens == 30
    assert found.first_s == 1.0 and found.latency["first_p95"] == 1.0 and found.latency["gap_p50"] == 1.5


def test_waits_that_overlap_count_once(modules):
    made = modules.served.Served
    spent_s, beside = modules.served.reading_s([made(0.0, [2.0]), made(1.0, [3.0, 3.5]), made(5.0, [6.0])])
    assert (spent_s, beside) == (4.0, 0)


def test_a_request_without_an_answer_is_an_error(modules):
    with pytest.raises(RuntimeError, match="without a piece"):
        modules.served.measured([modules.served.Served(0.0)])


def test_notes_and_latencies_are_kept_and_shown(tmp_path: Path):
    runs = (Measurement(total_s=2.0, served=100, latency={"gap_p95": 0.0123, "queue_p50": 0.5}),)
    table = Table("tiny", record_workload(), (CaseResult("a", "ours", "ok", runs=runs),), notes=("twice as fast",))
    taken = record.take("t", [table], Plan())
    again = record.Record.from_json(taken.to_json())
    assert again.tables[0].notes == ("twice as fast",) and again.tables[0].cases[0].runs == runs
    shown = report.markdown(again)
    assert "- twice as fast" in shown and "tokens/s of all" in shown and "50.0" in shown and "0.0123" in shown


def record_workload():
    from izwi_lab.bench.contender import Workload

    return Workload("many", "serving", "several requests")


def test_records_from_before_there_were_notes_are_read(sample_record):
    body = sample_record.to_json().replace('"notes": [],', "").replace(',\n   "notes": []', "")
    assert '"notes"' not in body
    assert record.Record.from_json(body).tables[0].notes == ()


def test_prompts_differ_from_their_first_words_on_and_have_the_length_asked_for(modules):
    work = modules.serving_work
    texts = work.many(4, 100, 8).data["texts"]
    assert len({text[:40] for text in texts}) == 4
    assert all(90 <= len(text.split()) * work.TOKENS_PER_WORD + work.ABOVE <= 130 for text in texts)
    asked = work.mixed(64, 5.0).data["requests"]
    assert asked == work.mixed(64, 5.0).data["requests"] and len(asked) == 64
    assert 0 <= asked[0]["comes_s"] <= asked[-1]["comes_s"] <= 5.0


@pytest.mark.parametrize(
    ("given", "message"),
    [(["what"], "No part"), (["many", "--tokens", "0"], "--tokens"), (["many", "--concurrency", "0"], "concurrency")],
)
def test_what_cannot_be_measured_is_refused(modules, given, message):
    with pytest.raises(InvalidInputError, match=message):
        modules.serving.tables(arguments(modules.serving, *given), Plan(), Path())


def test_the_made_up_tokenizer_is_one_that_the_processor_accepts(modules):
    ids = SimpleNamespace(im_start=7, im_end=8, assistant=9)
    made = modules.serving_speech.tokenizer_of(ids)
    assert made.token_to_id("<|im_start|>") == 7 and made.token_to_id("<|im_end|>") == 8
    assert made.encode("assistant\n", add_special_tokens=False).ids == [9, modules.serving_speech.LINE_END]
    assert made.encode("word word word", add_special_tokens=False).ids == [modules.serving_speech.WORD] * 3


def test_the_first_error_of_many_threads_is_raised(modules):
    done = []
    with pytest.raises(ZeroDivisionError):
        modules.serving_ours.together([lambda: done.append(1 / 0), lambda: done.append(1)])
    assert done == [1]


@pytest.mark.weights
def test_ours_answers_alike_whatever_the_number_at_once(modules):
    fetched(SMOL)
    workload = modules.serving_work.many(3, 40, 4)
    found = []
    for at_once in (1, 3):
        ours = modules.serving_ours.Serving(model=SMOL, backend="torch", device="cpu", at_once=at_once)
        ours.load()
        found.append(ours.run(workload))
        ours._engine.close()
    assert found[0].output == found[1].output and found[0].input == found[1].input
    assert all(run.served == 12 and run.first_s > 0 and run.latency["gap_p95"] > 0 for run in found)


@pytest.mark.weights
def test_every_part_of_one_model_can_be_measured(modules):
    fetched(SMOL)
    work, ours = modules.serving_work, modules.serving_ours
    contender = ours.Serving(model=SMOL, backend="torch", device="cpu", beside=400, warm=True)
    contender.load()
    assert contender.run(work.short(40, 400)).first_s > 0
    cold = ours.Serving(model=SMOL, backend="torch", device="cpu")
    cold.load()
    assert cold.run(work.prefix(400)).first_s > 2 * contender.run(work.prefix(400)).first_s
    mixed = cold.run(work.mixed(3, 0.1))
    assert mixed.latency["queue_p95"] >= mixed.latency["queue_p50"] >= 0
    for each in (contender, cold):
        each._engine.close()
