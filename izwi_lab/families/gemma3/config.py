"""Gemma 3: the text decoder's configuration from config.json (text only or multimodal) or from GGUF metadata.

Sources: transformers 5.23 `configuration_gemma3.py`, llama.cpp b6000 `gemma3.cpp` and `llama-model.cpp`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.config_fields import Fields, gguf_fields, gguf_rope, json_fields, json_rope
from izwi_lab.families.shared.nets.decoder.config import FULL, SLIDING, DecoderConfig, rope

_GLOBAL_THETA, _LOCAL_THETA = 1_000_000.0, 10_000.0
_PATTERN = 6  # five sliding layers, then one that sees everything
_LAYERS_27B = 62  # the one size whose queries are scaled by the width shared out among the heads


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """From the official config.json. The sparse `text_config` of multimodal checkpoints takes the class defaults.

    Raises:
        CheckpointError: another model type or activation, a missing size, soft-capped logits, attention that sees the
            future, a rope that is not supported.
    """
    fields = json_fields(config, "gemma3", "gemma3_text")
    outer = fields
    if config.get("model_type") == "gemma3":
        inner = config.get("text_config")
        if not isinstance(inner, Mapping):
            raise CheckpointError("config.json lacks 'text_config'.", hint="Fetch the model again.")
        fields = json_fields({"model_type": "gemma3_text", **inner}, "gemma3_text")
    _check(fields)
    head_dim, layers = fields.size("head_dim", 256), fields.layers("num_hidden_layers")
    hidden = fields.size("hidden_size")
    kinds = _layer_types(fields, layers)
    return DecoderConfig(
        vocab_size=fields.integer("vocab_size", 262_208),
        hidden_size=hidden,
        intermediate_size=fields.integer("intermediate_size"),
        num_layers=layers,
        num_heads=fields.size("num_attention_heads", 8),
        num_kv_heads=fields.integer("num_key_value_heads", 4),
        head_dim=head_dim,
        max_positions=fields.integer("max_position_embeddings", 131_072),
        ropes=(
            (FULL, json_rope(fields, head_dim, default_theta=_GLOBAL_THETA, kind=FULL)),
            (
                SLIDING,
                json_rope(
                    fields, head_dim, default_theta=_LOCAL_THETA, kind=SLIDING, theta_name="rope_local_base_freq"
                ),
            ),
        ),
        layer_types=kinds,
        window=fields.integer("sliding_window", 4096),
        attention_bias=fields.flag("attention_bias", False),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
        tied=outer.flag("tie_word_embeddings", fields.flag("tie_word_embeddings", True)),
        attn_scale=fields.size("query_pre_attn_scalar", 256) ** -0.5,
        embed_scale=math.sqrt(hidden),
        norm_offset=1.0,
        qk_norm=True,
        post_norms=True,
        activation="gelu_tanh",
    )


def from_gguf(metadata: Mapping[str, Any], *, vocab_size: int, tied: bool) -> DecoderConfig:
    """From GGUF metadata of architecture gemma3. Raises CheckpointError on another one or on a missing field.

    The local rope and the pattern of the layers are not in older files: llama.cpp knows them by the architecture.
    """
    fields = gguf_fields(metadata, "gemma3")
    fields.expect("final_logit_softcapping", None, 0.0)
    heads, hidden = fields.size("attention.head_count"), fields.size("embedding_length")
    head_dim = fields.size("attention.key_length", 256)
    layers = fields.layers("block_count")
    local = rope(head_dim, fields.number("rope.freq_base_swa", _LOCAL_THETA))
    scalar = hidden / heads if layers == _LAYERS_27B else head_dim
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=fields.integer("feed_forward_length"),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.integer("attention.head_count_kv", heads),
        head_dim=head_dim,
        max_positions=fields.integer("context_length"),
        ropes=((FULL, gguf_rope(fields, head_dim, default_theta=_GLOBAL_THETA)), (SLIDING, local)),
        layer_types=_gguf_layer_types(fields, layers),
        window=fields.integer("attention.sliding_window"),
        norm_eps=fields.number("attention.layer_norm_rms_epsilon"),
        tied=tied,
        attn_scale=scalar**-0.5,
        embed_scale=math.sqrt(hidden),
        norm_offset=1.0,
        qk_norm=True,
        post_norms=True,
        activation="gelu_tanh",
    )


def _check(fields: Fields) -> None:
    fields.expect("hidden_activation", None, "gelu_pytorch_tanh")
    fields.expect("final_logit_softcapping", None)
    fields.expect("attn_logit_softcapping", None)
    fields.expect("use_bidirectional_attention", None, False)


def _layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    if listed := fields.listed("layer_types"):
        return tuple(str(kind) for kind in listed)
    return _patterned(fields.integer("sliding_window_pattern", _PATTERN), layers)


def _gguf_layer_types(fields: Fields, layers: int) -> tuple[str, ...]:
    """Newer files hold the pattern: its length, or for each layer whether it slides."""
    pattern = fields.find("attention.sliding_window_pattern")
    if pattern is not None and hasattr(pattern, "__len__"):
        return tuple(SLIDING if slides else FULL for slides in pattern)
    return _patterned(fields.integer("attention.sliding_window_pattern", _PATTERN), layers)


def _patterned(every: int, layers: int) -> tuple[str, ...]:
    if every < 1:
        raise CheckpointError(f"The sliding window pattern is {every}.", hint="Expected at least 1.")
    return tuple(FULL if (i + 1) % every == 0 else SLIDING for i in range(layers))
