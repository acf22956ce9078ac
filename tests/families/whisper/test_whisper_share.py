"""Many requests heard together: each gets what it gets alone, whatever the others ask, and fails by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from starter_weights import fetched

from izwi_lab import backends
from izwi_lab.audio import Audio
from izwi_lab.backends import native
from izwi_lab.backends.base import BackendPlan
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.protocols import SharingModel
from izwi_lab.families.shared.course import Alone, Ask, Shared
from izwi_lab.families.whisper import model as whisper
from izwi_lab.families.whisper.rules import Guards

TRUST_ALL = Guards(temperatures=(), no_speech=2.0)
WARMER = Guards(avg_logprob=0.0, temperatures=(0.0, 0.4), no_speech=2.0)
REQUESTS = [
    {"language": "en", "guards": TRUST_ALL},
    {"guards": TRUST_ALL, "word_times": True},
    {"language": "de", "guards": WARMER, "seed": 3},
    {"language": "en", "guards": TRUST_ALL, "temperature": 0.7, "seed": 1, "prompt": "abc"},
    {"language": "fr", "guards": TRUST_ALL, "without_timestamps": True, "task": "translate"},
]


class Everything:
    """A gate that finds speech in these spans."""

    def speech(self, audio, *, cancel=None):
        return [(a, min(b, audio.duration_s)) for a, b in ((0.0, 20.0), (21.0, 40.0)) if a < audio.duration_s]


@pytest.fixture(params=["torch", "plain", "mlx"])
def model(request, models, monkeypatch):
    found = models[request.param]
    monkeypatch.setattr(found.gate, "_model", Everything())
    return found


def clip(seed: int, seconds: float) -> Audio:
    noise = np.random.default_rng(seed).standard_normal(round(seconds * 16_000)) * 0.1
    return Audio(noise.astype(np.float32), 16_000)


def heard_together(model, runs):
    """All courses at once: asks of one kind are met in one call, whichever kind most wait for."""
    courses = [run.segments() for run in runs]
    pieces, kinds = [[] for _ in runs], []
    waiting = {}

    def drive(n, go):
        try:
            item = go()
            while not isinstance(item, Ask):
                pieces[n].append(item)
                item = next(courses[n])
            waiting[n] = item
        except StopIteration:
            pass

    for n, course in enumerate(courses):
        drive(n, lambda course=course: next(course))
    while waiting:
        kinds_now = [getattr(ask, "kind", "alone") for ask in waiting.values()]
        kind = max(dict.fromkeys(kinds_now), key=kinds_now.count)
        chosen = [n for n, ask in waiting.items() if getattr(ask, "kind", "alone") == kind]
        asks = [waiting.pop(n) for n in chosen]
        kinds.append((kind, len(asks)))
        met = [a.work() for a in asks] if kind == "alone" else model.share(kind, [a.item for a in asks])
        for n, value in zip(chosen, met, strict=True):
            drive(n, lambda n=n, value=value: courses[n].send(value))
    return [run.transcript(tuple(found)) for run, found in zip(runs, pieces, strict=True)], kinds


def test_together_is_as_alone(model):
    clips = [clip(n, s) for n, s in enumerate((1.0, 41.0, 2.5, 1.5, 3.0))]
    alone = [model.generate(a, **options) for a, options in zip(clips, REQUESTS, strict=True)]
    runs = [model.course(a, streaming=False, **options) for a, options in zip(clips, REQUESTS, strict=True)]
    together, kinds = heard_together(model, runs)
    for one, other in zip(alone, together, strict=True):
        assert [s.tokens for s in other.segments] == [s.tokens for s in one.segments]
        assert [s.text for s in other.segments] == [s.text for s in one.segments]
        assert (other.language, other.notes) == (one.language, one.notes)
        assert [s.temperature for s in other.segments] == [s.temperature for s in one.segments]
    assert together[1].words and max(n for kind, n in kinds if kind == "decode") >= 4


def test_on_the_compiled_step_not_a_bit_depends_on_the_others(models, mel):
    model = models["torch"]
    assert model.net.native is not None, native.status()
    states = model.encode(mel)
    prompt = model.tokenize(language="en")

    def logits(count):
        sessions = [model.session(states) for _ in range(count)]
        (first, *_) = model.share("prefill", [[(s, prompt)] for s in sessions])
        (then, *_) = model.share("decode", [[(s, 300)] for s in sessions])
        return np.stack([first[0].numpy(), then[0].numpy()])

    alone = logits(1)
    for count in (3, 9, 14):
        np.testing.assert_array_equal(logits(count), alone)


def test_a_course_begins_without_the_device(model, monkeypatch):
    monkeypatch.setattr(model.backend, "array", None)
    monkeypatch.setattr(model.backend, "inference", None)
    run = model.course(clip(0, 1.0), streaming=True, guards=TRUST_ALL)
    asks = run.segments()
    first = next(asks)
    assert isinstance(first, Alone)  # where speech is
    then = asks.send(first.work())
    assert isinstance(then, Shared) and (then.kind, then.weight, len(then.item)) == ("encode", 1, 1)


def test_what_fails_fails_alone(model, mel):
    prompts = [model.tokenize(language="en"), model.tokenize("abc", language="en")]

    def started():
        sessions = [model.session(model.encode(mel)) for _ in range(3)]
        model.prefill_many(sessions, [prompts[0]] * 3)
        return sessions

    good, broken, other = started()
    kept = broken.state["net"].pop("self_k")
    met = model.share("decode", [[(good, 300)], [(broken, 300)], [(other, 301)]])
    assert isinstance(met[1], KeyError) and broken.tokens == []
    expected = [model.decode(s, t).numpy() for s, t in zip(started()[:2], (300, 301), strict=True)]
    for found, step in zip((met[0], met[2]), expected, strict=True):
        np.testing.assert_allclose(found[0].numpy(), step, atol=1e-5)
    broken.state["net"]["self_k"] = kept
    (again,) = model.share("decode", [[(broken, 300)]])
    np.testing.assert_allclose(again[0].numpy(), expected[0], atol=1e-5)

    fresh = [model.session(model.encode(mel)) for _ in range(2)]
    fresh[0].state["net"].pop("cross_k")
    met = model.share("prefill", [[(fresh[0], prompts[0])], [(fresh[1], prompts[1])]])
    assert isinstance(met[0], KeyError) and fresh[1].position == len(prompts[1])
    met = model.share("encode", [[mel, mel[:7]], [mel]])
    assert isinstance(met[0], Exception) and len(met[1]) == 1


def test_only_what_it_shares(models):
    model = models["torch"]
    assert isinstance(model, SharingModel)
    assert model.share_limit("encode") == 1 and model.share_limit("decode") >= 8
    with pytest.raises(InvalidInputError, match="does not share 'sing'"):
        model.share("sing", [[1]])
    with pytest.raises(InvalidInputError, match="does not share 'sing'"):
        model.share_limit("sing")


@pytest.mark.weights
def test_real_speech_together_is_as_alone():
    """Greedy and warmer, seeded: to the token."""
    local = fetched("Whisper-tiny.en")
    plan = BackendPlan("torch", "cpu", "bfloat16", "test")
    model = whisper.load(local.variant, local.folder, plan, backends.open_backend(plan), layout=str(local.layout))
    clips = [Audio.open(path) for path in sorted((Path(__file__).parents[2] / "data" / "librivox").glob("*.flac"))][:3]
    warmer = Guards(avg_logprob=0.0, temperatures=(0.0, 0.6), no_speech=2.0)
    options = [{}, {"word_times": True}, {"seed": 5, "guards": warmer}]
    alone = [model.generate(c, vad=False, **asked) for c, asked in zip(clips, options, strict=True)]
    runs = [model.course(c, vad=False, streaming=False, **asked) for c, asked in zip(clips, options, strict=True)]
    together, _ = heard_together(model, runs)
    assert [t.segments for t in together] == [t.segments for t in alone] and all(t.text for t in together)
    assert {s.temperature for s in together[2].segments} == {0.6}
