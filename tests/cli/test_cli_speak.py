"""`izwi-lab speak`: files, pipes, streams, the loudspeaker, and what can go wrong with each."""

import struct
from pathlib import Path

import numpy as np
import pytest

from izwi_lab.audio import Audio
from izwi_lab.results import AudioChunk


def test_text_from_standard_input(run, world):
    assert run("speak", "-", stdin="Grüße aus der Leitung.\n".encode()).code == 0
    assert world.call[1] == "Grüße aus der Leitung.\n"


def test_empty_standard_input(run, world):
    result = run("speak", "-", stdin=b" \n")
    assert result.code == 1 and "holds no text" in result.err and world.calls == []


def test_nothing_is_overwritten_without_o(run):
    assert [run("speak", "Hi.").out.strip() for _ in range(3)] == ["speech.wav", "speech-2.wav", "speech-3.wav"]
    assert run("speak", "Hi.", "--format", "flac").out == "speech.flac\n"


@pytest.mark.parametrize("stream", [(), ("--stream",)])
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "aac", "m4a", "pcm"])
def test_every_format_to_a_file(run, kind, stream):
    result = run("speak", "Hi.", "-o", f"out.{kind}", *stream)
    assert result.code == 0, result.err
    body = Path(f"out.{kind}").read_bytes()
    clip = Audio.from_samples(np.frombuffer(body, "<i2"), 24000) if kind == "pcm" else Audio.open(body)
    assert clip.duration_s == pytest.approx(2.0, abs=0.15)


@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "aac", "m4a"])
def test_streams_to_standard_output(run, kind):
    result = run("speak", "Hi.", "--stream", "-o", "-", "--format", kind)
    assert result.code == 0 and b"RTF" not in result.raw and "RTF" in result.err
    assert Audio.open(result.raw).duration_s == pytest.approx(2.0, abs=0.15)


def test_streamed_wav_has_one_header(run, world):
    result = run("speak", "Hi.", "--stream", "-o", "-")
    assert result.raw.count(b"RIFF") == 1 and result.raw.count(b"data") == 1
    assert struct.unpack("<I", result.raw[40:44])[0] == 0xFFFFFFFF, "the length is not known while streaming"
    expected = Audio.concat([chunk.audio for chunk in world.chunks]).encode("pcm")
    assert result.raw[44:] == expected


def test_streamed_file_has_its_sizes_put_right(run, world):
    run("speak", "Hi.", "--stream", "-o", "out.wav")
    body = Path("out.wav").read_bytes()
    assert struct.unpack("<I", body[40:44])[0] == len(body) - 44
    assert struct.unpack("<I", body[4:8])[0] == len(body) - 8


def test_format_beats_suffix(run):
    run("speak", "Hi.", "-o", "odd.wav", "--format", "flac")
    assert Path("odd.wav").read_bytes().startswith(b"fLaC")


def test_bad_targets_cost_no_work(run, world):
    for argv, message in (
        (("-o", "x.pdf"), "'.pdf'"),
        (("-o", "nosuffix"), "has no suffix"),
        (("--format", "midi"), "'midi'"),
        (("-o", "missing/x.wav"), "no folder 'missing'"),
    ):
        result = run("speak", "Hi.", *argv)
        assert result.code == 1 and message in result.err
    assert world.calls == []


def test_unwritable_target(run, world):
    Path("taken.wav").mkdir()
    for stream in ((), ("--stream",)):
        result = run("speak", "Hi.", "-o", "taken.wav", *stream)
        assert result.code == 1 and "Cannot write 'taken.wav'" in result.err


@pytest.mark.parametrize("stream", [(), ("--stream",)])
@pytest.mark.parametrize("kind", ["wav", "flac", "mp3", "opus", "aac", "m4a", "pcm"])
def test_disk_full(run, kind, stream):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    result = run("speak", "Hi.", "-o", "/dev/full", "--format", kind, *stream)
    assert result.code == 1 and "No space left" in result.err


def test_clipping_is_reported(run, world):
    world.audio = Audio(world.audio.samples * 3, world.audio.rate_hz)
    assert "samples CLIPPED" in run("speak", "Hi.").err
    assert "CLIPPED" not in run("chat", "Hi.").err


def test_play_and_write(run, world, player):
    result = run("speak", "Hi.", "--play", "-o", "kept.wav")
    assert result.code == 0 and result.out == "kept.wav\n"
    assert player.heard.read_bytes() == world.audio.encode("pcm")
    assert Audio.open("kept.wav").duration_s == 2.0


def test_play_a_stream(run, world, player):
    assert run("speak", "Hi.", "--play", "--stream").code == 0
    assert player.heard.read_bytes() == b"".join(chunk.audio.encode("pcm") for chunk in world.chunks)


def test_player_that_fails(run, player):
    player.script.write_text("#!/bin/sh\necho 'no such card' >&2\nexit 1\n")
    for stream in ((), ("--stream",)):
        result = run("speak", "Hi.", "--play", *stream)
        assert result.code == 1
        assert "The player 'aplay' failed" in result.err and "-o" in result.err


def test_no_player(run, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("speak", "Hi.", "--play")
    assert result.code == 1 and "No sound player was found" in result.err


def test_afplay_gets_a_file(run, world, monkeypatch, tmp_path):
    import sys

    folder = tmp_path / "mac"
    folder.mkdir()
    script = folder / "afplay"
    script.write_text(
        f"#!{sys.executable}\nimport shutil, sys\nshutil.copy(sys.argv[1], {str(folder / 'heard.wav')!r})\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "platform", "darwin")
    assert run("speak", "Hi.", "--play", "--stream").code == 0
    assert Audio.open(folder / "heard.wav").duration_s == pytest.approx(2.0, abs=1e-3)


def test_interrupt_in_a_stream_leaves_a_playable_file(run, world):
    world.chunks.insert(2, KeyboardInterrupt())
    result = run("speak", "Hi.", "--stream", "-o", "part.wav")
    assert result.code == 130 and world.stream.closed
    assert Audio.open("part.wav").duration_s == pytest.approx(1.2)


def test_last_chunk_may_be_empty(run, world):
    world.chunks.append(AudioChunk(Audio(np.zeros(0, np.float32), 24000), 3, is_final=True))
    for kind in ("wav", "mp3", "opus"):
        assert run("speak", "Hi.", "--stream", "-o", f"x.{kind}").code == 0
        assert Audio.open(f"x.{kind}").duration_s == pytest.approx(2.0, abs=0.1)


def test_download_progress_in_plain_lines(run, world):
    from izwi_lab.artifacts import Progress, State

    world.progress = [Progress(State.DOWNLOADING, n * 1_000_000, 90_000_000) for n in range(0, 91, 3)]
    result = run("speak", "Hi.")
    lines = [line for line in result.err.splitlines() if line.startswith("speech model: downloading")]
    assert len(lines) == 5
    assert lines[-1] == "speech model: downloading, 100 %, 90.0 MB of 90.0 MB"
