"""Qwen3-TTS through the engine and the command line, on folders in the official layout."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tts_models import checkpoint, clip

import izwi_lab as izwi
from izwi_lab import cli
from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import AudioError, Cancelled, InvalidInputError, WrongTaskError
from izwi_lab.families.protocols import DirectedSpeechModel
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.results import Speech
from izwi_lab.runtime import tts
from izwi_lab.runtime.types import Limits, SpeechRequest

SAID = "hello there"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    made = {kind: checkpoint(home / kind, kind, end=3.0) for kind in ("base", "custom_voice", "voice_design")}
    for folder in made.values():  # a talker that does not come to an end must not hold up the tests
        (folder / "generation_config.json").write_text('{"max_new_tokens": 6}', encoding="utf-8")
    return made


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with izwi.InferenceEngine(tmp_path_factory.mktemp("home"), backend="torch", device="cpu") as made:
        yield made


def test_a_folder_is_known_by_its_config_and_loads(folders):
    model = izwi.load(folders["custom_voice"], backend="torch", device="cpu")
    assert model.config.kind == "custom_voice" and isinstance(model, DirectedSpeechModel)
    assert model.voices == ("serena", "vivian", "ryan", "eric", "dylan")


def test_the_engine_speaks_and_streams(engine, folders):
    told = {"model": folders["custom_voice"], "voice": "ryan", "seed": 4}
    speech = engine.speak("Hello.", **told)
    with engine.stream_speak("Hello.", **told) as stream:
        chunks = list(stream)
        assert stream.timing.audio_s == pytest.approx(speech.audio.duration_s)
    np.testing.assert_array_equal(Audio.concat([c.audio for c in chunks]).samples, speech.audio.samples)
    assert speech.voice == "ryan" and speech.audio.rate_hz == 24000 and speech.timing.tokens > 1


def test_an_engine_on_mlx_says_the_same(engine, folders, tmp_path):
    told = {"model": folders["custom_voice"], "voice": "ryan", "seed": 4, "dtype": "float32"}
    with izwi.InferenceEngine(tmp_path, backend="mlx", device="cpu") as other:
        speech = other.speak("Hello.", **told)
        with other.stream_speak("Hello.", **told) as stream:
            streamed = Audio.concat([chunk.audio for chunk in stream])
    np.testing.assert_array_equal(streamed.samples, speech.audio.samples)
    np.testing.assert_allclose(speech.audio.samples, engine.speak("Hello.", **told).audio.samples, atol=1e-4)


def test_directions_reach_the_model(engine, folders):
    design = {"model": folders["voice_design"], "seed": 0}
    low, high = (engine.speak("Hello.", instruct=said, **design) for said in ("a deep voice", "a child"))
    assert not np.array_equal(low.audio.samples, high.audio.samples)
    with pytest.raises(InvalidInputError, match="needs a description"):
        engine.speak("Hello.", **design)
    modes = [
        engine.speak("Hello.", text_mode=mode, model=folders["custom_voice"], seed=0) for mode in ("whole", "streaming")
    ]
    assert not np.array_equal(modes[0].audio.samples, modes[1].audio.samples)


def test_a_reference_and_the_voice_made_of_it(engine, folders, tmp_path):
    path = tmp_path / "anna.wav"
    clip().save(path)
    told = {"model": folders["base"], "seed": 0}
    with engine.use(folders["base"]) as model:
        voice = model.voice(path, SAID, name="anna")
    voice.save(tmp_path / "anna.safetensors")
    kept = engine.speak("Hello.", voice=Voice.load(tmp_path / "anna.safetensors"), **told)
    for reference in (path, str(path), path.read_bytes(), Audio.open(path)):
        given = engine.speak("Hello.", reference=reference, transcript=SAID, **told)
        np.testing.assert_array_equal(given.audio.samples, kept.audio.samples)
    assert kept.voice == "anna"


def test_two_at_once_speak_as_each_alone(engine, folders):
    from concurrent.futures import ThreadPoolExecutor

    told = {"model": folders["custom_voice"]}
    alone = [engine.speak("Hello.", seed=seed, **told).audio.samples for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: engine.speak("Hello.", seed=seed, **told).audio.samples, range(3)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_stopped_request_raises(engine, folders):
    token = CancelToken()
    with engine.stream_speak("Hello. " * 200, model=folders["custom_voice"], cancel=token, seed=0) as stream:
        next(stream)
        token.cancel()
        with pytest.raises(Cancelled):
            list(stream)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"voice": 3}, InvalidInputError, "a name, a Voice or None"),
        ({"voice": " "}, InvalidInputError, "a name, a Voice or None"),
        ({"instruct": 3}, InvalidInputError, "instruct must be some text"),
        ({"text_mode": "slow"}, InvalidInputError, "text_mode"),
        ({"transcript": SAID}, InvalidInputError, "needs the reference"),
        ({"reference": clip(), "transcript": " "}, InvalidInputError, "transcript must be some text"),
        ({"reference": clip(), "voice": "ryan"}, InvalidInputError, "Both a voice and a reference"),
        ({"reference": "missing.wav"}, AudioError, "no file"),
        ({"reference": Audio(np.full(48000, np.nan, np.float32), 24000)}, AudioError, "NaN"),
        ({"instruct": "x" * 50_001}, InvalidInputError, "50001 characters"),
        ({"instruct": "\ud800"}, InvalidInputError, "no character"),
    ],
)
def test_wrong_requests_need_no_model(options, error, message):
    with pytest.raises(error, match=message):
        tts.check(SpeechRequest(text="Hello.", **options), Limits())


class PlainModel:
    """A speech model without directions, such as Kokoro."""

    variant = SimpleNamespace(id="Plain-1")
    voices = ("one",)

    def tokenize(self, text): ...

    def generate(self, text, *, voice, language, speed, seed, cancel):
        return Speech(Audio.silence(0.1, 24000), text, voice=voice or "one")

    stream = generate


@pytest.mark.parametrize(
    "options",
    [
        {"instruct": "sadly"},
        {"text_mode": "whole"},
        {"reference": clip()},
        {"voice": Voice("anna", np.ones(4, np.float32))},
    ],
)
def test_a_model_without_directions_refuses_them(options):
    lease = SimpleNamespace(model=PlainModel())
    assert tts.run(lease, SpeechRequest(text="Hello.", voice="one"), CancelToken()).voice == "one"
    for verb in (tts.run, tts.stream):
        with pytest.raises(InvalidInputError, match="Plain-1 does not take"):
            verb(lease, SpeechRequest(text="Hello.", **options), CancelToken())


def test_a_model_that_hears_does_not_speak(engine):
    with pytest.raises(WrongTaskError):
        engine.speak("Hello.", model="Whisper-base", instruct="sadly")


def test_the_command_line_clones_keeps_and_speaks(folders, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "none"))
    clip().save("anna.wav")
    where = ("-m", str(folders["base"]), "--backend", "torch", "--device", "cpu")
    assert cli.main(["voices", "--clone", "anna.wav", "--transcript", SAID, *where]) == 0
    assert Voice.load("anna.safetensors").codes.shape == (16, 25)
    assert cli.main(["voices", "--folder", "."]) == 0
    assert "anna" in capsys.readouterr().out
    told = ("speak", "Hello.", "--seed", "1", *where)
    assert cli.main([*told, "--voice-file", "anna.safetensors", "-o", "kept.wav"]) == 0
    assert cli.main([*told, "--reference", "anna.wav", "--transcript", SAID, "--stream", "-o", "given.wav"]) == 0
    assert Path("kept.wav").read_bytes() == Path("given.wav").read_bytes()
    assert cli.main([*told, "-o", "x.wav"]) == 1
    assert "speaks in a cloned voice" in capsys.readouterr().err
    assert cli.main([*told, "--instruct", "sadly", "--voice-file", "anna.safetensors"]) == 1
    assert "takes no instructions" in capsys.readouterr().err
