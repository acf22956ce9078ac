"""The commands on real weights: what `make demo` runs, and each verb once with everything behind it."""

import json
import re
from pathlib import Path

import pytest
from starter_weights import fetched

from izwi_lab import cli
from izwi_lab.audio import Audio
from izwi_lab.bench.wer import word_error_rate
from izwi_lab.cli.commands import demo

pytestmark = pytest.mark.weights

SENTENCES = "The train leaves early in the morning. Please bring a warm coat and something good to read."


@pytest.fixture(scope="module", autouse=True)
def starters():
    """The demo's models on this machine."""
    for name in (demo.SPEAKER, demo.LISTENER, demo.TALKER, demo.GATE):
        fetched(name)


@pytest.fixture
def izwi(capfd, tmp_path, monkeypatch):
    """izwi(*argv) -> stdout of a command that must succeed, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def invoke(*argv):
        code = cli.main([str(word) for word in argv])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return invoke


def test_demo(izwi):
    report = json.loads(izwi("demo", "--json"))
    assert report["passed"] and report["word_error"] <= demo.MAX_WORD_ERROR
    assert word_error_rate(demo.PARAGRAPH, report["heard"]) == report["word_error"]
    assert [s["step"] for s in report["steps"]][4:] == ["speak", "transcribe", "chat", "speak"]
    assert all(s["seconds"] > 0 for s in report["steps"][4:])
    assert 0 < report["steps"][4]["rtf"] < 10 and report["steps"][6]["tokens_per_s"] > 1
    assert set(report["plans"]) == {demo.SPEAKER, demo.LISTENER, demo.TALKER}
    assert all(plan["reason"] for plan in report["plans"].values())
    paragraph, subtitles, answer = map(Path, report["files"])
    assert 20 < Audio.open(paragraph).duration_s < 60 and Audio.open(answer).duration_s > 0.5
    assert report["answer"] and "-->" in subtitles.read_text()


def test_streamed_speech_is_the_whole_speech(izwi):
    izwi("speak", SENTENCES, "--seed", 1, "-o", "whole.wav")
    izwi("speak", SENTENCES, "--seed", 1, "-o", "streamed.wav", "--stream")
    assert Path("whole.wav").read_bytes() == Path("streamed.wav").read_bytes()


def test_what_is_spoken_is_heard_through_every_format(izwi):
    izwi("speak", SENTENCES, "-v", "am_michael", "-o", "said.wav")
    names = [str(Audio.open("said.wav").save(f"said.{kind}")) for kind in ("mp3", "opus", "m4a", "flac")]
    heard = [json.loads(line) for line in izwi("transcribe", *names, "-f", "json").splitlines()]
    assert [h["file"] for h in heard] == names
    assert all(word_error_rate(SENTENCES, h["text"]) <= 0.1 for h in heard)


def test_subtitles_with_word_times(izwi):
    izwi("speak", SENTENCES, "--speed", "0.9", "-o", "said.flac")
    value = json.loads(izwi("transcribe", "said.flac", "-f", "verbose-json", "--word-times", "-l", "en"))
    starts = [word["start"] for word in value["words"]]
    assert len(starts) >= 12 and starts == sorted(starts) and value["language"] == "en"
    assert value["words"][-1]["end"] <= value["duration"] + 0.1
    srt = izwi("transcribe", "said.flac", "-f", "srt")
    assert re.match(r"1\n00:00:00,\d{3} --> 00:00:\d\d,\d{3}\n\w", srt)


def test_chat_streams_what_it_says_whole(izwi):
    question = ("chat", "Name one primary colour.", "--max-tokens", 24, "--system", "Answer in a few words.")
    whole = izwi(*question, "--no-stream")
    assert izwi(*question) == whole and len(whole) > 3
    sampled = [izwi(*question, "--temperature", "1.5", "--top-p", "0.95", "--seed", seed) for seed in (1, 1)]
    assert sampled[0] == sampled[1]
