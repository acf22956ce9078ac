"""Checkpoint names of Gemma 3 to the net's: text-only and multimodal safetensors, and GGUF."""

from __future__ import annotations

import numpy as np

from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.families.shared.decoder_rules import ATTENTION, MLP, QK_NORMS, block_rules, outer_rules, tied_head
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.weights import Rule, Weight

_NORMS = {
    "attn_norm": "input_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}


def hf_rules(config: DecoderConfig, *, mlx: bool = False) -> tuple[Rule, ...]:
    """The text model of any checkpoint; what sees images is left out.

    Multimodal files say `language_model.model.X` (transformers 4, mlx-vlm) or `model.language_model.X` (5).
    """
    head = Rule(r"(?:language_model\.)?lm_head\.weight", "lm_head.weight")
    return (
        Rule(r"(?:model\.)?(?:vision_tower|multi_modal_projector)\..*", None),
        *tied_head(config),
        Rule(r"language_model\.lm_head\.weight", None) if config.tied else head,
        Rule(r"language_model\.model\.(.*)", r"model.\1"),
        Rule(r"model\.language_model\.(.*)", r"model.\1"),
    )


def gguf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """llama.cpp's names. It stores norm scales with the 1 added that the official weights leave out."""
    return (
        *block_rules({**_NORMS, **QK_NORMS}, _without_one),
        *block_rules({**ATTENTION, **MLP}),
        *outer_rules(change=_without_one),
    )


def _without_one(weight: Weight) -> Weight:
    return Tensor(weight.float32() - np.float32(1), "float32")
