"""Sessions of Qwen3-TTS that are stopped, kept in bfloat16, of another model or heard after a reference."""

from __future__ import annotations

import numpy as np
import pytest
from tts_models import by_hand, checkpoint, clip, ours

from izwi_lab import catalog
from izwi_lab.backends import open_backend
from izwi_lab.backends.base import BackendPlan
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError
from izwi_lab.families.qwen3_tts.model import load
from izwi_lab.families.shared.steps import Prompt

BACKENDS = ("torch", "mlx")
WORDS = "Hello there, how are you?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("sessions") / "custom")


@pytest.fixture(scope="module", params=BACKENDS)
def preset(request, folder):
    return ours(folder, request.param)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return ours(checkpoint(tmp_path_factory.mktemp("sessions") / "base", "base"))


def going_on(model, session, frames):
    step = model.last(session)
    for _ in range(frames):
        if not session.done:
            step = model.decode(session, model.sample(session, step))
    return session.codes


def test_a_stopped_prefill_leaves_the_session_as_it_was(preset, monkeypatch):
    token, real = CancelToken(), preset.net.talk

    def talk(*args):
        found = real(*args)
        token.cancel()
        return found

    session, long = preset.session(seed=0), preset.tokenize("x" * 800, voice="ryan")
    monkeypatch.setitem(vars(preset.net), "talk", talk)
    with pytest.raises(Cancelled):
        preset.prefill(session, long, cancel=token)
    monkeypatch.undo()
    short = preset.tokenize(WORDS, voice="ryan")
    step, fresh = preset.prefill(session, short), preset.prefill(preset.session(seed=0), short)
    np.testing.assert_array_equal(step.numpy(), fresh.numpy())
    assert session.position == len(short)


@pytest.mark.parametrize("where", ["frames", "talk"])
def test_an_interrupted_frame_leaves_the_session_where_it_was(folder, where, monkeypatch):
    model = ours(folder)
    prompt = model.tokenize(WORDS, voice="ryan", text_mode="streaming")
    session, twin = model.session(seed=5), model.session(seed=5)
    for one in (session, twin):
        model.prefill(one, prompt)
        going_on(model, one, 3)
    real = getattr(model.net, where)

    def stop(*args):
        if where == "talk":
            real(*args)
        raise KeyboardInterrupt

    rng = session.fork().rng
    code = model.sample(session, model.last(session))
    monkeypatch.setitem(vars(model.net), where, stop)
    with pytest.raises(KeyboardInterrupt):
        model.decode(session, code)
    monkeypatch.undo()
    assert session.codes.shape[1] == len(session.tokens) == session.position - len(prompt) == 3
    session.rng = rng
    np.testing.assert_array_equal(going_on(model, session, 5), going_on(model, twin, 5))


def test_a_saved_session_goes_on_in_bfloat16_as_the_one_it_was(folder, tmp_path):
    """The compiled step gives float32 hidden states, which must not be rounded on their way through a file."""
    plan = BackendPlan("torch", "cpu", "bfloat16", "test")
    variant = catalog.get("Qwen3-TTS-12Hz-1.7B-CustomVoice")
    model = load(variant, folder, plan, open_backend(plan), layout="hf")
    for seed in range(6):
        session = model.session(seed=seed)
        model.prefill(session, model.tokenize(WORDS, voice="ryan"))
        going_on(model, session, 3)
        session.save(tmp_path / "kept")
        loaded = model.session()
        loaded.load(tmp_path / "kept")
        for name in ("hidden", "logits"):
            kept, held = (model.backend.numpy(one.state[name]) for one in (loaded, session))
            np.testing.assert_array_equal(kept, held)
        np.testing.assert_array_equal(going_on(model, loaded, 4), going_on(model, session, 4))


def test_a_session_or_prompt_of_another_model_is_refused(preset, base):
    prompt = preset.tokenize(WORDS, voice="ryan")
    mine = preset.session()
    step = preset.prefill(mine, prompt)
    for verb in (
        lambda: base.prefill(preset.session(), prompt),
        lambda: base.sample(mine, step),
        lambda: base.decode(mine, 3),
        lambda: base.last(mine),
        lambda: base.audio(mine),
    ):
        with pytest.raises(InvalidInputError, match=r"not of Qwen3-TTS-12Hz-1\.7B-Base"):
            verb()


@pytest.mark.parametrize(
    "changes",
    [
        {"text": lambda at: at + 10**6},
        {"codec": lambda at: at + 10**6},
        {"codec": lambda at: at - 10},
        {"codec": lambda at: at[:-1]},
        {"text": lambda at: at[:0], "codec": lambda at: at[:0]},
        {"text": lambda at: at.tolist()},
        {"speaker": lambda _: np.zeros(64, np.float32)},
        {"speaker": lambda _: np.zeros(64, np.float32), "speaker_at": lambda _: 999},
        {"speaker": lambda _: np.zeros(3, np.float32), "speaker_at": lambda _: 3},
        {"reference": lambda _: np.zeros((16, 3), np.int32)},
        {"reference": lambda _: np.zeros((16, 3), np.int32), "reference_at": lambda _: 10**4},
        {"reference": lambda _: np.full((16, 3), -64, np.int32), "reference_at": lambda _: 1},
        {"reference": lambda _: np.zeros((8, 3), np.int32), "reference_at": lambda _: 1},
    ],
)
def test_a_layout_that_does_not_fit_is_refused(preset, changes):
    prompt = preset.tokenize(WORDS, voice="ryan")
    layout = prompt.extras["layout"]
    fields = {name: getattr(layout, name) for name in layout.__dataclass_fields__}
    changed = type(layout)(**fields | {name: change(fields[name]) for name, change in changes.items()})
    with pytest.raises(InvalidInputError, match="does not fit together"):
        preset.prefill(preset.session(), Prompt(prompt.ids, extras={"layout": changed}))
    with pytest.raises(InvalidInputError, match="does not fit together"):
        preset.prefill(preset.session(), Prompt(prompt.ids[:4], extras={"layout": layout}))


def test_what_a_session_says_is_heard_after_its_reference(base, tmp_path):
    voice = base.voice(clip(), "These are its words.")
    session = by_hand(base, base.tokenize("hello", voice=voice), frames=4, seed=0)
    spoken = base.generate("hello", voice=voice, seed=0, max_frames=4).audio
    np.testing.assert_allclose(base.audio(session).samples, spoken.samples, atol=1e-6)
    assert np.abs(base.codec.decode(session.codes).samples - spoken.samples).max() > 1e-3
    session.save(tmp_path / "kept")
    loaded = base.session()
    loaded.load(tmp_path / "kept")
    np.testing.assert_array_equal(base.audio(loaded).samples, base.audio(session).samples)
    with pytest.raises(InvalidInputError, match="said nothing"):
        base.audio(base.session())


def test_a_reference_is_decoded_once_and_only_where_it_is_heard(base):
    voice = base.voice(clip(20.0), "These are its words.")
    text = "The first sentence is here. " * 60
    pieces = list(base.prompts(text, voice=voice))
    assert len(pieces) > 2 and voice.codes.shape[1] == 250
    heard = []

    def hear(name, value):
        heard.append(value.shape[-1] // base.codec.frame_samples)

    with base.tap("decoder.samples", replace=hear):
        list(base.stream(text, voice=voice, seed=0, max_frames=2))
    assert sum(heard) == base.codec.config.decoder.past_frames + 2 * len(pieces)


@pytest.mark.parametrize("passes", ["decoder.transformer", "encoder.latent"])
def test_cloning_can_be_stopped(base, passes):
    token, seen = CancelToken(), []

    def stop(name, value):
        seen.append(name)
        token.cancel()

    voice = base.voice(clip(20.0), "Its words.") if passes == "decoder.transformer" else None
    how = {"voice": voice} if voice else {"reference": clip(20.0), "transcript": "Its words."}
    with base.tap(passes, replace=stop), pytest.raises(Cancelled):
        base.generate("hello", **how, max_frames=4, cancel=token)
    assert len(seen) == 1


def test_a_voice_that_is_not_wanted_any_more_is_not_heard(base, monkeypatch):
    token = CancelToken()
    token.cancel()
    monkeypatch.setattr(base, "speaker", lambda mel: pytest.fail("the speaker encoder ran"))
    with pytest.raises(Cancelled):
        base.voice(clip(), cancel=token)


def test_a_speech_says_its_seed_and_what_is_not_heard(preset):
    speech = preset.generate(WORDS, voice="ryan", max_frames=3)
    again = preset.generate(WORDS, voice="ryan", max_frames=3, seed=speech.seed)
    np.testing.assert_array_equal(again.audio.samples, speech.audio.samples)
    for shown in (repr(speech), speech._repr_html_()):
        assert str(speech.seed) in shown and "without coming to an end" in shown
    chunk = next(preset.stream(WORDS * 4, voice="ryan", max_frames=3))
    assert chunk.tokens == 3 and "without coming" in repr(chunk) and len(repr(chunk)) < 600


def test_a_session_that_is_done_draws_no_more(preset):
    session = by_hand(preset, preset.tokenize(WORDS, voice="ryan"), frames=2)
    with pytest.raises(InvalidInputError, match="done"):
        preset.sample(session, preset.last(session))
    with pytest.raises(InvalidInputError, match="max_frames must be a whole number from 1"):
        preset.session(max_frames=0)


def test_other_random_numbers_are_forked_and_refused_by_a_file(preset, tmp_path):
    session = preset.session(seed=0)
    preset.prefill(session, preset.tokenize(WORDS, voice="ryan"))
    session.rng = np.random.default_rng(99)
    assert session.fork().rng.random() == session.rng.random()
    with pytest.raises(InvalidInputError, match="PCG64"):
        session.save(tmp_path / "s")


def test_what_no_tap_saw_is_named(preset):
    with preset.tap(["talker.layers.*", "codec.*"]) as seen:
        preset.prefill(preset.session(), preset.tokenize("Hi.", voice="ryan"))
    with pytest.raises(KeyError, match=r"talker\.layers\.99: not seen\. Seen: talker\.layers\.0"):
        seen["talker.layers.99"]
    assert "talker.layers.99" not in seen and seen.get("codec.x") is None
    for wrong in (None, 3, ["a", 3]):
        with pytest.raises(InvalidInputError, match="A tap is a name"), preset.tap(wrong):
            pass
