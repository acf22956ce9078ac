"""LFM2: the configuration of a decoder of short convolutions and attention, from config.json or GGUF metadata.

Sources: transformers 5.23 `configuration_lfm2.py`, mlx-lm 0.32 `lfm2.py`, llama.cpp b6000 `lfm2.cpp`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.config_fields import (
    Fields,
    gguf_fields,
    gguf_rope,
    head_dim_of,
    json_fields,
    json_rope,
)
from izwi_lab.families.shared.nets.decoder.config import CONV, FULL, DecoderConfig

_THETA = 1_000_000.0


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """From the official config.json.

    Raises:
        CheckpointError: another model type, a missing field, layer types that contradict `full_attn_idxs`.
    """
    fields = json_fields(config, "lfm2")
    heads = fields.size("num_attention_heads")
    head_dim = head_dim_of(fields, heads)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=intermediate_size(fields),
        num_layers=fields.layers("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=fields.integer("max_position_embeddings"),
        ropes=((FULL, json_rope(fields, head_dim, default_theta=_THETA)),),
        layer_types=_layer_types(fields),
        norm_eps=fields.number("norm_eps"),
        qk_norm=True,
        tied=fields.flag("tie_embedding", fields.flag("tie_word_embeddings", True)),
        conv_kernel=fields.integer("conv_L_cache"),
        conv_bias=fields.flag("conv_bias", False),
    )


def from_gguf(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool) -> DecoderConfig:
    """From GGUF metadata of architecture lfm2: layers without key heads are convolutions.

    Raises:
        CheckpointError: another architecture, a missing field, no layer with attention.
    """
    fields = gguf_fields(metadata, "lfm2")
    heads, hidden = fields.size("attention.head_count"), fields.size("embedding_length")
    layers = fields.layers("block_count")
    kv = fields.find("attention.head_count_kv")
    by_layer = [int(n) for n in kv] if hasattr(kv, "__len__") else [fields.integer("attention.head_count_kv")] * layers
    used = {n for n in by_layer if n}
    if len(used) != 1:
        raise CheckpointError(
            f"The GGUF file gives its layers {sorted(set(by_layer))} key heads.",
            hint="Expected one number for all layers with attention, and 0 for the others.",
        )
    head_dim = hidden // max(1, heads)
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=used.pop(),
        head_dim=head_dim,
        max_positions=fields.integer("context_length"),
        ropes=((FULL, gguf_rope(fields, head_dim, default_theta=_THETA)),),
        layer_types=tuple(FULL if n else CONV for n in by_layer),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        qk_norm=True,
        tied=tied,
        conv_kernel=fields.integer("shortconv.l_cache"),
    )


def intermediate_size(fields: Fields) -> int:
    """Width of the MLP: with `block_auto_adjust_ff_dim` two thirds of the stated one, rounded up to a multiple."""
    stated = fields.integer("block_ff_dim" if fields.has("block_ff_dim") else "intermediate_size")
    if not fields.flag("block_auto_adjust_ff_dim", True):
        return stated
    width = int(fields.number("block_ffn_dim_multiplier", 1.0) * int(2 * stated / 3))
    multiple = fields.size("block_multiple_of", 256)
    return -(-width // multiple) * multiple


def _layer_types(fields: Fields) -> tuple[str, ...]:
    layers = fields.layers("num_hidden_layers")
    listed = fields.listed("layer_types")
    attending = fields.listed("full_attn_idxs")
    if listed is None and attending is None:
        raise CheckpointError(
            "config.json lacks both 'layer_types' and 'full_attn_idxs'.", hint="Fetch the model again."
        )
    by_index = tuple(FULL if i in attending else CONV for i in range(layers)) if attending is not None else ()
    by_name = tuple(str(kind) for kind in listed) if listed is not None else by_index
    if by_index and by_index != by_name:
        raise CheckpointError(
            f"config.json lists the layer types {by_name}, but attention in the layers {list(attending or ())}.",
            hint="Fetch the model again.",
        )
    if unknown := set(by_name) - {FULL, CONV}:
        raise CheckpointError(f"Unknown layer types {sorted(unknown)}.", hint=f"Expected {FULL} and {CONV}.")
    return by_name
