"""The shared decoder against transformers, torch against MLX, and the compiled step against the plain one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from decoder_cases import (
    CONFIGS,
    LLAMA3,
    PACKAGE,
    TOLERANCE,
    VOCAB,
    mlx_lm_model,
    net_of,
    one_thread,
    shapes_of,
    steps,
    transformers_logits,
    weights_for,
)

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.config_fields import Fields, json_rope
from izwi_lab.families.shared.nets.decoder.config import rope
from izwi_lab.families.shared.taps import tapping

torch = pytest.importorskip("torch")
__all__ = ["one_thread"]
pytestmark = pytest.mark.usefixtures("one_thread")
DECODED = 32
IDS = np.random.default_rng(5).integers(0, VOCAB, 40).astype(np.int32)
LONG = np.random.default_rng(6).integers(0, VOCAB, 272).astype(np.int32)


@pytest.fixture(scope="module", autouse=True)
def compiled():
    assert native.library("decoder", wait=True) is not None, native.status()


@pytest.mark.parametrize("name", CONFIGS)
def test_equals_transformers_across_windows_and_buckets(name):
    weights, ids = weights_for(name), LONG
    expected = transformers_logits(name, weights, ids)
    assert np.abs(expected).max() > 1
    pieces = [100, 27, 1, 112] + [1] * DECODED  # a bucket ends at 128 and at 256, where the cache of a window turns
    ends = np.cumsum(pieces) - 1
    assert ends[-DECODED] < 256 < ends[-1]
    for backend in (TorchBackend(), MLXBackend("cpu")):
        net = net_of(backend, name, weights)
        np.testing.assert_allclose(steps(backend, net, ids, pieces), expected[ends], atol=TOLERANCE)
        np.testing.assert_allclose(steps(backend, net, ids, [len(ids)])[0], expected[-1], atol=TOLERANCE)


@pytest.mark.parametrize("name", CONFIGS)
def test_mlx_equals_mlx_lm_across_windows_and_buckets(name):
    pytest.importorskip("mlx_lm", reason="tests/references.txt is not installed")
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    weights, backend = weights_for(name), MLXBackend("cpu")
    pieces = [240] + [1] * DECODED
    with backend.inference():
        oracle, at, expected = mlx_lm_model(name, weights), 0, []
        caches = make_prompt_cache(oracle)
        for size in pieces:
            logits = oracle(mx.array(LONG[None, at : at + size]), cache=caches)[0, -1]
            expected.append(np.array(logits))
            at += size
    got = steps(backend, net_of(backend, name, weights), LONG, pieces)
    np.testing.assert_allclose(got, expected, atol=TOLERANCE)


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
    plain = steps(backend, net_of(backend, name), IDS, pieces)
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
    assert without.step is None or not without.step.ready()
    packed = steps(TorchBackend(), without, ids, [20] + [1] * 20)  # torch's int4 products are bfloat16
    assert np.abs(packed - exact).max() < 0.06 * np.abs(exact).max()


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


@pytest.mark.parametrize("name", ["num_kv_heads", "num_heads", "head_dim", "vocab_size", "max_positions"])
def test_sizes_of_nothing_are_refused(name):
    with pytest.raises(CheckpointError, match=f"0 for {name}"):
        dataclasses.replace(CONFIGS["qwen3"], **{name: 0})


def test_rope_is_read_from_old_and_new_configs():
    old = {"rope_theta": 5e5, "rope_scaling": {**LLAMA3, "rope_theta": None}}
    new = {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}
    for config in (old, new):
        assert json_rope(Fields(config), 32, default_theta=1e4) == rope(32, 5e5, LLAMA3) != rope(32, 1e4, LLAMA3)
    with pytest.raises(Exception, match="yarn"):
        rope(32, 1e4, {"rope_type": "yarn", "factor": 2.0})


@pytest.mark.parametrize(
    "backend", [TorchBackend(dtype="bfloat16"), MLXBackend("cpu", dtype="bfloat16")], ids=["torch", "mlx"]
)
def test_the_offset_of_a_norm_keeps_the_small_weights_of_a_narrow_checkpoint(backend):
    """1 + 2^-9 is 1 in bfloat16: the sum must be taken in float32, as transformers' Gemma does."""
    shapes = shapes_of(CONFIGS["gemma3"])
    weights = {n: Tensor.of(np.full(s, 2.0**-9, np.float32)) for n, s in shapes.items()}
    net = backend.net(PACKAGE, "DecoderLM", CONFIGS["gemma3"], weights)
    assert np.all(backend.numpy(net.model.norm.scale()) == 1 + 2.0**-9)
