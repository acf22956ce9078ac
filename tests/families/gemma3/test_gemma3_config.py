"""Gemma 3's configuration and names: text-only and multimodal files, patterns of layers, GGUF."""

from __future__ import annotations

import numpy as np
import pytest

from izwi_lab import catalog
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError
from izwi_lab.families.gemma3.config import from_gguf, from_hf
from izwi_lab.families.gemma3.weights import gguf_rules, hf_rules
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING, rope
from izwi_lab.families.shared.weights import Renamed

ONE, FOUR = (catalog.config(catalog.get(n)) for n in ("Gemma-3-1b-it", "Gemma-3-4b-it"))
BASE = catalog.config(catalog.get("Gemma-3-270m"))
GGUF_270M = {
    "general.architecture": "gemma3",
    **{
        f"gemma3.{k}": v
        for k, v in {
            "context_length": 32768, "embedding_length": 640, "block_count": 18, "feed_forward_length": 2048,
            "attention.head_count": 4, "attention.head_count_kv": 1, "attention.key_length": 256,
            "attention.layer_norm_rms_epsilon": 1e-6, "attention.sliding_window": 512, "rope.freq_base": 1e6,
        }.items()
    },
}  # fmt: skip


class Held:
    """A checkpoint of the given names, each weight a row of ones."""

    def __init__(self, *names):
        self.names = names

    def read(self, name):
        return Tensor.of(np.ones(4, np.float32))


def test_the_official_text_config():
    c = from_hf(ONE)
    assert c.layer_types[:6] == (SLIDING,) * 5 + (FULL,) and c.layer_types.count(FULL) == 4 and c.window == 512
    assert dict(c.ropes) == {FULL: rope(256, 1e6), SLIDING: rope(256, 1e4)}
    assert (c.norm_offset, c.post_norms, c.qk_norm, c.activation, c.tied) == (1.0, True, True, "gelu_tanh", True)
    assert c.embed_scale == 1152**0.5 and c.attn_scale == 1 / 16


def test_the_sparse_multimodal_config_takes_the_class_defaults():
    published = ("hidden_size", "intermediate_size", "model_type", "num_hidden_layers", "rope_scaling")
    sparse = {k: FOUR["text_config"][k] for k in (*published, "sliding_window")}
    assert from_hf({**FOUR, "text_config": sparse}) == from_hf(FOUR)
    c = from_hf(FOUR)
    assert (c.num_heads, c.num_kv_heads, c.vocab_size, c.window) == (8, 4, 262208, 1024)
    assert dict(c.ropes)[FULL] == rope(256, 1e6, {"rope_type": "linear", "factor": 8.0})
    assert dict(c.ropes)[SLIDING] == rope(256, 1e4), "the local rope is not scaled"


def test_transformers_5_says_the_same_otherwise():
    gone = ("rope_theta", "rope_local_base_freq", "rope_scaling", "sliding_window_pattern")
    ropes = {
        FULL: {"rope_type": "default", "rope_theta": 1000000},
        SLIDING: {"rope_type": "default", "rope_theta": 10000},
    }
    new = {k: v for k, v in ONE.items() if k not in gone}
    new |= {"rope_parameters": ropes, "layer_types": list(from_hf(ONE).layer_types)}
    assert from_hf(new) == from_hf(ONE)


@pytest.mark.parametrize(
    "wrong",
    [
        {"final_logit_softcapping": 30.0},
        {"attn_logit_softcapping": 50.0},
        {"hidden_activation": "relu"},
        {"use_bidirectional_attention": True},
        {"sliding_window_pattern": 0},
        {"hidden_size": None},
    ],
)
def test_what_gemma_3_is_not(wrong):
    with pytest.raises(CheckpointError, match=next(iter(wrong)).replace("_", ".")):
        from_hf(ONE | wrong)
    with pytest.raises(CheckpointError, match="text_config"):
        from_hf({k: v for k, v in FOUR.items() if k != "text_config"})


def test_gguf_metadata_gives_the_same_as_the_official_config():
    assert from_gguf(GGUF_270M, vocab_size=262144, tied=True) == from_hf(BASE)


def test_newer_gguf_files_say_what_older_ones_leave_out():
    whole = from_gguf(GGUF_270M, vocab_size=9, tied=True)
    told = {"gemma3.rope.freq_base_swa": 1e4, "gemma3.attention.sliding_window_pattern": 6}
    assert from_gguf(GGUF_270M | told, vocab_size=9, tied=True) == whole
    listed = {"gemma3.attention.sliding_window_pattern": np.array([k == SLIDING for k in whole.layer_types])}
    assert from_gguf(GGUF_270M | listed, vocab_size=9, tied=True) == whole
    scaled = {"gemma3.rope.scaling.type": "linear", "gemma3.rope.scaling.factor": 8.0}
    assert dict(from_gguf(GGUF_270M | scaled, vocab_size=9, tied=True).ropes)[FULL].inv_freq[0] == 1 / 8
    large = {"gemma3.block_count": 62, "gemma3.embedding_length": 5376, "gemma3.attention.head_count": 32}
    assert from_gguf(GGUF_270M | large, vocab_size=9, tied=True).attn_scale == 168**-0.5


def test_names_of_both_generations_reach_the_net_and_images_do_not():
    old = ("language_model.model.norm.weight", "vision_tower.x.weight", "multi_modal_projector.y", "lm_head.weight")
    new = ("model.language_model.norm.weight", "model.vision_tower.x.weight", "model.multi_modal_projector.y")
    for names in (old, new, ("model.norm.weight", "language_model.lm_head.weight")):
        assert list(Renamed(Held(*names), hf_rules(from_hf(FOUR)))) == ["model.norm.weight"]
    untied = from_hf({**FOUR, "tie_word_embeddings": False})
    assert list(Renamed(Held("language_model.lm_head.weight"), hf_rules(untied))) == ["lm_head.weight"]


def test_gguf_norms_lose_their_one():
    config = from_gguf(GGUF_270M, vocab_size=9, tied=True)
    held = Renamed(Held("blk.3.post_ffw_norm.weight", "output_norm.weight", "blk.3.attn_q.weight"), gguf_rules(config))
    assert [float(held[n].data[0]) for n in held] == [0.0, 0.0, 1.0]
    assert next(iter(held)) == "model.layers.3.post_feedforward_layernorm.weight"
