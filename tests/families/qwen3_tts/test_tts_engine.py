"""Qwen3-TTS through the engine and the command line, on folders in the official layout."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
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
from izwi_lab.families.shared.course import followed
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.results import AudioChunk, Speech
from izwi_lab.runtime import api, tts, voices
from izwi_lab.runtime.types import Limits, SpeechRequest, VoiceRequest

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
    # In bfloat16 the shape of a pass shows in the rounding, and a code that was nearly another one becomes it.
    told = {"model": folders["custom_voice"], "dtype": "float32"}
    alone = [engine.speak("Hello.", seed=seed, **told).audio.samples for seed in range(3)]
    with ThreadPoolExecutor(3) as pool:
        together = list(pool.map(lambda seed: engine.speak("Hello.", seed=seed, **told).audio.samples, range(3)))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_speech_goes_to_the_end_of_the_context(engine, tmp_path):
    folder = checkpoint(tmp_path / "long", end=0.0)  # it would go on
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["talker_config"]["max_position_embeddings"] = 64
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    told = {"max_frames": 500, "seed": 0, "sampling": Sampling()}
    with engine.use(folder, dtype="float32") as model:
        room = 64 - len(model.tokenize("Hello.")) + 1
        alone = model.generate("Hello.", **told)
    said = engine.speak("Hello.", model=folder, dtype="float32", timeout_s=60, **told)
    np.testing.assert_array_equal(said.audio.samples, alone.audio.samples)
    assert said.timing.tokens == room and "without coming to an end" in said.notes[-1]


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
        ({"sampling": 0.7}, InvalidInputError, "sampling must be a Sampling"),
        ({"predictor": {"top_k": 5}}, InvalidInputError, "predictor must be a Sampling"),
        ({"max_frames": 0}, InvalidInputError, "max_frames must be"),
        ({"max_frames": 2.5}, InvalidInputError, "max_frames must be"),
        ({"max_frames": True}, InvalidInputError, "max_frames must be"),
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
        {"sampling": Sampling()},
        {"predictor": Sampling()},
        {"max_frames": 5},
        {"reference": clip()},
        {"voice": Voice("anna", np.ones(4, np.float32))},
    ],
)
def test_a_model_without_directions_refuses_them(options):
    lease = SimpleNamespace(model=PlainModel())
    script = tts.script(lease, SpeechRequest(text="Hello.", voice="one"), CancelToken(), whole=True)
    (speech,) = followed(lease.model, script.course())
    assert speech.voice == "one"
    (name,) = options
    told = "a cloned voice" if name == "voice" else name
    for whole in (True, False):
        with pytest.raises(InvalidInputError, match=f"Plain-1 does not take {told}"):
            tts.script(lease, SpeechRequest(text="Hello.", **options), CancelToken(), whole=whole)


def test_a_model_that_hears_does_not_speak(engine):
    with pytest.raises(WrongTaskError):
        engine.speak("Hello.", model="Whisper-base", instruct="sadly")


def test_how_codes_are_drawn_and_how_many_reach_the_model(engine, folders):
    told = {"model": folders["custom_voice"], "voice": "ryan", "seed": 4}
    usual = engine.speak("Hello.", **told)
    for name in ("sampling", "predictor"):
        other = engine.speak("Hello.", **told, **{name: Sampling(temperature=1.5)})
        assert not np.array_equal(other.audio.samples, usual.audio.samples), name
    short = engine.speak("Hello.", max_frames=2, **told)
    assert short.timing.tokens == 2 and "max_frames" in short.notes[0]
    with engine.stream_speak("Hello.", max_frames=2, **told) as stream:
        samples = Audio.concat([chunk.audio for chunk in stream]).samples
        assert stream.timing.tokens == 2
    np.testing.assert_array_equal(samples, short.audio.samples)


def test_tokens_of_chunks_are_counted():
    assert tts.measure(AudioChunk(Audio.silence(0.5, 24000), 0, tokens=4)) == (0.5, 4)


def test_the_package_speaks_as_the_engine_does(monkeypatch, engine, folders):
    monkeypatch.setattr(api, "default_engine", lambda: engine)
    told = {"model": folders["custom_voice"], "seed": 4, "text_mode": "streaming", "max_frames": 3}
    told |= {"sampling": Sampling(temperature=1.5), "predictor": Sampling()}
    expected = engine.speak("Hello.", **told)
    np.testing.assert_array_equal(izwi.speak("Hello.", **told).audio.samples, expected.audio.samples)
    assert expected.timing.tokens <= 3


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_engine_makes_voices_on_the_thread_that_its_models_live_on(folders, tmp_path, backend):
    clip().save(tmp_path / "anna.wav")
    with izwi.InferenceEngine(tmp_path, backend=backend, device="cpu") as other:
        made = other.voice(tmp_path / "anna.wav", SAID, model=folders["base"], name="anna", language="english")
        assert (made.name, made.language, made.transcript, made.codes.shape) == ("anna", "english", SAID, (16, 25))
        with ThreadPoolExecutor(1) as pool:
            again = pool.submit(other.voice, clip(), SAID, model=folders["base"], name="anna", language="english")
            assert again.result().name == "anna"
        assert [m.in_use for m in other.loaded()] == [0]
        given = other.speak("Hello.", model=folders["base"], reference=tmp_path / "anna.wav", transcript=SAID, seed=0)
        kept = other.speak("Hello.", model=folders["base"], voice=made, seed=0)
        np.testing.assert_array_equal(given.audio.samples, kept.audio.samples)
        assert other.voice(clip(31.0), model=folders["base"]).notes == ("only the first 30 s of 31.0 s are used",)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"name": "y" * 300}, InvalidInputError, "name must be text of at most 200"),
        ({"name": ""}, InvalidInputError, "name is empty"),
        ({"language": "\ud800"}, InvalidInputError, "language holds"),
        ({"transcript": 5}, InvalidInputError, "transcript must be text"),
        ({"audio": "missing.wav"}, AudioError, "no file"),
        ({"audio": Audio(np.full(48000, np.nan, np.float32), 24000)}, AudioError, "NaN"),
        ({"model": "Whisper-base"}, WrongTaskError, "Whisper-base does asr"),
    ],
)
def test_no_model_is_loaded_for_a_voice_that_cannot_be_made(engine, options, error, message):
    before = engine.loaded()
    with pytest.raises(error, match=message):
        engine.voice(**{"audio": clip(), "model": "Qwen3-TTS-12Hz-0.6B-Base", **options})
    assert [m.id for m in engine.loaded()] == [m.id for m in before]


def test_models_that_clone_no_voices_say_so_and_are_let_go(engine, folders):
    with pytest.raises(InvalidInputError, match="clones no voices"):
        engine.voice(clip(), model=folders["custom_voice"])
    with pytest.raises(InvalidInputError, match="Plain-1 clones no voices"):
        voices.run(SimpleNamespace(model=PlainModel()), VoiceRequest(audio=clip()), CancelToken())
    stopped = CancelToken()
    stopped.cancel()
    with pytest.raises(Cancelled):
        engine.voice(clip(), model=folders["base"], cancel=stopped)
    assert not any(m.in_use for m in engine.loaded())


def test_a_voice_is_no_request_that_run_or_stream_answer(engine, folders):
    for verb in (engine.run, engine.stream):
        with pytest.raises(InvalidInputError, match="must be one of"):
            verb(VoiceRequest(audio=clip(), model=folders["base"]))


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_the_command_line_clones_on_every_backend(folders, tmp_path, monkeypatch, backend):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "none"))
    clip().save("anna.wav")
    where = ("-m", str(folders["base"]), "--backend", backend, "--device", "cpu")
    assert cli.main(["voices", "--clone", "anna.wav", "--transcript", SAID, *where]) == 0
    assert Voice.load("anna.safetensors").codes.shape == (16, 25)


def test_the_command_line_lists_the_voices_of_a_folder(folders, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("IZWI_MODELS_DIR", str(tmp_path / "none"))
    assert cli.main(["voices", "-m", str(folders["custom_voice"])]) == 0
    assert capsys.readouterr().out == "custom_voice: serena, vivian, ryan, eric, dylan\n"
    assert cli.main(["voices", "-m", str(folders["base"])]) == 0
    assert "no presets" in capsys.readouterr().out


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


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("0.6B-CustomVoice", {"voice": "Nobody"}, "Unknown voice 'Nobody'"),
        ("0.6B-CustomVoice", {"instruct": "Happily."}, "not trained on instructions"),
        ("0.6B-CustomVoice", {"speed": 2.0}, "no speed"),
        ("1.7B-CustomVoice", {"language": "klingon"}, "Unknown language"),
        ("1.7B-CustomVoice", {"reference": clip()}, "clones no voices"),
        ("0.6B-Base", {}, "speaks in a cloned voice"),
        ("0.6B-Base", {"reference": clip(), "predictor": Sampling(repetition_penalty=1.1)}, "knows no penalties"),
        ("0.6B-Base", {"reference": clip(), "instruct": "Happily."}, "takes no instructions"),
        ("1.7B-VoiceDesign", {}, "needs a description"),
        ("1.7B-VoiceDesign", {"voice": "ryan", "instruct": "old"}, "no voices to choose from"),
    ],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_fetched(engine, monkeypatch, model, options, message):
    def fetch(*args, **options):
        pytest.fail("the files were asked for")

    monkeypatch.setattr("izwi_lab.runtime.model_router.ModelRouter.obtain", fetch)
    for ask in (engine.speak, engine.stream_speak):
        with pytest.raises(InvalidInputError, match=message):
            ask("Hello.", model=f"Qwen3-TTS-12Hz-{model}", **options)


@pytest.mark.parametrize("model", ["Qwen3-TTS-12Hz-0.6B-CustomVoice", "Kokoro-82M"])
def test_a_voice_is_not_fetched_for_where_none_can_be_made(engine, monkeypatch, model):
    monkeypatch.setattr(
        "izwi_lab.runtime.model_router.ModelRouter.obtain", lambda *a, **k: pytest.fail("the files were asked for")
    )
    with pytest.raises(InvalidInputError, match="clones no voices"):
        engine.voice(clip(), model=model)
    with pytest.raises(InvalidInputError, match="does not take instruct"):
        engine.speak("Hello.", model="Kokoro-82M", instruct="Happily.")


def test_making_a_voice_can_be_stopped(engine, folders):
    token, seen = CancelToken(), []

    def stop(name, value):
        seen.append(name)
        token.cancel()

    with engine.use(folders["base"]) as model, model.tap("encoder.latent", replace=stop), pytest.raises(Cancelled):
        model.voice(clip(20.0), SAID, cancel=token)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("audio", "transcript", "message"),
    [
        (clip(0.1), None, "at least 0.5 s"),
        (Audio.silence(2.0, 24000), None, "silent"),
        (clip(40.0), SAID, "at most 30 s"),
        (clip(), "x" * 3000, "3000 characters"),
    ],
)
def test_a_clip_that_makes_no_voice_is_refused_before_anything_is_fetched(
    engine, monkeypatch, audio, transcript, message
):
    monkeypatch.setattr(
        "izwi_lab.runtime.model_router.ModelRouter.obtain", lambda *a, **k: pytest.fail("the files were asked for")
    )
    for ask in (
        lambda: engine.voice(audio, transcript, model="Qwen3-TTS-12Hz-0.6B-Base"),
        lambda: engine.speak("Hi.", model="Qwen3-TTS-12Hz-0.6B-Base", reference=audio, transcript=transcript),
    ):
        with pytest.raises((AudioError, InvalidInputError), match=message):
            ask()


def test_a_folder_with_the_name_of_a_catalog_model_is_what_its_config_says(engine, folders, tmp_path):
    copied = tmp_path / "Qwen3-TTS-12Hz-0.6B-CustomVoice"
    shutil.copytree(folders["custom_voice"], copied)
    assert len(engine.speak("Hello.", model=copied, instruct="Happily.", seed=0).audio)  # a 1.7B in truth
