"""`izwi-lab voices` and the voices of `izwi-lab speak`: what is listed, what is kept, what can go wrong."""

import json
from pathlib import Path

import pytest
from flag_rows_audio import SAY
from flag_rows_voices import ANNA, CLONE, kept
from flag_table import asked

from izwi_lab.families.qwen3_tts.voice import Voice


def test_every_model_that_speaks_is_listed(run):
    result = run("voices")
    assert result.code == 0
    assert "Qwen3-TTS-12Hz-0.6B-CustomVoice: Vivian, Serena" in result.out
    assert "Qwen3-TTS-12Hz-0.6B-Base: no presets. Speaks in a voice cloned from a reference clip" in result.out


def test_kept_voices_are_listed(run, world):
    kept("voices")
    ANNA.vector_only().save("voices/vector.safetensors")
    result = run("voices", "--folder", "voices")
    assert result.code == 0 and world.engines == []
    head, *rows = result.out.splitlines()
    assert head.split()[:2] == ["NAME", "REFERENCE"] and len(rows) == 2
    assert any("2.0 s" in row and "Good day." in row for row in rows)
    listed = json.loads(run("voices", "--folder", "voices", "--json").out)
    assert {row["reference_s"] for row in listed} == {0.0, 2.0} and listed[0]["width"] == 4


def test_an_empty_folder_says_so(run):
    Path("none").mkdir()
    result = run("voices", "--folder", "none")
    assert result.code == 0 and result.out == "" and "No voice is kept in none" in result.err


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--model", "Whisper-base"), "does not speak"),
        (("--model", "Kokorro-82M"), "Kokoro-82M"),
        (("--folder", "missing"), "no folder missing"),
        (("--transcript", "Good day."), "--transcript belongs to --clone"),
        (("--name", "x"), "--name belongs to --clone"),
        (("--clone", "a.wav", "--folder", "x"), "--folder lists"),
        (("--clone", "a.wav", "-o", "missing/x.safetensors"), "no folder 'missing'"),
        (("--clone", "a.wav", "-m", "Qwen3-TTS-12Hz-0.6B-CustomVoice"), "clones no voices"),
    ],
)
def test_what_cannot_be_done_says_why(run, world, argv, message):
    result = run("voices", *argv)
    assert result.code == 1 and message in result.err and result.out == ""
    assert world.calls == []


def test_a_kept_voice_is_not_overwritten_unless_told(run):
    path = Path("anna.safetensors")
    ANNA.save(path)
    result = run(*CLONE)
    assert result.code == 1 and "there already" in result.err and Voice.load(path) == ANNA
    assert run(*CLONE, "-o", path).code == 0 and Voice.load(path) != ANNA


def test_a_voice_file_is_read(run, world):
    path = kept("voices")
    for stream in ((), ("--stream",)):
        world.calls.clear()
        assert run(*SAY, "--voice-file", path, *stream).code == 0
        assert asked(world)["voice"] == ANNA


def test_wrong_voice_files_cost_no_work(run, world):
    Path("odd.safetensors").write_bytes(b"no voice at all")
    for argv, message in (
        (("--voice-file", "missing.safetensors"), "missing.safetensors"),
        (("--voice-file", "odd.safetensors"), "odd.safetensors"),
        (("--voice-file", str(kept("voices")), "--voice", "ryan"), "Both --voice and --voice-file"),
    ):
        result = run(*SAY, *argv)
        assert result.code == 1 and message in result.err
    assert world.calls == []
