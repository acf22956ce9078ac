"""Perplexity on shipped prose: packed 4-bit weights beside the same weights as floats; quantised beside dense."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from starter_weights import fetched
from tiny_text import config, text_model

from izwi_lab import catalog
from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.backends import native
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.llama.model import load
from izwi_lab.families.shared import text_loader
from izwi_lab.families.shared.quantise import quantize
from izwi_lab.families.shared.steps import Prompt

PROSE = Path(__file__).parents[2] / "data" / "prose" / "pride_and_prejudice.txt"


def perplexity(model, prompt):
    return float(np.exp(-model.score(prompt).mean(dtype=np.float64)))


def dense(checkpoint, rules, *, renamed=text_loader.Renamed):
    """The weights of a checkpoint, quantised ones expanded to float32."""
    held = renamed(checkpoint, rules)
    return {n: Tensor.of(w.float32()) if isinstance(w := held[n], AffineTensor) else w for n in held}


@pytest.mark.weights
def test_the_packed_path_reads_prose_as_well_as_dense_weights(monkeypatch):
    variant = catalog.get("SmolLM2-135M-Instruct")
    local, text = fetched(variant.id, source="starter"), PROSE.read_text()
    assert native.library("decoder", wait=True) is not None, native.status()

    def opened(backend):
        plan = BackendPlan(backend.name, backend.device, backend.dtype, "test")
        return load(variant, local.folder, plan, backend, layout=str(local.layout))

    found = {b.dtype: perplexity(opened(b), text) for b in (TorchBackend(), TorchBackend("cpu", "bfloat16"))}
    monkeypatch.setattr(text_loader, "Renamed", dense)
    model = opened(TorchBackend())
    expected = perplexity(model, text)
    assert model.nbytes > 500e6 and 5 < expected < 30
    assert found == {name: pytest.approx(expected, rel=0.02) for name in found}


def test_eight_bits_hardly_change_the_perplexity_of_a_small_model():
    model = text_model(config(), gain=1.0)
    prompt = Prompt(np.random.default_rng(0).integers(0, 97, 300).astype(np.int32))
    expected = perplexity(model, prompt)
    assert perplexity(quantize(model, bits=8, group_size=32), prompt) == pytest.approx(expected, rel=0.02)
    coarse = perplexity(quantize(model, bits=4, group_size=32), prompt)
    assert coarse != expected and coarse == pytest.approx(expected, rel=0.2)
