"""Tiny quantised checkpoints of the text families: GGUF files as llama.cpp's converter writes them, MLX's folders."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import gguf
import numpy as np
import torch
from family_checkpoints import CASES, LFM2_TYPES, SPECIAL, TEMPLATE, random_model, vocabulary
from gguf import GGMLQuantizationType as Q

# A "K_M" file mixes types as llama.cpp does; a block of a K type is 256 values, so its model is wider.
KINDS = ("Q4_0", "Q4_1", "Q8_0", "F16", "BF16", "K_M")
WIDER = dict(hidden_size=256, num_attention_heads=8, num_key_value_heads=4)
_K_M = {"attn_v": Q.Q5_0, "ffn_down": Q.Q6_K, "ffn_gate": Q.Q5_K, "ffn_up": Q.Q5_K, "token_embd": Q.Q8_0}
_PARTS = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_GEMMA = {
    "post_attention_layernorm": "post_attention_norm", "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}  # fmt: skip
_LFM2 = {
    "operator_norm": "attn_norm", "ffn_norm": "ffn_norm", "self_attn.out_proj": "attn_output",
    "self_attn.q_layernorm": "attn_q_norm", "self_attn.k_layernorm": "attn_k_norm", "feed_forward.w1": "ffn_gate",
    "feed_forward.w2": "ffn_down", "feed_forward.w3": "ffn_up", "conv.in_proj": "shortconv.in_proj",
    "conv.conv": "shortconv.conv", "conv.out_proj": "shortconv.out_proj",
}  # fmt: skip


def write_gguf(folder: Path, name: str, kind: str) -> torch.nn.Module:
    """Writes the file; gives the transformers model with exactly the weights that the file stands for."""
    family = CASES[name][0]
    sizes = dict(intermediate_size=384 if family == "lfm2" else 256, **WIDER) if kind == "K_M" else {}
    if family == "gemma3":
        sizes["query_pre_attn_scalar"] = 32  # the file does not hold it: it is the width of a head
    model = copy.deepcopy(random_model(name, **sizes))
    writer = gguf.GGUFWriter(folder / f"tiny.{kind}.gguf", family)
    _write_metadata(writer, family, model.config)
    state = model.state_dict()
    for key, value in state.items():
        if key == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        where = _gguf_name(key, family)
        type_ = _type(where, value, kind)
        stored = value.numpy().astype(np.float32)
        if type_ == Q.F32:
            if family == "gemma3" and "norm" in key:
                stored = stored + 1
            writer.add_tensor(where, np.ascontiguousarray(stored.squeeze()))
            continue
        raw = _random_blocks(stored.shape, type_) if "_K" in type_.name else gguf.quants.quantize(stored, type_)
        value.copy_(torch.from_numpy(gguf.quants.dequantize(raw, type_).reshape(stored.shape)))
        if family == "llama" and (heads := _rotated_heads(key, model.config)):
            raw = raw.reshape(heads, 2, -1, raw.shape[-1]).swapaxes(1, 2).reshape(raw.shape)
        writer.add_tensor(where, np.ascontiguousarray(raw), raw_dtype=type_)
    model.load_state_dict(state)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _write_metadata(w: gguf.GGUFWriter, family: str, c) -> None:
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(
        c.intermediate_size if family != "lfm2" else 64 * math.ceil(int(2 * c.intermediate_size / 3) / 64)
    )
    w.add_head_count(c.num_attention_heads)
    w.add_layer_norm_rms_eps(c.norm_eps if family == "lfm2" else c.rms_norm_eps)
    if family == "lfm2":
        w.add_head_count_kv([c.num_key_value_heads * (t != "conv") for t in LFM2_TYPES])
        w.add_shortconv_l_cache(c.conv_L_cache)
    else:
        w.add_head_count_kv(c.num_key_value_heads)
    if family in ("qwen3", "gemma3"):
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
    if family == "gemma3":
        w.add_sliding_window(c.sliding_window)
    w.add_rope_freq_base((c.rope_parameters.get("full_attention") or c.rope_parameters)["rope_theta"])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre({"qwen3": "qwen2", "lfm2": "lfm2"}.get(family, "smollm"))
    tokens = vocabulary()
    w.add_token_list(tokens)
    w.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)))
    w.add_token_merges(["Ġ t", "t h"])
    w.add_eos_token_id(2)
    w.add_chat_template(TEMPLATE)


def _gguf_name(key: str, family: str) -> str:
    outer = {"model.embed_tokens.weight": "token_embd", "lm_head.weight": "output", "model.norm.weight": "output_norm",
             "model.embedding_norm.weight": "token_embd_norm"}  # fmt: skip
    if key in outer:
        return outer[key] + ".weight"
    _, _, index, rest = key.split(".", 3)
    parts = {**_PARTS, **{"gemma3": _GEMMA, "lfm2": _LFM2}.get(family, {})}
    part = parts[rest.removesuffix(".weight")]
    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    assert f"blk.{{bid}}.{part}" in {gguf.TENSOR_NAMES[t] for t in gguf.MODEL_TENSORS[arch]}, "llama.cpp's own names"
    return f"blk.{index}.{part}.weight"


def _type(where: str, value: torch.Tensor, kind: str) -> Q:
    if value.dim() != 2:
        return Q.F32
    part = where.removesuffix(".weight").rpartition(".")[2] if where.startswith("blk") else where.partition(".")[0]
    return _K_M.get(part, Q.Q4_K) if kind == "K_M" else Q[kind]


def _rotated_heads(key: str, c) -> int:
    return c.num_attention_heads if "q_proj" in key else c.num_key_value_heads if "k_proj" in key else 0


def _random_blocks(shape: tuple[int, ...], type_: Q) -> np.ndarray:
    """gguf-py cannot quantise K types: random codes under scales that give weights of a usual size."""
    block, size = gguf.GGML_QUANT_SIZES[type_]
    rng = np.random.default_rng(shape[0])
    raw = rng.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    scale, offset = {Q.Q4_K: (1.5e-4, 0.0011), Q.Q5_K: (7e-5, 0.0011), Q.Q6_K: (6.5e-5, None)}[type_]
    d = (rng.uniform(0.7, 1.0, (*raw.shape[:2], 1)) * scale).astype("<f2").view(np.uint8)
    if offset is None:
        raw[..., 208:210] = d
    else:
        raw[..., 0:2] = d
        raw[..., 2:4] = (rng.uniform(0.7, 1.0, (*raw.shape[:2], 1)) * offset).astype("<f2").view(np.uint8)
    return raw.reshape(shape[0], -1)


def write_mlx(source: Path, folder: Path, *, bits: int, group_size: int):
    """The folder at `source` quantised by mlx-lm and written to `folder`; gives mlx-lm's model of it."""
    from mlx_lm.utils import load_model, quantize_model, save_config, save_model

    model, config = load_model(source)
    model, config = quantize_model(model, config, group_size, bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    return load_model(folder)[0]


def mlx_lm_logits(model, ids: np.ndarray) -> np.ndarray:
    """mlx-lm's logits [T, V]."""
    import mlx.core as mx

    with mx.stream(mx.cpu):
        return np.array(model(mx.array(ids[None]))[0].astype(mx.float32))
