"""Several pieces in one padded pass: each as it is alone, on both backends; what is shared, and how it fails."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from izwi_lab.backends import native
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError
from izwi_lab.families.protocols import SharingModel
from izwi_lab.families.shared.course import Shared
from izwi_lab.results import AudioChunk

PHONEMES = ("a", "həlˈO", "ðˈɛn θɹˈi")
SEEDS = (0, 7, 3)


@pytest.fixture(scope="module", params=["plain_tiny", "mlx_tiny"])
def tiny(request):
    return request.getfixturevalue(request.param)


def pieces(model):
    """Prompts of different lengths, voices and speeds."""
    wanted = zip(PHONEMES, ("af_heart", "am_michael", "bf_emma"), (1.5, 2.0, 1.8), strict=True)
    return [model.tokenize(phonemes=said, voice=voice, speed=speed) for said, voice, speed in wanted]


def test_a_padded_batch_is_as_alone(tiny):
    prompts = pieces(tiny)
    assert len({len(prompt) for prompt in prompts}) == 3
    together = tiny.speak_many(prompts, SEEDS)
    for prompt, seed, sound in zip(prompts, SEEDS, together, strict=True):
        alone = tiny.speak(prompt, seed=seed).audio.samples
        assert sound.audio.samples.shape == alone.shape  # the same durations, so as many samples
        np.testing.assert_allclose(sound.audio.samples, alone, atol=1e-4)


def test_how_long_the_others_are_is_not_heard(tiny):
    prompts = pieces(tiny)
    short = tiny.speak_many([prompts[0], prompts[2]], (0, 1))[0].audio.samples
    long = tiny.speak_many([prompts[0], prompts[1]], (0, 1))[0].audio.samples
    np.testing.assert_allclose(short, long, atol=1e-5)


def test_intermediates_of_a_batch_are_those_of_its_pieces(tiny):
    prompts = pieces(tiny)
    with tiny.tap(["text_encoder", "asr", "generator.*", "decoder.*"]) as batch:
        tiny.speak_many(prompts, SEEDS)
    for row, (prompt, seed) in enumerate(zip(prompts, SEEDS, strict=True)):
        with tiny.tap(["text_encoder", "asr", "generator.*", "decoder.*"]) as alone:
            tiny.speak(prompt, seed=seed)
        assert list(alone) == list(batch) and len(batch) > 10
        for name, value in alone.items():
            seen = batch[name][row][: value.shape[1]]
            assert np.abs(seen - value[0]).max() < 1e-5 * np.abs(value).max(), name


def test_a_piece_that_fails_fails_alone(tiny, monkeypatch):
    monkeypatch.setattr(tiny, "_pads", True)
    good, broken, other = pieces(tiny)
    broken = dataclasses.replace(broken, extras={**broken.extras, "style": np.zeros((1, 3), np.float32)})
    met = tiny.share("speak", [(good, 0), (broken, 1), (other, 2)])
    assert isinstance(met[1], Exception)
    for prompt, seed, sound in ((good, 0, met[0]), (other, 2, met[2])):
        np.testing.assert_allclose(sound.audio.samples, tiny.speak(prompt, seed=seed).audio.samples, atol=1e-4)


def test_a_padding_model_makes_one_pass_of_all(tiny, monkeypatch):
    passes = []
    monkeypatch.setattr(tiny, "_pads", True)
    monkeypatch.setattr(tiny, "speak_many", lambda prompts, seeds: passes.append(seeds) or list(seeds))
    assert tiny.share("speak", list(zip(pieces(tiny), SEEDS, strict=True))) == list(SEEDS)
    assert passes == [list(SEEDS)] and tiny.share_limit("speak") > 500


def test_compiled_kernels_take_one_after_the_other(torch_tiny):
    assert torch_tiny.net.packed, native.status()
    assert isinstance(torch_tiny, SharingModel) and torch_tiny.share_limit("speak") == 1
    prompts = pieces(torch_tiny)[::2]
    met = torch_tiny.share("speak", list(zip(prompts, (4, 5), strict=True)))
    for prompt, seed, sound in zip(prompts, (4, 5), met, strict=True):
        np.testing.assert_array_equal(sound.audio.samples, torch_tiny.speak(prompt, seed=seed).audio.samples)
    with pytest.raises(InvalidInputError, match="one piece at a time"):
        torch_tiny.speak_many(prompts, (4, 5))
    with pytest.raises(InvalidInputError, match="does not share 'sing'"):
        torch_tiny.share("sing", [])


def test_a_course_asks_for_its_sentences_and_touches_no_device(torch_tiny):
    text = "Hello there. Then three of us left."
    token = CancelToken()
    said = torch_tiny.course(text, seed=3, speed=2.0, cancel=token)
    whole = torch_tiny.generate(text, seed=3, speed=2.0)
    course, chunks, asks = said.chunks(), [], []
    item = next(course)
    while item is not None:
        if isinstance(item, Shared):
            asks.append(item)
            (met,) = torch_tiny.share(item.kind, [item.item])
            item = course.send(met)
        else:
            chunks.append(item)
            item = next(course, None)
    assert [(ask.kind, ask.weight) for ask in asks] == [("speak", len(ask.item[0])) for ask in asks] and len(asks) == 2
    assert all(isinstance(chunk, AudioChunk) for chunk in chunks) and chunks[-1].is_final
    speech = said.speech(chunks)
    np.testing.assert_array_equal(speech.audio.samples, whole.audio.samples)
    assert speech.notes == whole.notes and speech.timing.prompt_tokens == whole.timing.prompt_tokens
    again = torch_tiny.course(text, cancel=token).chunks()
    token.cancel()
    with pytest.raises(Cancelled):
        next(again)
