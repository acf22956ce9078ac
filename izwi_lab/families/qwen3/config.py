"""Qwen3: the decoder's configuration from config.json or from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from izwi_lab.families.shared.config_fields import Fields, gguf_fields, gguf_rope, json_fields, json_rope
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING, DecoderConfig

_THETA = 1_000_000.0  # of every published Qwen3; transformers' class default of 10,000 is of none


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """From the official config.json, written by transformers 4 (`rope_theta`) or 5 (`rope_parameters`).

    Raises:
        CheckpointError: another model type or activation, a missing field, a rope that is not supported (YaRN, which
            the model card offers for contexts beyond 32,768, is not).
    """
    fields = json_fields(config, "qwen3")
    fields.expect("hidden_act", None, "silu")
    heads = fields.size("num_attention_heads")
    head_dim = fields.size("head_dim", 128)
    layers = fields.layers("num_hidden_layers")
    kinds = _layer_types(fields, layers)
    rope = json_rope(fields, head_dim, default_theta=_THETA)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=fields.integer("max_position_embeddings"),
        ropes=tuple((kind, rope) for kind in (FULL, SLIDING) if kind in kinds),
        layer_types=kinds,
        window=fields.integer("sliding_window", 0) if SLIDING in kinds else 0,
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        qk_norm=True,
        attention_bias=fields.flag("attention_bias", False),
        tied=fields.flag("tie_word_embeddings", False),
    )


def from_gguf(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool) -> DecoderConfig:
    """From GGUF metadata of architecture qwen3. Raises CheckpointError on another one or on a missing field."""
    fields = gguf_fields(metadata, "qwen3")
    heads, hidden = fields.size("attention.head_count"), fields.size("embedding_length")
    head_dim = fields.size("attention.key_length", hidden // max(1, heads))
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.layers("block_count"),
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=fields.integer("context_length"),
        ropes=((FULL, gguf_rope(fields, head_dim, default_theta=_THETA)),),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        qk_norm=True,
        tied=tied,
    )


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    """Sliding layers are those from `max_window_layers` on, and only with `use_sliding_window`."""
    if listed := fields.listed("layer_types"):
        return tuple(str(kind) for kind in listed)
    if not (fields.flag("use_sliding_window", False) and fields.has("sliding_window")):
        return (FULL,) * layers
    first = fields.integer("max_window_layers", 28)
    return tuple(SLIDING if i >= first else FULL for i in range(layers))
