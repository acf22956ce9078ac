"""`izwi-lab demo`: the steps and the verdict with fakes here; on real weights in test_cli_real.py."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from izwi_lab.audio import Audio
from izwi_lab.cli.commands import demo


@pytest.fixture
def heard(world):
    """The recogniser hears the paragraph, with `wrong` of its words changed."""

    def hear(wrong=0):
        words = demo.PARAGRAPH.split()
        text = " ".join(["Wrong"] * wrong + words[wrong:])
        world.transcript = replace(world.transcript, text=text)
        return wrong / len(words)

    return hear


def test_demo(run, world, heard):
    heard()
    result = run("demo")
    assert result.code == 0, result.err
    assert [name for name, _ in world.fetched] == [demo.SPEAKER, demo.LISTENER, demo.TALKER, demo.GATE]
    assert [verb for verb, _, _ in world.calls] == ["speak", "transcribe", "chat", "speak"]
    assert world.calls[1][2]["language"] == "en", "an accent may sound like another language; what was said is known"
    spoken, listened, asked, answered = world.calls
    assert spoken[1] == demo.PARAGRAPH and listened[2]["word_times"] is True
    assert listened[1] == Path("demo-output/paragraph.wav"), "it must hear the file that was written"
    assert demo.PARAGRAPH in asked[1] and answered[1] == "Blue light."
    for name in ("paragraph.wav", "answer.wav"):
        assert Audio.open(Path("demo-output") / name).duration_s == 2.0
    assert Path("demo-output/paragraph.srt").read_text().startswith("1\n00:00:00,000 --> ")
    table = [line for line in result.out.splitlines() if line.startswith(("fetch", "speak", "transcribe", "chat"))]
    assert len(table) == 8
    assert table[4].split()[2:5] == ["torch", "cpu", "float32"] and "0.50" in table[4]
    assert "0.0 %" in table[5] and "20.0" in table[6] and "0.250" in table[4]
    assert result.out.count("no accelerator here can serve it, so the CPU does") == 3
    assert result.out.count("this MLX has no GPU") == 1
    assert "Wrote demo-output/paragraph.wav, demo-output/paragraph.srt, demo-output/answer.wav" in result.out


@pytest.mark.parametrize(("wrong", "code"), [(0, 0), (7, 0), (9, 1), (40, 1)])
def test_verdict(run, heard, wrong, code):
    rate = heard(wrong)
    assert (rate > demo.MAX_WORD_ERROR) == bool(code)
    result = run("demo")
    assert result.code == code
    assert ("over 10 %" in result.err) == bool(code)


def test_json(run, heard):
    heard(9)
    result = run("demo", "--json")
    report = json.loads(result.out)
    assert result.code == 1 and report["passed"] is False and report["word_error"] > 0.1
    assert [s["step"] for s in report["steps"]] == ["fetch"] * 4 + ["speak", "transcribe", "chat", "speak"]
    assert report["steps"][6]["tokens_per_s"] == 20.0 and report["steps"][4]["rtf"] == 0.25
    assert report["plans"][demo.TALKER]["device"] == "cpu" and report["plans"][demo.TALKER]["rejected"]
    assert set(report["plans"]) == {demo.SPEAKER, demo.LISTENER, demo.TALKER}
    assert report["files"] == ["demo-output/paragraph.wav", "demo-output/paragraph.srt", "demo-output/answer.wav"]


def test_out_backend_device(run, world, heard, tmp_path):
    heard()
    assert run("demo", "--out", tmp_path / "a" / "b", "--backend", "mlx", "--device", "cpu").code == 0
    assert (tmp_path / "a" / "b" / "answer.wav").exists() and not Path("demo-output").exists()
    assert world.engines[0].options["backend"] == "mlx" and world.engines[0].options["device"] == "cpu"


def test_out_that_is_a_file(run, world):
    Path("taken").write_text("mine")
    result = run("demo", "--out", "taken")
    assert result.code == 1 and "Cannot make the folder 'taken'" in result.err and world.fetched == []


def test_models_on_disk_are_not_fetched_again(run, world, heard):
    heard()
    run("demo")
    world.fetched.clear()
    assert run("demo").code == 0 and world.fetched == []


def test_silent_answer_is_spoken_as_such(run, world, heard):
    heard()
    world.reply = replace(world.reply, text=" ")
    assert run("demo").code == 0
    assert world.calls[-1][1] == "I have no answer."


def test_paragraph_has_nothing_that_is_spelt_in_two_ways():
    assert not any(letter.isdigit() for letter in demo.PARAGRAPH)
    assert demo.PARAGRAPH.isascii() and 60 <= len(demo.PARAGRAPH.split()) <= 100
