"""The engine on real weights: streamed is whole, two models at once, cancelled work, and what the fakes cannot show."""

from __future__ import annotations

import gc
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from starter_weights import english_kokoro, fetched

import izwi_lab as izwi
from izwi_lab import artifacts, catalog
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError
from izwi_lab.runtime import api

pytestmark = [pytest.mark.weights, pytest.mark.slow]

IDS = ("Kokoro-82M", "Whisper-tiny.en", "SmolLM2-135M-Instruct")
TEXT = "The quick brown fox jumps over the lazy dog. Then it sleeps."
ASK = "What is the capital of France? Answer in one sentence."


@pytest.fixture(scope="module")
def engine():
    for id in IDS:
        fetched(id)
    english_kokoro()
    with izwi.InferenceEngine(backend="torch") as made:
        yield made


@pytest.fixture(scope="module")
def speech(engine):
    return engine.speak(TEXT, voice="af_heart", seed=0)


def test_streamed_speech_is_the_whole(engine, speech):
    with engine.stream_speak(TEXT, voice="af_heart", seed=0) as stream:
        chunks = list(stream)
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert [c.is_final for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert np.array_equal(np.concatenate([c.audio.samples for c in chunks]), speech.audio.samples)
    assert stream.timing.audio_s == pytest.approx(speech.audio.duration_s)
    assert 0 < stream.timing.first_s < stream.timing.total_s


def test_said_and_heard(engine, speech):
    heard = engine.transcribe(speech.audio, model="Whisper-tiny.en", word_times=True)
    assert heard.text.strip() == TEXT
    assert [w.text.strip() for w in heard.words] == TEXT.split()
    assert (heard.model, heard.backend, speech.model) == ("Whisper-tiny.en", "torch", "Kokoro-82M")
    streamed = list(engine.stream_transcribe(speech.audio, model="Whisper-tiny.en"))
    assert "".join(s.text for s in streamed).strip() == TEXT


def test_streamed_chat_is_the_whole(engine):
    reply = engine.chat(ASK, max_tokens=24)
    with engine.stream_chat(ASK, max_tokens=24) as stream:
        deltas = list(stream)
    assert "Paris" in reply.text
    assert "".join(d.text for d in deltas) == reply.text
    assert deltas[-1].finish_reason == reply.finish_reason == "stop"
    assert stream.timing.first_s > 0
    sampled = izwi.Sampling(temperature=0.9, top_k=50)
    first = engine.chat(ASK, max_tokens=16, sampling=sampled, seed=7)
    assert engine.chat(ASK, max_tokens=16, sampling=sampled, seed=7).tokens == first.tokens


def test_two_threads_load_two_models_and_work_at_once(speech):
    """Both load in a fresh engine, at the same moment, and each answers as it does alone."""
    with izwi.InferenceEngine(backend="torch") as fresh:
        together = threading.Barrier(2)

        def say() -> np.ndarray:
            together.wait(10)
            return fresh.speak(TEXT, voice="af_heart", seed=0).audio.samples

        def answer() -> list[str]:
            together.wait(10)
            return [fresh.chat(ASK, max_tokens=12).text for _ in range(2)]

        with ThreadPoolExecutor(2) as pool:
            said, answers = pool.submit(say), pool.submit(answer)
            assert np.array_equal(said.result(120), speech.audio.samples)
            assert all("Paris" in a for a in answers.result(120))
        assert {m.id for m in fresh.loaded()} == {"Kokoro-82M", "SmolLM2-135M-Instruct"}


def test_two_threads_share_one_model(engine, speech):
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(engine.speak, TEXT, voice=v, seed=0) for v in ("af_heart", "am_michael")]
        heart, michael = (j.result(120) for j in jobs)
    assert np.array_equal(heart.audio.samples, speech.audio.samples)
    assert michael.voice == "am_michael"
    assert not np.array_equal(michael.audio.samples, heart.audio.samples)


def test_long_speech_is_cancelled_within_a_piece(engine):
    token = CancelToken()
    threading.Timer(0.3, token.cancel).start()
    began = time.monotonic()
    with pytest.raises(Cancelled):
        engine.speak("This sentence is one of very many. " * 500, cancel=token)
    assert time.monotonic() - began < 20
    assert all(m.in_use == 0 for m in engine.loaded())


def test_a_late_chat_keeps_what_it_said(engine):
    reply = engine.chat("Tell me a very long story.", max_tokens=4000, timeout_s=1.5)
    assert reply.finish_reason == "cancelled"
    token = CancelToken()
    stream = engine.stream_chat("Tell me a very long story.", max_tokens=4000, cancel=token)
    next(stream)
    token.cancel()
    assert list(stream)[-1].finish_reason == "cancelled"
    assert all(m.in_use == 0 for m in engine.loaded())


def test_closing_a_stream_lets_the_model_be_unloaded(engine):
    stream = engine.stream_chat("Tell me a story.", max_tokens=500)
    next(stream)
    assert engine.unload("SmolLM2-135M-Instruct", wait=False) is False
    stream.close()
    assert "SmolLM2-135M-Instruct" not in {m.id for m in engine.loaded()}
    gc.collect()


@pytest.mark.parametrize("voice", ["nobody", "af_heart+nobody", "af_heart:-1"])
def test_unknown_voices_are_refused_whole_and_streamed(engine, voice):
    with pytest.raises(InvalidInputError):
        engine.speak("Hello.", voice=voice)
    with pytest.raises(InvalidInputError):
        list(engine.stream_speak("Hello.", voice=voice))


@pytest.mark.parametrize("text", ["…", "!!!", "日本語", "\x00"])
def test_text_without_anything_to_say_is_refused_or_said(engine, text):
    try:
        speech = engine.speak(text)
    except InvalidInputError as error:
        assert str(error)
    else:
        assert speech.audio.duration_s > 0


def test_a_hundred_thousand_characters(engine):
    with pytest.raises(InvalidInputError, match="characters"):
        engine.speak("word " * 20_000)
    with pytest.raises(InvalidInputError, match="context of 8192"):
        engine.chat("word " * 20_000)


def test_one_sample_of_audio_and_silence(engine):
    for clip in (izwi.Audio.from_samples(np.zeros(1, np.float32), 16000), izwi.Audio.silence(2.0, 16000)):
        assert engine.transcribe(clip, model="Whisper-tiny.en").text.strip() == ""


def test_package_level_functions_share_one_engine(engine):
    assert izwi.default_engine() is izwi.default_engine()
    try:
        assert "Paris" in izwi.chat(ASK, max_tokens=12).text
        assert [m.id for m in izwi.default_engine().loaded()] == ["SmolLM2-135M-Instruct"]
        first = izwi.default_engine()
        first.close()
        assert izwi.default_engine() is not first
    finally:
        api.default_engine().close()


def test_load_hands_out_a_model_of_your_own():
    model = izwi.load("SmolLM2-135M-Instruct", backend="torch")
    session = model.session(seed=0)
    step = model.prefill(session, model.tokenize(ASK))
    while not session.done and len(session.tokens) < 12:
        step = model.decode(session, model.sample(session, step))
    assert "Paris" in model.detokenize(session.tokens)
    model.close()


def test_load_takes_a_folder_in_the_official_layout(engine):
    folder = artifacts.locate(catalog.get("Whisper-tiny.en")).folder
    model = izwi.load(folder, backend="torch")
    assert model.variant.family == "whisper"
    assert model.variant.tasks == (catalog.Task.ASR,)
    model.close()


def test_mlx_answers_many_threads_from_its_own():
    """MLX ties unfinished arrays to a thread: streams read from three threads at once, and steps taken by hand."""
    pytest.importorskip("mlx.core")
    with izwi.InferenceEngine(backend="mlx") as engine:

        def answer() -> str:
            with engine.stream_chat(ASK, max_tokens=8) as stream:
                return "".join(delta.text for delta in stream)

        with ThreadPoolExecutor(3) as pool:
            answers = {job.result(300) for job in [pool.submit(answer) for _ in range(3)]}
        assert len(answers) == 1
        assert "Paris" in answers.pop()
        with engine.use("SmolLM2-135M-Instruct") as model:
            assert "Paris" in model.generate(ASK, max_tokens=8).text
        assert [m.backend for m in engine.loaded()] == ["mlx"]
