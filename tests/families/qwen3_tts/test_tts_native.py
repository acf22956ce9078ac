"""The compiled frame against the plain path: dense and quantised, both cache forms, states that are forked."""

from __future__ import annotations

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tiny_tts
import torch
from safetensors.numpy import save_file
from tts_nets import CASES, checkpoint, greedy, net_of

from izwi_lab.artifacts.quantise import affine
from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts import weights
from izwi_lab.families.qwen3_tts.config import TTSConfig

FRAMES = 3
FORMS = {"float32": ("float32", None), "bfloat16": ("bfloat16", None), "4bit": ("float32", 4), "8bit": ("float32", 8)}
PROMPT = np.random.default_rng(6).standard_normal((1, 19, tiny_tts.WIDTH)).astype(np.float32)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert native.library("decoder", wait=True) is not None, native.status()
    TorchBackend()  # chooses a number of threads, once
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a net only waits for a second thread
    yield
    torch.set_num_threads(before)


def quantised(values, bits, *, embeddings=False):
    """As MLX's folders are: every Linear in groups, embeddings dense unless told."""
    out = {}
    for name, w in checkpoint(tiny_tts.weights(values)).items():
        linear = name.endswith(".weight") and len(w.shape) == 2 and (embeddings or "_embedding" not in name)
        out[name] = affine(w, bits=bits, group_size=32) if linear else w
    return out


def pair(case, form):
    """(backend, compiled, plain): two nets of the same weights."""
    _, projected = CASES[case]
    dtype, bits = FORMS[form]
    values, backend = tiny_tts.config("voice_design", projected=projected), TorchBackend(dtype=dtype)
    config = TTSConfig.from_hf(values)
    made = quantised(values, bits) if bits else checkpoint(tiny_tts.weights(values))
    fast, plain = (backend.net(weights.PACKAGE, "TTSNet", config, dict(made)) for _ in range(2))
    assert fast.compiled is not None and fast.compiled.ready()
    plain.compiled = None
    return backend, fast, plain


FOUR = [("wide-base", "float32"), ("projected-custom", "bfloat16"), ("projected-custom", "4bit"), ("wide-base", "8bit")]


@pytest.fixture(scope="module", params=FOUR, ids="-".join)
def nets(request):
    return (*pair(*request.param), request.param[1])


def follow(backend, net, codes, state=None):
    """Logits of the talker and of the predictor along given frames, codes [K, F]."""
    state = net.state() if state is None else state
    logits, hidden = net.talk(backend.array(PROMPT), state)
    talker, predictor = [backend.numpy(logits)[0]], []
    for frame in codes.T:

        def told(found, index, frame=frame):
            predictor.append(backend.numpy(found)[0])
            return int(frame[index])

        assert net.predict(hidden, int(frame[0]), told) == list(frame)
        logits, hidden = net.talk(net.frames(backend.array(frame[None, :, None].astype(np.int32))), state)
        talker.append(backend.numpy(logits)[0])
    return np.stack(talker), np.stack(predictor)


def codes_of(frames, seed=7):
    return np.random.default_rng(seed).integers(0, tiny_tts.CODES, (tiny_tts.CODEBOOKS, frames))


@pytest.mark.parametrize("threads", [1, 2])
def test_frames_equal_the_plain_path(nets, threads):
    backend, fast, plain, form = nets
    codes = codes_of(FRAMES)
    with backend.inference():
        expected = follow(backend, plain, codes)
        torch.set_num_threads(threads)
        try:
            got = follow(backend, fast, codes)
        finally:
            torch.set_num_threads(1)
    part = {"float32": 1e-4, "bfloat16": 0.06, "4bit": 2e-3, "8bit": 2e-3}[form]  # of the largest logit
    for a, b in zip(got, expected, strict=True):
        assert np.abs(b).max() > 2
        np.testing.assert_allclose(a, b, atol=part * np.abs(b).max())


def test_bfloat16_is_nearer_to_float32_than_the_plain_path():
    codes, exact = codes_of(FRAMES), None
    for form in ("float32", "bfloat16"):
        backend, fast, plain = pair("projected-custom", form)
        with backend.inference():
            if exact is None:
                exact = follow(backend, plain, codes)
                continue
            for a, b, c in zip(follow(backend, fast, codes), follow(backend, plain, codes), exact, strict=True):
                assert np.abs(a - c).mean() < np.abs(b - c).mean()


def test_int8_caches(nets):
    backend, fast, plain, _ = nets
    codes = codes_of(FRAMES)
    with backend.inference():
        got, expected = (follow(backend, net, codes, net.state("int8"))[0] for net in (fast, plain))
        exact = follow(backend, plain, codes)[0]
    assert np.abs(got - expected).max() < 0.1 * np.abs(expected).max()
    assert np.abs(got - exact).mean() > 1e-5  # they are int8 indeed


def test_forked_states_are_exact(nets):
    """A copy goes on as the original does, bit for bit, and neither disturbs the other."""
    backend, fast, _, _ = nets
    with backend.inference():
        x = backend.array(PROMPT)
        expected, *_ = greedy(backend, fast, x, 4)
        state = fast.state()
        logits, hidden = fast.talk(x, state)
        fork = backend.copy(state)
        other = backend.array(PROMPT[:, :1] * 2)
        fast.talk(other, fork)  # the copy goes elsewhere
        for n in range(4):
            first = int(backend.numpy(logits)[0, : tiny_tts.CODES].argmax())
            again = fast.predict(hidden, first, lambda found, index: int(found[0].argmax()))
            frame = np.asarray(again, np.int32)[None, :, None]
            twin = backend.copy(state)
            logits, hidden = fast.talk(fast.frames(backend.array(frame)), state)
            same, _ = fast.talk(fast.frames(backend.array(frame)), twin)
            assert torch.equal(logits, same)
            np.testing.assert_array_equal(backend.numpy(logits)[0], expected[n + 1])
        assert state["length"] == PROMPT.shape[1] + 4 and fork["length"] == PROMPT.shape[1] + 1


def test_a_frame_leaves_nothing_behind(nets):
    """The predictor begins anew each time: the order of frames, and other threads, change nothing."""
    backend, fast, *_ = nets
    rows = [backend.array(np.random.default_rng(n).standard_normal((1, tiny_tts.WIDTH))) for n in range(6)]

    def frame(n):
        with backend.inference():
            return fast.predict(rows[n], n, lambda found, index: int(found[0].argmax()))

    alone = [frame(n) for n in range(6)]
    assert alone == [frame(n) for n in reversed(range(6))][::-1] and len({tuple(a) for a in alone}) == 6
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(frame, [*range(6)] * 2)) == alone * 2


def test_quantised_prompts_go_through_the_compiled_step():
    backend, fast, plain = pair("wide-base", "4bit")
    x = backend.array(np.random.default_rng(8).standard_normal((1, 300, tiny_tts.WIDTH)))
    with backend.inference():
        assert fast.compiled.serves(300)
        got, expected = (backend.numpy(net.talk(x, net.state())[0]) for net in (fast, plain))
    np.testing.assert_allclose(got, expected, atol=2e-3 * np.abs(expected).max())


def test_given_rows_are_checked(nets):
    backend, fast, *_ = nets
    narrow = backend.array(PROMPT[0, :1, :-1])
    with backend.inference(), pytest.raises(InvalidInputError, match="63"):
        fast.compiled.talk(narrow, fast.state())
    with backend.inference(), pytest.raises(IndexError, match="1088"):
        fast.predict(backend.array(PROMPT[:, 0]), 1088, lambda found, index: 0)
    with backend.inference(), pytest.raises(IndexError, match="table of 64"):
        fast.predict(backend.array(PROMPT[:, 0]), 3, lambda found, index: 64)


@pytest.mark.parametrize(("bits", "embeddings"), [(4, False), (8, False), (8, True)])
def test_folders_of_mlx_are_read_on_both_backends(tmp_path, bits, embeddings):
    values = tiny_tts.config("base", projected=True)
    values["quantization"] = {"group_size": 32, "bits": bits, "mode": "affine"}
    made = {}
    for name, w in quantised(values, bits, embeddings=embeddings).items():
        if isinstance(w, AffineTensor):
            path = name.removesuffix(".weight")
            made |= {f"{path}.weight": w.q, f"{path}.scales": w.scales, f"{path}.biases": w.biases}
        else:
            data = w.data.transpose(0, 2, 1) if w.data.ndim == 3 else w.data
            made[name] = np.ascontiguousarray(data)
    save_file(made, str(tmp_path / "model.safetensors"), metadata={"format": "mlx"})
    (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
    config, codes, seen = TTSConfig.from_hf(values), codes_of(3), []
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = net_of(tmp_path, config, backend, "mlx")
        with backend.inference():
            text = backend.numpy(net.text(backend.array(np.arange(320, dtype=np.int32)[None])))
            seen.append((*follow(backend, net, codes), text))
    for a, b in zip(*seen, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3 * np.abs(a).max())


def test_random_weights_of_quantised_variants_have_their_form():
    config = TTSConfig.from_hf(tiny_tts.config("custom_voice"))
    config = dataclasses.replace(config, text_vocab=64)
    made = weights.dummy_weights(config, {"bits": 4, "group_size": 32})
    assert weights.dummy_weights(config, None) is None
    assert not any("embedding" in name for name in made.quantised) and "talker.codec_head.weight" in made.quantised
    codes = codes_of(2)
    seen = []
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = backend.net(weights.PACKAGE, "TTSNet", config, made)
        with backend.inference():
            seen.append(follow(backend, net, codes))
    for a, b in zip(*seen, strict=True):
        np.testing.assert_allclose(a, b, atol=3e-3 * np.abs(a).max())
