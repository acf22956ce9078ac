"""load_format="dummy" of every text variant with a config, cut down in depth and vocabulary, on both backends."""

from __future__ import annotations

import numpy as np
import pytest
from family_checkpoints import both_backends

from izwi_lab import catalog
from izwi_lab.backends.base import BackendPlan
from izwi_lab.catalog.variant import Family
from izwi_lab.families.shared.dummy_weights import shapes
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.runtime.load import family_loader

TEXT = (Family.LLAMA, Family.QWEN3, Family.GEMMA3, Family.LFM2)
VARIANTS = [v for v in catalog.variants(include_disabled=True) if v.family in TEXT and catalog.has_config(v)]
IDS = Prompt(np.arange(12, dtype=np.int32))


def cut(values: dict) -> dict:
    """A config of the same kind with few layers, narrow ones."""
    inner = {**values.get("text_config", values)}
    inner |= dict(num_hidden_layers=3, vocab_size=256, hidden_size=128, num_attention_heads=4, num_key_value_heads=2)
    inner |= dict(head_dim=32, sliding_window=8 if inner.get("sliding_window") else None)
    inner |= {k: 256 for k in ("intermediate_size", "block_ff_dim") if k in inner}
    if "full_attn_idxs" in inner:
        inner["full_attn_idxs"] = [1]
    if "sliding_window_pattern" in inner:
        inner["sliding_window_pattern"] = 2
    return {**values, "text_config": inner} if "text_config" in values else inner


def opened(variant, backend):
    plan = BackendPlan(backend.name, backend.device, backend.dtype, "test")
    return family_loader(variant)(variant, None, plan, backend, layout=str(variant.layout), load_format="dummy")


def test_every_text_variant_has_a_config():
    assert {v.id for v in VARIANTS} == {v.id for v in catalog.variants(include_disabled=True) if v.family in TEXT}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_dummies_run_alike_on_both_backends(variant, monkeypatch):
    small = cut(catalog.config(variant))
    monkeypatch.setattr("izwi_lab.catalog.config", lambda _: small)
    said = []
    for backend in both_backends():
        model = opened(variant, backend)
        session = model.session()
        model.prefill(session, IDS)
        said.append(model.decode(session, 3).numpy())
        dense = 4 * sum(int(np.prod(s)) for s in shapes(model.config).values())
        assert (model.nbytes < 0.25 * dense) == (variant.quantisation == "4bit")
    # Both draw the same weights; quantised products round their inputs to 16 bits on the CPU.
    size = np.abs(said[0]).max()
    np.testing.assert_allclose(said[0], said[1], atol=(0.01 if variant.quantisation == "4bit" else 1e-3) * size)
    assert 0.1 < said[0].std() < 10


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_full_sizes_have_the_parameters_of_the_catalog(variant):
    import importlib

    config = importlib.import_module(f"izwi_lab.families.{variant.family}.config").from_hf(catalog.config(variant))
    assert sum(int(np.prod(s)) for s in shapes(config).values()) == variant.parameters
