"""InferenceEngine on a fake family: whole and streamed, stopping, isolation between models."""

from __future__ import annotations

import gc
import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from runtime_fakes import CLIP, expected, in_use, wait_for

from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import Task
from izwi_lab.errors import Cancelled, IzwiError, MemoryBudgetError

# whole and streamed


def test_results_say_who_made_them_and_how_long_it_took(make_engine, fake, tts, asr, chat):
    fake.load_s, fake.step_s = 0.2, 0.01
    engine = make_engine()
    speech = engine.speak("a b c", model=tts)
    heard = engine.transcribe(CLIP, model=asr)
    reply = engine.chat("hello", model=chat)
    assert (speech.model, heard.model, reply.model) == ("voice-a", "ear", "mouth")
    assert speech.backend == heard.backend == reply.backend == "torch"
    assert np.array_equal(speech.audio.samples, expected(tts, "a b c"))
    assert str(heard) == "heard by ear"
    assert str(reply) == "mouth hello "
    for result in (speech, heard, reply):
        assert 0.015 < result.timing.total_s < 0.15, "loading must not count"
    assert in_use(engine) == 0


@pytest.mark.parametrize("backend", ["torch", "bound"])
def test_streams_joined_are_the_whole(make_engine, tts, asr, chat, backend):
    engine = make_engine(backend=backend)
    chunks = list(engine.stream_speak("a b c d", model=tts))
    whole = engine.speak("a b c d", model=tts)
    assert np.array_equal(np.concatenate([c.audio.samples for c in chunks]), whole.audio.samples)
    assert [c.is_final for c in chunks] == [False, False, False, True]
    assert tuple(engine.stream_transcribe(CLIP, model=asr)) == engine.transcribe(CLIP, model=asr).segments
    deltas = [d.text for d in engine.stream_chat("x y", model=chat)]
    assert "".join(deltas) == engine.chat("x y", model=chat).text
    assert in_use(engine) == 0


def test_a_stream_times_its_own_work_only(make_engine, fake, chat):
    fake.step_s, fake.load_s = 0.02, 0.2
    stream = make_engine().stream_chat("a b", model=chat)
    next(stream)
    time.sleep(0.3)
    first = stream.timing.first_s
    rest = list(stream)
    assert 0.02 <= first < 0.15
    assert stream.timing.first_s == first
    assert first + 0.04 <= stream.timing.total_s < 0.3
    assert stream.timing.tokens == 1 + len(rest) == 3
    assert (stream.model, stream.backend, stream.closed) == ("mouth", "torch", True)


def test_audio_seconds_are_counted_in_a_speech_stream(make_engine, tts):
    stream = make_engine().stream_speak("a b", model=tts)
    list(stream)
    assert stream.timing.audio_s == pytest.approx(0.02)


# stopping


@pytest.mark.parametrize("backend", ["torch", "bound"])
def test_closing_a_stream_stops_the_work_and_lets_the_model_go(make_engine, fake, tts, backend):
    engine = make_engine(backend=backend)
    with engine.stream_speak("a " * 50, model=tts) as stream:
        next(stream)
        assert in_use(engine) == 1
    assert in_use(engine) == 0
    assert len(fake.steps) < 8, "the work is only a few pieces ahead of its reader"
    assert fake.ended == ["voice-a"]
    assert list(stream) == []
    stream.close()


def test_closing_from_another_thread_ends_a_step_under_way(make_engine, fake, tts):
    fake.step_s = 0.05
    engine = make_engine()
    stream = engine.stream_speak("a b c d e f g h", model=tts)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(list, stream)
        wait_for(lambda: len(fake.steps) >= 2)
        stream.close()
        with pytest.raises(Cancelled):  # a reader must not take what it has for the whole
            reader.result(5)
    assert len(fake.steps) < 8
    assert in_use(engine) == 0


def test_closing_from_another_thread_between_two_steps_is_no_end(make_engine, tts):
    stream = make_engine().stream_speak("a b c d e f g h", model=tts)  # more than work is ahead of its reader
    next(stream)
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join()
    for _ in range(2):
        with pytest.raises(Cancelled, match="before its end"):
            next(stream)


def test_closing_a_stream_that_has_ended_changes_nothing(make_engine, tts):
    stream = make_engine().stream_speak("a b", model=tts)
    assert len(list(stream)) == 2
    closer = threading.Thread(target=stream.close)
    closer.start()
    closer.join()
    assert list(stream) == []


def test_a_forgotten_stream_lets_the_model_go(make_engine, fake, tts):
    engine = make_engine()
    next(engine.stream_speak("a " * 50, model=tts))
    unread = engine.stream_speak("a " * 50, model=tts)
    assert in_use(engine) >= 1
    del unread
    gc.collect()
    wait_for(lambda: in_use(engine) == 0)
    assert engine.unload(tts)


@pytest.mark.parametrize("backend", ["torch", "bound"])
def test_cancel_stops_whole_and_streamed_work(make_engine, fake, tts, chat, backend):
    fake.step_s = 0.02
    engine = make_engine(backend=backend)
    token = CancelToken()
    threading.Timer(0.1, token.cancel).start()
    with pytest.raises(Cancelled, match="by its caller"):
        engine.speak("word " * 200, model=tts, cancel=token)
    assert 0 < len(fake.steps) < 50
    token = CancelToken()
    stream = engine.stream_chat("word " * 200, model=chat, cancel=token)
    next(stream)
    token.cancel()
    with pytest.raises(Cancelled):
        list(stream)
    assert stream.closed
    assert len(fake.steps) < 100
    assert in_use(engine) == 0


def test_a_deadline_covers_loading_waiting_and_work(make_engine, fake, tts, tts_b):
    engine = make_engine()
    fake.step_s = 0.02
    began = time.monotonic()
    with pytest.raises(Cancelled, match="deadline"):
        engine.speak("word " * 200, model=tts, timeout_s=0.1)
    assert time.monotonic() - began < 1
    fake.load_s = 0.2
    with pytest.raises(Cancelled, match="deadline"):
        engine.speak("word", model=tts_b, timeout_s=0.05)
    assert in_use(engine) == 0
    fake.load_s = 0
    assert engine.speak("word", model=tts_b).model == "voice-b"


def test_one_token_may_cover_many_requests_and_closing_one_leaves_the_others(make_engine, tts):
    engine, token = make_engine(), CancelToken()
    first = engine.stream_speak("a b", model=tts, cancel=token)
    second = engine.stream_speak("a b", model=tts, cancel=token)
    first.close()
    assert not token.cancelled
    assert len(list(second)) == 2


def test_an_error_in_a_step_lets_the_model_go(make_engine, fake, tts, monkeypatch):
    engine = make_engine()
    with engine.use(tts) as model:
        monkeypatch.setattr(type(model), "_samples", lambda self, word: 1 / 0)
    stream = engine.stream_speak("a b", model=tts)
    with pytest.raises(ZeroDivisionError):
        next(stream)
    with pytest.raises(ZeroDivisionError):
        engine.speak("a b", model=tts)
    assert list(stream) == []
    assert in_use(engine) == 0


def test_closing_the_engine_ends_streams_requests_and_models(make_engine, fake, tts, chat):
    fake.step_s = 0.02
    engine = make_engine(backend="bound")
    stream = engine.stream_speak("a b c", model=tts)
    next(stream)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(engine.chat, "word " * 500, model=chat)
        wait_for(lambda: any(s.startswith("mouth") for s in fake.steps))
        engine.close()
        with pytest.raises(Cancelled):
            running.result(5)
    assert stream.closed
    assert sorted(fake.closed) == ["mouth", "voice-a"]
    assert engine.closed
    engine.close()
    with pytest.raises(IzwiError, match="engine is closed"):
        engine.speak("a", model=tts)
    assert not [t for t in threading.enumerate() if t.name.startswith("izwi-")]


# who answers


def test_two_threads_load_two_models_and_speak_at_once(make_engine, fake, tts, tts_b):
    fake.load_s, fake.step_s = 0.05, 0.001
    engine = make_engine()
    together = threading.Barrier(2)

    def speak(variant):
        together.wait(5)
        return [engine.speak(f"take {i}", model=variant) for i in range(10)]

    with ThreadPoolExecutor(2) as pool:
        for variant, speeches in zip((tts, tts_b), pool.map(speak, (tts, tts_b)), strict=True):
            for i, speech in enumerate(speeches):
                assert speech.model == variant.id
                assert np.array_equal(speech.audio.samples, expected(variant, f"take {i}"))
    assert sorted(fake.loads) == ["voice-a", "voice-b"]


@pytest.mark.parametrize("backend", ["torch", "bound"])
def test_a_request_keeps_its_model_while_others_load_unload_and_push_it_out(make_engine, fake, tts, tts_b, backend):
    """The original answered with whatever model was loaded last."""
    fake.step_s = 0.001
    engine = make_engine(backend=backend, memory_budget_bytes=350, idle_ttl_s=0.001)
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            engine.load(tts_b)
            engine.unload(tts_b, wait=False)
            engine.unload(tts, wait=False)

    other = threading.Thread(target=disturb)
    other.start()
    try:
        text = "one two three four five six"
        for i in range(6):
            if i % 2:
                samples = np.concatenate([c.audio.samples for c in engine.stream_speak(text, model=tts)])
            else:
                samples = engine.speak(text, model=tts).audio.samples
            assert np.array_equal(samples, expected(tts, text))
    finally:
        stop.set()
        other.join(10)


@pytest.mark.parametrize("backend", ["torch", "bound"])
def test_one_thread_owns_a_device(make_engine, fake, tts, chat, backend):
    fake.step_s = 0.002
    engine = make_engine(backend=backend)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(engine.speak, "a b c", model=tts) for _ in range(2)]
        jobs += [pool.submit(lambda: list(engine.stream_chat("a b c", model=chat))) for _ in range(2)]
        for job in jobs:
            job.result(10)
    assert len(fake.threads) == 1
    assert threading.get_ident() not in fake.threads
    if backend == "bound":
        assert fake.load_threads == fake.threads, "a bound model is loaded where it runs"


def test_streams_of_two_models_take_turns(make_engine, fake, tts, chat):
    fake.step_s = 0.01
    engine = make_engine()
    one, two = engine.stream_speak("a " * 12, model=tts), engine.stream_chat("x " * 12, model=chat)
    with ThreadPoolExecutor(2) as pool:
        assert [len(list(pieces)) for pieces in pool.map(list, (one, two))] == [12, 13]
    who = [step.partition(":")[0] for step in fake.steps]
    longest = max(len(list(same)) for _, same in itertools.groupby(who))
    assert longest <= 6, who


def test_many_threads_asking_for_one_model_load_it_once(make_engine, fake, tts):
    fake.load_s = 0.05
    engine = make_engine()
    with ThreadPoolExecutor(6) as pool:
        speeches = list(pool.map(lambda i: engine.speak(f"n {i}", model=tts), range(6)))
    assert fake.loads == ["voice-a"]
    for i, speech in enumerate(speeches):
        assert np.array_equal(speech.audio.samples, expected(tts, f"n {i}"))


def test_a_load_error_is_not_remembered(make_engine, fake, tts):
    fake.load_errors.append(OSError("no disk"))
    engine = make_engine()
    with pytest.raises(OSError, match="no disk"):
        engine.speak("a", model=tts)
    assert engine.speak("a", model=tts).model == "voice-a"


# memory


def test_the_budget_holds_at_its_peak(make_engine, fake, tts, tts_b, chat):
    engine = make_engine(memory_budget_bytes=250)
    for variant in (tts, tts_b, chat, tts, tts_b):
        engine.load(variant)
    assert fake.peak == 200
    with engine.stream_speak("a " * 50, model=tts), engine.stream_chat("a " * 50, model=chat):  # noqa: SIM117
        with pytest.raises(MemoryBudgetError, match=r"in use now: .*voice-a"):
            engine.speak("a", model=tts_b)
    assert engine.speak("a", model=tts_b).model == "voice-b"


def test_load_unload_loaded(make_engine, fake, tts):
    engine = make_engine()
    row = engine.load(tts, device="cuda:1", dtype="float16")
    assert (row.id, row.tasks, row.device, row.dtype, row.nbytes) == ("voice-a", (Task.TTS,), "cuda:1", "float16", 100)
    engine.load(tts)
    assert [m.device for m in engine.loaded()] == ["cpu", "cuda:1"]
    assert engine.unload(tts)
    assert engine.loaded() == ()
    assert fake.closed == ["voice-a", "voice-a"]


def test_ttl_zero_keeps_nothing(make_engine, fake, tts):
    engine = make_engine(idle_ttl_s=0)
    engine.speak("a", model=tts)
    assert engine.loaded() == ()
    assert fake.closed == ["voice-a"]
