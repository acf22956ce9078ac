"""`izwi-lab voices` and the voices of `izwi-lab speak`: what is listed, what is kept, what can go wrong."""

import json
from pathlib import Path

import pytest
from flag_rows_audio import SAY
from flag_rows_voices import ANNA, CLONE, kept
from flag_table import asked
from safetensors.numpy import save

from izwi_lab import catalog
from izwi_lab.families.qwen3_tts.voice import Voice


def test_every_model_that_speaks_is_listed(run):
    result = run("voices")
    assert result.code == 0
    name = "Qwen3-TTS-12Hz-0.6B-CustomVoice"
    assert f"{name}: {', '.join(catalog.get(name).voices)}\n" in result.out and len(catalog.get(name).voices) == 9
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
        (("--clone", "a.wav", "-o", "."), "is a folder"),
        (("--clone", "a.wav", "-o", "x" * 300), "kept in a file"),
        (("--model", "./missing"), "no folder"),
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


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("../../evil", "evil"), ("/etc/passwd", "etc_passwd"), ("..", "voice"), ("a/b\\c", "a_b_c"),
        ("Anna B", "Anna B"), ("Ünï 安娜-2", "Ünï 安娜-2"), ("a\x1b[2J\n", "a_2J"), ("安" * 200, "安" * 66),
    ],
)  # fmt: skip
def test_the_default_file_lies_in_this_folder_whatever_the_name(run, name, file):
    result = run(*CLONE, "--name", name)
    assert result.code == 0, result.err
    assert [p.name for p in Path().iterdir()] == [f"{file}.safetensors"] and result.out == f"{file}.safetensors\n"
    assert Voice.load(f"{file}.safetensors").name == name


def test_what_was_not_heard_of_the_recording_is_said(run, world):
    world.notes = ("only the first 30 s of 40.0 s are used",)
    assert "only the first 30 s of 40.0 s are used" in run(*CLONE).err


def test_what_is_held_by_files_does_not_steer_the_terminal(run, world):
    Path("voices").mkdir()
    odd = Voice("a\x1b[2J", ANNA.embedding, ANNA.codes, "b\x9b1m\nc", "d\u202e", "e\x07")
    odd.save("voices/odd.safetensors")
    Path("voices/half\x1b[2J.safetensors").write_bytes(b"\x10")
    result = run("voices", "--folder", "voices")
    assert result.code == 0 and len(result.out.splitlines()) == 2
    for shown in (r"a\x1b[2J", r"b\x9b1m\nc", r"d\u202e", r"e\x07"):
        assert shown in result.out
    assert r"Passed over: voices/half\x1b[2J.safetensors" in result.err
    assert r"no folder a\x1b[2J" in run("voices", "--folder", "a\x1b[2J").err
    steering = ("\x1b", "\x9b", "\u202e", "\x07")
    assert not any(c in result.out + result.err for c in steering)
    result = run("speak", "Hello.", "--voice-file", "voices/odd.safetensors")
    assert result.code == 0 and r"a\x1b[2J" in result.err and not any(c in result.err for c in steering)


def test_the_voices_of_a_folder_with_a_model_are_listed(run, world):
    folder = Path("models/mine")
    folder.mkdir(parents=True)
    config = dict(catalog.config(catalog.get("Qwen3-TTS-12Hz-1.7B-CustomVoice")))
    config["talker_config"] = config["talker_config"] | {"spk_id": {"My-Voice": 3000}, "spk_is_dialect": {}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(save({"x": ANNA.embedding}))
    for name in (f"./{folder}", str(folder), folder.resolve()):
        result = run("voices", "-m", name)
        assert result.code == 0 and result.out == "mine: my-voice\n", result.err
    assert json.loads(run("voices", "-m", folder, "--json").out)[0]["voices"] == ["my-voice"]
    assert world.engines == []


def test_sampling_that_makes_no_sense_is_refused(run, world):
    for argv, message in (
        (("--temperature", "-1"), "temperature"),
        (("--temperature", "nan"), "temperature"),
        (("--top-p", "0"), "top_p"),
        (("--temperature", "0", "--top-k", "5"), "--top-k has no effect"),
    ):
        result = run(*SAY, *argv)
        assert result.code == 1 and message in result.err
    assert world.calls == []


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
