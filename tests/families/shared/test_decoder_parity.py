"""The shared decoder against transformers, torch against MLX, and the compiled step against the plain one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING, DecoderConfig, rope, rope_of
from izwi_lab.families.shared.taps import tapping

torch = pytest.importorskip("torch")
PACKAGE = "izwi_lab.families.shared.nets.decoder"
VOCAB, TOLERANCE = 160, 2e-4  # absolute, on logits of size about 3

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=512,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": DecoderConfig(**COMMON, ropes=((FULL, rope(32, 10000.0)),)),
    "llama3-rope-biases-untied": DecoderConfig(
        **COMMON, ropes=((FULL, rope(32, 10000.0, LLAMA3)),), attention_bias=True, mlp_bias=True, tied=False
    ),
    "qwen3": DecoderConfig(**COMMON, ropes=((FULL, rope(32, 1e6)),), qk_norm=True, norm_eps=1e-6),
    "gemma3": DecoderConfig(
        **COMMON,
        ropes=((FULL, rope(32, 1e6, {"rope_type": "linear", "factor": 8.0})), (SLIDING, rope(32, 1e4))),
        layer_types=(SLIDING, SLIDING, FULL),
        window=9,
        norm_eps=1e-6,
        norm_offset=1.0,
        qk_norm=True,
        post_norms=True,
        activation="gelu_tanh",
        embed_scale=8.0,
        attn_scale=24**-0.5,
    ),
}
IDS = np.random.default_rng(5).integers(0, VOCAB, 40).astype(np.int32)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert native.library("decoder", wait=True) is not None, native.status()


def reference(name: str):
    """The transformers model of the same shape."""
    import transformers as tf

    common = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=512,
    )
    if name == "qwen3":
        model = tf.Qwen3ForCausalLM(
            tf.Qwen3Config(
                **common,
                tie_word_embeddings=True,
                rms_norm_eps=1e-6,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
            )
        )
    elif name == "gemma3":
        model = tf.Gemma3ForCausalLM(
            tf.Gemma3TextConfig(
                **common,
                sliding_window=9,
                query_pre_attn_scalar=24,
                layer_types=[SLIDING, SLIDING, FULL],
                rope_parameters={
                    FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                    SLIDING: {"rope_type": "default", "rope_theta": 1e4},
                },
            )
        )
    else:
        special = name != "llama"
        model = tf.LlamaForCausalLM(
            tf.LlamaConfig(
                **common,
                rms_norm_eps=1e-5,
                attention_bias=special,
                mlp_bias=special,
                tie_word_embeddings=not special,
                rope_parameters=LLAMA3 if special else {"rope_type": "default", "rope_theta": 10000.0},
            )
        )
    return model.eval().float()


def weights_for(name: str, net_shapes) -> dict[str, Tensor]:
    rng = np.random.default_rng(3)
    out = {}
    for key, shape in net_shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            values = values * 0.1 + (0.0 if name == "gemma3" or key.endswith("bias") else 1.0)
        else:
            values *= 0.35 if "embed" in key else 1.3 / np.sqrt(shape[-1])
        out[key] = Tensor.of(values.astype(np.float32))
    return out


def shapes_of(config):
    return TorchBackend().parameters(TorchBackend().net(PACKAGE, "DecoderLM", config, None))


def steps(backend, net, ids, sizes, tap=False):
    """Logits after each piece of ids, taken in pieces of the given sizes."""
    state, at, out, names = net.state(), 0, [], []
    with backend.inference():
        for size in sizes:
            piece = backend.array(ids[None, at : at + size])
            at += size
            if tap:
                with tapping("layers.*", numpy=backend.numpy, array=lambda v, like: backend.array(v)) as seen:
                    logits, _ = net(piece, state)
                names.append(list(seen))
            else:
                logits, _ = net(piece, state)
            out.append(backend.numpy(logits)[0].copy())
    return np.stack(out)


@pytest.mark.parametrize("name", CONFIGS)
def test_matches_transformers_at_every_position(name):
    config = CONFIGS[name]
    weights = weights_for(name, shapes_of(config))
    oracle = reference(name)
    state = {k: torch.from_numpy(w.data) for k, w in weights.items()}
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    oracle.tie_weights()
    with torch.no_grad():
        expected = oracle(torch.from_numpy(IDS[None].astype(np.int64))).logits[0].numpy()
    assert np.abs(expected).max() > 1
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = backend.net(PACKAGE, "DecoderLM", config, weights)
        whole = steps(backend, net, IDS, [40])
        np.testing.assert_allclose(whole[0], expected[-1], atol=TOLERANCE)
        pieces = [7, 1, 1, 12, 3] + [1] * 16  # prefill, decode, and prefill again over the sliding window
        got = steps(backend, net, IDS, pieces)
        np.testing.assert_allclose(got, expected[np.cumsum(pieces) - 1], atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_torch_and_mlx_have_equal_parameters_and_taps(name):
    config = CONFIGS[name]
    seen, specs = [], []
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = backend.net(PACKAGE, "DecoderLM", config, weights_for(name, shapes_of(config)))
        specs.append(backend.parameters(net))
        with backend.inference(), tapping("*", numpy=backend.numpy, array=lambda v, like: v) as taps:
            net(backend.array(IDS[None, :20]), net.state())
        seen.append(dict(taps))
    assert specs[0] == specs[1]
    assert list(seen[0]) == list(seen[1])
    assert {"embed", "layers.0.attn", "layers.2.mlp", "layers.2", "norm", "logits"} <= set(seen[0])
    for key, value in seen[0].items():
        np.testing.assert_allclose(value, seen[1][key], atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_compiled_step_equals_plain_step_and_they_mix(name):
    backend, config = TorchBackend(), CONFIGS[name]
    net = backend.net(PACKAGE, "DecoderLM", config, weights_for(name, shapes_of(config)))
    assert net.step is not None and net.step.ready()
    pieces = [9] + [1] * 31
    compiled = steps(backend, net, IDS, pieces)
    plain = steps(backend, net, IDS, pieces, tap=True)
    np.testing.assert_allclose(compiled, plain, atol=TOLERANCE)
    state, mixed = net.state(), []
    with backend.inference():
        net(backend.array(IDS[None, :9]), state)
        for i in range(9, 40):
            piece = backend.array(IDS[None, i : i + 1])
            if i % 3:
                logits, _ = net(piece, state)
            else:
                with tapping("norm", numpy=backend.numpy, array=lambda v, like: v) as taps:
                    logits, _ = net(piece, state)
                assert "norm" in taps
            mixed.append(backend.numpy(logits)[0].copy())
    np.testing.assert_allclose(mixed, plain[1:], atol=TOLERANCE)


def quantised(weights, bits, group_size, scale_type=np.float32):
    rng = np.random.default_rng(bits)
    out = {}
    for key, w in weights.items():
        if len(w.shape) == 1:
            out[key] = w
            continue
        rows, cols = w.shape
        codes = rng.integers(0, 2**bits, (rows, cols), dtype=np.uint32)
        packed = np.zeros((rows, cols * bits // 32), np.uint32)
        for i in range(32 // bits):
            packed |= codes[:, i :: 32 // bits] << np.uint32(i * bits)
        scales = (rng.random((rows, cols // group_size)) + 0.5) * 4 / (2**bits * np.sqrt(cols))
        biases = -scales * 2 ** (bits - 1)
        out[key] = AffineTensor(packed, scales.astype(scale_type), biases.astype(scale_type), bits, group_size)
    return out


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64])
@pytest.mark.parametrize("scale_type", [np.float32, np.float16])
def test_quantised_equals_dense_on_both_backends(bits, group_size, scale_type, monkeypatch):
    config = dataclasses.replace(CONFIGS["qwen3"], intermediate_size=128, vocab_size=150)  # 150: a padded panel
    weights = quantised(weights_for("qwen3", shapes_of(config)), bits, group_size, scale_type)
    dense = {k: Tensor.of(w.float32()) for k, w in weights.items()}
    ids = IDS % 150
    exact = steps(TorchBackend(), TorchBackend().net(PACKAGE, "DecoderLM", config, dense), ids, [20] + [1] * 20)
    assert np.abs(exact).max() > 0.5
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = backend.net(PACKAGE, "DecoderLM", config, weights)
        assert net.weight_bytes() < 0.45 * sum(w.nbytes for w in dense.values())
        np.testing.assert_allclose(steps(backend, net, ids, [20] + [1] * 20), exact, atol=4e-3)  # 16-bit activations
    monkeypatch.setattr("izwi_lab.families.shared.nets.quant.native_torch.library", lambda: None)
    without = TorchBackend().net(PACKAGE, "DecoderLM", config, weights)
    assert not without.step.ready()
    np.testing.assert_allclose(steps(TorchBackend(), without, ids, [20] + [1] * 20), exact, atol=TOLERANCE)


def test_caches_grow_past_a_bucket_without_changing_anything():
    backend, config = TorchBackend(), CONFIGS["llama"]
    net = backend.net(PACKAGE, "DecoderLM", config, weights_for("llama", shapes_of(config)))
    ids = np.random.default_rng(1).integers(0, VOCAB, 300).astype(np.int32)
    whole = steps(backend, net, ids, [300])
    stepwise = steps(backend, net, ids, [100] + [1] * 200)
    np.testing.assert_allclose(stepwise[-1], whole[0], atol=TOLERANCE)


def test_bfloat16_step_stays_near_float32():
    config = CONFIGS["llama"]
    weights = weights_for("llama", shapes_of(config))
    exact = steps(TorchBackend(), TorchBackend().net(PACKAGE, "DecoderLM", config, weights), IDS, [20] + [1] * 20)
    half = TorchBackend(dtype="bfloat16")
    net = half.net(PACKAGE, "DecoderLM", config, weights)
    assert net.step is not None and net.step.ready()
    got = steps(half, net, IDS, [20] + [1] * 20)
    assert np.abs(got - exact).max() < 0.06 * np.abs(exact).max()


def test_rope_is_read_from_old_and_new_configs():
    old = rope_of({"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_theta": None}}, 32)
    new = rope_of({"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}, 32)
    assert old == new
    with pytest.raises(Exception, match="yarn"):
        rope(32, 1e4, {"rope_type": "yarn", "factor": 2.0})
