"""benchmarks.qwen3_tts: what is timed is a whole request of speech, and the tables name their contenders."""

import argparse
import sys
from pathlib import Path

import pytest

import izwi_lab as izwi
from izwi_lab.bench.harness import Plan

ROOT = Path(__file__).parents[2]


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    for name in [n for n in sys.modules if n.partition(".")[0] == "benchmarks"]:
        monkeypatch.delitem(sys.modules, name)
    import benchmarks.qwen3_tts
    import benchmarks.speaking

    return benchmarks


def test_a_run_speaks_all_its_frames(benchmarks):
    ours = benchmarks.speaking.Speaking(model="tiny")
    ours._model = izwi.lab.tiny_tts()
    found = ours.run(benchmarks.speaking.speech(frames=12, text_tokens=5))
    assert found.tokens == 12 and found.audio_s == pytest.approx(12 * 0.08)
    assert 0 < found.prefill_s < found.first_s < found.total_s and found.decode_s < found.total_s
    assert ours._state_bytes > 0


def test_a_table_has_ours_and_the_vendor(benchmarks, monkeypatch):
    seen = []
    module = benchmarks.qwen3_tts
    monkeypatch.setattr(module, "run_in_turn", lambda workload, contenders, **_: seen.append(contenders) or ())
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    (table,) = module.tables(parser.parse_args(["--frames", "10"]), Plan(), ROOT)
    assert "random weights" in table.subject and table.workload.data["frames"] == 10
    (ours, vendor) = seen[0]
    assert ours.options["load_format"] == "dummy" and ours.settings["dtype"] == "bfloat16"
    assert vendor.role == "peer" and vendor.options["dtype"] == "bfloat16"
    module.tables(parser.parse_args(["--no-peer"]), Plan(), ROOT)
    assert len(seen[1]) == 1


def test_on_mlx_the_peer_is_mlx_audio(benchmarks, monkeypatch):
    pytest.importorskip("mlx.core")
    seen = []
    module = benchmarks.qwen3_tts
    monkeypatch.setattr(module, "run_in_turn", lambda workload, contenders, **_: seen.append(contenders) or ())
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    name = "Qwen3-TTS-12Hz-0.6B-CustomVoice-4bit"
    module.tables(parser.parse_args([name, "--backend", "mlx", "--device", "cpu"]), Plan(), ROOT)
    (ours, peer) = seen[0]
    assert ours.name == "izwi-lab 4bit" and peer.name == "mlx-audio"
    assert peer.options == {"model": name, "device": "cpu", "dtype": "bfloat16"}
