"""The decode benchmark: what meets what, bytes counted per token, shares of the memory's speed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starter_weights import fetched

from izwi_lab import artifacts, catalog
from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.bench import cli, record, report, suite, workloads
from izwi_lab.bench.contender import CaseResult, ContenderSpec, Measurement, Workload
from izwi_lab.bench.harness import Plan, run_in_turn
from izwi_lab.bench.record import Table
from izwi_lab.bench.stats import ratios, share_of_limit
from izwi_lab.errors import IzwiError, UnreachableError

ROOT = Path(__file__).parents[2]
SMOL, GEMMA, QWEN = "SmolLM2-135M-Instruct", "Gemma-3-270m", "Qwen3-0.6B"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    """benchmark("decode") is the module benchmarks/decode.py."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def decode(benchmark: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks.decode, which writes its contenders down in `decode.seen` instead of running them."""
    module: ModuleType = benchmark("decode")
    seen: list[tuple[Workload, Sequence[ContenderSpec], Plan]] = []

    def note(workload: Workload, contenders: Sequence[ContenderSpec], *, plan: Plan, say: Any) -> tuple[Any, ...]:
        seen.append((workload, contenders, plan))
        return tuple(CaseResult(c.name, c.role, "ok", runs=(Measurement(total_s=1.0),)) for c in contenders)

    for user in (module, suite):
        monkeypatch.setattr(user, "run_in_turn", note)
    monkeypatch.setattr(
        artifacts, "fetch", lambda v: SimpleNamespace(folder=tmp_path, layout=v.starter_layout or v.layout)
    )
    monkeypatch.setattr(benchmark("mlx_folder"), "write", lambda variant, folder, *, dtype: folder)
    monkeypatch.setattr(module, "seen", seen, raising=False)
    return module


def run(module: ModuleType, tmp_path: Path, *argv: str) -> list[Table]:
    import argparse

    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    made: list[Table] = module.tables(parser.parse_args(argv), Plan(loads=3), tmp_path)
    return made


def test_every_part_has_its_contenders(decode: Any, tmp_path: Path) -> None:
    tables = run(decode, tmp_path)
    assert [t.subject for t in tables] == [
        SMOL, GEMMA, f"{SMOL} on MLX", f"{QWEN}, random weights", "Gemma-3-1b-it, random weights",
        f"{SMOL}, speculative",
    ]  # fmt: skip
    names = [[c.name for c in contenders] for _, contenders, _ in decode.seen]
    assert names[0] == names[1] == ["izwi-lab", "llama.cpp", "transformers bf16", "memory read"]
    assert names[2] == ["izwi-lab", "mlx-lm"]
    assert names[3] == ["izwi-lab bf16", "izwi-lab 4 bits", "memory read"]
    assert names[5] == ["prompt lookup", "one by one"]
    assert [c.role for c in decode.seen[0][1]] == ["ours", "peer", "peer", "limit"]
    assert not any(c.unavailable for _, contenders, _ in decode.seen for c in contenders)


def test_each_contender_gets_what_makes_it_differ(decode: Any, tmp_path: Path) -> None:
    run(decode, tmp_path, "--device", "cpu")
    (_, peers, _), _, (mlx, both, _), (dummy, sizes, plan), _, (repeats, lookup, _) = decode.seen
    assert peers[3].options == {"backend": "torch", "device": "cpu"}
    assert both[0].options["model"] == both[1].options["folder"] == str(tmp_path / SMOL)
    assert (both[0].options["dtype"], mlx.data["tokens"]) == ("float32", 32), "short where MLX has no GPU"
    assert [s.options.get("bits") for s in sizes] == [None, 4, None]
    assert [s.options.get("dtype") for s in sizes] == ["bfloat16", "bfloat16", None]
    assert sizes[0].options["load_format"] == "dummy"
    assert dummy.data["text"] == ""
    assert plan.loads == 1
    assert [s.options.get("lookup") for s in lookup] == [True, None]
    assert repeats.name == "repetitive"


def test_parts_and_models_can_be_chosen(decode: Any, tmp_path: Path) -> None:
    assert len(run(decode, tmp_path, "bandwidth", "lookup", "--models", QWEN, "--no-peer")) == 1
    assert len(run(decode, tmp_path, "peers", "--models", GEMMA, "--no-peer")) == 1
    assert [c.name for c in decode.seen[-1][1]] == ["izwi-lab", "memory read"]
    for wrong in (["speed"], ["lookup", "--models", GEMMA]):
        with pytest.raises(IzwiError):
            run(decode, tmp_path, *wrong)


def test_weights_that_cannot_be_had_are_rows(decode: Any, tmp_path: Path, benchmark: Any, monkeypatch: Any) -> None:
    def unreachable(*_: Any, **__: Any) -> Any:
        raise UnreachableError("No source can be reached.")

    monkeypatch.setattr(artifacts, "fetch", unreachable)
    monkeypatch.setattr(benchmark("mlx_folder"), "write", unreachable)
    run(decode, tmp_path)
    reasons = [[c.unavailable for c in contenders] for _, contenders, _ in decode.seen]
    gone = "No source can be reached."
    assert reasons[0] == [gone, gone, gone, ""]
    assert reasons[2] == [gone, gone]
    assert reasons[3] == ["", "", ""], "random weights need no files"


def test_one_main_serves_every_script(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "argv", ["x", "--no-such-flag"])
    with pytest.raises(SystemExit):
        cli.script("x", "y", defaults={})
    monkeypatch.setattr(sys, "argv", ["x", "no-such-model"])
    with pytest.raises(SystemExit):
        cli.script("x", "y", defaults={"name": "z"})
    assert "no-such-model" in capsys.readouterr().err


# bytes and shares


def case(name: str, role: str, gbps: Sequence[float], **more: Any) -> CaseResult:
    runs = tuple(Measurement(total_s=1.0, decode_s=1.0, tokens=10, read_bytes=int(g * 1e9)) for g in gbps)
    return CaseResult(name, role, "ok", runs=runs, **more)


def test_the_share_of_the_limit_is_formed_between_neighbours() -> None:
    ours, peer = case("izwi-lab", "ours", [10, 20, 15]), case("llama.cpp", "peer", [0, 0, 0])
    limit = case("memory read", "limit", [20, 25, 20])
    found = share_of_limit(ours, [ours, peer, limit])
    assert found is not None
    assert (found.spread.median, found.spread.low, found.spread.high) == (0.75, 0.5, 0.8)
    assert share_of_limit(ours, [ours, peer]) is share_of_limit(limit, [ours, limit]) is None
    assert {r.metric for r in ratios([ours, peer, limit]) if r.peer == "memory read"} == {"read_gbps"}
    text = report.table_markdown(Table("x", workloads.chat(), (ours, peer, limit)))
    assert "of memory bandwidth" in text and "75 % (50 to 80)" in text
    assert "izwi-lab / memory read" not in text, "no line of ratios that mean nothing"
    back = record.Record.from_json(record.take("x", [Table("x", workloads.chat(), (ours, limit))], Plan()).to_json())
    assert back.tables[0].cases[0].runs[0].read_gbps == 10


def test_the_report_says_who_wrote_the_same() -> None:
    def wrote(name: str, output: str) -> CaseResult:
        return CaseResult(name, "ours", "ok", runs=(Measurement(total_s=1.0, output=output),))

    cases = (wrote("one by one", "a"), wrote("guessing", "a"), wrote("4 bits", "b"))
    text = report.table_markdown(Table("x", workloads.chat(), cases))
    assert "- Wrote the same tokens as one by one: guessing; other tokens than one by one: 4 bits.\n" in text


def test_memory_is_what_came_on_top_over_what_is_needed() -> None:
    host = case("izwi-lab", "ours", [1], base_bytes=200, working_bytes=320, needed_bytes=100)
    assert host.memory_ratio == pytest.approx(1.2)
    device = case("izwi-lab", "ours", [1], base_bytes=200, working_bytes=900, needed_bytes=100, device_bytes=110)
    assert device.memory_ratio == pytest.approx(1.1)
    assert case("llama.cpp", "peer", [1], working_bytes=900).memory_ratio is None
    text = report.table_markdown(Table("x", workloads.chat(), (host, case("llama.cpp", "peer", [1]))))
    assert "memory / (weights + KV)" in text and "1.20" in text


def test_the_worker_tells_memory_before_and_after_loading(fake: Any, workload: Workload) -> None:
    (found,) = run_in_turn(workload, [fake("one", seconds=[0.1], megabytes=64)], plan=Plan(runs=1, warmup=0, loads=1))
    assert found.peak_bytes >= found.working_bytes > 0
    assert found.device_bytes == 1234


def test_reading_memory_is_a_contender(benchmark: Any) -> None:
    read = benchmark("peers.memory_read").MemoryRead(backend="torch", device="cpu", bytes_read=1 << 22)
    assert read.load()["bytes"] == 1 << 22
    found = read.run(workloads.chat())
    assert found.read_gbps is not None and 0.05 < found.read_gbps < 5000


def test_bytes_of_a_token_are_weights_once_and_what_attention_sees(benchmark: Any) -> None:
    decoding = benchmark("decoding")
    table = SimpleNamespace(parameters=lambda: [np.zeros(10, np.float32)], buffers=list)
    net = SimpleNamespace(model=SimpleNamespace(embed_tokens=table))
    model = SimpleNamespace(nbytes=1000, net=net, config=SimpleNamespace(tied=True, window_of=lambda i: (0, 4, 0)[i]))
    assert decoding.bytes_per_step(model) == 1000
    model.config.tied = False
    assert decoding.bytes_per_step(model) == 960
    keys = np.zeros((1, 2, 16, 8), np.float16)
    state: dict[str, Any] = {"k": [keys, keys, None]}
    assert decoding.cache_bytes(model, SimpleNamespace(state=state), 10) == 2 * (10 + 4) * 2 * 8 * 2
    codes = {"k": [keys.astype(np.int8), None, None], "k_scale": []}
    assert decoding.cache_bytes(model, SimpleNamespace(state=codes), 10) == 2 * 10 * 2 * (8 + 4)


@pytest.mark.weights
def test_the_mlx_folder_holds_the_same_codes(benchmark: Any, tmp_path: Path) -> None:
    local = fetched(SMOL)
    folder = benchmark("mlx_folder").write(catalog.get(SMOL), tmp_path / "mlx", dtype="float32")
    assert json.loads((folder / "config.json").read_text())["quantization"]["group_size"] == 32
    made, source = open_checkpoint(folder, "mlx"), open_checkpoint(local.folder, str(local.layout))
    name = "model.layers.4.mlp.down_proj.weight"
    here, there = made.read(name), source.read("blk.4.ffn_down.weight")
    assert isinstance(here, AffineTensor) and isinstance(there, AffineTensor)
    np.testing.assert_array_equal(here.q, there.q)
    np.testing.assert_array_equal(here.scales, there.scales.astype(np.float32))
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
