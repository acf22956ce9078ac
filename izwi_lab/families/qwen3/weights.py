"""Checkpoint names of Qwen3 to the net's, for official and MLX safetensors and for GGUF."""

from __future__ import annotations

from izwi_lab.families.shared.decoder_rules import (
    ATTENTION,
    MLP,
    NORMS,
    QK_NORMS,
    block_rules,
    outer_rules,
    tied_head,
)
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.weights import Rule


def hf_rules(config: DecoderConfig, *, mlx: bool = False) -> tuple[Rule, ...]:
    """Official names are the net's; the official 0.6B and 1.7B hold a copy of their tied head."""
    return tied_head(config)


def gguf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """llama.cpp's names; for this architecture it keeps q and k in halves."""
    return (*block_rules({**ATTENTION, **QK_NORMS, **MLP, **NORMS}), *outer_rules())
