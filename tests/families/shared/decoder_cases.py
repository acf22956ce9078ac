"""Decoder configurations, random weights for them, and the same model in transformers and mlx-lm."""

from __future__ import annotations

import numpy as np
import pytest

from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.families.shared.nets.decoder.config import CONV, FULL, SLIDING, DecoderConfig, rope

PACKAGE = "izwi_lab.families.shared.nets.decoder"
VOCAB, TOLERANCE = 160, 2e-4  # absolute, on logits of size about 3
WINDOW = 9  # its caches turn at 256 positions

COMMON = dict(
    vocab_size=VOCAB,
    hidden_size=64,
    intermediate_size=96,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=32,
    max_positions=512,
)
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": DecoderConfig(**COMMON, ropes=((FULL, rope(32, 10000.0)),)),
    "llama3-rope-biases-untied": DecoderConfig(
        **COMMON, ropes=((FULL, rope(32, 10000.0, LLAMA3)),), attention_bias=True, mlp_bias=True, tied=False
    ),
    "qwen3": DecoderConfig(**COMMON, ropes=((FULL, rope(32, 1e6)),), qk_norm=True, norm_eps=1e-6),
    "gemma3": DecoderConfig(
        **COMMON,
        ropes=((FULL, rope(32, 1e6, {"rope_type": "linear", "factor": 8.0})), (SLIDING, rope(32, 1e4))),
        layer_types=(SLIDING, SLIDING, FULL),
        window=WINDOW,
        norm_eps=1e-6,
        norm_offset=1.0,
        qk_norm=True,
        post_norms=True,
        activation="gelu_tanh",
        embed_scale=8.0,
        attn_scale=24**-0.5,
    ),
    "lfm2": DecoderConfig(
        **{**COMMON, "head_dim": 16},
        ropes=((FULL, rope(16, 1e6)),),
        layer_types=(CONV, FULL, CONV),
        conv_kernel=3,
        qk_norm=True,
    ),
}
_LFM2 = {
    "input_layernorm": "operator_norm",
    "post_attention_layernorm": "ffn_norm",
    "o_proj": "out_proj",
    "q_norm": "q_layernorm",
    "k_norm": "k_layernorm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "model.norm": "model.embedding_norm",
}


@pytest.fixture(scope="module")
def one_thread():
    """Nets of this size are slower on several threads, many times where the machine is busy."""
    import torch

    TorchBackend()  # which chooses a number, once
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def hf_config(name: str) -> dict:
    """The config.json of the same model, without rope fields."""
    c = CONFIGS[name]
    common = dict(
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=c.tied,
    )
    if name == "lfm2":
        types = ["full_attention" if kind == FULL else "conv" for kind in c.layer_types]
        more = dict(norm_eps=1e-5, conv_bias=False, conv_L_cache=3, block_auto_adjust_ff_dim=False, layer_types=types)
        return {**common, **more}
    common |= dict(head_dim=32, rms_norm_eps=c.norm_eps)
    if name == "gemma3":
        return {**common, "sliding_window": WINDOW, "query_pre_attn_scalar": 24}
    return {**common, "attention_bias": c.attention_bias, "mlp_bias": c.mlp_bias} if "llama" in name else common


def transformers_model(name: str):
    """The transformers model, float32."""
    import transformers as tf

    fields = hf_config(name)
    default = {"rope_type": "default", "rope_theta": 10000.0}
    if name == "qwen3":
        config = tf.Qwen3Config(**fields, rope_parameters={**default, "rope_theta": 1e6})
        model = tf.Qwen3ForCausalLM(config)
    elif name == "gemma3":
        ropes = {FULL: {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0}, SLIDING: default}
        layer_types = list(CONFIGS[name].layer_types)
        model = tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**fields, layer_types=layer_types, rope_parameters=ropes))
    elif name == "lfm2":
        model = tf.Lfm2ForCausalLM(tf.Lfm2Config(**fields, rope_parameters={**default, "rope_theta": 1e6}))
    else:
        ropes = default if name == "llama" else LLAMA3
        model = tf.LlamaForCausalLM(tf.LlamaConfig(**fields, rope_parameters=ropes))
    return model.eval().float()


def mlx_lm_model(name: str, weights: dict[str, Tensor]):
    """The mlx-lm model with these weights."""
    from importlib import import_module

    import mlx.core as mx

    fields = hf_config(name)
    if name == "gemma3":
        linear = {"rope_type": "linear", "factor": 8.0}
        more = dict(rope_theta=1e6, rope_local_base_freq=1e4, sliding_window_pattern=3, rope_scaling=linear)
    elif name == "lfm2":
        more = dict(rope_theta=1e6, block_dim=64, block_ff_dim=96, block_multiple_of=1, block_ffn_dim_multiplier=1.0)
    elif name == "qwen3":
        more = dict(rope_theta=1e6)
    else:
        more = dict(rope_theta=1e4, rope_scaling=LLAMA3 if name != "llama" else None)
    kind = {"gemma3": "gemma3_text"}.get(name, name.partition("3-")[0])
    module = import_module(f"mlx_lm.models.{kind}")
    model = module.Model(module.ModelArgs.from_dict({**fields, **more, "model_type": kind}))
    held = {k: mx.array(v.data) for k, v in official(name, weights).items()}
    model.load_weights(list(model.sanitize(held).items()))
    return model.eval()


def official(name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under the names of the official checkpoint."""
    if name != "lfm2":
        return weights
    out = {}
    for key, value in weights.items():
        for ours, theirs in _LFM2.items():
            key = key.replace(f"{ours}.", f"{theirs}.")
        out[key] = value
    return out


def shapes_of(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    return TorchBackend().parameters(TorchBackend().net(PACKAGE, "DecoderLM", config, None))


def weights_for(name: str, shapes: dict[str, tuple[int, ...]] | None = None) -> dict[str, Tensor]:
    """Random weights that give logits of size about 3 and attention that is far from even."""
    rng = np.random.default_rng(3)
    out = {}
    for key, shape in (shapes or shapes_of(CONFIGS[name])).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            values = values * 0.1 + (0.0 if name == "gemma3" or key.endswith("bias") else 1.0)
        else:
            values *= 0.35 if "embed" in key else 1.3 / np.sqrt(shape[-1])
        out[key] = Tensor.of(values.astype(np.float32))
    return out


def net_of(backend, name: str, weights: dict[str, Tensor] | None = None):
    """The net without its compiled step, which test_decoder_native*.py covers."""
    net = backend.net(PACKAGE, "DecoderLM", CONFIGS[name], weights or weights_for(name))
    if backend.name == "torch":
        net.step = None
    return net


def steps(backend, net, ids, sizes, *, state=None):
    """Logits [pieces, V] after each piece of ids, taken in pieces of the given sizes."""
    state, at, out = net.state() if state is None else state, 0, []
    with backend.inference():
        for size in sizes:
            logits, _ = net(backend.array(ids[None, at : at + size]), state)
            at += size
            out.append(backend.numpy(logits)[0].copy())
    return np.stack(out)


def transformers_logits(name: str, weights: dict[str, Tensor], ids) -> np.ndarray:
    """Logits [T, V] of all positions at once."""
    import torch

    oracle = transformers_model(name)
    state = {k: torch.from_numpy(w.data) for k, w in official(name, weights).items()}
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    oracle.tie_weights()
    with torch.no_grad():
        return oracle(torch.from_numpy(ids[None].astype(np.int64))).logits[0].numpy()
