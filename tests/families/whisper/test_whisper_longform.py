"""Long audio, options and faults on a tiny random Whisper: what does not need it to understand anything."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import ArtifactError, AudioError, Cancelled, InvalidInputError
from izwi_lab.families.protocols import RecognitionModel
from izwi_lab.families.whisper import decoding, longform
from izwi_lab.families.whisper.decoding import Result, segments_of
from izwi_lab.families.whisper.rules import Guards

TRUST_ALL = Guards(temperatures=(), no_speech=2.0)


class Everything:
    """A gate that finds speech in the spans it is given."""

    def __init__(self, spans):
        self.spans = spans

    def speech(self, audio, *, cancel=None):
        return [(a, min(b, audio.duration_s)) for a, b in self.spans if a < audio.duration_s]


@pytest.fixture
def model(models):
    found = models["torch"]
    found.gate.use(Everything([(0.0, 1e9)]))
    return found


@pytest.fixture
def clip() -> Audio:
    return Audio((np.random.default_rng(0).standard_normal(16_000) * 0.1).astype(np.float32), 16_000)


def test_it_plays_the_role(model):
    assert isinstance(model, RecognitionModel)


def test_generate_is_a_loop_over_the_verbs(model, clip):
    """The same tokens, taken by hand."""
    whole = model.generate(clip, language="en", guards=TRUST_ALL)
    states = model.encode(model.features(clip))
    session = model.session(states)
    step = model.prefill(session, model.tokenize(language="en"))
    while not session.done:
        step = model.decode(session, model.sample(session, step))
    by_hand = [t for t in session.tokens if t < model.processor.tokens.end]
    told = [t for s in whole.segments for t in s.tokens if t < model.processor.tokens.end]
    assert told and by_hand[: len(told)] == told
    assert whole.timing.tokens >= len(session.tokens) and whole.duration_s == 1.0
    assert whole.language == "en" and whole.model == "Whisper-base" and whole.backend == "torch:cpu:float32"


def test_generate_calls_only_public_verbs(model, clip, monkeypatch):
    called = []
    for verb in ("features", "encode", "tokenize", "session", "prefill_many", "sample", "decode_many", "detokenize"):
        original = getattr(model, verb)

        def spy(*args, _verb=verb, _original=original, **kwargs):
            called.append(_verb)
            return _original(*args, **kwargs)

        monkeypatch.setattr(model, verb, spy)
    model.generate(clip, language="en", guards=TRUST_ALL)
    assert [k for k, _ in itertools.groupby(called)][:5] == [
        "features",
        "encode",
        "session",
        "tokenize",
        "prefill_many",
    ]
    assert called.count("sample") == called.count("decode_many") > 3


def test_stream_gives_the_segments_of_generate(model, clip):
    long = Audio.concat([clip] * 3)
    options = dict(language="en", guards=TRUST_ALL, word_times=True)
    whole = model.generate(long, **options)
    assert tuple(model.stream(long, **options)) == whole.segments


def test_language_is_detected(model, clip):
    states = model.encode(model.features(clip))
    shares = model.detect_language(states)
    assert len(shares) == 99 and sum(shares.values()) == pytest.approx(1.0)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert model.generate(clip, guards=TRUST_ALL).language == next(iter(shares))


def test_word_times_are_inside_their_segment_and_in_order(model, clip):
    found = model.generate(clip, language="en", word_times=True, guards=TRUST_ALL)
    assert found.words
    for segment in found.segments:
        assert "".join(w.text for w in segment.words).strip() == segment.text.strip()
        edges = [segment.start_s, *[t for w in segment.words for t in (w.start_s, w.end_s)], segment.end_s]
        assert edges == sorted(edges)
        assert all(0 <= w.probability <= 1 for w in segment.words)


def test_seed_fixes_the_draws(model, clip):
    def text(seed):
        options = dict(language="en", temperature=1.0, guards=TRUST_ALL)
        return model.generate(clip, seed=seed, **options).text

    assert text(1) == text(1) != text(2)


def test_distrusted_windows_are_tried_warmer(model, clip):
    found = model.generate(clip, language="en", seed=0, guards=Guards(avg_logprob=0.0, temperatures=(0.0, 0.4)))
    assert {s.temperature for s in found.segments} == {0.4}
    assert found.timing.prompt_tokens == 2 * 3


def test_silence_by_probability(model, clip):
    hushed = model.generate(clip, language="en", guards=Guards(temperatures=(), no_speech=-1.0, avg_logprob=1.0))
    assert hushed.text == "" and hushed.segments == ()


def test_nothing_is_decoded_where_nobody_speaks(model, clip):
    model.gate.use(Everything([]))
    found = model.generate(clip, guards=TRUST_ALL)
    assert (found.text, found.segments, found.timing.tokens) == ("", (), 0)
    assert found.notes == ("voice activity: Silero-VAD-v6",)


def test_the_gate_is_explicit(model, clip, monkeypatch):
    heard = model.generate(clip, language="en", vad=False, guards=TRUST_ALL)
    assert heard.notes == ("voice activity: off, all of the audio was heard",)

    def absent(plan):
        raise ArtifactError("no registry can be reached")

    monkeypatch.setattr(longform, "_load_vad", absent)
    monkeypatch.setattr(model, "gate", longform.SpeechGate(model.plan))
    with pytest.raises(ArtifactError, match="no registry"):
        model.generate(clip, vad=True)
    (note,) = model.generate(clip, language="en", vad="auto", guards=TRUST_ALL).notes
    assert "Silero-VAD-v6 is not available (no registry can be reached)" in note
    with pytest.raises(InvalidInputError, match="vad must be"):
        model.generate(clip, vad="maybe")


def test_long_audio_is_heard_in_windows(model, clip):
    model.gate.use(Everything([(0.0, 20.0), (21.0, 40.0), (41.0, 61.0)]))
    noise = (np.random.default_rng(0).standard_normal(62 * 16_000) * 0.1).astype(np.float32)
    found = model.generate(Audio(noise, 16_000), language="en", guards=TRUST_ALL)
    edges = [t for s in found.segments for t in (s.start_s, s.end_s)]
    assert edges == sorted(edges) and edges[-1] <= 62.0
    assert [s.id for s in found.segments] == list(range(len(found.segments)))
    assert max(edges) > 41.0


def test_faults(model, clip):
    with pytest.raises(AudioError, match="empty"):
        model.generate(Audio(np.zeros(0, np.float32), 16_000))
    with pytest.raises(AudioError, match="NaN"):
        model.generate(Audio(np.array([0.0, np.nan], np.float32), 16_000))
    assert model.generate(Audio(np.zeros(1, np.float32), 16_000), language="en", guards=TRUST_ALL).duration_s < 1e-3
    with pytest.raises(InvalidInputError, match="Unknown language"):
        model.generate(clip, language="xx")
    with pytest.raises(InvalidInputError, match="temperature"):
        model.generate(clip, temperature=-1.0)
    with pytest.raises(InvalidInputError, match="Unknown task"):
        model.stream(clip, task="sing")


def test_cancel_stops_before_the_next_step(model, clip):
    token = CancelToken()
    token.cancel()
    with pytest.raises(Cancelled):
        model.generate(clip, language="en", cancel=token)
    token = CancelToken()
    stream = model.stream(Audio.concat([clip] * 3), language="en", guards=TRUST_ALL, cancel=token)
    next(stream)
    token.cancel()
    rest = []
    try:
        for segment in stream:
            rest.append(segment)
    except Cancelled:
        pass
    assert len(rest) < 50


def test_other_rates_are_resampled(model):
    tone = np.sin(np.arange(48_000) * 0.05).astype(np.float32)
    assert model.features(Audio(tone, 48_000)).shape == (80, 200)


def result(tokens, finished=True):
    return Result(tuple(tokens), "", -0.1, 1.0, 0.0, 0.0, finished)


def test_tokens_become_segments(models):
    model, t = models["torch"], 50_364
    found = segments_of(model, result([t, 40, 41, t + 50, t + 50, 42, t + 100]), 10.0, 4.0)
    assert [(s.start_s, s.end_s) for s in found.segments] == [(10.0, 11.0), (11.0, 12.0)]
    assert found.heard_s == 2.0
    open_end = segments_of(model, result([t, 40, t + 50, t + 50, 42]), 0.0, 4.0)
    assert [(s.start_s, s.end_s) for s in open_end.segments] == [(0.0, 1.0), (1.0, 4.0)]
    cut_off = segments_of(model, result([t, 40, t + 50, t + 50, 42], finished=False), 0.0, 4.0)
    assert [(s.start_s, s.end_s) for s in cut_off.segments] == [(0.0, 1.0)] and cut_off.heard_s == 1.0
    untimed = segments_of(model, result([40, 41]), 5.0, 3.0)
    assert [(s.start_s, s.end_s) for s in untimed.segments] == [(5.0, 8.0)]
    assert segments_of(model, result([]), 0.0, 3.0).segments == []


def test_condition_on_previous_gives_the_text_before(model, clip, monkeypatch):
    model.gate.use(Everything([(0.0, 20.0), (21.0, 40.0)]))
    noise = (np.random.default_rng(0).standard_normal(41 * 16_000) * 0.1).astype(np.float32)
    prompts = []
    original = decoding.decode_windows

    def spy(model_, sessions, prompt, *rest):
        prompts.append(len(prompt))
        return original(model_, sessions, prompt, *rest)

    monkeypatch.setattr(decoding, "decode_windows", spy)
    model.generate(Audio(noise, 16_000), language="en", guards=TRUST_ALL, condition_on_previous=True)
    assert prompts[0] == 3 and prompts[1] > 3
