"""The step API: generate and stream are loops over its verbs; seeds, cancelling, and what is refused."""

import dataclasses

import kokoro_reference as reference
import numpy as np
import pytest
import torch
from kokoro_models import plan, tiny_model

from izwi_lab import catalog
from izwi_lab.audio import Audio
from izwi_lab.backends import open_backend
from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, CheckpointError, InvalidInputError
from izwi_lab.families.kokoro.model import load
from izwi_lab.families.protocols import SpeechModel

TEXT = "Dr. Smith came in. It was, he said, late! Then 3 of us left."


@pytest.fixture(scope="module", params=["torch_tiny", "mlx_tiny"])
def tiny(request):
    return request.getfixturevalue(request.param)


def by_hand(model, prompt, seed):
    session = model.session(seed=seed)
    model.decode(session, model.prefill(session, prompt))
    return model.codec.decode(session.codes).samples


def test_it_is_a_speech_model(torch_tiny):
    assert isinstance(torch_tiny, SpeechModel)
    assert torch_tiny.voices == ("af_heart", "am_michael", "bf_emma", "jf_alpha")
    assert torch_tiny.default_voice == "af_heart" and torch_tiny.nbytes > 1e5


def test_steps_have_the_shapes_that_the_table_says(tiny):
    prompt = tiny.tokenize("Hello.", voice="am_michael", speed=1.2)
    session = tiny.session(seed=0)
    prosody = tiny.prefill(session, prompt)
    assert prosody.logits.shape == (len(prompt), 50) and prosody.durations.shape == (len(prompt),)
    assert prosody.f0.shape == prosody.energy.shape == (2 * prosody.frames,) and prosody.seconds > 0
    step = tiny.decode(session, prosody)
    assert tuple(step.hidden.shape) == (1, 2 * prosody.frames, reference.HIDDEN) and session.done
    audio = tiny.codec.decode(session.codes)
    assert isinstance(audio, Audio) and audio.rate_hz == 24_000
    assert len(audio.samples) == 600 * prosody.frames and audio.samples.dtype == np.float32
    words = prosody.word_times()
    assert [w for w, _, _ in words] == ["Hello", "."] and 0 < words[0][1] < words[0][2] <= audio.duration_s


def test_generate_and_stream_are_loops_over_the_verbs(torch_tiny):
    prompts = list(torch_tiny.prompts(TEXT, voice="am_michael", speed=1.5))
    assert len(prompts) == 3
    called = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("session", "prefill", "decode"):
            verb = getattr(torch_tiny, name)
            patch.setattr(torch_tiny, name, lambda *a, n=name, v=verb, **k: (called.append(n), v(*a, **k))[1])
        decode = torch_tiny.codec.decode
        patch.setattr(torch_tiny.codec, "decode", lambda codes: (called.append("codec"), decode(codes))[1])
        speech = torch_tiny.generate(TEXT, voice="am_michael", speed=1.5, seed=4)
        assert called == ["session", "prefill", "decode", "codec"] * 3
        called.clear()
        chunks = list(torch_tiny.stream(TEXT, voice="am_michael", speed=1.5, seed=4))
        assert called == ["session", "prefill", "decode", "codec"] * 3
    assert np.array_equal(chunks[0].audio.samples, by_hand(torch_tiny, prompts[0], 4))
    assert np.array_equal(np.concatenate([c.audio.samples for c in chunks]), speech.audio.samples)
    assert [c.index for c in chunks] == [0, 1, 2] and [c.is_final for c in chunks] == [False, False, True]
    assert speech.voice == "am_michael" and speech.language == "English" and speech.model == "Kokoro-82M"
    assert 0 < speech.timing.first_s <= speech.timing.total_s and speech.timing.audio_s == speech.audio.duration_s


def test_streamed_and_whole_are_the_same_samples_on_mlx(mlx_tiny):
    text = "Hello. So it is."
    whole = mlx_tiny.generate(text, seed=9, speed=2.0).audio.samples
    parts = [c.audio.samples for c in mlx_tiny.stream(text, seed=9, speed=2.0)]
    assert len(parts) == 2 and np.array_equal(np.concatenate(parts), whole)


def test_a_seed_fixes_the_sound_and_no_seed_varies_it(torch_tiny):
    prompt = torch_tiny.tokenize("Hello.")
    first, again, other = (by_hand(torch_tiny, prompt, s) for s in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    free = [torch_tiny.generate("Hello.").audio.samples for _ in range(2)]
    assert not np.array_equal(*free)


def test_pieces_have_noise_of_their_own(torch_tiny):
    same, twice = torch_tiny.stream("Hello.\nHello.", seed=3)
    assert same.audio.samples.shape == twice.audio.samples.shape
    assert not np.array_equal(same.audio.samples, twice.audio.samples)


def test_speed_shortens(torch_tiny):
    slow, plain, fast = (torch_tiny.generate("Hello there.", speed=s, seed=0).audio for s in (0.5, 1.0, 2.0))
    assert 1.6 < slow.duration_s / plain.duration_s < 2.4 and 1.6 < plain.duration_s / fast.duration_s < 2.4


def test_durations_and_pitch_can_be_set_by_hand(torch_tiny):
    prompt = torch_tiny.tokenize("Hello.")
    wanted = np.full(len(prompt), 3)
    session = torch_tiny.session(seed=0)
    prosody = torch_tiny.prefill(session, prompt, durations=wanted)
    assert prosody.frames == 3 * len(prompt)
    step = torch_tiny.decode(session, dataclasses.replace(prosody, f0=np.zeros_like(prosody.f0)), noise=False)
    bias = np.tanh(torch_tiny.codec._bias)
    assert np.allclose(step.codes.source, bias, atol=1e-6)  # unvoiced and without noise: nothing but the bias
    for wrong in (wanted[:-1], wanted - 3, wanted.astype(float)):
        with pytest.raises(InvalidInputError, match="durations"):
            torch_tiny.prefill(torch_tiny.session(), prompt, durations=wrong)
    other = torch_tiny.session()
    with pytest.raises(InvalidInputError, match="f0 has shape"):
        torch_tiny.decode(other, dataclasses.replace(torch_tiny.prefill(other, prompt), f0=np.zeros(3, np.float32)))


def test_verbs_out_of_order_are_refused(torch_tiny):
    prompt, session = torch_tiny.tokenize("Hello."), torch_tiny.session(seed=0)
    with pytest.raises(InvalidInputError, match="prefill"):
        torch_tiny.codec.decode(session.codes)
    prosody = torch_tiny.prefill(session, prompt)
    with pytest.raises(InvalidInputError, match="read its prompt"):
        torch_tiny.prefill(session, prompt)
    with pytest.raises(InvalidInputError, match="fresh from prefill"):
        torch_tiny.decode(torch_tiny.session(), prosody)
    torch_tiny.decode(session, prosody)
    with pytest.raises(InvalidInputError, match="fresh from prefill"):
        torch_tiny.decode(session, prosody)


def test_a_forked_session_goes_its_own_way(torch_tiny):
    session = torch_tiny.session(seed=5)
    prosody = torch_tiny.prefill(session, torch_tiny.tokenize("Hello."))
    other = session.fork()
    ours, theirs = (torch_tiny.decode(s, prosody).codes.source for s in (session, other))
    assert np.array_equal(ours, theirs) and session.nbytes > 0


def test_cancelling_stops_between_the_steps(torch_tiny):
    token = CancelToken()
    chunks = torch_tiny.stream(TEXT, seed=0, cancel=token)
    next(chunks)
    token.cancel()
    with pytest.raises(Cancelled):
        next(chunks)
    with pytest.raises(Cancelled):
        torch_tiny.generate(TEXT, cancel=token)


@pytest.mark.parametrize(
    "options", [{"voice": "nobody"}, {"speed": 3.0}, {"language": "Klingon"}, {"phonemes": "həlˈO"}], ids=str
)
def test_wrong_options_are_refused_at_the_call(torch_tiny, options):
    for verb in (torch_tiny.stream, torch_tiny.prompts, torch_tiny.generate, torch_tiny.tokenize):
        with pytest.raises(InvalidInputError):
            verb("Hello.", **options)
    with pytest.raises(InvalidInputError, match="empty"):
        torch_tiny.stream("  ")


def test_the_official_layout_loads_with_weight_norm_folded(tmp_path, golden):
    if not reference.available():
        pytest.skip("the kokoro package is not installed")
    import json
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = reference.kmodel(reference.TINY, tiny=True)
        empty = "decoder.generator.resblocks.0.convs1.0.weight"

        def value(name, shape):
            got = reference.weight(name, shape)
            return np.concatenate([np.zeros_like(got[:1]), got[1:]]) if name == empty else got

        reference.fill(model, value)
        state = reference.official_state(model)
        for part in state.values():  # a row that is zero in both g and v must stay zero, not become NaN
            for name in part:
                if name.endswith("generator.resblocks.0.convs1.0.weight_v"):
                    part[name] = part[name].clone()
                    part[name][0] = 0.0
        torch.save(state, tmp_path / "kokoro-v1_0.pth")
    (tmp_path / "config.json").write_text(json.dumps(reference.TINY))
    (tmp_path / "voices").mkdir()
    table = np.random.default_rng(1).standard_normal((510, 1, 256), dtype=np.float32)
    torch.save(torch.from_numpy(table), tmp_path / "voices" / "af_test.pt")
    variant = catalog.get("Kokoro-82M")
    loaded = load(variant, tmp_path, plan("torch"), open_backend(plan("torch")), layout="kokoro_torch")
    prompt = loaded.tokenize(phonemes=reference.PHONEMES)
    assert loaded.voices == ("af_test",)
    assert np.array_equal(prompt.extras["style"], table[len(reference.PHONEMES) - 1])
    prompt = dataclasses.replace(prompt, extras={**prompt.extras, "style": reference.style()})
    session = loaded.session(seed=0)
    with loaded.tap(["F0", "decoder.decode.3"]) as taps:
        prosody = loaded.prefill(session, prompt)
        loaded.decode(session, prosody)
    assert prosody.durations.tolist() == golden["durations"].tolist()
    assert np.abs(taps["decoder.decode.3"][0] - golden["generator.features"]).max() < 5e-3
    assert np.all(np.isfinite(loaded.codec.decode(session.codes).samples))
    assert list((tmp_path / ".converted").glob("*.safetensors"))


def test_a_checkpoint_of_another_size_is_refused_with_a_table(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "kokoro-v1_0.pth").write_bytes(b"PK")
    with pytest.raises(CheckpointError, match="is not understood"):
        load(catalog.get("Kokoro-82M"), tmp_path, plan("torch"), open_backend(plan("torch")), layout="kokoro_torch")


@pytest.mark.slow
def test_dummy_weights_build_the_full_size():
    model = load(
        catalog.get("Kokoro-82M"),
        None,
        plan("torch", "bfloat16"),
        open_backend(plan("torch", "bfloat16")),
        layout="kokoro_onnx",
        load_format="dummy",
    )
    assert model.voices == catalog.get("Kokoro-82M").voices
    count = sum(int(np.prod(s)) for s in model.backend.parameters(model.net).values())
    assert count == 81_140_664
    assert np.all(np.isfinite(by_hand(model, model.tokenize("Hello."), 0)))
    with pytest.raises(InvalidInputError, match="folder"):
        load(catalog.get("Kokoro-82M"), None, plan("torch"), model.backend, layout="kokoro_onnx")


def test_what_is_not_heard_is_noted(torch_tiny):
    speech = torch_tiny.generate("Hello 你好 world.", voice="af_heart")
    assert any("not spoken" in n and "你" in n for n in speech.notes)
    chunks = list(torch_tiny.stream("Hello 你好 world.", voice="af_heart"))
    assert tuple(n for c in chunks for n in c.notes) == speech.notes
    assert torch_tiny.generate("Hello.", voice="af_heart").notes == ()


def test_a_voice_of_another_language_says_that_it_reads_english(torch_tiny):
    (note,) = torch_tiny.generate("Hello.", voice="jf_alpha").notes
    assert note.startswith("jf_alpha: made for another language")
    assert torch_tiny.generate("Hello.", voice="jf_alpha", language="en").notes == ()


def test_a_model_shows_itself_and_is_refused_once_closed():
    model = tiny_model("torch")
    assert repr(model).startswith(f"{type(model).__name__}(Kokoro-82M, torch cpu")
    model.close()
    assert model.nbytes == 0
    with pytest.raises(InvalidInputError, match="was closed"):
        model.generate("Hello.", voice="af_heart")
