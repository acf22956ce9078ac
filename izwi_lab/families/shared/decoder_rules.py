"""Weight rules that text families share: official names are the net's, llama.cpp's are mapped."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.weights import Rule, Weight

# llama.cpp's parts of a layer (gguf-py tensor_mapping.py) -> the net's
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
ATTENTION = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}
QK_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}


def block_rules(parts: Mapping[str, str], change: Callable[[Weight], Weight] | None = None) -> tuple[Rule, ...]:
    """`blk.N.<part>.weight` -> `model.layers.N.<part>.weight`."""
    return tuple(Rule(rf"blk\.(\d+)\.{k}\.weight", rf"model.layers.\1.{v}.weight", change) for k, v in parts.items())


def outer_rules(*, norm: str = "output_norm", change: Callable[[Weight], Weight] | None = None) -> tuple[Rule, ...]:
    """Embeddings, last norm and head of a GGUF file. norm: a pattern; change: applied to the norm."""
    return (
        Rule(r"token_embd\.weight", "model.embed_tokens.weight"),
        Rule(rf"{norm}\.weight", "model.norm.weight", change),
        Rule(r"output\.weight", "lm_head.weight"),
    )


def tied_head(config: DecoderConfig) -> tuple[Rule, ...]:
    """Files of models with a tied head may hold a copy of it, which is not read."""
    return (Rule(r"lm_head\.weight", None),) if config.tied else ()
