"""`izwi-lab transcribe`: formats, several files, where results go."""

import json
from pathlib import Path

import pytest

from izwi_lab.errors import AudioError


def test_every_format(run, world):
    text = world.transcript
    expected = {
        "txt": "Hello world. Good bye.\n",
        "json": '{"text": "Hello world. Good bye."}\n',
        "srt": text.to_srt(),
        "vtt": text.to_vtt(),
        "verbose-json": text.to_json() + "\n",
    }
    for kind, body in expected.items():
        result = run("transcribe", "a.wav", "-f", kind)
        assert (result.code, result.out) == (0, body)
        assert "RTF" in result.err
    assert expected["srt"].startswith("1\n00:00:00,000 --> 00:00:01,000\nHello world.\n\n2\n")


def test_standard_input(run, world):
    assert run("transcribe", "-", stdin=b"RIFFsound").code == 0
    assert world.call[1] == b"RIFFsound"


def test_real_files_reach_the_engine_as_paths(run, world):
    assert run("transcribe", "~/talk.mp3").code == 0
    assert world.call[1] == Path("~/talk.mp3")


def test_several_files_are_told_apart(run, world):
    result = run("transcribe", "a.wav", "b.wav")
    assert result.out == "==> a.wav <==\nHello world. Good bye.\n==> b.wav <==\nHello world. Good bye.\n"
    for kind in ("json", "verbose-json"):
        rows = [json.loads(line) for line in run("transcribe", "a.wav", "b.wav", "-f", kind).out.splitlines()]
        assert [row["file"] for row in rows] == ["a.wav", "b.wav"]
        assert all(row["text"] == "Hello world. Good bye." for row in rows)


def test_several_files_into_a_folder(run, world):
    result = run("transcribe", "x/a.wav", "y/b.mp3", "-", "-f", "verbose-json", "-o", "out")
    assert result.code == 0
    assert result.out.split() == ["out/a.json", "out/b.json", "out/stdin.json"]
    assert json.loads(Path("out/b.json").read_text())["segments"][1]["text"] == "Good bye."


def test_one_file_into_a_folder(run, world):
    Path("there").mkdir()
    assert run("transcribe", "a.wav", "-f", "srt", "-o", "there").out == "there/a.srt\n"
    assert run("transcribe", "a.wav", "-o", "new/").out == "new/a.txt\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("x/a.wav", "y/a.wav", "-o", "out"), "Two results would be written to 'out/a.txt'"),
        (("a.wav", "-o", "missing/a.txt"), "no folder 'missing'"),
        (("a.wav", "b.wav", "-o", "taken"), "'taken' is a file"),
        (("a.wav", "--word-times"), "--word-times has no effect on txt"),
        (("a.wav", "-o", "taken/deep/"), "Cannot make the folder 'taken/deep'"),
        (("a.wav", "-o", "~no-such-user-here/a.txt"), "no such user"),
    ],
)
def test_bad_targets_cost_no_work(run, world, argv, message):
    Path("taken").write_text("mine")
    result = run("transcribe", *argv)
    assert result.code == 1 and message in result.err
    assert world.calls == [] and Path("taken").read_text() == "mine"


def test_one_bad_file_does_not_stop_the_others(run, world):
    world.transcript = {"a.wav": AudioError("'a.wav' is empty (0 bytes)."), "b.wav": world.transcript}
    result = run("transcribe", "a.wav", "b.wav")
    assert result.code == 1
    assert "izwi-lab transcribe: a.wav: 'a.wav' is empty" in result.err
    assert "Hello world." in result.out


def test_one_engine_for_all_files(run, world):
    run("transcribe", "a.wav", "b.wav", "c.wav")
    assert len(world.engines) == 1 and len(world.calls) == 3 and world.engines[0].closed


def test_letters_outside_ascii_survive(run, world):
    from dataclasses import replace

    world.transcript = replace(world.transcript, text="Grüße, 世界", segments=())
    assert run("transcribe", "a.wav", "-f", "json").out == '{"text": "Grüße, 世界"}\n'
    run("transcribe", "a.wav", "-o", "a.txt")
    assert Path("a.txt").read_text(encoding="utf-8") == "Grüße, 世界\n"
