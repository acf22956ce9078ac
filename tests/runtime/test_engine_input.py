"""What InferenceEngine refuses before it works, and what it takes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from runtime_fakes import CLIP, make_variant

from izwi_lab.audio import Audio
from izwi_lab.errors import AudioError, InvalidInputError, IzwiError, WrongTaskError
from izwi_lab.runtime.types import GenerationRequest, Limits, SpeechRequest, TranscriptionRequest


@pytest.mark.parametrize("text", ["", "  \n\t", None, 7, b"bytes"])
def test_text_that_says_nothing_is_refused_before_loading(make_engine, fake, tts, text):
    engine = make_engine()
    for ask in (engine.speak, engine.stream_speak):
        with pytest.raises(InvalidInputError):
            ask(text, model=tts)
    assert fake.loads == []


def test_a_hundred_thousand_characters_are_refused_or_said_in_full(make_engine, fake, tts):
    text = ("w" * 49 + " ") * 2000
    with pytest.raises(InvalidInputError, match=r"100000 characters.*50000"):
        make_engine().speak(text, model=tts)
    assert fake.loads == []
    speech = make_engine(limits=Limits(text_chars=200_000)).speak(text, model=tts)
    assert speech.audio.samples.size == 2000 * 80


@pytest.mark.parametrize(
    "options",
    [{"voice": ""}, {"voice": 3}, {"language": " "}, {"speed": 0}, {"speed": float("nan")}, {"speed": "fast"},
     {"timeout_s": 0}, {"timeout_s": -1.0}],
)  # fmt: skip
def test_speech_options_that_mean_nothing_are_refused(make_engine, tts, options):
    with pytest.raises(InvalidInputError):
        make_engine().speak("a", model=tts, **options)


def test_cancel_must_be_a_token(make_engine, fake, tts, chat):
    engine = make_engine()
    for ask in (engine.speak, engine.stream_speak):
        with pytest.raises(InvalidInputError, match="CancelToken or None, got True"):
            ask("a", model=tts, cancel=True)
    with pytest.raises(InvalidInputError, match="CancelToken or None, got 'stop'"):
        engine.chat("a", model=chat, cancel="stop")
    assert fake.loads == []


@pytest.mark.parametrize(
    "messages",
    ["", " ", [], None, 3, [{"content": "a"}], [{"role": "user"}], [{"role": "user", "content": ""}], ["hello"]],
)
def test_messages_that_ask_nothing_are_refused(make_engine, fake, chat, messages):
    engine = make_engine()
    for ask in (engine.chat, engine.stream_chat):
        with pytest.raises(InvalidInputError):
            ask(messages, model=chat)
    assert fake.loads == []


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_tokens": True},
        {"stop": "x"},
        {"stop": [""]},
        {"stop": None},
        {"sampling": {"temperature": 1}},
        {"timeout_s": "3"},
        {"timeout_s": True},
    ],
)
def test_chat_options_that_mean_nothing_are_refused(make_engine, chat, options):
    with pytest.raises(InvalidInputError):
        make_engine().chat("a", model=chat, **options)


def test_too_many_characters_of_chat_are_refused(make_engine, chat):
    with pytest.raises(InvalidInputError, match="1000001 characters"):
        make_engine().chat("x" * 1_000_001, model=chat)


@pytest.mark.parametrize(
    "options",
    [
        {"task": "sing"},
        {"language": ""},
        {"language": 5},
        {"temperature": -1.0},
        {"temperature": "0"},
        {"prompt": "\udcff"},
    ],
)
def test_recognition_options_that_mean_nothing_are_refused(make_engine, asr, options):
    with pytest.raises(InvalidInputError):
        make_engine().transcribe(CLIP, model=asr, **options)


def test_audio_that_is_none_is_refused(make_engine, fake, asr, tmp_path):
    engine = make_engine()
    nan = Audio(np.array([0.1, np.nan, 0.2], np.float32), 16000)
    empty = tmp_path / "empty.wav"
    empty.write_bytes(b"")
    text = tmp_path / "text.wav"
    text.write_text("not audio at all")
    for bad in (nan, b"", empty, text, tmp_path / "missing.wav"):
        with pytest.raises(AudioError):
            engine.transcribe(bad, model=asr)
    assert fake.loads == []


def test_a_recording_over_the_cap_is_refused(make_engine, asr):
    with pytest.raises(AudioError, match="more than the 1 s"):
        make_engine(limits=Limits(audio_s=1.0)).transcribe(Audio.silence(2.0, 16000), model=asr)


def test_recordings_come_as_audio_path_or_bytes(make_engine, asr, tmp_path):
    engine = make_engine()
    path = CLIP.save(tmp_path / "clip.wav")
    with path.open("rb") as file:
        for source in (CLIP, path, str(path), path.read_bytes(), file):
            assert engine.transcribe(source, model=asr).duration_s == pytest.approx(0.1)


def test_a_model_of_another_task_is_refused(make_engine, fake, tts, chat):
    with pytest.raises(WrongTaskError, match="voice-a does tts, not chat"):
        make_engine().chat("a", model=tts)
    assert fake.loads == []


def test_requests_are_values(make_engine, tts):
    engine = make_engine()
    request = SpeechRequest(text="a b", model=tts)
    assert engine.run(request).audio == engine.speak("a b", model=tts).audio
    assert len(list(engine.stream(request))) == 2
    with pytest.raises(AttributeError):
        request.text = "other"  # type: ignore[misc]
    assert request.id != SpeechRequest(text="a b").id
    with pytest.raises(InvalidInputError, match="SpeechRequest"):
        engine.run(GenerationRequest())
    assert TranscriptionRequest(audio=CLIP).task == "transcribe"


def test_use_hands_out_the_model_and_keeps_it(make_engine, tts):
    engine = make_engine(idle_ttl_s=0)
    with engine.use(tts) as model:
        assert model.variant is tts
        assert engine.unload(tts, wait=False) is False
        assert model.alive
    assert not model.alive


def test_a_family_without_a_model_says_which_work(make_engine):
    variant = make_variant("future")
    with pytest.raises(IzwiError, match=r"lists but cannot run.*Families that run: .*fakefam"):
        make_engine().speak("a", model=dataclasses.replace(variant, family="notyet"))


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True])
def test_a_seed_is_a_whole_number(make_engine, fake, tts, asr, chat, seed):
    engine = make_engine()
    for ask in (
        lambda: engine.speak("a", model=tts, seed=seed),
        lambda: engine.stream_transcribe(CLIP, model=asr, seed=seed),
        lambda: engine.chat("a", model=chat, seed=seed),
    ):
        with pytest.raises(InvalidInputError, match="seed must be"):
            ask()
    assert fake.loads == []
    assert engine.speak("a", model=tts, seed=np.int64(7)).model == "voice-a"


def test_half_a_character_is_refused_before_anything_is_loaded(make_engine, fake, tts, chat):
    engine = make_engine()
    broken = b"caf\xe9".decode("utf-8", "surrogateescape")  # how Python hands on an argument that is not UTF-8
    for ask in (
        lambda: engine.speak(broken, model=tts),
        lambda: engine.chat(broken, model=chat),
        lambda: engine.stream_chat([{"role": "user", "content": broken}], model=chat),
    ):
        with pytest.raises(InvalidInputError, match="at character 3, which is no character"):
            ask()
    assert fake.loads == []


@pytest.mark.parametrize("audio", [None, 5, [0.0], np.zeros(5)])
def test_what_is_no_audio_at_all_is_refused(make_engine, asr, audio):
    with pytest.raises(AudioError, match="expects a path, bytes or an open binary file"):
        make_engine().transcribe(audio, model=asr)
