"""Speeches as courses: several driven at once, every ask met in a common step, give the chunks of each alone."""

from __future__ import annotations

import numpy as np
import pytest
from tts_models import checkpoint, clip, ours

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError
from izwi_lab.families.qwen3_tts import talk
from izwi_lab.families.qwen3_tts.talk import SpeechOptions
from izwi_lab.families.shared.course import Decode, Prefill
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Reading
from izwi_lab.results import AudioChunk

LONG = "It is a fine day, and we walk by the sea. " * 30  # several pieces
TOLD = (
    ("Hello there.", {"voice": "ryan", "seed": 1, "max_frames": 12}),
    (LONG, {"voice": "vivian", "seed": 2, "max_frames": 3}),
    ("Hi.", {"voice": "serena", "seed": 3, "max_frames": 7, "text_mode": "streaming"}),
    ("Greedy.", {"voice": "eric", "seed": 4, "max_frames": 9, "sampling": Sampling(), "predictor": Sampling()}),
)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=["torch", "mlx"])
def model(request, tmp_path_factory):
    return ours(checkpoint(tmp_path_factory.mktemp("course") / "c", end=1.5), request.param)


class Driven:
    """A course and what came of it."""

    def __init__(self, course):
        self.course, self.chunks, self.asks, self.error = course, [], [], None
        self.ask = self._until_ask(lambda: next(course))

    def send(self, found):
        """Give what was asked for."""
        if isinstance(found, Exception):
            self.ask = self._until_ask(lambda: self.course.throw(found))
        else:
            self.ask = self._until_ask(lambda: self.course.send(found))

    def _until_ask(self, go):
        try:
            item = go()
            while isinstance(item, AudioChunk):
                self.chunks.append(item)
                item = next(self.course)
        except StopIteration:
            return None
        except (Cancelled, InvalidInputError) as error:
            self.error = error
            return None
        self.asks.append(type(item))
        return item


def reading(model, ask):
    """An ask as the next reading of its session."""
    if isinstance(ask, Prefill):
        model.enter(ask.session, ask.prompt)
        return Reading(ask.session, 0, len(ask.prompt))
    assert isinstance(ask, Decode)
    at = model.caches(ask.session)["length"]
    return Reading(ask.session, at, at + 1, sampling=ask.sampling)


def driven(model, courses, spoil=None):
    """Meet the asks of all courses side by side. spoil: called with the number of a step and what it gave."""
    running, number = [Driven(course) for course in courses], 0
    while going := [one for one in running if one.ask is not None]:
        found = model.step_many([reading(model, one.ask) for one in going])
        if spoil is not None:
            spoil(number, found)
        for one, step in zip(going, found, strict=True):
            one.send(step)
        number += 1
    return running


def same(chunks, others):
    assert [(c.index, c.text, c.is_final, c.notes, c.tokens) for c in chunks] == [
        (c.index, c.text, c.is_final, c.notes, c.tokens) for c in others
    ]
    for one, other in zip(chunks, others, strict=True):
        np.testing.assert_array_equal(one.audio.samples, other.audio.samples)


def test_courses_together_give_the_chunks_of_each_alone(model):
    alone = [list(model.stream(text, **told)) for text, told in TOLD]
    assert len(alone[1]) > 2 and any(c.notes for chunks in alone for c in chunks)
    courses = [model.course(text, SpeechOptions(**told)) for text, told in TOLD]
    for one, chunks in zip(driven(model, courses), alone, strict=True):
        same(one.chunks, chunks)
        frames = sum(c.tokens for c in chunks)
        pieces = sum(bool(c.text) for c in chunks)
        assert one.asks.count(Prefill) == pieces and one.asks.count(Decode) == frames


def test_chunks_gathered_are_the_speech(model):
    text, told = TOLD[2]
    telling, speech = talk.Telling(), model.generate(text, **told)
    (one,) = driven(model, [model.course(text, SpeechOptions(**told), telling=telling)])
    gathered = talk.gathered(model, text, iter(one.chunks), telling, 0.0)
    np.testing.assert_array_equal(gathered.audio.samples, speech.audio.samples)
    for name in ("voice", "language", "seed", "notes", "model", "backend"):
        assert getattr(gathered, name) == getattr(speech, name)
    assert gathered.timing.tokens == speech.timing.tokens
    assert gathered.timing.prompt_tokens == speech.timing.prompt_tokens and gathered.timing.prefill_s > 0


def test_what_ends_one_course_leaves_the_others(model):
    """One is cancelled while a step is under way, the step of another fails."""
    alone = [list(model.stream(text, **told)) for text, told in TOLD]
    token = CancelToken()

    def spoil(number, found):
        if number == 2:
            token.cancel()
        if number == 3:
            found[1] = InvalidInputError("The logits hold NaN.")

    tokens = (None, None, token, None)
    courses = [model.course(t, SpeechOptions(**told), cancel=c) for (t, told), c in zip(TOLD, tokens, strict=True)]
    running = driven(model, courses, spoil)
    assert isinstance(running[2].error, Cancelled) and "NaN" in str(running[1].error)
    assert len(running[1].chunks) < len(alone[1])
    for i in (0, 3):
        assert running[i].error is None
        same(running[i].chunks, alone[i])


def test_an_ask_says_how_far_it_may_go(model):
    text, told = TOLD[0]
    ask = next(model.course(text, SpeechOptions(**told)))
    assert ask.most == 12 and ask.repeatable and ask.session.position == 0
    long = {**told, "max_frames": 5000}
    ask = next(model.course(text, SpeechOptions(**long)))
    assert ask.most == 1024 - len(ask.prompt) + 1


def test_what_cannot_be_honoured_raises_at_the_call(model):
    for text, options, error in (
        ("", {}, "empty"),
        ("Hi.", {"voice": "nobody"}, "Unknown voice"),
        ("Hi.", {"max_frames": 0}, "whole number"),
        ("Hi.", {"reference": clip()}, "clones no voices"),
    ):
        with pytest.raises(InvalidInputError, match=error):
            model.course(text, SpeechOptions(**options))


def test_a_stream_that_is_left_ends_its_course(model, monkeypatch):
    ended, real = [], talk._said

    def said(*args):
        try:
            yield from real(*args)
        finally:
            ended.append(True)

    monkeypatch.setattr(talk, "_said", said)
    stream = model.stream("Hello there.", seed=0, max_frames=40)
    next(stream)
    assert not ended
    stream.close()
    assert ended
