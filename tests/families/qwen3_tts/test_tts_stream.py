"""Text to speech in one call: the stream is the whole, long text keeps its voice, nothing is cut off silently."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from tts_models import GREEDY, by_hand, checkpoint, clip, ours

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import AudioError, Cancelled, InvalidInputError
from izwi_lab.families.shared.sampling import Sampling

FRAME = 1920
SAID = "hello there"
LONG = "It is a fine day, and we walk by the sea. " * 119  # 5,000 characters


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return ours(checkpoint(tmp_path_factory.mktemp("custom") / "c"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return ours(checkpoint(tmp_path_factory.mktemp("base") / "c", "base"))


def test_generate_is_the_verbs(preset):
    speech = preset.generate("Hello world.", seed=5, max_frames=12)
    session = by_hand(preset, preset.tokenize("Hello world."), frames=12, seed=5)
    assert speech.audio.rate_hz == 24000 and len(speech.audio) == 12 * FRAME
    np.testing.assert_allclose(speech.audio.samples, preset.codec.decode(session.codes).samples, atol=1e-6)
    assert (speech.voice, speech.language, speech.timing.tokens) == ("serena", "auto", 12)
    assert speech.timing.prompt_tokens == len(preset.tokenize("Hello world."))
    assert 0 < speech.timing.first_s < speech.timing.total_s


def test_a_stream_is_the_whole_in_growing_chunks(preset):
    whole = preset.generate("Hello world.", seed=5, max_frames=30)
    chunks = list(preset.stream("Hello world.", seed=5, max_frames=30))
    assert [len(c.audio) // FRAME for c in chunks] == [4, 6, 9, 11]
    assert [c.index for c in chunks] == [0, 1, 2, 3] and [c.is_final for c in chunks] == [False] * 3 + [True]
    assert [c.text for c in chunks] == ["Hello world.", "", "", ""]
    np.testing.assert_array_equal(Audio.concat([c.audio for c in chunks]).samples, whole.audio.samples)


def test_chunks_stop_growing_at_two_seconds(preset):
    from izwi_lab.families.qwen3_tts.talk import _sizes

    assert list(islice(_sizes(), 8)) == [4, 6, 9, 13, 20, 25, 25, 25]


def test_an_end_on_the_edge_of_a_chunk_is_known_there(tmp_path):
    from tts_models import END

    speaker = ours(checkpoint(tmp_path / "c", end=0.0))
    drawn = speaker.sample
    speaker.sample = lambda session, step, sampling=None: (
        END if session.codes.shape[1] == 4 else drawn(session, step, sampling)
    )
    (only,) = speaker.stream("Hello.", seed=0)
    assert only.is_final and len(only.audio) == 4 * FRAME and only.notes == ()


def test_a_seed_is_the_audio(preset):
    first, again, other, free, free2 = (
        preset.generate("Hi.", seed=seed, max_frames=3).audio.samples for seed in (1, 1, 2, None, None)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other) and not np.array_equal(free, free2)


def test_what_is_asked_of_sampling_is_honoured(preset):
    greedy = preset.generate("Hi.", seed=1, max_frames=4, **GREEDY)
    np.testing.assert_array_equal(
        greedy.audio.samples, preset.generate("Hi.", seed=2, max_frames=4, **GREEDY).audio.samples
    )
    half = preset.generate("Hi.", seed=1, max_frames=4, sampling=GREEDY["sampling"])
    assert not np.array_equal(half.audio.samples, greedy.audio.samples)


def test_long_text_is_spoken_whole_in_one_voice(preset):
    assert len(LONG) > 4990
    prompts = list(preset.prompts(LONG, voice="ryan"))
    assert len(prompts) > 5
    assert " ".join(p.text for p in prompts).split() == LONG.split()
    voices = {tuple(p.extras["layout"].codec[3:7].tolist()) for p in prompts}
    assert len(voices) == 1
    chunks = list(preset.stream(LONG, voice="ryan", seed=0, max_frames=2))
    assert [c.text for c in chunks] == [p.text for p in prompts]
    assert [c.is_final for c in chunks] == [False] * (len(prompts) - 1) + [True]
    alone = preset.generate(prompts[0].text, voice="ryan", seed=0, max_frames=2)
    np.testing.assert_array_equal(chunks[0].audio.samples, alone.audio.samples)


def test_a_text_that_meets_the_limit_says_so(preset):
    speech = preset.generate("Hello world.", max_frames=3, seed=0)
    assert len(speech.notes) == 1 and "Stopped after 3 frames (0.2 s)" in speech.notes[0]
    assert "max_frames" in speech.notes[0]
    *_, last = preset.stream("Hello world.", max_frames=3, seed=0)
    assert last.notes == speech.notes and last.is_final


def test_the_context_ends_a_session_too(tmp_path):
    """The tiny talker has 1024 positions; a described voice is never cut in pieces."""
    speaker = ours(checkpoint(tmp_path / "c", "voice_design"))
    prompt = speaker.tokenize("x" * 990, instruct="a calm man")
    session = by_hand(speaker, prompt, frames=500, **GREEDY)
    assert session.finish_reason == "length"
    assert session.codes.shape[1] == 1024 - len(prompt) + 1
    with pytest.raises(InvalidInputError, match="room for 1024"):
        speaker.stream("x" * 1200, instruct="a calm man")


def test_a_stop_is_heard_within_a_frame(preset, monkeypatch):
    token, decoded, real = CancelToken(), [], preset.advance

    def advance(*args, **options):
        decoded.append(1)
        if len(decoded) == 3:
            token.cancel()
        return real(*args, **options)

    monkeypatch.setattr(preset, "advance", advance)
    with pytest.raises(Cancelled):
        preset.generate("Hello world.", max_frames=40, cancel=token)
    assert len(decoded) == 3
    with pytest.raises(Cancelled):
        preset.generate("Hello world.", cancel=token)
    assert len(decoded) == 3


def test_a_reference_is_the_voice_made_of_it(base):
    told = {"seed": 0, "max_frames": 5}
    voice = base.voice(clip(), SAID, name="anna")
    assert voice.codes.shape == (16, 25) and voice.source == "Qwen3-TTS-12Hz-1.7B-Base"
    speech = base.generate("hello", voice=voice, **told)
    assert speech.voice == "anna"
    given = base.generate("hello", reference=clip(), transcript=SAID, **told)
    streamed = Audio.concat([c.audio for c in base.stream("hello", reference=clip(), transcript=SAID, **told)])
    for other in (given.audio, streamed):
        np.testing.assert_array_equal(other.samples, speech.audio.samples)
    assert len(speech.audio) == speech.timing.tokens * FRAME
    by_vector = base.generate("hello", reference=clip(), **told)
    assert not np.array_equal(by_vector.audio.samples, speech.audio.samples)


def test_new_samples_go_on_from_the_reference(base):
    """Decoded after the reference's codes, whose own samples are dropped; alone they would begin from silence."""
    voice = base.voice(clip(), SAID)
    session = by_hand(base, base.tokenize("hello", voice=voice), frames=4, seed=0)
    speech = base.generate("hello", voice=voice, seed=0, max_frames=4)
    joined = base.codec.decode(np.concatenate([voice.codes, session.codes], axis=1)).samples
    np.testing.assert_allclose(speech.audio.samples, joined[25 * FRAME :], atol=1e-6)
    assert np.abs(speech.audio.samples - base.codec.decode(session.codes).samples).max() > 1e-3


def test_what_of_a_reference_is_not_heard_is_said(base):
    speech = base.generate("hello", reference=clip(31.0), seed=0, max_frames=2)
    assert any("first 30 s" in note for note in speech.notes)
    with pytest.raises(AudioError, match="at most 30 s"):
        base.generate("hello", reference=clip(31.0), transcript=SAID)


def test_wrong_input_is_refused_at_the_call(preset, base):
    for speaker, text, options, message in (
        (preset, "", {}, "empty"),
        (preset, " \n", {}, "empty"),
        (preset, 7, {}, "The text is a int"),
        (preset, "Hi.", {"voice": "nobody"}, "Unknown voice"),
        (preset, "Hi.", {"language": "klingon"}, "Unknown language"),
        (preset, "Hi.", {"speed": 1.5}, "no speed"),
        (preset, "Hi.", {"text_mode": "slow"}, "text_mode"),
        (preset, "Hi.", {"max_frames": 0}, "whole number"),
        (preset, "Hi.", {"seed": -1}, "seed"),
        (preset, "Hi.", {"sampling": 0.9}, "sampling must be"),
        (preset, "Hi.", {"predictor": Sampling(presence_penalty=1.0)}, "knows no penalties"),
        (preset, "Hi.", {"reference": clip()}, "clones no voices"),
        (preset, "Hi.", {"transcript": SAID}, "needs the reference"),
        (preset, "Hi.", {"cancel": 3}, "CancelToken"),
        (base, "Hi.", {}, "cloned voice"),
        (base, "Hi.", {"voice": "ryan"}, "cloned voice"),
        (base, "Hi.", {"voice": "ryan", "reference": clip()}, "Both a voice and a reference"),
        (base, "Hi.", {"reference": clip(), "instruct": "sing"}, "no instructions"),
    ):
        for verb in (speaker.generate, speaker.stream):
            with pytest.raises(InvalidInputError, match=message):
                verb(text, **options)


@pytest.mark.parametrize("text", ["Hello.", "Hello. ", "  Hello.\n"])
def test_white_space_is_said_as_the_verbs_say_it(preset, text):
    session = by_hand(preset, preset.tokenize(text, voice="ryan"), frames=4, seed=3)
    speech = preset.generate(text, voice="ryan", seed=3, max_frames=4)
    np.testing.assert_allclose(speech.audio.samples, preset.audio(session).samples, atol=1e-6)
