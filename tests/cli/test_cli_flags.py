"""Every flag and argument of every command does what its help says; a flag without a row here fails the last test."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

from izwi_lab import catalog, cli
from izwi_lab.audio import Audio

FLAGS = {}


def flag(command, name, *argv):
    """Register the check of one flag. `argv` holds the flag by its first name; every other name is tried too."""

    def register(check):
        FLAGS[command, name] = (argv, check)
        return check

    return register


def options_of(parser):
    """Each option and argument of a parser and of its subcommands, as (dotted command, action)."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                yield from ((f"{name} {rest}".strip(), a) for rest, a in options_of(child))
        elif not isinstance(action, argparse._HelpAction) and action.dest != "debug":
            yield "", action


def actions(command):
    """Every (subcommand, action) of a command."""
    module = importlib.import_module(f"izwi_lab.cli.commands.{command}")
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return list(options_of(parser))


def names_of(command, name):
    """All spellings of an option."""
    return next((a.option_strings for _, a in actions(command) if name in a.option_strings), [name])


def asked(world):
    return world.call[2]


# --- speak ---------------------------------------------------------------------------------------------------------

SAY = ("speak", "Hello there.")


@flag("speak", "text", "speak", "Hello there.")
def _(result, world):
    assert world.call[:2] == ("speak", "Hello there.")
    assert Audio.open("speech.wav").duration_s == 2.0
    assert result.out == "speech.wav\n"
    assert "Kokoro-82M" in result.err and "RTF" in result.err


@flag("speak", "--model", *SAY, "--model", "Some-Model")
def _(result, world):
    assert asked(world)["model"] == "Some-Model"


@flag("speak", "--voice", *SAY, "--voice", "af_heart+am_michael")
def _(result, world):
    assert asked(world)["voice"] == "af_heart+am_michael"


@flag("speak", "--language", *SAY, "--language", "en-gb")
def _(result, world):
    assert asked(world)["language"] == "en-gb"


@flag("speak", "--speed", *SAY, "--speed", "1.25")
def _(result, world):
    assert asked(world)["speed"] == 1.25


@flag("speak", "--seed", *SAY, "--seed", "7")
def _(result, world):
    assert asked(world)["seed"] == 7


@flag("speak", "--output", *SAY, "--output", "hello.flac")
def _(result, world):
    assert Path("hello.flac").read_bytes().startswith(b"fLaC")
    assert result.out == "hello.flac\n"
    assert not Path("speech.wav").exists()


@flag("speak", "--format", *SAY, "--format", "mp3")
def _(result, world):
    assert result.out == "speech.mp3\n"
    assert Audio.open("speech.mp3").duration_s == pytest.approx(2.0, abs=0.1)


@flag("speak", "--play", *SAY, "--play")
def _(result, world):
    folder = Path(__import__("os").environ["PATH"])
    assert (folder / "heard").read_bytes() == world.audio.encode("pcm")
    assert "-r 24000" in (folder / "argv").read_text()
    assert not Path("speech.wav").exists() and result.out == ""


@flag("speak", "--stream", *SAY, "--stream", "-o", "streamed.wav")
def _(result, world):
    assert world.call[0] == "stream_speak"
    assert world.stream.closed
    body = Path("streamed.wav").read_bytes()
    assert body == Audio.concat([c.audio for c in world.chunks]).encode("wav")


@flag("speak", "--backend", *SAY, "--backend", "mlx:gpu")
def _(result, world):
    assert world.engines[0].options["backend"] == "mlx:gpu"


@flag("speak", "--device", *SAY, "--device", "cuda:1")
def _(result, world):
    assert world.engines[0].options["device"] == "cuda:1"


# --- transcribe ----------------------------------------------------------------------------------------------------

HEAR = ("transcribe", "a.wav")


@flag("transcribe", "files", "transcribe", "a.wav")
def _(result, world):
    assert world.call[:2] == ("transcribe", Path("a.wav"))
    assert result.out == "Hello world. Good bye.\n"
    assert asked(world) == {
        "model": None, "language": None, "task": "transcribe", "prompt": None, "word_times": False
    }  # fmt: skip


@flag("transcribe", "--model", *HEAR, "--model", "Whisper-tiny.en")
def _(result, world):
    assert asked(world)["model"] == "Whisper-tiny.en"


@flag("transcribe", "--language", *HEAR, "--language", "de")
def _(result, world):
    assert asked(world)["language"] == "de"


@flag("transcribe", "--task", *HEAR, "--task", "translate")
def _(result, world):
    assert asked(world)["task"] == "translate"


@flag("transcribe", "--prompt", *HEAR, "--prompt", "Izwi, Kokoro")
def _(result, world):
    assert asked(world)["prompt"] == "Izwi, Kokoro"


@flag("transcribe", "--word-times", *HEAR, "--format", "srt", "--word-times")
def _(result, world):
    assert asked(world)["word_times"] is True


@flag("transcribe", "--format", *HEAR, "--format", "srt")
def _(result, world):
    assert result.out == world.transcript.to_srt()


@flag("transcribe", "--output", *HEAR, "--format", "vtt", "--output", "sub.vtt")
def _(result, world):
    assert Path("sub.vtt").read_text() == world.transcript.to_vtt()
    assert result.out == "sub.vtt\n"


@flag("transcribe", "--backend", *HEAR, "--backend", "torch")
def _(result, world):
    assert world.engines[0].options["backend"] == "torch"


@flag("transcribe", "--device", *HEAR, "--device", "cpu")
def _(result, world):
    assert world.engines[0].options["device"] == "cpu"


# --- chat ----------------------------------------------------------------------------------------------------------

ASK = ("chat", "Why is the sky blue?")


@flag("chat", "message", *ASK)
def _(result, world):
    assert world.call[:2] == ("stream_chat", [{"role": "user", "content": "Why is the sky blue?"}])
    assert result.out == "Blue light.\n"
    assert world.stream.closed
    assert asked(world)["sampling"].temperature == 0


@flag("chat", "--model", *ASK, "--model", "Qwen3-0.6B")
def _(result, world):
    assert asked(world)["model"] == "Qwen3-0.6B"


@flag("chat", "--system", *ASK, "--system", "Be brief.")
def _(result, world):
    assert world.call[1][0] == {"role": "system", "content": "Be brief."}


@flag("chat", "--temperature", *ASK, "--temperature", "0.8")
def _(result, world):
    assert asked(world)["sampling"].temperature == 0.8


@flag("chat", "--top-p", *ASK, "--temperature", "0.8", "--top-p", "0.9")
def _(result, world):
    assert asked(world)["sampling"].top_p == 0.9


@flag("chat", "--max-tokens", *ASK, "--max-tokens", "12")
def _(result, world):
    assert asked(world)["max_tokens"] == 12


@flag("chat", "--seed", *ASK, "--seed", "3")
def _(result, world):
    assert asked(world)["seed"] == 3


@flag("chat", "--no-stream", *ASK, "--no-stream")
def _(result, world):
    assert world.call[0] == "chat"
    assert result.out == "Blue light.\n"


@flag("chat", "--backend", *ASK, "--backend", "cpu")
def _(result, world):
    assert world.engines[0].options["backend"] == "cpu"


@flag("chat", "--device", *ASK, "--device", "mps")
def _(result, world):
    assert world.engines[0].options["device"] == "mps"


# --- list, pull, rm, status ----------------------------------------------------------------------------------------


def ids(result):
    return [line.split()[0] for line in result.out.splitlines()[1:]]


@flag("list", "--task", "list", "--task", "asr")
def _(result, world):
    assert ids(result) == [v.id for v in catalog.variants(task="asr")]


@flag("list", "--family", "list", "--family", "whisper")
def _(result, world):
    assert "Whisper-base" in ids(result) and all("hisper" in name for name in ids(result))


@flag("list", "--all", "list", "--all")
def _(result, world):
    assert len(ids(result)) == len(catalog.variants(include_disabled=True)) > len(catalog.variants())


@flag("list", "--json", "list", "--json")
def _(result, world):
    rows = json.loads(result.out)
    assert [row["id"] for row in rows] == [v.id for v in catalog.variants()]
    assert {"tasks", "size_bytes", "licence", "path", "runs_on"} <= set(rows[0])


@flag("pull", "id", "pull", "Whisper-base")
def _(result, world):
    assert world.fetched == [("Whisper-base", "auto")] and world.deleted == []
    assert result.out.strip().endswith("Whisper-base/starter")
    assert "Whisper-base is ready: layout gguf, from starter." in result.err


@flag("pull", "--source", "pull", "Whisper-base", "--source", "hub")
def _(result, world):
    assert world.fetched == [("Whisper-base", "hub")]


@flag("pull", "--force", "pull", "Whisper-base", "--force")
def _(result, world):
    assert world.deleted == ["Whisper-base"] and world.fetched == [("Whisper-base", "auto")]


@flag("status", "--json", "status", "--json")
def _(result, world):
    found = json.loads(result.out)
    assert found["models"] == [] and found["devices"] + found["missing"]
    said = ("compiled", "not compiled yet", "off (IZWI_NATIVE=0)", "no C++ compiler")
    assert found["native"] and all(state.startswith(said) for state in found["native"].values())


# --- config --------------------------------------------------------------------------------------------------------


@flag("config", "show --json", "config", "show", "--json")
def _(result, world):
    shown = json.loads(result.out)
    assert shown["models_dir"]["source"] == "IZWI_MODELS_DIR" and shown["backend"] == {"value": None, "source": None}


@flag("config", "get key", "config", "get", "models_dir")
def _(result, world):
    assert result.out.strip().endswith("models")


@flag("config", "set key", "config", "set", "device", "cpu")
def _(result, world):
    assert (Path.home() / ".config/izwi/config.toml").read_text() == 'device = "cpu"\n'


@flag("config", "set value", "config", "set", "idle_ttl_s", "60")
def _(result, world):
    assert (Path.home() / ".config/izwi/config.toml").read_text() == "idle_ttl_s = 60\n"


@pytest.mark.parametrize(
    ("command", "argv", "check"),
    [
        pytest.param(command, [spelling if word == name else word for word in argv], check, id=f"{command} {spelling}")
        for (command, name), (argv, check) in FLAGS.items()
        for spelling in names_of(command, name)
    ],
)
def test_flag(run, world, player, command, argv, check):
    result = run(*argv)
    assert result.code == 0, result.err
    check(result, world)


def test_rm_id_and_yes(run, world):
    run("pull", "Whisper-base")
    for spelling in names_of("rm", "--yes"):
        run("pull", "Whisper-base")
        world.deleted.clear()
        result = run("rm", "Whisper-base", spelling)
        assert result.code == 0 and world.deleted == ["Whisper-base"]
        assert result.err == "Deleted Whisper-base (1.5 kB).\n"


def test_config_unset_key(run, world):
    run("config", "set", "device", "cpu")
    assert run("config", "unset", "device").code == 0
    assert run("config", "get", "device").code == 1


def test_demo_flags_are_covered_by_test_demo():
    text = Path(__file__).with_name("test_cli_demo.py").read_text()
    assert all(f'"{name}"' in text for name in COVERED_ELSEWHERE["demo"])


COVERED_ELSEWHERE = {
    "demo": {"--out", "--json", "--backend", "--device"},
    "rm": {"id", "--yes"},
    "config": {"unset key"},
}


@pytest.mark.parametrize("command", [name for name in cli.COMMANDS if name != "bench"])
def test_every_flag_has_a_test(command):
    for path, action in actions(command):
        names = [f"{path} {name}".strip() for name in action.option_strings or [action.dest]]
        covered = any((command, name) in FLAGS or name in COVERED_ELSEWHERE.get(command, ()) for name in names)
        assert covered, f"no test for {command} {names}"


def test_every_row_is_a_flag_that_exists():
    for command, name in FLAGS:
        known = {
            f"{path} {spelling}".strip()
            for path, action in actions(command)
            for spelling in action.option_strings or [action.dest]
        }
        assert name in known


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_has_help(command):
    for path, action in actions(command):
        if action.option_strings:
            assert action.help, f"{command} {path} {action.option_strings}"


def test_bench_forwards(run, monkeypatch):
    from izwi_lab.cli.commands import bench

    seen = []
    monkeypatch.setattr(bench, "run", lambda args: seen.append(args) or 5)
    assert run("bench", "Kokoro-82M", "--runs", "2").code == 5
    assert seen[0].models == ["Kokoro-82M"] and seen[0].runs == 2


def test_numbers_are_checked_before_anything_is_loaded(run, world):
    for argv in (
        (*SAY, "--speed", "0"), (*SAY, "--speed", "nan"), (*SAY, "--seed", "x"), (*ASK, "--max-tokens", "0"),
        (*HEAR, "--task", "sing"), (*HEAR, "--format", "pdf"), ("list", "--task", "cook"), ("pull",), ("speak",),
        ("pull", "Whisper-base", "--source", "magic"), ("config",), ("config", "sing"), ("nonsense",),
        ("speak", "--spee", "1", "x"),
    ):  # fmt: skip
        result = run(*argv)
        assert result.code == 2, argv
        assert "usage: izwi-lab" in result.err
    assert world.engines == []
