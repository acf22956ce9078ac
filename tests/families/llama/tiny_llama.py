"""A tiny random Llama with a byte-level tokenizer, written as GGUF and as an official folder."""

from __future__ import annotations

import json

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from izwi_lab import catalog
from izwi_lab.backends.base import BackendPlan
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.llama.model import load

CONTEXT, HIDDEN, HEADS, KV, DIM, INTER, LAYERS = 160, 64, 4, 2, 16, 96, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TOKENS = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "th"]
MERGES = ["Ġ t", "t h"]


def weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(11)
    shapes = {"model.embed_tokens.weight": (len(TOKENS), HIDDEN), "model.norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        for name, rows, cols in (
            ("self_attn.q_proj", HEADS * DIM, HIDDEN), ("self_attn.k_proj", KV * DIM, HIDDEN),
            ("self_attn.v_proj", KV * DIM, HIDDEN), ("self_attn.o_proj", HIDDEN, HEADS * DIM),
            ("mlp.gate_proj", INTER, HIDDEN), ("mlp.up_proj", INTER, HIDDEN), ("mlp.down_proj", HIDDEN, INTER),
        ):  # fmt: skip
            shapes[f"model.layers.{i}.{name}.weight"] = (rows, cols)
        shapes[f"model.layers.{i}.input_layernorm.weight"] = (HIDDEN,)
        shapes[f"model.layers.{i}.post_attention_layernorm.weight"] = (HIDDEN,)
    out = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        out[name] = (
            1 + 0.1 * values if len(shape) == 1 else values * (0.5 if "embed" in name else 1.6 / shape[1] ** 0.5)
        )
    return out


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, index, rest = name.split(".", 3)
    return f"blk.{index}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


@pytest.fixture(scope="session")
def gguf_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny-gguf")
    w = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    w.add_context_length(CONTEXT)
    w.add_embedding_length(HIDDEN)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(INTER)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_rope_freq_base(10000.0)
    w.add_rope_dimension_count(DIM)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(TOKENS)
    w.add_token_types([3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)))
    w.add_token_merges(MERGES)
    w.add_eos_token_id(0)
    w.add_chat_template(TEMPLATE)
    for name, value in weights().items():
        for part, heads in (("q_proj", HEADS), ("k_proj", KV)):
            if part in name:  # llama.cpp's order, for interleaved rotation
                value = value.reshape(heads, 2, DIM // 2, HIDDEN).swapaxes(1, 2).reshape(-1, HIDDEN)
        kind = gguf.GGMLQuantizationType.Q8_0 if value.ndim > 1 else gguf.GGMLQuantizationType.F32
        w.add_tensor(gguf_name(name), gguf.quants.quantize(np.ascontiguousarray(value), kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return folder


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory):
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("tiny-hf")
    save_file(weights(), folder / "model.safetensors")
    config = dict(
        model_type="llama", vocab_size=len(TOKENS), hidden_size=HIDDEN, intermediate_size=INTER, rms_norm_eps=1e-5,
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV, rope_theta=10000.0,
        max_position_embeddings=CONTEXT, tie_word_embeddings=True, hidden_act="silu", eos_token_id=0,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    merges = [tuple(m.split()) for m in MERGES]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", "chat_template": TEMPLATE}))
    return folder


VARIANT = catalog.get("SmolLM2-135M-Instruct")


def open_model(folder, layout, backend=None, load_format="auto", variant=VARIANT):
    backend = backend or TorchBackend()
    plan = BackendPlan(backend.name, backend.device, backend.dtype, "test")
    return load(variant, folder, plan, backend, layout=layout, load_format=load_format)


@pytest.fixture(scope="session", params=["torch", "mlx"])
def model(request, gguf_folder):
    return open_model(gguf_folder, "gguf", TorchBackend() if request.param == "torch" else MLXBackend("cpu"))
