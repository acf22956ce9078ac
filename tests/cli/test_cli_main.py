"""The command as a whole: help, exit codes, plain output, interrupts."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from pathlib import Path

import pytest

from izwi_lab import __version__, cli
from izwi_lab.errors import BackendUnavailableError, Cancelled, UnknownModelError

ROOT = Path(__file__).parents[2]


def python(*argv, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, env=environment, timeout=60, check=False, **options
    )


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys, izwi_lab.cli\n"
        "try: izwi_lab.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'mlx', 'numpy', 'av', 'tokenizers', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert not any(m.startswith('izwi_lab.cli.commands.') for m in sys.modules)\n"
    )
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        done = python("-c", code)
        seconds.append(time.perf_counter() - began)
        assert done.returncode == 0, done.stderr
    assert min(seconds) < 0.5
    assert all(re.search(rf"^    {name}\b", done.stdout, re.M) for name in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_of_each_command_imports_no_framework(command):
    done = python(
        "-c",
        f"import sys, izwi_lab.cli\n"
        f"try: izwi_lab.cli.main([{command!r}, '--help'])\n"
        f"except SystemExit as stop: assert stop.code == 0\n"
        f"heavy = {{'torch', 'mlx', 'mlx.core'}} & set(sys.modules)\nassert not heavy, heavy\n",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: izwi-lab {command}")


def test_entry_point_and_module():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert declared["izwi-lab"] == "izwi_lab.cli:main"
    done = python("-m", "izwi_lab.cli", "--version")
    assert (done.returncode, done.stdout.strip()) == (0, f"izwi-lab {__version__}")


def test_no_command_is_a_usage_error(run):
    result = run()
    assert result.code == 2 and "usage: izwi-lab" in result.out


def test_izwi_errors_are_one_message_and_code_1(run, world):
    world.error = UnknownModelError("No model is called 'Kokro'.", hint="Did you mean Kokoro-82M?")
    result = run("speak", "Hello.", "-m", "Kokro")
    assert result.code == 1
    assert result.err == "izwi-lab speak: No model is called 'Kokro'. Did you mean Kokoro-82M?\n"
    assert not list(Path().iterdir()), "a failed command leaves no file"


def test_unknown_models_point_at_the_list(run, world):
    for nearest, hint in (
        (("Kokoro-82M",), "Nearest: Kokoro-82M."),
        ((), "izwi_lab.catalog.variants() lists the models."),
    ):
        world.error = UnknownModelError("No model goes by 'x'.", nearest=nearest, hint=hint)
        err = run("speak", "Hello.", "-m", "x").err
        assert "`izwi-lab list` shows them all." in err and "izwi_lab.catalog" not in err


@pytest.mark.parametrize("argv", [("--debug", "speak", "Hello."), ("speak", "--debug", "Hello.")])
def test_debug_adds_the_traceback(run, world, argv):
    world.error = BackendUnavailableError("No backend.")
    result = run(*argv)
    assert result.code == 1
    assert "Traceback" in result.err and result.err.endswith("izwi-lab speak: No backend.\n")


def test_a_fault_of_ours_is_not_hidden(run, world):
    world.error = ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        run("speak", "Hello.")


@pytest.mark.parametrize(
    "argv", [("speak", "Hello."), ("speak", "Hello.", "--stream"), ("transcribe", "a.wav"), ("chat", "Hello.")]
)
def test_interrupt_is_130(run, world, argv):
    world.error = KeyboardInterrupt()
    result = run(*argv)
    assert result.code == 130 and result.err == "Interrupted.\n"
    assert world.engines[0].closed


def test_cancelled_stops_all_files(run, world):
    world.transcript = {"a.wav": Cancelled("The work was cancelled by its caller."), "b.wav": world.transcript}
    assert run("transcribe", "a.wav", "b.wav").code == 1
    assert len(world.calls) == 1


def test_output_without_a_terminal_is_plain(run, world):
    for argv in (
        ("list",),
        ("status",),
        ("speak", "Hi."),
        ("chat", "Hi."),
        ("pull", "Whisper-base"),
        ("config", "show"),
    ):
        result = run(*argv)
        assert result.code == 0
        assert "\x1b" not in result.out + result.err and "\r" not in result.out + result.err


def test_a_terminal_that_lacks_a_letter_is_no_traceback():
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii", "IZWI_MODELS_DIR": "/tmp/für"}
    done = subprocess.run(
        [sys.executable, "-m", "izwi_lab.cli", "config", "get", "models_dir"],
        capture_output=True,
        env=environment,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"/tmp/f\\xfcr\n")


def test_closed_pipe_is_no_traceback(tmp_path):
    script = f"cd {tmp_path}; {sys.executable} -m izwi_lab.cli list --json | head -n 1"
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout == "[\n" and done.stderr == ""


SLOW = textwrap.dedent(
    """
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs tests in the background ignores it
    import numpy as np
    from izwi_lab import cli
    from izwi_lab.audio import Audio
    from izwi_lab.results import AudioChunk, Timing
    from izwi_lab.runtime import service

    class Stream:
        model, backend, timing = "m", "b", Timing()
        def __iter__(self):
            for i in range(1000):
                yield AudioChunk(Audio(np.full(2400, 0.1, np.float32), 24000), i)
                print("step", file=sys.stderr, flush=True)
                time.sleep(0.05)
        def close(self):
            print("closed", file=sys.stderr, flush=True)

    class Engine:
        def __init__(self, **options): pass
        def __enter__(self): return self
        def __exit__(self, *e): pass
        def stream_speak(self, text, **options): return Stream()

    service.InferenceEngine = Engine
    sys.exit(cli.main(["speak", "Hello.", "--stream", "-o", *sys.argv[1:]]))
    """
)


@pytest.mark.parametrize("kind", ["wav", "mp3", "m4a"])
def test_a_listener_who_leaves_ends_the_stream(kind):
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, "-", "--format", kind], stderr=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout is not None and process.stderr is not None
    assert len(process.stdout.read(1000)) == 1000
    process.stdout.close()
    err = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=20) == 1
    assert "closed" in err and "Traceback" not in err and err.count("step") < 30


def test_ctrl_c_stops_within_a_step_and_keeps_what_was_spoken(tmp_path):
    from izwi_lab.audio import Audio

    target = tmp_path / "part.wav"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(target)], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stderr is not None
    for _ in range(3):
        assert process.stderr.readline() == "step\n"
    process.send_signal(signal.SIGINT)
    sent = time.perf_counter()
    _, err = process.communicate(timeout=20)
    assert time.perf_counter() - sent < 3
    assert process.returncode == 130
    assert err.count("step") <= 2 and "closed" in err and err.endswith("Interrupted.\n")
    kept = Audio.open(target)
    assert 0.3 <= kept.duration_s <= 0.6


def test_bytes_that_are_no_text_are_no_traceback(run, world):
    for argv in (("speak", "-"), ("chat", "-")):
        result = run(*argv, stdin=b"\xff\xfehello")
        assert result.code == 1 and "Standard input is not utf-8 text" in result.err
    assert world.calls == []
