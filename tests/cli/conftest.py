"""A world without models: an engine that records what it is asked, and files that are never fetched."""

import io
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from izwi_lab import artifacts, cli
from izwi_lab.artifacts import LocalModel, Progress, State
from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan, Rejection
from izwi_lab.catalog import Layout
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.results import AudioChunk, ChatReply, Segment, Speech, TextDelta, Timing, Transcript, Word
from izwi_lab.runtime import service

pytest.register_assert_rewrite("flag_rows_audio", "flag_rows_voices")

RATE = 24000
TIMING = Timing(total_s=0.5, first_s=0.1, decode_s=0.4, audio_s=2.0, tokens=8)


def tone(seconds, level=0.5):
    return Audio((level * np.sin(np.arange(round(seconds * RATE)) / 20)).astype(np.float32), RATE)


class FakeStream:
    """What the runtime's Stream offers, over a list of pieces; a piece that is an exception is raised."""

    model, backend, timing = "fake-model", "torch cpu float32", TIMING

    def __init__(self, pieces):
        self._pieces = iter(pieces)
        self.closed = False

    def __iter__(self):
        return self

    def __next__(self):
        piece = next(self._pieces)
        if isinstance(piece, BaseException):
            raise piece
        return piece

    def close(self):
        self.closed = True


class FakeEngine:
    """Stands in for InferenceEngine: `calls` holds (verb, positional, options) of every request."""

    def __init__(self, world, options):
        self.world, self.options, self.closed = world, options, False

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.closed = True

    def _record(self, verb, given, options):
        progress = options.pop("progress", None)
        self.world.calls.append((verb, given, options))
        if progress is not None:
            for reading in self.world.progress:
                progress(reading)
        if self.world.error is not None:
            raise self.world.error

    def speak(self, text, **options):
        self._record("speak", text, options)
        voice = getattr(options.get("voice"), "name", options.get("voice")) or "af_heart"
        return Speech(self.world.audio, text, voice, "en", "Kokoro-82M", "torch cpu float32", TIMING)

    def stream_speak(self, text, **options):
        self._record("stream_speak", text, options)
        self.world.stream = FakeStream(self.world.chunks)
        return self.world.stream

    def transcribe(self, audio, **options):
        self._record("transcribe", audio, options)
        answer = self.world.transcript
        if isinstance(answer, dict):
            answer = answer[Path(audio).name]
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def chat(self, messages, **options):
        self._record("chat", messages, options)
        return self.world.reply

    def stream_chat(self, messages, **options):
        self._record("stream_chat", messages, options)
        deltas = self.world.deltas.pop(0) if self.world.deltas else ["Blue", " light", "."]
        pieces = [TextDelta(d, i) if isinstance(d, str) else d for i, d in enumerate(deltas)]
        if isinstance(pieces[-1], TextDelta):
            pieces[-1] = replace(pieces[-1], finish_reason=self.world.reply.finish_reason)
        self.world.stream = FakeStream(pieces)
        return self.world.stream

    def load(self, model, **options):
        self.world.loads.append(model)

    def voice(self, audio, transcript=None, **options):
        self._record("voice", audio, {"transcript": transcript, **options})
        named = {name: options[name] for name in ("name", "language")}
        codes = None if transcript is None else np.zeros((16, 25), np.int32)
        kept = {"codes": codes, "transcript": transcript or "", "source": options["model"]}
        return Voice(embedding=np.ones(4), notes=self.world.notes, **kept, **named)

    def plan(self, model, **options):
        return BackendPlan(
            "torch",
            "cpu",
            "float32",
            "no accelerator here can serve it, so the CPU does",
            rejected=(Rejection("mlx", "gpu", "this MLX has no GPU"),),
        )


class World:
    """What the fakes answer, and what was asked of them."""

    def __init__(self):
        self.calls, self.loads, self.engines, self.error, self.stream, self.notes = [], [], [], None, None, ()
        self.progress = []
        self.audio = tone(2.0)
        self.chunks = [AudioChunk(tone(0.5), 0), AudioChunk(tone(0.7), 1), AudioChunk(tone(0.8), 2, is_final=True)]
        words = (Word("Hello", 0.1, 0.4), Word("world.", 0.5, 0.9))
        segments = (Segment(0, 0.0, 1.0, "Hello world.", words), Segment(1, 1.0, 2.0, "Good bye."))
        self.transcript = Transcript(
            "Hello world. Good bye.", "en", 2.0, segments, "transcribe", "Whisper-base", "torch cpu float32", TIMING
        )
        self.reply = ChatReply("Blue light.", "stop", (1, 2, 3), "SmolLM2-135M-Instruct", "torch cpu float32", TIMING)
        self.deltas = []
        self.on_disk, self.fetched, self.deleted = {}, [], []

    @property
    def call(self):
        """The only request."""
        (only,) = self.calls
        return only

    def engine(self, **options):
        self.engines.append(FakeEngine(self, options))
        return self.engines[-1]


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Fakes in place, in an empty working folder, with settings and models of this test alone."""
    made = World()
    monkeypatch.setattr(service, "InferenceEngine", made.engine)

    def fetch(variant, *, source="auto", progress=None, cancel=None):
        made.fetched.append((variant.id, source))
        if progress:
            for done in (0, 30, 60, 100):
                progress(Progress(State.DOWNLOADING, done * 1000, 100_000, 0, 2, "model.bin", 50_000.0, 1.0))
            progress(Progress(State.DONE, 100_000, 100_000, 2, 2))
        folder = tmp_path / "models" / variant.id
        (folder / "starter").mkdir(parents=True, exist_ok=True)
        (folder / "starter" / "model.bin").write_bytes(bytes(1500))
        made.on_disk[variant.id] = LocalModel(variant, folder / "starter", Layout.GGUF, "starter")
        return made.on_disk[variant.id]

    def delete(variant, *, cancel=False):
        made.deleted.append(variant.id)
        return made.on_disk.pop(variant.id, None) is not None

    monkeypatch.setattr(artifacts, "fetch", fetch)
    monkeypatch.setattr(artifacts, "delete", delete)
    monkeypatch.setattr(artifacts, "locate", lambda variant, **_: made.on_disk.get(variant.id))
    for name in ("IZWI_BACKEND", "IZWI_ENABLE_MLX_RUNTIME", "IZWI_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("IZWI_CONFIG", raising=False)
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "models"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return made


@pytest.fixture
def run(world, capsysbinary, monkeypatch):
    """run(*argv, stdin=b"") -> code, out (text), raw (bytes of stdout), err."""

    def invoke(*argv, stdin=b"", tty=False):
        reader = io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        reader.isatty = lambda: tty
        monkeypatch.setattr(sys, "stdin", reader)
        try:
            code = cli.main([str(word) for word in argv])
        except SystemExit as stop:
            code = stop.code
        out, err = capsysbinary.readouterr()
        return SimpleNamespace(code=code, out=out.decode("utf-8", "replace"), raw=out, err=err.decode())

    return invoke


@pytest.fixture
def player(monkeypatch, tmp_path):
    """An `aplay` that keeps what it is given: returns the files of its arguments and its input."""
    folder = tmp_path / "bin"
    folder.mkdir()
    script = folder / "aplay"
    script.write_text(
        f"#!{sys.executable}\nimport sys, pathlib\nhere = pathlib.Path({str(folder)!r})\n"
        '(here / "argv").write_text(" ".join(sys.argv[1:]))\n(here / "heard").write_bytes(sys.stdin.buffer.read())\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "platform", "linux")
    return SimpleNamespace(argv=folder / "argv", heard=folder / "heard", script=script)
