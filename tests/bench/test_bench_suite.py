"""Who meets whom, the workloads, our own contender's loop, and the command line."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import izwi_lab
from izwi_lab import artifacts, catalog
from izwi_lab.audio import Audio
from izwi_lab.backends.base import Rejection
from izwi_lab.bench import cli, record, suite, workloads
from izwi_lab.bench.contender import CaseResult, ContenderSpec, Measurement, Workload
from izwi_lab.bench.harness import Plan
from izwi_lab.bench.ours import Ours
from izwi_lab.catalog.variant import Layout
from izwi_lab.errors import BackendUnavailableError, InvalidInputError, UnreachableError, WrongTaskError
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.results import AudioChunk, Segment

SMOL = "SmolLM2-135M-Instruct"


def silent(line: str) -> None:
    pass


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ContenderSpec]:
    """Contenders are written down instead of run, and every model is on disk as its starter pack has it."""
    specs: list[ContenderSpec] = []

    def run_in_turn(workload: Workload, contenders: Sequence[ContenderSpec], **_: Any) -> tuple[CaseResult, ...]:
        specs.extend(contenders)
        done = (Measurement(total_s=1.0, decode_s=1.0, tokens=10, audio_s=2.0),)
        return tuple(
            CaseResult(
                c.name, c.role, "missing" if c.unavailable else "ok", c.unavailable, runs=() if c.unavailable else done
            )
            for c in contenders
        )

    def fetch(variant: Any) -> Any:
        return SimpleNamespace(folder=tmp_path, layout=variant.starter_layout or variant.layout)

    monkeypatch.setattr(suite, "run_in_turn", run_in_turn)
    monkeypatch.setattr(artifacts, "fetch", fetch)
    return specs


def test_ours_meets_every_peer(seen: list[ContenderSpec], tmp_path: Path) -> None:
    table = suite.against_peers(catalog.get(SMOL), suite.Options(), Plan(), say=silent)
    assert [(s.name, s.role) for s in seen] == [
        ("izwi-lab", "ours"),
        ("llama.cpp", "peer"),
        ("transformers bf16", "peer"),
    ]
    assert all(s.unavailable == "" for s in seen)
    assert seen[1].options["folder"] == str(tmp_path)
    assert "folder" not in seen[1].settings
    assert table.workload.task == "chat"
    assert table.workload.data["prompt_tokens"] == 241


def test_every_peer_row_names_a_class_that_exists_and_takes_its_options() -> None:
    for id, rows in suite.peer_table(suite.PEERS_FOLDER).items():
        assert catalog.get(id).id == id
        for row in rows:
            module, _, cls = row.target.partition(":")
            source = (suite.PEERS_FOLDER / f"{module.rpartition('.')[2]}.py").read_text()
            assert f"class {cls}:" in source
            assert all(f"{option}: " in source for option in row.options)


def test_without_a_peers_folder_the_row_says_so(seen: list[ContenderSpec], tmp_path: Path) -> None:
    suite.against_peers(catalog.get(SMOL), suite.Options(), Plan(), peers_folder=tmp_path / "none", say=silent)
    assert [s.name for s in seen] == ["izwi-lab", "peers"]
    assert "pass --peers FOLDER" in seen[1].unavailable
    seen.clear()
    suite.against_peers(catalog.get(SMOL), suite.Options(), Plan(), peers_folder=None, say=silent)
    assert [s.name for s in seen] == ["izwi-lab"]


def test_peers_do_not_read_another_layout(
    seen: list[ContenderSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(artifacts, "fetch", lambda variant: SimpleNamespace(folder=tmp_path, layout=Layout.HF))
    suite.against_peers(catalog.get(SMOL), suite.Options(), Plan(), say=silent)
    assert [s.unavailable for s in seen[1:]] == ["it reads gguf files, and the model on disk is hf"] * 2


def test_a_model_that_cannot_be_had_is_a_row(seen: list[ContenderSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(variant: Any) -> Any:
        raise UnreachableError("No source can be reached.")

    monkeypatch.setattr(artifacts, "fetch", fetch)
    suite.against_peers(catalog.get(SMOL), suite.Options(), Plan(), say=silent)
    assert {s.unavailable for s in seen} == {"No source can be reached."}
    seen.clear()
    suite.against_peers(catalog.get(SMOL), suite.Options(load_format="dummy"), Plan(), peers_folder=None, say=silent)
    assert [s.unavailable for s in seen] == [""], "random weights need no files"


def test_backends_say_why_one_is_missing(seen: list[ContenderSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    class Router:
        def select(self, variant: Any, *, backend: str, device: str, dtype: str | None) -> None:
            if device != "cpu":
                raise BackendUnavailableError(f"There is no {device} here.")

    monkeypatch.setattr(suite, "BackendRouter", Router)
    gone = (Rejection("torch", "mps", "this machine is no Mac"),)
    monkeypatch.setattr(suite, "survey", lambda: SimpleNamespace(missing=gone))
    table = suite.across_backends(catalog.get(SMOL), suite.Options(), Plan(), say=silent)
    assert [s.name for s in seen] == ["torch cuda", "torch mps", "torch cpu", "mlx gpu", "mlx cpu"]
    assert [bool(s.unavailable) for s in seen] == [True, True, False, True, False]
    assert seen[0].unavailable == "There is no cuda:0 here."
    assert seen[1].unavailable == "this machine is no Mac"
    assert table.reference_case is not None and table.reference_case.contender == "torch cpu"


def test_the_real_router_has_a_reason_for_every_place_it_rejects() -> None:
    for backend, device in suite.PLACES:
        reason = suite._rejection(catalog.get("Kokoro-82M"), suite.Options(backend=backend, device=device))
        assert reason == "" or len(reason) > 20


def test_no_workload_for_a_tokenizer(seen: list[ContenderSpec]) -> None:
    with pytest.raises(WrongTaskError, match="no standard workload"):
        suite.against_peers(catalog.get("Silero-VAD-v6"), suite.Options(), Plan(), say=silent)


def clips(folder: Path) -> Path:
    for i, number in enumerate(workloads.CLIPS, start=1):
        Audio.from_samples(np.full(8000, i / 10, np.float32), 8000).save(folder / f"reading-{number}.wav")
    return folder


def test_recording_joins_the_clips_in_their_order(tmp_path: Path) -> None:
    workload = suite.record_speech(clips(tmp_path), tmp_path)
    samples = workloads.read_samples(workload.data)
    assert samples.dtype == np.float32
    assert samples.size == len(workloads.CLIP_ORDER) * 16_000 * 1.5
    middles = samples[8_000::24_000]
    order = [list(workloads.CLIPS).index(number) + 1 for number in workloads.CLIP_ORDER]
    np.testing.assert_allclose(middles, np.array(order) / 10, atol=0.01)
    assert workload.data["seconds"] == samples.size / 16_000
    assert workload.data["reference"].split()[:3] == ["And", "Mr.", "John"]


def test_recording_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "own.wav"
    Audio.silence(2.0, 8000).save(path)
    workload = suite.record_speech(path, tmp_path)
    assert (workload.data["seconds"], workload.data["reference"], workload.data["language"]) == (2.0, "", None)


def test_a_missing_clip_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"\*0870.*--speech"):
        suite.record_speech(tmp_path, tmp_path)


class FakeModel:
    """Just enough of each family for Ours: counts what is asked of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.backend = SimpleNamespace(synchronize=lambda: None, memory_bytes=lambda: 77)
        self.plan = SimpleNamespace(backend="torch", device="cpu", dtype="float32", quantisation="none", reason="fake")
        self.variant = SimpleNamespace(family="kokoro")
        self.nbytes = 1000
        self.ends_after = 0

    def tokenize(self, text: str, **options: Any) -> Prompt:
        self.calls.append(f"tokenize {text[:3]!r} {options.get('phonemes', '')[:3]!r}")
        return Prompt(ids=np.concatenate([[0], np.arange(1, 301), [0]]).astype(np.int32))

    def session(self, *, seed: int, max_tokens: int) -> SimpleNamespace:
        return SimpleNamespace(done=False, max_tokens=max_tokens)

    def prefill(self, session: Any, prompt: Prompt) -> str:
        self.calls.append(f"prefill {len(prompt)}")
        return "step"

    def decode(self, session: Any, token: int) -> str:
        self.calls.append("decode")
        session.done = self.calls.count("decode") == self.ends_after
        return "step"

    def sample(self, session: Any, step: str) -> int:
        self.calls.append("sample")
        return 5


class FakeSpeaker(FakeModel):
    def stream(self, text: str, **_: Any) -> Iterator[AudioChunk]:
        yield AudioChunk(Audio.silence(1.0, 24_000), 0)
        yield AudioChunk(Audio.silence(2.0, 24_000), 1, is_final=True)


class FakeHearer(FakeModel):
    def stream(self, audio: Audio, **_: Any) -> Iterator[Segment]:
        yield Segment(0, 0.0, 1.0, " Hello,", tokens=(1, 2))
        yield Segment(1, 1.0, 2.0, " wurld.", tokens=(3,))


def loaded(model: FakeModel, monkeypatch: pytest.MonkeyPatch) -> Ours:
    monkeypatch.setitem(vars(izwi_lab), "load", lambda name, **options: model)
    ours = Ours(model="x")
    assert ours.load()["weights_bytes"] == 1000
    assert ours.device_bytes() == 77
    return ours


def test_our_chat_prefills_once_and_decodes_each_token(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    found = loaded(model, monkeypatch).run(workloads.chat(tokens=3))
    assert model.calls[1:] == ["prefill 241", "sample", *["decode", "sample"] * 3]
    assert (found.prompt_tokens, found.tokens) == (241, 3)
    assert found.output == workloads.digest([5, 5, 5, 5])
    assert found.first_s is not None and found.decode_s is not None
    assert found.first_s + found.decode_s == pytest.approx(found.total_s)


def test_a_chat_that_ends_early_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    model = FakeModel()
    model.ends_after = 2
    with pytest.raises(RuntimeError, match="after 2 tokens"):
        loaded(model, monkeypatch).run(workloads.chat(tokens=3))


def test_our_chat_without_a_tokenizer_makes_ids_up(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(FakeModel(), monkeypatch).run(workloads.chat(tokens=1, synthetic=True))
    assert found.prompt_tokens == 241


def test_our_speech_counts_all_chunks_and_compares_phonemes_without_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    found = loaded(FakeSpeaker(), monkeypatch).run(workloads.tts())
    assert found.audio_s == 3.0
    assert found.first_s is not None and 0 < found.first_s <= found.total_s
    assert found.input == workloads.digest(list(range(1, 301)))


@pytest.mark.parametrize("family", ["kokoro", "qwen3_tts"])
def test_only_kokoro_is_handed_phonemes(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, workload = FakeSpeaker(), workloads.tts()
    model.variant = SimpleNamespace(family=family)
    loaded(model, monkeypatch).run(workload)
    text, phonemes = ("", workload.data["phonemes"][:3]) if family == "kokoro" else (workload.data["text"][:3], "")
    assert model.calls == [f"tokenize {text!r} {phonemes!r}"]


def test_our_transcript_is_scored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    np.save(tmp_path / "s.npy", np.zeros(32_000, np.float32))
    workload = workloads.asr(tmp_path / "s.npy", seconds=2.0, reference="Hello world")
    found = loaded(FakeHearer(), monkeypatch).run(workload)
    assert (found.audio_s, found.quality, found.tokens) == (2.0, 0.5, 3)


def test_ours_refuses_another_task(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongTaskError, match="no standard run"):
        loaded(FakeModel(), monkeypatch).run(Workload("x", "vad", "x"))


def arguments(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    cli.add_arguments(parser)
    return parser.parse_args(argv)


def test_command_prints_the_table_and_saves_the_record(
    seen: list[ContenderSpec], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    out, results = tmp_path / "out" / "x.json", tmp_path / "results"
    args = arguments(SMOL, "--runs", "1", "--json", str(out), "--report", str(results), "--name", "mine")
    assert cli.run(args) == 0
    assert "| **izwi-lab** |" in capsys.readouterr().out
    assert record.load(out).name == "mine"
    assert (results / "README.md").exists() and len(list(results.glob("mine-*.json"))) == 1


def test_command_fails_when_ours_cannot_run(seen: list[ContenderSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(variant: Any) -> Any:
        raise UnreachableError("No source can be reached.")

    monkeypatch.setattr(artifacts, "fetch", fetch)
    assert cli.run(arguments(SMOL)) == 1
    assert cli.run(arguments(SMOL, "--load-format", "dummy", "--no-peer")) == 0


def test_command_chooses_models(seen: list[ContenderSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "starters", lambda folder: (SMOL, "Kokoro-82M", "Whisper-base"))
    monkeypatch.setattr(suite, "record_speech", lambda source, folder: workloads.asr(folder, seconds=1.0, reference=""))
    assert cli.run(arguments("--all", "--task", "tts", "--backend", "torch", "--device", "cpu")) == 0
    assert [s.options.get("model") for s in seen if s.role == "ours"] == ["Kokoro-82M"]
    assert seen[0].settings == {"backend": "torch", "device": "cpu", "load_format": "auto"}
    assert [s.name for s in seen[1:]] == ["onnxruntime int8", "onnxruntime float"]
    seen.clear()
    assert cli.run(arguments("--task", "tts", "--against", "int8")) == 0
    assert [s.name for s in seen] == ["izwi-lab", "onnxruntime int8"]
    with pytest.raises(InvalidInputError, match="exclude each other"):
        cli.run(arguments("--all", SMOL))
    with pytest.raises(InvalidInputError, match="does asr"):
        cli.run(arguments(SMOL, "--task", "asr"))


def test_asr_without_the_clips_is_a_row(
    seen: list[ContenderSpec], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(suite, "CLIPS_FOLDER", tmp_path / "none")
    assert cli.run(arguments("Whisper-base")) == 1
    assert all("pass --speech FOLDER" in s.unavailable for s in seen)


@pytest.mark.parametrize("wrong", [["--runs", "0"], ["no-such-model"], ["--speech", "no/such/file.wav"]])
def test_command_says_what_is_wrong(wrong: list[str], seen: list[ContenderSpec]) -> None:
    with pytest.raises(InvalidInputError):
        cli.run(arguments(*wrong, *([] if wrong[0] == "no-such-model" else ["Whisper-base"])))


def test_peers_are_handed_the_phonemes_that_our_front_end_makes() -> None:
    hibari = pytest.importorskip("hibari.g2p")
    assert hibari.G2P()(workloads.SENTENCE) == workloads.PHONEMES
