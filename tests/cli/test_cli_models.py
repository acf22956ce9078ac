"""`izwi-lab list`, `pull`, `rm`, `status`, `config`."""

import io
import json
from pathlib import Path

import pytest

from izwi_lab import catalog
from izwi_lab.artifacts import Progress, State
from izwi_lab.cli import console
from izwi_lab.cli.progress import ProgressView


def test_list_shows_what_is_on_disk(run, world):
    run("pull", "SmolLM2-135M-Instruct")
    rows = {line.split()[0]: line for line in run("list", "--task", "chat").out.splitlines()[1:]}
    assert " yes " in rows["SmolLM2-135M-Instruct"] and " yes " not in rows["Qwen3-0.6B"]
    assert "269.1 MB" in rows["SmolLM2-135M-Instruct"] and "packages, hub" in rows["SmolLM2-135M-Instruct"]
    assert "Apache-2.0" in rows["Qwen3-0.6B"]


def test_list_without_a_match(run):
    result = run("list", "--task", "tts", "--family", "whisper")
    assert result.code == 0 and result.out == "" and "No model matches" in result.err


@pytest.mark.parametrize("command", ["pull", "rm"])
def test_unknown_names_get_neighbours(run, world, command):
    result = run(command, "Wisper-base")
    assert result.code == 1 and "Whisper-base" in result.err and world.fetched == world.deleted == []


def test_pull_takes_any_name_of_a_model(run, world):
    assert run("pull", "smollm2 135m instruct").code == 0
    assert world.fetched == [("SmolLM2-135M-Instruct", "auto")]


def test_pull_reports_in_lines(run):
    err = run("pull", "Whisper-base").err.splitlines()
    assert err[0] == "Whisper-base: downloading,   0 %, 0 B of 100.0 kB, 50.0 kB/s, 0:01 left"
    assert len(err) == 6 and err[-2].startswith("Whisper-base: done, 100 %")


def test_progress_bar_on_a_terminal():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with ProgressView("Kokoro-82M", stream) as view:
        for done in (0, 50, 100):
            view(Progress(State.DOWNLOADING, done * 10**6, 10**8, rate_bytes_s=1e7, eta_s=75.0))
    frames = stream.getvalue().split("\r")
    assert "[........................]" in frames[1] and "[########################]" in frames[-1]
    assert "100.0 MB of 100.0 MB, 10.0 MB/s, 1:15 left" in frames[-1] or len(frames[-1]) == 80
    assert stream.getvalue().endswith("\n") and len({len(f.rstrip("\n")) for f in frames[1:]}) == 1


def test_rm_asks_at_a_terminal(run, world, monkeypatch):
    run("pull", "Whisper-base")
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    result = run("rm", "Whisper-base", tty=True)
    assert result.code == 1 and "Kept." in result.err and world.deleted == []
    monkeypatch.setattr("builtins.input", lambda prompt: "Yes")
    assert run("rm", "Whisper-base", tty=True).code == 0 and world.deleted == ["Whisper-base"]


def test_rm_without_a_terminal_needs_y(run, world):
    run("pull", "Whisper-base")
    result = run("rm", "Whisper-base")
    assert result.code == 1 and "-y" in result.err and world.deleted == []


def test_rm_of_what_is_not_there(run, world):
    result = run("rm", "Whisper-base", "-y")
    assert result.code == 1 and "is not on disk" in result.err


def test_status(run, world, monkeypatch):
    monkeypatch.setenv("IZWI_NUM_THREADS", "3")
    run("pull", "Whisper-base")
    out = run("status").out
    for part in ("Devices", "BACKEND", "Not available", "Whisper-base  1.5 kB", "Native kernels", "IZWI_NUM_THREADS"):
        assert part in out


def test_status_imports_no_framework(tmp_path):
    import os
    import subprocess
    import sys

    code = (
        "import sys; from izwi_lab import cli; assert cli.main(['status', '--json']) == 0\n"
        "assert not {'torch', 'mlx', 'mlx.core'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "IZWI_MODELS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


# --- config --------------------------------------------------------------------------------------------------------


def settings_file():
    return Path.home() / ".config" / "izwi" / "config.toml"


@pytest.mark.parametrize(
    ("key", "value", "line", "shown"),
    [
        ("backend", "torch", 'backend = "torch"', "torch"),
        ("device", "cuda:0", 'device = "cuda:0"', "cuda:0"),
        ("dtype", "bfloat16", 'dtype = "bfloat16"', "bfloat16"),
        ("idle_ttl_s", "600", "idle_ttl_s = 600", "600.0"),
        ("memory_budget", "12 GB", 'memory_budget = "12 GB"', "12000000000"),
        ("memory_budget", "12000", "memory_budget = 12000", "12000"),
        ("threads", "8", "threads = 8", "8"),
    ],
)
def test_config_round_trip(run, key, value, line, shown):
    assert run("config", "set", key, value).code == 0
    assert settings_file().read_text() == line + "\n"
    assert run("config", "get", key).out == shown + "\n"
    assert run("config", "unset", key).code == 0
    assert settings_file().read_text() == ""
    result = run("config", "get", key)
    assert result.code == 1 and result.out == ""


def test_config_path_of_models_may_hold_anything(run, monkeypatch):
    monkeypatch.delenv("IZWI_MODELS_DIR")
    for value in ("/data/my models", 'C:\\izwi "x"', "123"):
        assert run("config", "set", "models_dir", value).code == 0
        assert run("config", "get", "models_dir").out == value + "\n"


def test_config_keeps_the_rest_of_the_file(run):
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text('# mine\nthreads = 2  # few\nbackend = "torch"')
    run("config", "set", "threads", "4")
    run("config", "set", "device", "cpu")
    assert settings_file().read_text() == '# mine\nthreads = 4\nbackend = "torch"\ndevice = "cpu"\n'


@pytest.mark.parametrize(
    ("key", "value"),
    [("threads", "many"), ("threads", "0"), ("threads", "1.5"), ("idle_ttl_s", "soon"), ("idle_ttl_s", "-1"),
     ("memory_budget", "plenty"), ("colour", "blue"), ("sources", "x"), ("backend", ""), ("mlx", "true"),
     ("backend", "banana"), ("dtype", "int3"), ("device", "cuda:x"), ("models_dir", "~no-such-user-here/x")],
)  # fmt: skip
def test_config_refuses_and_changes_nothing(run, key, value):
    run("config", "set", "device", "cpu")
    result = run("config", "set", key, value)
    assert result.code == 1 and result.err.startswith("izwi-lab config: ")
    assert settings_file().read_text() == 'device = "cpu"\n'


def test_config_show_says_where_values_come_from(run, monkeypatch):
    run("config", "set", "threads", "4")
    monkeypatch.setenv("IZWI_BACKEND", "mlx")
    rows = {line.split()[0]: line.split()[1:] for line in run("config", "show").out.splitlines()}
    assert rows["threads"] == ["4", str(settings_file())]
    assert rows["backend"] == ["mlx", "IZWI_BACKEND"]
    assert rows["dtype"] == ["-", "default"]


def test_config_says_when_the_environment_overrules(run, monkeypatch):
    monkeypatch.setenv("IZWI_NUM_THREADS", "3")
    assert "IZWI_NUM_THREADS overrules" in run("config", "set", "threads", "4").err
    assert run("config", "get", "threads").out == "3\n"


def test_config_path_follows_the_environment(run, monkeypatch, tmp_path):
    monkeypatch.setenv("IZWI_CONFIG", str(tmp_path / "own.toml"))
    assert run("config", "path").out == f"{tmp_path / 'own.toml'}\n"
    assert run("config", "set", "threads", "5").code == 0
    assert (tmp_path / "own.toml").read_text() == "threads = 5\n"


def test_config_broken_file(run):
    settings_file().parent.mkdir(parents=True)
    settings_file().write_text("threads = = 4\n")
    for argv in (("show",), ("get", "threads"), ("set", "device", "cpu")):
        result = run("config", *argv)
        assert result.code == 1 and "cannot be read" in result.err
    assert settings_file().read_text() == "threads = = 4\n"


def test_unset_of_what_is_not_set(run):
    assert run("config", "unset", "threads").code == 1
    assert run("config", "unset", "colour").code == 1


# --- console -------------------------------------------------------------------------------------------------------


def test_sizes_and_clocks():
    assert [console.size(n) for n in (0, 999, 1500, 145_200_000, 2_500_000_000, 12_345_000_000_000)] == [
        "0 B", "999 B", "1.5 kB", "145.2 MB", "2.5 GB", "12345.0 GB"
    ]  # fmt: skip
    assert [console.clock(s) for s in (0.2, 59.6, 61, 3723)] == ["0:00", "1:00", "1:01", "1:02:03"]


def test_list_json_is_whole(run):
    for row, variant in zip(
        json.loads(run("list", "--json", "--all").out), catalog.variants(include_disabled=True), strict=True
    ):
        assert (row["id"], row["size_bytes"], row["enabled"]) == (variant.id, variant.size_bytes, variant.enabled)


def test_rm_takes_ctrl_d_for_no(run, world, monkeypatch):
    run("pull", "Whisper-base")

    def end(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", end)
    result = run("rm", "Whisper-base", tty=True)
    assert result.code == 1 and result.err.endswith("Kept.\n") and world.deleted == []


def test_config_says_what_is_not_for_the_file(run):
    result = run("config", "set", "mlx", "1")
    assert result.code == 1 and "IZWI_ENABLE_MLX_RUNTIME" in result.err
