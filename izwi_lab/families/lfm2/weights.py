"""Checkpoint names of LFM2 to the net's, for official and MLX safetensors and for GGUF."""

from __future__ import annotations

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.errors import CheckpointError
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
from izwi_lab.families.shared.weights import Rule, Weight

_LAYER = r"model\.layers\.(\d+)\."
_PARTS = {
    r"operator_norm": "input_layernorm",
    r"ffn_norm": "post_attention_layernorm",
    r"self_attn\.out_proj": "self_attn.o_proj",
    r"self_attn\.([qk])_layernorm": r"self_attn.\2_norm",
    r"feed_forward\.w1": "mlp.gate_proj",
    r"feed_forward\.w3": "mlp.up_proj",
    r"feed_forward\.w2": "mlp.down_proj",
}


def hf_rules(config: DecoderConfig, *, mlx: bool = False) -> tuple[Rule, ...]:
    """Official names to the net's. mlx: convolutions are [D, K, 1] there and become [D, 1, K]."""
    conv = (Rule(_LAYER + r"conv\.conv\.weight", r"model.layers.\1.conv.conv.weight", _taps_last),) if mlx else ()
    return (
        *tied_head(config),
        *conv,
        *(Rule(rf"{_LAYER}{old}\.weight", rf"model.layers.\1.{new}.weight") for old, new in _PARTS.items()),
        Rule(r"model\.embedding_norm\.weight", "model.norm.weight"),
    )


def gguf_rules(config: DecoderConfig) -> tuple[Rule, ...]:
    """llama.cpp's names; the last norm is called token_embd_norm, in newer files output_norm."""
    return (
        *block_rules({"shortconv.conv": "conv.conv"}, _with_channel),
        *block_rules({"shortconv.in_proj": "conv.in_proj", "shortconv.out_proj": "conv.out_proj"}),
        *block_rules({**ATTENTION, **QK_NORMS, **MLP, **NORMS}),
        *outer_rules(norm="(?:token_embd_norm|output_norm)"),
    )


def _taps_last(weight: Weight) -> Weight:
    dense = _dense(weight)
    return Tensor(np.ascontiguousarray(dense.data.transpose(0, 2, 1)), dense.dtype)


def _with_channel(weight: Weight) -> Weight:
    """[D, K] -> [D, 1, K]."""
    dense = _dense(weight)
    return Tensor(dense.data[:, None, :], dense.dtype)


def _dense(weight: Weight) -> Tensor:
    if isinstance(weight, AffineTensor):
        raise CheckpointError("The convolution of a layer is quantised.", hint="Expected plain floats.")
    return weight
