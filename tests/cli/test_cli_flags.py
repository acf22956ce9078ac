"""Every flag and argument of every command does what its help says; a flag without a row here fails the last test."""

import json
from pathlib import Path

import pytest
from flag_rows_audio import HEAR, SAY
from flag_rows_chat import ASK
from flag_rows_voices import CLONE
from flag_table import FLAGS, actions, flag, names_of

from izwi_lab import catalog, cli

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
    "speak": {"--voice-file"},
    "voices": {"--folder"},
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
        (*HEAR, "--task", "sing"),
        (*SAY, "--top-k", "0"), (*SAY, "--max-frames", "0"), (*SAY, "--temperature", "hot"),
        (*SAY, "--text-mode", "slow"), (*CLONE, "--json", "yes"), (*HEAR, "--format", "pdf"),
        ("list", "--task", "cook"), ("pull",), ("speak",),
        ("pull", "Whisper-base", "--source", "magic"), ("config",), ("config", "sing"), ("nonsense",),
        ("speak", "--spee", "1", "x"),
    ):  # fmt: skip
        result = run(*argv)
        assert result.code == 2, argv
        assert "usage: izwi-lab" in result.err
    assert world.engines == []
