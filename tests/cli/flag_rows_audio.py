"""Rows of the flag table: speak and transcribe."""

from pathlib import Path

import pytest
from flag_table import asked, flag

from izwi_lab.audio import Audio

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
