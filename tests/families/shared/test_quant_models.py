"""`izwi.quantize`: any dense text model on either backend, near the dense one and nearer with more bits."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tiny_text import HYBRID, config, text_model

import izwi_lab as izwi
from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder.config import FULL
from izwi_lab.families.shared.steps import Prompt

IDS = np.random.default_rng(0).integers(0, 97, 24).astype(np.int32)
BACKENDS = {
    "torch": TorchBackend,
    "torch bfloat16": lambda: TorchBackend(dtype="bfloat16"),
    "mlx": lambda: MLXBackend("cpu"),
    "mlx bfloat16": lambda: MLXBackend("cpu", "bfloat16"),
}


@pytest.fixture(scope="module", autouse=True)
def compiled():
    for name in ("affine", "decoder"):
        assert native.library(name, wait=True) is not None, native.status()


def dense(backend="torch", layers=(FULL, FULL)):
    c = dataclasses.replace(config(layers), hidden_size=64, intermediate_size=128)
    return text_model(c, BACKENDS[backend]())


def logits(model):
    session = model.session()
    step = model.prefill(session, Prompt(IDS))
    return np.asarray(model.backend.numpy(step.logits), np.float64)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logits_come_nearer_with_more_bits(backend):
    model = dense(backend)
    exact = logits(model)
    error = {b: float(np.abs(logits(izwi.quantize(model, bits=b, group_size=32)) - exact).max()) for b in (4, 5, 6, 8)}
    largest = np.abs(exact).max()
    assert error[4] < 0.35 * largest and error[8] < 0.03 * largest, (error, largest)
    assert error[4] > error[5] > error[6]
    assert error[6] > error[8] or backend.endswith("bfloat16")  # its own rounding is as large as that of 8 bits
    np.testing.assert_array_equal(logits(model), exact)  # the given model is as it was


@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("bits", [4, 5, 6, 8])
def test_each_weight_is_within_half_a_step(backend, bits):
    model = dense(backend)
    small = izwi.quantize(model, bits=bits, group_size=32)
    name = "model.embed_tokens"
    values = model.backend.weight(model.net, f"{name}.weight").float32()
    with small.backend.inference():
        found = small.backend.numpy(small.net.model.embed_tokens(small.backend.array(np.arange(97, dtype=np.int32))))
    groups = values.reshape(97, -1, 32)
    step = (groups.max(-1) - groups.min(-1)) / (2**bits - 1) * (1 + 2.0**-bits)
    error = np.abs(found - values).reshape(groups.shape).max(-1)
    assert (error <= step).all() and (error <= 0.55 * step).mean() > 0.5  # a far end may be cut by half a step more


@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_layers_of_every_kind(backend):
    model = dense(backend, HYBRID)
    small = izwi.quantize(model, bits=8, group_size=32)
    exact, found = logits(model), logits(small)
    assert np.abs(found - exact).max() < 0.05 * np.abs(exact).max()
    shapes = small.backend.parameters(small.net)
    assert "model.layers.2.conv.conv.weight" in shapes and "model.norm.weight" in shapes
    assert not any(n.endswith("_proj.weight") for n in shapes)


def test_it_is_smaller_and_says_what_it_is():
    model = dense()
    small = izwi.quantize(model)
    assert small.nbytes < 0.3 * model.nbytes and small.plan.quantisation == "4bit" != model.plan.quantisation
    assert type(small) is type(model) and small.config is model.config and small.processor is model.processor
    small.close()
    assert np.isfinite(logits(model)).all()


def test_matrices_without_whole_groups_stay_dense():
    model = dense()
    small = izwi.quantize(model, group_size=128)  # 64 columns have none; down_proj has 128
    names = names_of(small)
    assert "model.embed_tokens.weight" in names and "model.layers.0.mlp.down_proj.weight" not in names
    np.testing.assert_allclose(logits(small), logits(model), atol=0.1 * np.abs(logits(model)).max())


def names_of(model):
    return set(model.backend.parameters(model.net))


@pytest.mark.slow
def test_dummy_models_can_be_quantised():
    model = izwi.load("SmolLM2-135M-Instruct", load_format="dummy", backend="torch", device="cpu", dtype="bfloat16")
    if any(n.endswith(".q") for n in names_of(model)):
        pytest.skip("this dummy is made quantised")
    small = izwi.quantize(model, bits=4, group_size=64)
    assert small.nbytes < 0.35 * model.nbytes
    step = small.prefill(small.session(), Prompt(IDS))
    assert np.isfinite(small.backend.numpy(step.logits)).all()


def test_what_cannot_be_quantised_raises():
    model = dense()
    with pytest.raises(InvalidInputError, match="quantised already"):
        izwi.quantize(izwi.quantize(model))
    with pytest.raises(InvalidInputError, match="bits=3"):
        izwi.quantize(model, bits=3)
    with pytest.raises(InvalidInputError, match="takes a text model, got str"):
        izwi.quantize("SmolLM2-135M-Instruct")
    narrow = text_model(config())  # widths of 32 and 48
    with pytest.raises(InvalidInputError, match=r"widths are \[32, 48\]"):
        izwi.quantize(narrow, group_size=64)
    model.close()
    with pytest.raises(InvalidInputError, match="closed"):
        izwi.quantize(model)
