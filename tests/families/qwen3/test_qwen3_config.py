"""Qwen3's configuration: official files of transformers 4 and 5, sliding layers, GGUF."""

from __future__ import annotations

import pytest

from izwi_lab import catalog
from izwi_lab.errors import CheckpointError
from izwi_lab.families.qwen3.config import from_gguf, from_hf
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING, rope

OFFICIAL = catalog.config(catalog.get("Qwen3-0.6B"))


def test_the_official_config():
    c = from_hf(OFFICIAL)
    assert (c.num_heads, c.num_kv_heads, c.head_dim, c.num_layers, c.tied, c.qk_norm) == (16, 8, 128, 28, True, True)
    assert c.ropes == ((FULL, rope(128, 1e6)),) and c.max_positions == 40960 and c.norm_eps == 1e-6


def test_transformers_5_says_the_same_otherwise():
    new = {k: v for k, v in OFFICIAL.items() if k not in ("rope_theta", "rope_scaling")}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000}, "layer_types": [FULL] * 28}
    assert from_hf(new) == from_hf(OFFICIAL)


def test_sliding_layers_begin_at_max_window_layers():
    c = from_hf(OFFICIAL | {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 20})
    assert c.layer_types == (FULL,) * 20 + (SLIDING,) * 8 and c.window == 64
    assert {kind for kind, _ in c.ropes} == {FULL, SLIDING}
    unused = from_hf(OFFICIAL | {"use_sliding_window": False, "sliding_window": 64, "max_window_layers": 20})
    assert unused.layer_types == (FULL,) * 28


@pytest.mark.parametrize("scaling", [{"rope_type": "yarn", "factor": 4.0}, {"type": "yarn", "factor": 4.0}])
def test_yarn_is_refused_by_name(scaling):
    with pytest.raises(CheckpointError, match="'yarn'"):
        from_hf(OFFICIAL | {"rope_scaling": scaling})


def test_linear_scaling_needs_its_factor():
    assert from_hf(OFFICIAL | {"rope_scaling": {"type": "linear", "factor": 2.0}}).ropes[0][1] == rope(
        128, 1e6, {"type": "linear", "factor": 2.0}
    )
    with pytest.raises(CheckpointError, match=r"rope.*lacks 'factor'"):
        from_hf(OFFICIAL | {"rope_scaling": {"type": "linear"}})


def test_gguf_metadata_gives_the_same_as_the_official_config():
    values = {
        "block_count": 28, "context_length": 40960, "embedding_length": 1024, "feed_forward_length": 3072,
        "attention.head_count": 16, "attention.head_count_kv": 8, "attention.key_length": 128,
        "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6,
    }  # fmt: skip
    metadata = {"general.architecture": "qwen3", **{f"qwen3.{k}": v for k, v in values.items()}}
    assert from_gguf(metadata, vocab_size=151936, tied=True) == from_hf(OFFICIAL)
    with pytest.raises(CheckpointError, match=r"lacks 'qwen3.block_count'"):
        from_gguf({k: v for k, v in metadata.items() if "block" not in k}, vocab_size=9, tied=True)
    with pytest.raises(CheckpointError, match="'yarn'"):
        from_gguf(metadata | {"qwen3.rope.scaling.type": "yarn"}, vocab_size=9, tied=True)
