"""One tiny Whisper four ways: torch, torch with the native step, MLX, and transformers as the judge."""

from __future__ import annotations

import numpy as np
import pytest

from izwi_lab import catalog
from izwi_lab.audio import Audio
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.whisper import decoding
from izwi_lab.families.whisper import model as whisper
from izwi_lab.families.whisper.rules import Guards

IDS = [50_258, 50_259, 50_359, 50_364, 11, 300, 4_000, 50_300]
OURS = ["torch", "plain", "mlx", "ctranslate2"]


def prompt_of(model, **options):
    return model.tokenize(language="en", **options)


def logits_stepwise(model, mel, ids, first=3):
    session = model.session(model.encode(mel))
    out = []
    with model.backend.inference():
        for part in [ids[:first], *[[i] for i in ids[first:]]]:
            rows = list(range(len(part)))
            logits, _ = model.net.step(model.backend.array(np.array([part], np.int32)), [session.state["net"]], rows)
            out.append(model.backend.numpy(logits)[0])
    return np.concatenate(out)


@pytest.fixture(scope="module")
def reference(hf_model):
    import torch

    rng = np.random.default_rng(1)
    features = rng.standard_normal((80, 200)).astype(np.float32) * 0.5
    with torch.inference_mode():
        out = hf_model(
            input_features=torch.from_numpy(features)[None],
            decoder_input_ids=torch.tensor([IDS]),
            output_attentions=False,
        )
    return {"states": out.encoder_last_hidden_state[0].numpy(), "logits": out.logits[0].numpy()}


@pytest.mark.parametrize("name", OURS)
def test_states_and_logits_equal_transformers(models, reference, mel, name):
    model = models[name]
    states = model.backend.numpy(model.encode(mel))
    np.testing.assert_allclose(states, reference["states"], atol=3e-5)
    np.testing.assert_allclose(logits_stepwise(model, mel, IDS), reference["logits"], atol=2e-4)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("first", [1, 5, 8])
def test_any_split_gives_the_same_logits(models, reference, mel, name, first):
    np.testing.assert_allclose(logits_stepwise(models[name], mel, IDS, first), reference["logits"], atol=2e-4)


def test_parameters_are_equal_and_under_transformers_names(models, hf_model):
    expected = {k: tuple(v.shape) for k, v in hf_model.state_dict().items() if k != "proj_out.weight"}
    for name in ("torch", "mlx"):
        assert models[name].backend.parameters(models[name].net) == expected
    held = 4 * sum(int(np.prod(s)) for s in expected.values())
    assert models["torch"].nbytes == models["mlx"].nbytes == held
    assert models["ctranslate2"].nbytes < held  # the decoder stays float16, mapped from the file


def test_taps_have_the_same_names_order_and_values(models, mel):
    seen = {}
    for name in ("torch", "mlx"):
        model = models[name]
        with model.tap("*") as taps:
            session = model.session(model.encode(mel))
            model.prefill(session, prompt_of(model))
        seen[name] = taps
    assert list(seen["torch"]) == list(seen["mlx"])
    assert {"encoder.conv", "encoder.layers.1.attn", "decoder.layers.2.cross", "logits"} <= set(seen["torch"])
    for key, value in seen["torch"].items():
        np.testing.assert_allclose(value, seen["mlx"][key], atol=2e-4, err_msg=key)


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_a_tap_can_replace(models, mel, name):
    model = models[name]
    states = model.encode(mel)
    before = model.prefill(model.session(states), prompt_of(model)).numpy()
    with model.tap("decoder.layers.0.cross", replace=lambda _, x: np.zeros_like(x)):
        after = model.prefill(model.session(states), prompt_of(model)).numpy()
    assert np.abs(before - after).max() > 1e-2


def test_sessions_decoded_together_equal_alone(models, mel):
    for name in OURS:
        model = models[name]
        prompt = prompt_of(model)
        windows = [model.encode(mel * s) for s in (1.0, 0.3)]
        alone = []
        for states in windows:
            session = model.session(states, max_tokens=4)
            step = model.prefill(session, prompt)
            while not session.done:
                step = model.decode(session, model.sample(session, step))
            alone.append(session.tokens)
        sessions = [model.session(states, max_tokens=4) for states in windows]
        work = decoding.Work()
        guards = Guards(temperatures=())
        found = _met(model, decoding.decode_windows(model, sessions, prompt, guards, 0.0, work, _never()))
        assert [list(r.tokens) for r in found] == alone
        assert work.tokens == sum(len(a) for a in alone)


def _met(model, asking):
    """What a part of a course comes to, each ask met."""
    try:
        ask = next(asking)
        while True:
            ask = asking.send(model.share(ask.kind, [ask.item])[0])
    except StopIteration as end:
        return end.value


def _never():
    from izwi_lab.cancel import CancelToken

    return CancelToken()


def test_greedy_tokens_are_equal_everywhere(models, mel):
    found = {}
    for name, model in models.items():
        session = model.session(model.encode(mel), max_tokens=12)
        step = model.prefill(session, prompt_of(model))
        while not session.done:
            step = model.decode(session, model.sample(session, step))
        found[name] = session.tokens
    assert len(found["torch"]) == 12
    assert all(tokens == found["torch"] for tokens in found.values())


@pytest.mark.parametrize("name", ["torch", "mlx"])
def test_fork_trim_and_seed(models, mel, name):
    model = models[name]
    hot = Sampling(temperature=1.0)

    def draw(session, step, count):
        for _ in range(count):
            step = model.decode(session, model.sample(session, step, hot))
        return session.tokens

    states = model.encode(mel)
    session = model.session(states, seed=5)
    step = model.prefill(session, prompt_of(model))
    other = session.fork()
    first = list(draw(session, step, 3))
    assert draw(other, step, 3) == first
    session.trim(0)
    assert session.tokens == [] and not session.done
    np.testing.assert_allclose(model.prefill(session, prompt_of(model)).numpy(), step.numpy(), atol=1e-5)
    assert session.nbytes > 0


def test_alignment_scores_are_the_attention_before_softmax(models, hf_model, mel):
    import torch

    ids = [*IDS[:3], 50_363, 11, 300, 4_000, 50_257]
    hf_model.set_attn_implementation("eager")
    with torch.inference_mode():
        out = hf_model(
            input_features=torch.from_numpy(mel)[None],
            decoder_input_ids=torch.tensor([ids]),
            output_attentions=True,
        )
    hf_model.set_attn_implementation("sdpa")
    for name in OURS:
        model = models[name]
        state = model.session(model.encode(mel)).state["net"]
        with model.backend.inference():
            scores, logits = model.net.align(model.backend.array(np.array([ids], np.int32)), state, model.heads)
        weights = np.exp(model.backend.numpy(scores))
        weights /= weights.sum(axis=-1, keepdims=True)
        expected = np.stack([out.cross_attentions[layer][0, head].numpy() for layer, head in model.heads])
        np.testing.assert_allclose(weights, expected, atol=2e-5, err_msg=name)
        np.testing.assert_allclose(model.backend.numpy(logits), out.logits[0].numpy(), atol=2e-4)


def test_reduced_precision_stays_close(folders, mel, models, reference):
    """bfloat16 matrices, float32 sums: within a few parts in a thousand of the logits' spread."""
    backend = TorchBackend("cpu", "bfloat16")
    plan = BackendPlan("torch", "cpu", "bfloat16", "test")
    model = whisper.load(catalog.get("Whisper-base"), folders["ctranslate2"], plan, backend, layout="ctranslate2")
    spread = np.abs(reference["logits"]).max()
    for native_step in (True, False):
        model.net.native = model.net.native if native_step else None
        assert np.abs(logits_stepwise(model, mel, IDS) - reference["logits"]).max() < 0.02 * spread


def test_dummy_load_builds_any_variant():
    plan = BackendPlan("torch", "cpu", "bfloat16", "test")
    variant = catalog.get("Whisper-tiny.en")
    model = whisper.load(variant, None, plan, TorchBackend("cpu", "bfloat16"), layout="hf", load_format="dummy")
    assert model.config.d_model == 384 and not model.config.multilingual
    session = model.session(model.encode(np.zeros((80, 3000), np.float32)), max_tokens=3)
    step = model.prefill(session, model.tokenize())
    while not session.done:
        step = model.decode(session, model.sample(session, step))
    assert len(session.tokens) == 3 and session.finish_reason == "length"
    with pytest.raises(InvalidInputError, match="no vocabulary"):
        model.tokenize("names")


def test_refusals(models, mel, folders):
    model = models["torch"]
    with pytest.raises(InvalidInputError, match="Unknown language"):
        model.tokenize(language="klingon")
    with pytest.raises(ValueError, match="do not fit"):
        session = model.session(model.encode(mel))
        model.net.step(model.backend.array(np.zeros((1, 65), np.int32)), [session.state["net"]], [0])
    with pytest.raises(IndexError):
        session = model.session(model.encode(mel))
        model.net.step(model.backend.array(np.full((1, 1), 60_000, np.int32)), [session.state["net"]], [0])
    with pytest.raises(CheckpointError, match="does not read the layout"):
        from izwi_lab.families.whisper import weights

        weights.read(None, folders["hf"], "gguf")
    with pytest.raises(InvalidInputError, match="30 s"):
        model.features(Audio.silence(31.0, 16_000))
