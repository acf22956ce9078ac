"""Checkpoint names of Llama-shaped models to the net's, for official safetensors and GGUF."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.decoder_rules import ATTENTION, MLP, NORMS, block_rules, outer_rules, tied_head
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.weights import Rule, Weight, half_split_rows, take_rows


def hf_rules(config: DecoderConfig, *, mlx: bool = False) -> tuple[Rule, ...]:
    """Official names are the net's; old files also hold rotary buffers, and some a copy of the tied head."""
    return (Rule(r".*\.rotary_emb\.inv_freq", None), *tied_head(config))


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
    plain = block_rules({**ATTENTION, **MLP, **NORMS})
    return (*rotated, *plain, *outer_rules(), Rule(r"rope_freqs\.weight", None))  # rope_freqs: part of the config


def _reorder(order: np.ndarray) -> Callable[[Weight], Weight]:
    def change(weight: Weight) -> Weight:
        if weight.shape[0] != len(order):
            raise CheckpointError(
                f"Queries or keys have {weight.shape[0]} rows, expected {len(order)}: heads times their width.",
                hint="The file is damaged or of another kind of model: fetch it again.",
            )
        return take_rows(weight, order)

    return change
