"""Checkpoint names of Llama-shaped models to the net's, for official safetensors and GGUF."""

from __future__ import annotations

from functools import partial

import numpy as np

from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.weights import Rule, half_split_rows, take_rows

_PARTS = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def hf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """Official names are the net's; old files also hold rotary buffers, and some a copy of the tied head."""
    tied = (Rule(r"lm_head\.weight", None),) if config.tied else ()
    return (Rule(r".*\.rotary_emb\.inv_freq", None), *tied)


def gguf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """llama.cpp's names; its q and k rows are ordered for interleaved rotation and are put back in halves."""
    rows = {
        "q": half_split_rows(config.num_heads, config.head_dim),
        "k": half_split_rows(config.num_kv_heads, config.head_dim),
    }
    rotated = [
        Rule(rf"blk\.(\d+)\.attn_{p}\.weight", rf"model.layers.\1.self_attn.{p}_proj.weight", _reorder(order))
        for p, order in rows.items()
    ]
    plain = [Rule(rf"blk\.(\d+)\.{k}\.weight", rf"model.layers.\1.{v}.weight") for k, v in _PARTS.items()]
    return (
        *rotated,
        *plain,
        Rule(r"token_embd\.weight", "model.embed_tokens.weight"),
        Rule(r"output_norm\.weight", "model.norm.weight"),
        Rule(r"output\.weight", "lm_head.weight"),
        Rule(r"rope_freqs\.weight", None),  # part of the config
    )


def _reorder(order: np.ndarray) -> partial:  # type: ignore[type-arg]
    return partial(take_rows, rows=order)
