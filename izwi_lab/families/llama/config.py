"""Llama-shaped models (Llama, SmolLM2): the decoder's configuration from config.json or from GGUF metadata."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.nets.decoder.config import FULL, DecoderConfig, Rope, rope, rope_of


def from_hf(config: Mapping[str, Any]) -> DecoderConfig:
    """From the official config.json.

    Raises:
        CheckpointError: another model type, an activation other than silu, a missing field.
    """
    if config.get("model_type") != "llama" or config.get("hidden_act", "silu") != "silu":
        raise CheckpointError(
            f"config.json says model_type {config.get('model_type')!r} with {config.get('hidden_act')!r}.",
            hint="Expected llama with silu.",
        )
    try:
        heads = int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or config["hidden_size"] // heads)
        return DecoderConfig(
            vocab_size=int(config["vocab_size"]),
            hidden_size=int(config["hidden_size"]),
            intermediate_size=int(config["intermediate_size"]),
            num_layers=int(config["num_hidden_layers"]),
            num_heads=heads,
            num_kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=head_dim,
            max_positions=int(config.get("max_position_embeddings", 2048)),
            ropes=((FULL, rope_of(config, head_dim)),),
            norm_eps=float(config.get("rms_norm_eps", 1e-6)),
            attention_bias=bool(config.get("attention_bias", False)),
            mlp_bias=bool(config.get("mlp_bias", False)),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except KeyError as error:
        raise CheckpointError(f"config.json lacks {error}.", hint="Fetch the model again.") from None


def from_gguf(
    metadata: Mapping[str, Any], *, vocab_size: int, tied: bool, rope_factors: Sequence[float] = ()
) -> DecoderConfig:
    """From GGUF metadata of architecture llama. Raises CheckpointError on another one or on a missing field.

    rope_factors: [head_dim / 2] of the tensor rope_freqs.weight, by which frequencies are divided (Llama 3.1's rope).
    """
    if (kind := metadata.get("general.architecture")) != "llama":
        raise CheckpointError(f"The GGUF file holds a {kind!r} model.", hint="Expected the architecture llama.")
    # llama.cpp: a factor without a type is linear, and with the type none it counts for nothing.
    if (scaling := metadata.get("llama.rope.scaling.type", "linear")) not in ("none", "linear"):
        raise CheckpointError(f"Unknown rope scaling {scaling!r} in the GGUF file.", hint="Supported: none, linear.")
    try:
        heads, hidden = int(metadata["llama.attention.head_count"]), int(metadata["llama.embedding_length"])
        head_dim = int(metadata.get("llama.attention.key_length") or hidden // heads)
        factor = float(metadata.get("llama.rope.scaling.factor", 1.0))
        scaled = {"rope_type": "linear", "factor": factor} if factor and scaling == "linear" else None
        whole = rope(head_dim, float(metadata.get("llama.rope.freq_base", 10_000.0)), scaled)
        if len(rope_factors) not in (0, len(whole.inv_freq)):
            raise CheckpointError(f"rope_freqs.weight holds {len(rope_factors)} factors, expected {head_dim // 2}.")
        if len(rope_factors):
            whole = Rope(tuple(f / float(by) for f, by in zip(whole.inv_freq, rope_factors, strict=True)))
        return DecoderConfig(
            vocab_size=vocab_size,
            hidden_size=hidden,
            intermediate_size=int(metadata["llama.feed_forward_length"]),
            num_layers=int(metadata["llama.block_count"]),
            num_heads=heads,
            num_kv_heads=int(metadata.get("llama.attention.head_count_kv", heads)),
            head_dim=head_dim,
            max_positions=int(metadata["llama.context_length"]),
            ropes=((FULL, whole),),
            norm_eps=float(metadata["llama.attention.layer_norm_rms_epsilon"]),
            tied=tied,
        )
    except KeyError as error:
        raise CheckpointError(f"The GGUF file lacks {error}.", hint="Fetch the model again.") from None
