"""Records and reports: JSON round trip, nothing of this machine's folders, markdown, plots, the results folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from izwi_lab.bench import machine, record, report
from izwi_lab.bench.contender import CaseResult, Workload
from izwi_lab.bench.harness import Plan
from izwi_lab.bench.record import Record, Table
from izwi_lab.errors import InvalidInputError


def test_json_round_trip(sample_record: Record) -> None:
    again = Record.from_json(sample_record.to_json())
    assert again.to_json() == sample_record.to_json()
    assert again.tables[0].cases[0].runs == sample_record.tables[0].cases[0].runs
    assert again.tables[0].workload == sample_record.tables[0].workload


def test_json_holds_the_circumstances_and_the_medians(sample_record: Record) -> None:
    body = json.loads(sample_record.to_json())
    assert body["schema"] == record.SCHEMA
    assert body["machine"]["cores"] == machine.cores() >= 1
    assert body["machine"]["processor"]
    assert body["machine"]["memory_bytes"] > 1 << 28
    assert body["plan"] == {"runs": 3, "warmup": 1, "loads": 2, "timeout_s": 600.0, "settle_s": 0.1, "retakes": 0}
    summary = body["tables"][0]["summary"]
    assert summary["figures"]["izwi-lab"]["total_s"] == {"median": 2.0, "low": 1.0, "high": 3.0, "count": 3}
    quoted = {r["metric"]: r["spread"]["median"] for r in summary["ratios"]}
    assert quoted == {"decode_tps": 2.0, "first_s": 1.0, "total_s": 0.5, "load_s": 0.75, "peak_bytes": 2.0}


@pytest.mark.parametrize("text", ['{"schema": 99}', "[]", '{"name": "x"}'])
def test_another_schema_is_refused(text: str) -> None:
    with pytest.raises(InvalidInputError, match="schema 1 was expected"):
        Record.from_json(text)


def test_no_folder_of_this_machine_is_recorded() -> None:
    here, home = str(Path.cwd()), str(Path.home())
    case = CaseResult(
        "x", "peer", "failed", f"no file {here}/a/b.bin or {home}/c or /opt/some/where/d.gguf; see https://a.b/c/d"
    )
    workload = Workload("asr", "asr", "speech", {"samples": "/tmp/xyz/speech.npy", "seconds": 3.0})
    text = record.take("r", [Table("m", workload, (case,))], Plan()).to_json()
    assert here not in text
    assert "/opt/some" not in text and "/tmp/xyz" not in text
    assert "d.gguf" in text and "https://a.b/c/d" in text and '"seconds": 3.0' in text


def test_versions_are_of_what_was_imported() -> None:
    found = machine.versions({"numpy", "pytest", "json"})
    assert {"numpy", "pytest"} <= set(found)
    assert "torch" not in found


def test_command_line_is_portable() -> None:
    assert machine.command_line(["/usr/local/bin/izwi-lab", "bench", "/opt/a/b.wav", "--runs", "2"]) == (
        "izwi-lab bench …/b.wav --runs 2"
    )


def test_markdown_tells_figures_ratios_and_why_a_peer_is_missing(sample_record: Record) -> None:
    text = report.markdown(sample_record)
    assert "| **izwi-lab** | 64.0 (42.7 to 128.0) |" in text
    assert "- izwi-lab / llama.cpp: decode tokens/s **2.00** (2.00 to 2.00)" in text
    assert "peak memory **2.00**, lower is better" in text
    assert "- other: missing, ModuleNotFoundError: No module \\| named 'other'" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1, "every row has as many cells"


def test_markdown_warns_of_different_inputs(sample_record: Record) -> None:
    table = sample_record.tables[0]
    ours = table.cases[0]
    other = replace(ours, runs=tuple(replace(run, input="other") for run in ours.runs))
    changed = replace(table, cases=(other, *table.cases[1:]))
    assert "did not read the same" in report.table_markdown(changed)
    assert "did not read the same" not in report.table_markdown(table)


def test_markdown_tells_of_disturbance(sample_record: Record) -> None:
    table = sample_record.tables[0]
    ours = table.cases[0]
    noisy = replace(ours, discarded=2, runs=tuple(replace(run, others=0.4) for run in ours.runs))
    text = report.table_markdown(replace(table, cases=(noisy, *table.cases[1:])))
    assert "up to 40 % of the processors" in text and "2 rounds were disturbed" in text
    assert "processors" not in report.table_markdown(table)


def test_reference_compares_backends(sample_record: Record) -> None:
    ours, peer, _ = sample_record.tables[0].cases
    cases = (replace(ours, contender="torch cpu"), replace(peer, contender="mlx cpu", role="ours"))
    text = report.table_markdown(replace(sample_record.tables[0], cases=cases, reference="torch cpu"))
    assert "- mlx cpu / torch cpu: decode tokens/s **0.50**" in text


def test_results_folder(sample_record: Record, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    older = replace(sample_record, date="2020-01-02T03:04:05+00:00")
    assert older.save(tmp_path).name == "starter-20200102-0304.json"
    newest = sample_record.save(tmp_path)
    readme = report.rebuild(tmp_path).read_text()
    assert readme.count("## starter,") == 1
    assert f"Raw figures: [{newest.name}]" in readme
    assert "- [starter-20200102-0304.json]" in readme
    assert (tmp_path / "starter.png").read_bytes().startswith(b"\x89PNG")
    assert record.load(newest).name == "starter"


def test_report_without_matplotlib(sample_record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    sample_record.save(tmp_path)
    assert "pip install 'izwi-lab[bench]'" in report.rebuild(tmp_path).read_text()
