"""A tiny random checkpoint of Qwen3-TTS-Tokenizer-12Hz in its official layout (config.json, model.safetensors,
preprocessor_config.json), with windows small enough to matter: 6 frames in the decoder, 10 positions in the encoder.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

ENCODER: dict[str, Any] = {
    "audio_channels": 1, "codebook_dim": 8, "codebook_size": 64, "compress": 2, "dilation_growth_rate": 2,
    "frame_rate": 12.5, "head_dim": 8, "hidden_act": "gelu", "hidden_size": 32, "intermediate_size": 48,
    "kernel_size": 7, "last_kernel_size": 3, "layer_scale_initial_scale": 0.01, "max_position_embeddings": 8000,
    "norm_eps": 1e-5, "num_attention_heads": 4, "num_filters": 4, "num_hidden_layers": 2, "num_key_value_heads": 4,
    "num_quantizers": 32, "num_residual_layers": 1, "num_semantic_quantizers": 1, "residual_kernel_size": 3,
    "rope_theta": 10000.0, "sampling_rate": 24000, "sliding_window": 10, "trim_right_ratio": 1.0,
    "upsample_groups": 32, "upsampling_ratios": [8, 6, 5, 4], "use_cache": False, "use_causal_conv": True,
    "use_conv_shortcut": False, "vector_quantization_hidden_dimension": 8,
}  # fmt: skip
DECODER: dict[str, Any] = {
    "codebook_dim": 16, "codebook_size": 64, "decoder_dim": 32, "head_dim": 8, "hidden_act": "silu", "hidden_size": 16,
    "intermediate_size": 24, "latent_dim": 24, "layer_scale_initial_scale": 0.01, "max_position_embeddings": 8000,
    "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 4, "num_quantizers": 16,
    "num_semantic_quantizers": 1, "rms_norm_eps": 1e-5, "rope_theta": 10000, "semantic_codebook_size": 64,
    "sliding_window": 6, "upsample_rates": [8, 5, 4, 3], "upsampling_ratios": [2, 2],
    "vector_quantization_hidden_dimension": 8,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3TTSTokenizerV2Model"], "model_type": "qwen3_tts_tokenizer_12hz",
    "decode_upsample_rate": 1920, "encode_downsample_rate": 1920, "encoder_valid_num_quantizers": 16,
    "input_sample_rate": 24000, "output_sample_rate": 24000,
    "encoder_config": ENCODER, "decoder_config": DECODER,
}  # fmt: skip
CODEBOOK_SIZE = 64


def write(folder: Path, *, seed: int = 0, config: dict[str, Any] = CONFIG) -> Path:
    """Write the checkpoint into `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    extractor = {"feature_extractor_type": "EncodecFeatureExtractor", "feature_size": 1, "sampling_rate": 24000}
    extractor |= {"padding_side": "right", "padding_value": 0.0, "return_attention_mask": True}
    extractor |= {"chunk_length_s": None, "overlap": None}
    (folder / "preprocessor_config.json").write_text(json.dumps(extractor), encoding="utf-8")
    save_file(weights(config, seed=seed), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def weights(config: dict[str, Any] = CONFIG, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by official name, scaled so that every part of the net matters and no sample reaches the clamp."""
    rng = np.random.default_rng(seed)
    shapes = {**dict(_encoder(config["encoder_config"])), **dict(_decoder(config["decoder_config"]))}
    return {name: _random(rng, name, shape, shapes).astype(np.float32) for name, shape in shapes.items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...], shapes: dict[str, Any]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if name.endswith("initialized"):
        return np.ones(shape)
    if name.endswith("cluster_usage"):
        return 0.5 + rng.random(shape)
    if name.endswith(("embed_sum", "embedding_sum")):
        return values
    if len(shape) > 1:
        fan = (
            shape[0] * shape[2] / 2 if ".block.1.conv.weight" in name and "decoder.decoder" in name else values[0].size
        )
        return values * (_gain(name) / fan**0.5)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.1 * values
    if name.endswith((".gamma", ".scale")):
        return 0.3 + 0.1 * values
    return (0.02 if name.startswith("decoder.decoder") else 0.1) * values


def _gain(name: str) -> float:
    """The vocoder keeps its input's size: what its residual units add is small."""
    if not name.startswith("decoder.decoder"):
        return 1.0
    return 0.3 if ".conv2." in name else 0.8


Shapes = Iterator[tuple[str, tuple[int, ...]]]


def _conv(name: str, outs: int, ins: int, kernel: int, *, bias: bool = True) -> Shapes:
    yield f"{name}.weight", (outs, ins, kernel)
    if bias:
        yield f"{name}.bias", (outs,)


def _linear(name: str, outs: int, ins: int, *, bias: bool = False) -> Shapes:
    yield f"{name}.weight", (outs, ins)
    if bias:
        yield f"{name}.bias", (outs,)


def _attention(name: str, c: dict[str, Any]) -> Shapes:
    inner = c["num_attention_heads"] * c["head_dim"]
    for part in ("q", "k", "v"):
        yield from _linear(f"{name}.self_attn.{part}_proj", inner, c["hidden_size"])
    yield from _linear(f"{name}.self_attn.o_proj", c["hidden_size"], inner)
    for scale in ("self_attn_layer_scale", "mlp_layer_scale"):
        yield f"{name}.{scale}.scale", (c["hidden_size"],)


def _encoder(c: dict[str, Any]) -> Shapes:
    width, layer = c["num_filters"], 1
    yield from _conv("encoder.encoder.layers.0.conv", width, 1, c["kernel_size"])
    for ratio in reversed(c["upsampling_ratios"]):
        name = f"encoder.encoder.layers.{layer}.block"
        yield from _conv(f"{name}.1.conv", width // 2, width, c["residual_kernel_size"])
        yield from _conv(f"{name}.3.conv", width, width // 2, 1)
        yield from _conv(f"encoder.encoder.layers.{layer + 2}.conv", 2 * width, width, 2 * ratio)
        width, layer = 2 * width, layer + 3
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    yield from _conv(f"encoder.encoder.layers.{layer + 1}.conv", hidden, width, c["last_kernel_size"])
    for i in range(c["num_hidden_layers"]):
        name = f"encoder.encoder_transformer.layers.{i}"
        yield from _attention(name, c)
        yield from _linear(f"{name}.mlp.fc1", inner, hidden)
        yield from _linear(f"{name}.mlp.fc2", hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", (hidden,)
            yield f"{name}.{norm}.bias", (hidden,)
    yield from _conv("encoder.downsample.conv", hidden, hidden, 4, bias=False)
    code, size = c["vector_quantization_hidden_dimension"], c["codebook_size"]
    for part, count in (("semantic", 1), ("acoustic", c["num_quantizers"] - 1)):
        name = f"encoder.quantizer.{part}_residual_vector_quantizer"
        yield from _conv(f"{name}.input_proj", code, hidden, 1, bias=False)
        yield from _conv(f"{name}.output_proj", hidden, code, 1, bias=False)
        for i in range(count):
            yield f"{name}.layers.{i}.codebook.initialized", (1,)
            yield f"{name}.layers.{i}.codebook.cluster_usage", (size,)
            yield f"{name}.layers.{i}.codebook.embed_sum", (size, code)


def _decoder(c: dict[str, Any]) -> Shapes:
    half, latent, hidden, inner = c["codebook_dim"] // 2, c["latent_dim"], c["hidden_size"], c["intermediate_size"]
    for part, count in (("first", 1), ("rest", c["num_quantizers"] - 1)):
        name = f"decoder.quantizer.rvq_{part}"
        yield from _conv(f"{name}.input_proj", half, 2 * half, 1, bias=False)
        yield from _conv(f"{name}.output_proj", 2 * half, half, 1, bias=False)
        for i in range(count):
            yield f"{name}.vq.layers.{i}._codebook.cluster_usage", (c["codebook_size"],)
            yield f"{name}.vq.layers.{i}._codebook.embedding_sum", (c["codebook_size"], half)
    yield from _conv("decoder.pre_conv.conv", latent, 2 * half, 3)
    yield from _linear("decoder.pre_transformer.input_proj", hidden, latent, bias=True)
    yield from _linear("decoder.pre_transformer.output_proj", latent, hidden, bias=True)
    yield "decoder.pre_transformer.norm.weight", (hidden,)
    for i in range(c["num_hidden_layers"]):
        name = f"decoder.pre_transformer.layers.{i}"
        yield from _attention(name, c)
        yield from _linear(f"{name}.mlp.gate_proj", inner, hidden)
        yield from _linear(f"{name}.mlp.up_proj", inner, hidden)
        yield from _linear(f"{name}.mlp.down_proj", hidden, inner)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{name}.{norm}.weight", (hidden,)
    for i, ratio in enumerate(c["upsampling_ratios"]):
        name = f"decoder.upsample.{i}"
        yield from _conv(f"{name}.0.conv", latent, latent, ratio)
        yield from _conv(f"{name}.1.dwconv.conv", latent, 1, 7)
        yield from ((f"{name}.1.norm.{leaf}", (latent,)) for leaf in ("weight", "bias"))
        yield from _linear(f"{name}.1.pwconv1", 4 * latent, latent, bias=True)
        yield from _linear(f"{name}.1.pwconv2", latent, 4 * latent, bias=True)
        yield f"{name}.1.gamma", (latent,)
    yield from _vocoder(c)


def _vocoder(c: dict[str, Any]) -> Shapes:
    width = c["decoder_dim"]
    yield from _conv("decoder.decoder.0.conv", width, c["latent_dim"], 7)
    for i, rate in enumerate(c["upsample_rates"], 1):
        name = f"decoder.decoder.{i}.block"
        yield from _snake(f"{name}.0", width)
        yield f"{name}.1.conv.weight", (width, width // 2, 2 * rate)
        yield f"{name}.1.conv.bias", (width // 2,)
        width //= 2
        for unit in range(2, 5):
            yield from _snake(f"{name}.{unit}.act1", width)
            yield from _conv(f"{name}.{unit}.conv1.conv", width, width, 7)
            yield from _snake(f"{name}.{unit}.act2", width)
            yield from _conv(f"{name}.{unit}.conv2.conv", width, width, 1)
    last = len(c["upsample_rates"]) + 1
    yield from _snake(f"decoder.decoder.{last}", width)
    yield from _conv(f"decoder.decoder.{last + 1}.conv", 1, width, 7)


def _snake(name: str, width: int) -> Shapes:
    yield f"{name}.alpha", (width,)
    yield f"{name}.beta", (width,)
