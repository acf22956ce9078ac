"""Llama-shaped models (Llama, SmolLM2): the decoder's configuration from config.json or from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.config_fields import gguf_fields, gguf_rope, head_dim_of, json_fields, json_rope
from izwi_lab.families.shared.nets.decoder.config import FULL, DecoderConfig, Rope

_THETA = 10_000.0


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """From the official config.json.

    Raises:
        CheckpointError: another model type, an activation other than silu, a missing field.
    """
    fields = json_fields(config, "llama")
    fields.expect("hidden_act", None, "silu")
    heads = fields.size("num_attention_heads")
    head_dim = head_dim_of(fields, heads)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size"),
        hidden_size=fields.size("hidden_size"),
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=fields.layers("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.integer("num_key_value_heads", heads),
        head_dim=head_dim,
        max_positions=fields.integer("max_position_embeddings", 2048),
        ropes=((FULL, json_rope(fields, head_dim, default_theta=_THETA)),),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        attention_bias=fields.flag("attention_bias", False),
        mlp_bias=fields.flag("mlp_bias", False),
        tied=fields.flag("tie_word_embeddings", False),
    )


def from_gguf(
    metadata: Mapping[str, Any], *, vocab_size: int, tied: bool, rope_factors: Sequence[float] = ()
) -> DecoderConfig:
    """From GGUF metadata of architecture llama. Raises CheckpointError on another one or on a missing field.

    rope_factors: [head_dim / 2] of the tensor rope_freqs.weight, by which frequencies are divided (Llama 3.1's rope).
    """
    fields = gguf_fields(metadata, "llama")
    heads, hidden = fields.size("attention.head_count"), fields.size("embedding_length")
    head_dim = fields.size("attention.key_length", hidden // max(1, heads))
    whole = gguf_rope(fields, head_dim, default_theta=_THETA)
    if len(rope_factors) not in (0, len(whole.inv_freq)):
        raise CheckpointError(f"rope_freqs.weight holds {len(rope_factors)} factors, expected {head_dim // 2}.")
    if len(rope_factors):
        whole = Rope(tuple(f / float(by) for f, by in zip(whole.inv_freq, rope_factors, strict=True)))
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=fields.layers("block_count"),
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=fields.integer("context_length"),
        ropes=((FULL, whole),),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        tied=tied,
    )
