"""LFM2's configuration and names: official files, MLX's axes, GGUF."""

from __future__ import annotations

import numpy as np
import pytest

from izwi_lab import catalog
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError
from izwi_lab.families.lfm2.config import from_gguf, from_hf
from izwi_lab.families.lfm2.weights import gguf_rules, hf_rules
from izwi_lab.families.shared.nets.decoder.config import CONV, FULL, rope
from izwi_lab.families.shared.weights import Renamed

OFFICIAL = catalog.config(catalog.get("LFM2-350M"))
TYPES = tuple(FULL if i in (2, 5, 8, 10, 12, 14) else CONV for i in range(16))


@pytest.mark.parametrize(("name", "width"), [("LFM2-350M", 4608), ("LFM2-700M", 6912), ("LFM2-1.2B", 8192)])
def test_the_official_configs(name, width):
    c = from_hf(catalog.config(catalog.get(name)))
    assert c.layer_types == TYPES and c.intermediate_size == width and c.head_dim == 64
    assert (c.conv_kernel, c.conv_bias, c.tied, c.qk_norm, c.norm_eps) == (3, False, True, True, 1e-5)
    assert dict(c.ropes)[FULL] == rope(64, 1e6)


def test_transformers_5_says_the_same_otherwise():
    new = {k: v for k, v in OFFICIAL.items() if k not in ("full_attn_idxs", "rope_theta", "block_ff_dim")}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "layer_types": list(TYPES)}
    new |= {"intermediate_size": 6656, "tie_word_embeddings": True}
    assert from_hf(new) == from_hf(OFFICIAL)


def test_the_width_of_the_mlp():
    assert from_hf(OFFICIAL | {"block_auto_adjust_ff_dim": False}).intermediate_size == 6656
    assert from_hf(OFFICIAL | {"block_ffn_dim_multiplier": 1.5}).intermediate_size == 6656  # 6655 rounded up
    assert from_hf(OFFICIAL | {"block_multiple_of": 64}).intermediate_size == 4480


def test_layers_must_be_said_and_said_alike():
    with pytest.raises(CheckpointError, match="full_attn_idxs"):
        from_hf({k: v for k, v in OFFICIAL.items() if k != "full_attn_idxs"})
    with pytest.raises(CheckpointError, match=r"attention in the layers \[2, 5"):
        from_hf(OFFICIAL | {"layer_types": [CONV] * 15 + [FULL]})
    with pytest.raises(CheckpointError, match="mamba"):
        from_hf({k: v for k, v in OFFICIAL.items() if k != "full_attn_idxs"} | {"layer_types": ["mamba"] * 16})


GGUF = {
    "general.architecture": "lfm2",
    **{
        f"lfm2.{k}": v
        for k, v in {
            "block_count": 16, "context_length": 128000, "embedding_length": 1024, "feed_forward_length": 4608,
            "attention.head_count": 16, "attention.head_count_kv": np.array([8 * (t == FULL) for t in TYPES]),
            "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e6, "shortconv.l_cache": 3,
        }.items()
    },
}  # fmt: skip


def test_gguf_metadata_gives_the_same_as_the_official_config():
    assert from_gguf(GGUF, vocab_size=65536, tied=True) == from_hf(OFFICIAL)
    with pytest.raises(CheckpointError, match=r"\[4, 8\] key heads"):
        from_gguf(GGUF | {"lfm2.attention.head_count_kv": np.array([4, 8] * 8)}, vocab_size=9, tied=True)
    with pytest.raises(CheckpointError, match=r"lacks 'lfm2.shortconv.l_cache'"):
        from_gguf({k: v for k, v in GGUF.items() if "l_cache" not in k}, vocab_size=9, tied=True)


class Held:
    """A checkpoint of one tensor."""

    def __init__(self, name, shape):
        self.names, self._data = (name,), np.arange(np.prod(shape), dtype=np.float32).reshape(shape)

    def read(self, name):
        return Tensor.of(self._data)


def test_a_convolution_comes_with_its_taps_last_from_every_layout():
    config = from_hf(OFFICIAL)
    taps = np.arange(12, dtype=np.float32).reshape(4, 1, 3)
    name = "model.layers.0.conv.conv.weight"
    official = Renamed(Held(name, (4, 1, 3)), hf_rules(config))
    mlx = Renamed(Held(name, (4, 3, 1)), hf_rules(config, mlx=True))
    gguf = Renamed(Held("blk.0.shortconv.conv.weight", (4, 3)), gguf_rules(config))
    for held in (official, mlx, gguf):
        np.testing.assert_array_equal(held[name].data, taps)


def test_the_last_norm_has_two_names_in_gguf():
    for name in ("token_embd_norm.weight", "output_norm.weight"):
        assert list(Renamed(Held(name, (4,)), gguf_rules(from_hf(OFFICIAL)))) == ["model.norm.weight"]
