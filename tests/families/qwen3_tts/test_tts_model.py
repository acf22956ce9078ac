"""The verbs of Qwen3-TTS: codes and samples against the vendor's package, sessions, sampling, what is refused."""

from __future__ import annotations

import dataclasses
import warnings

import numpy as np
import pytest
import torch
from tts_models import END, GREEDY, VENDOR_GREEDY, by_hand, checkpoint, clip, ours, vendor

from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.generation import Generation, allowed
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt

FRAMES = 40
TEXT = "Hello world, how are you?"
SAID = "hello there"
BACKENDS = ("torch", "mlx")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = {}

    def give(kind: str, *, projected: bool = True):
        if (kind, projected) not in made:
            made[kind, projected] = checkpoint(tmp_path_factory.mktemp(kind) / "c", kind, projected=projected)
        return made[kind, projected]

    return give


@pytest.fixture(scope="module")
def model(folder):
    made = {}

    def give(kind: str = "custom_voice", backend: str = "torch", *, projected: bool = True):
        key = (kind, backend, projected)
        if key not in made:
            made[key] = ours(folder(kind, projected=projected), backend)
        return made[key]

    return give


def vendor_says(wrapper, method: str, *, frames: int = FRAMES, **options) -> tuple[np.ndarray, np.ndarray]:
    """Codes [K, F] and samples of a public method of the vendor, greedy."""
    caught, real = [], wrapper.model.generate
    wrapper.model.generate = lambda **given: caught.append(real(**given)) or caught[-1]
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Passing `repetition_penalty`")  # that it sees no prompt is meant so
            wavs, _ = getattr(wrapper, method)(TEXT, **{**VENDOR_GREEDY, **options}, max_new_tokens=frames + 1)
    finally:
        wrapper.model.generate = real
    return caught[0][0][0].numpy().T, wavs[0]


CASES = {
    "preset": ("custom_voice", {"voice": "ryan", "language": "English"}, {"speaker": "ryan", "language": "English"}),
    "dialect, instructed": (
        "custom_voice",
        {"voice": "eric", "instruct": "speak sadly"},
        {"speaker": "eric", "language": "Auto", "instruct": "speak sadly"},
    ),
    "described": (
        "voice_design",
        {"instruct": "a calm old man", "language": "zh"},
        {"instruct": "a calm old man", "language": "Chinese"},
    ),
    "cloned in context": ("base", {"transcript": SAID}, {"ref_text": SAID}),
    "cloned by vector": ("base", {"language": "de"}, {"language": "German", "x_vector_only_mode": True}),
}
LONG = {("preset", "whole"), ("described", "streaming"), ("cloned in context", "streaming")}  # the vendor is slow
METHODS = {"custom_voice": "custom_voice", "voice_design": "voice_design", "base": "voice_clone"}


@pytest.mark.parametrize("text_mode", ["whole", "streaming"])
@pytest.mark.parametrize("case", CASES)
def test_codes_and_samples_are_the_vendors(folder, model, case, text_mode):
    kind, options, told = CASES[case]
    if kind == "base":
        options, told = {**options, "reference": clip()}, {**told, "ref_audio": (clip().samples, 24000)}
    frames = FRAMES if (case, text_mode) in LONG else 8
    told = {**told, "non_streaming_mode": text_mode == "whole"}
    codes, samples = vendor_says(vendor(folder(kind)), f"generate_{METHODS[kind]}", frames=frames, **told)
    assert codes.shape == (16, frames) and len(np.unique(codes)) > 20
    for backend in BACKENDS:
        speaker = model(kind, backend)
        given = dict(options)
        if kind == "base":
            given["voice"] = speaker.voice(given.pop("reference"), given.pop("transcript", None))
        prompt = speaker.tokenize(TEXT, **given, text_mode=text_mode)
        session = by_hand(speaker, prompt, frames=frames, **GREEDY)
        np.testing.assert_array_equal(session.codes, codes)
        speech = speaker.generate(TEXT, **options, text_mode=text_mode, max_frames=frames, **GREEDY)
        np.testing.assert_allclose(speech.audio.samples, samples, atol=2e-5)


def test_the_predictor_of_the_small_model_and_an_end_of_its_own(tmp_path):
    """0.6B: the predictor is as wide as the talker, and nothing is projected. It ends by itself."""
    folder = checkpoint(tmp_path / "small", projected=False, end=3.0)
    options = {"speaker": "ryan", "language": "English", "non_streaming_mode": True}
    codes, samples = vendor_says(vendor(folder), "generate_custom_voice", **options)
    assert 2 <= codes.shape[1] < FRAMES
    for backend in BACKENDS:
        small = ours(folder, backend)
        session = by_hand(small, small.tokenize(TEXT, voice="ryan", language="en"), frames=FRAMES, **GREEDY)
        np.testing.assert_array_equal(session.codes, codes)
        assert session.finish_reason == "stop"
        speech = small.generate(TEXT, voice="ryan", language="en", **GREEDY)
        np.testing.assert_allclose(speech.audio.samples, samples, atol=2e-5)
        assert speech.notes == () and speech.timing.tokens == codes.shape[1]


def test_sampled_codes_are_the_vendors_through_the_same_random_numbers(folder, model, monkeypatch):
    rng = np.random.Generator(np.random.Philox(7))

    def drawn(probabilities, num_samples):
        share = int(rng.random() * 2**31) / 2**31
        sums = probabilities[0].double().cumsum(0)
        return torch.searchsorted(sums / sums[-1], torch.tensor([share], dtype=torch.float64), right=True)[None]

    monkeypatch.setattr(torch, "multinomial", drawn)
    codes, _ = vendor_says(
        vendor(folder("custom_voice")),
        "generate_custom_voice",
        speaker="ryan",
        language="English",
        non_streaming_mode=True,
        frames=10,
        do_sample=True,
        subtalker_dosample=True,
    )
    for backend in BACKENDS:
        speaker = model("custom_voice", backend)
        session = by_hand(speaker, speaker.tokenize(TEXT, voice="ryan", language="English"), frames=10, seed=7)
        np.testing.assert_array_equal(session.codes, codes)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_forks_and_is_saved(model, backend, tmp_path):
    speaker = model(backend=backend)
    session = by_hand_from(speaker, speaker.tokenize("Hello."), 5)
    assert session.codes.shape == (16, 5) and session.nbytes > 0
    session.save(tmp_path / "session")
    other = session.fork()
    loaded = speaker.session(seed=99)
    loaded.load(tmp_path / "session")
    elsewhere = model(backend=BACKENDS[backend == "torch"]).session()
    elsewhere.load(tmp_path / "session")
    first = go_on(speaker, session, 6)
    assert first.shape == (16, 11)
    for copy, owner in ((other, speaker), (loaded, speaker), (elsewhere, model(backend=BACKENDS[backend == "torch"]))):
        np.testing.assert_array_equal(go_on(owner, copy, 6), first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_session_goes_back(model, backend, tmp_path):
    speaker = model(backend=backend)
    prompt = speaker.tokenize("Hello.", text_mode="streaming")
    session = by_hand(speaker, prompt, frames=6, **GREEDY)
    codes = session.codes
    for kept in (6, 5, 3, 0):
        session.trim(len(prompt) + kept - (kept == 6))  # the last frame of all was never read by the talker
        session.save(tmp_path / "session")
        loaded = speaker.session(max_frames=6)
        loaded.load(tmp_path / "session")
        for one in (session, loaded):
            step = speaker.last(one)
            while not one.done:
                step = speaker.decode(one, speaker.sample(one, step, GREEDY["sampling"]), sampling=GREEDY["predictor"])
            np.testing.assert_array_equal(one.codes, codes)
    session.trim(len(prompt))
    np.testing.assert_allclose(
        speaker.last(session).numpy(), speaker.prefill(speaker.session(), prompt).numpy(), atol=1e-5
    )
    session.trim(len(prompt))
    speaker.decode(session, int(codes[0, 0]), sampling=GREEDY["predictor"])  # without a step in between
    np.testing.assert_array_equal(session.codes[:, 0], codes[:, 0])
    with pytest.raises(InvalidInputError, match="end of its prompt"):
        session.trim(3)


def by_hand_from(speaker, prompt, frames):
    session = speaker.session(seed=3)
    step = speaker.prefill(session, prompt)
    for _ in range(frames):
        step = speaker.decode(session, speaker.sample(session, step))
    return session


def go_on(speaker, session, frames):
    step = speaker.last(session)
    for _ in range(frames):
        step = speaker.decode(session, speaker.sample(session, step))
    return session.codes


def test_a_session_of_another_model_is_refused(model, tmp_path):
    session = by_hand_from(model(), model().tokenize("Hello."), 1)
    session.save(tmp_path / "session")
    with pytest.raises(CheckpointError, match="another model"):
        model("voice_design").session().load(tmp_path / "session")
    with pytest.raises(CheckpointError, match="kv_dtype"):
        model().session(kv_dtype="int8").load(tmp_path / "session")


def test_the_end_may_not_come_before_the_third_code(model):
    speaker = model()
    eager = Sampling(temperature=1.0, logit_bias={END: 100.0})
    session = by_hand(speaker, speaker.tokenize("Hello."), frames=30, sampling=eager)
    assert session.codes.shape == (16, 2) and session.finish_reason == "stop" and session.tokens[-1] == END


def test_only_sounds_and_the_end_are_drawn(model):
    speaker = model()
    session = by_hand(speaker, speaker.tokenize("Hello."), frames=8, sampling=Sampling(temperature=50.0))
    assert session.codes.max() < 64
    early, later = allowed(3072, 2150)
    bits = [np.unpackbits(mask.view(np.uint8), bitorder="little")[:3072].nonzero()[0] for mask in (early, later)]
    assert bits[0].tolist() == [*range(2048)] and bits[1].tolist() == [*range(2048), 2150]


def test_the_repetition_penalty_looks_at_the_codes_drawn(model):
    speaker = model()
    prompt = speaker.tokenize("Hello.")
    free, strict = (
        by_hand(speaker, prompt, frames=16, sampling=Sampling(repetition_penalty=p), predictor=Sampling())
        for p in (1.0, 1e6)
    )
    assert len(set(strict.tokens)) == len(strict.tokens) > len(set(free.tokens))


def test_one_token_of_text_is_followed_by_its_end_alone(model):
    speaker = model("base")
    voice = speaker.voice(clip())
    prompt = speaker.tokenize("h", voice=voice, text_mode="streaming")
    layout = prompt.extras["layout"]
    assert layout.trailing.tolist() == [speaker.config.ids.tts_eos]
    assert by_hand(speaker, prompt, frames=3, **GREEDY).codes.shape == (16, 3)


def test_what_comes_after_the_text_is_padding_for_ever(model):
    """Both of a prompt's sides at each position, and the text that comes with the frames, are what is summed."""
    speaker = model("base")
    prompt = speaker.tokenize("he", voice=speaker.voice(clip()), text_mode="streaming")
    session = speaker.session()
    speaker.prefill(session, prompt)
    trailing = speaker.backend.numpy(session.state["trailing"])[0]
    ids = [*prompt.extras["layout"].trailing, speaker.config.ids.tts_pad]
    with speaker.backend.inference():
        expected = speaker.backend.numpy(speaker.net.text(speaker.backend.array(np.asarray([ids], np.int32))))[0]
    np.testing.assert_allclose(trailing, expected, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_taps_are_named_alike(model, backend):
    speaker = model(backend=backend)
    with speaker.tap(["talker.layers.1.attn", "predictor.layers.0", "predictor.logits"]) as seen:
        plain = by_hand(speaker, speaker.tokenize("Hello."), frames=2, **GREEDY)
    assert set(seen) == {"talker.layers.1.attn", "predictor.layers.0", "predictor.logits"}
    assert len(seen.history["predictor.logits"]) == 2 * 15 and seen["predictor.logits"].shape[-1] == 64
    np.testing.assert_array_equal(plain.codes, by_hand(speaker, speaker.tokenize("Hello."), frames=2, **GREEDY).codes)


def test_int8_caches_speak(model):
    speaker = model()
    session = speaker.session(kv_dtype="int8", max_frames=3)
    step = speaker.prefill(session, speaker.tokenize("Hello."))
    while not session.done:
        step = speaker.decode(session, speaker.sample(session, step))
    assert session.codes.shape == (16, 3)


def test_misuse_of_the_verbs_says_what_to_do(model):
    speaker = model()
    prompt, session = speaker.tokenize("Hello."), speaker.session(max_frames=1)
    for wrong, message in (
        (lambda: speaker.decode(session, 3), "empty"),
        (lambda: speaker.last(session), "empty"),
        (lambda: speaker.prefill(session, Prompt([1, 2])), "no layout"),
        (lambda: speaker.prefill(session, "Hello."), "Prompt was expected"),
        (lambda: speaker.session(max_frames=0), "max_frames"),
        (lambda: speaker.session(seed=-1), "seed"),
        (lambda: speaker.session(kv_dtype="int3"), "kv_dtype"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            wrong()
    step = speaker.prefill(session, prompt)
    for wrong, message in (
        (lambda: speaker.prefill(session, prompt), "already"),
        (lambda: speaker.decode(session, 5000), "no sound"),
        (lambda: speaker.decode(session, speaker.config.ids.codec_bos), "no sound"),
        (lambda: speaker.decode(session, "x"), "code was expected"),
        (lambda: speaker.decode(session, 3, sampling=Sampling(repetition_penalty=1.1)), "knows no penalties"),
        (lambda: speaker.sample(session, step, "hot"), "Sampling"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            wrong()
    speaker.decode(session, 3)
    assert session.done and session.finish_reason == "length"
    with pytest.raises(InvalidInputError, match="done"):
        speaker.decode(session, 3)


def test_a_prompt_longer_than_the_context_is_refused(model):
    speaker = model()
    prompt = speaker.tokenize("Hello.")
    layout = prompt.extras["layout"]
    long = dataclasses.replace(layout, text=np.resize(layout.text, 1024), codec=np.resize(layout.codec, 1024))
    with pytest.raises(InvalidInputError, match="1024 positions"):
        speaker.prefill(speaker.session(), Prompt(long.text, extras={"layout": long}))


def test_only_base_models_clone(model):
    assert model("base").voices == () and model("base").default_voice is None
    assert model().voices[:2] == ("serena", "vivian") and model().default_voice == "serena"
    assert "sichuan_dialect" not in model().languages and "english" in model().languages
    with pytest.raises(InvalidInputError, match="clones no voices"):
        model().voice(clip())


def test_defaults_are_the_references_unless_the_checkpoint_says_otherwise(model):
    assert Generation.from_hf({}) == Generation()
    assert (Generation().max_frames, Generation().talker.repetition_penalty, Generation().predictor.top_k) == (
        2048,
        1.05,
        50,
    )
    assert model().generation.max_frames == 8192
    told = Generation.from_hf({"do_sample": False, "subtalker_top_p": 0.5, "repetition_penalty": 1.2})
    assert told.talker == Sampling(top_k=50, repetition_penalty=1.2) and told.predictor.top_p == 0.5
    for values in ({"temperature": -1}, {"top_k": 1.5}, {"max_new_tokens": 0}, {"do_sample": "yes"}, {"top_p": 7}):
        with pytest.raises(CheckpointError):
            Generation.from_hf(values)


def test_a_closed_model_says_so(folder):
    speaker = ours(folder("custom_voice"))
    assert speaker.nbytes > 100_000 and "Qwen3TTS(Qwen3-TTS-12Hz-1.7B-CustomVoice" in repr(speaker)
    speaker.close()
    assert speaker.nbytes == 0
    with pytest.raises(InvalidInputError, match="closed"):
        speaker.session()
