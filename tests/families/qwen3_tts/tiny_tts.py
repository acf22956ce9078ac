"""Tiny random Qwen3-TTS checkpoints in the official layout, of every kind, with a tokenizer of bytes and a few merges.

Ids of the talker's vocabulary are the official ones less SHIFT, so that its last 1024 are no sounds here too. The
speech tokenizer's folder is written by tests/codecs/tiny_codec_12hz.py.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

CODES = 64  # of each codebook
SHIFT = 2048 - CODES
CODEBOOKS = 16
WIDTH, TEXT_WIDTH, TEXT_VOCAB = 64, 32, 320
KINDS = ("base", "custom_voice", "voice_design")

MERGES = (
    "h e", "l l", "he ll", "hell o", "Ġ w", "a s", "i s", "t a", "as s", "is ta", "n t", "ass ista", "assista nt",
    "u s", "e r", "us er",
)  # fmt: skip
SPECIAL = {
    "<|endoftext|>": 272, "<|im_start|>": 273, "<|im_end|>": 274, "<tts_pad>": 275, "<tts_text_bos>": 276,
    "<tts_text_eod>": 277,
}  # fmt: skip
LANGUAGES = {
    "chinese": 2055, "english": 2050, "german": 2053, "italian": 2070, "portuguese": 2071, "spanish": 2054,
    "japanese": 2058, "korean": 2064, "french": 2061, "russian": 2069, "beijing_dialect": 2074,
    "sichuan_dialect": 2062,
}  # fmt: skip
VOICES = {"serena": 3066, "vivian": 3065, "ryan": 3061, "eric": 2875, "dylan": 2878}
CODEC_IDS = {
    "codec_pad_id": 2148, "codec_bos_id": 2149, "codec_eos_token_id": 2150, "codec_think_id": 2154,
    "codec_nothink_id": 2155, "codec_think_bos_id": 2156, "codec_think_eos_id": 2157,
}  # fmt: skip
SPEAKER = {
    "enc_dim": WIDTH, "mel_dim": 128, "enc_channels": [16, 16, 16, 16, 48], "enc_kernel_sizes": [5, 3, 3, 3, 1],
    "enc_dilations": [1, 2, 3, 4, 1], "enc_attention_channels": 8, "enc_res2net_scale": 4, "enc_se_channels": 8,
    "sample_rate": 24000,
}  # fmt: skip
GENERATION = {
    "do_sample": True, "repetition_penalty": 1.05, "temperature": 0.9, "top_p": 1.0, "top_k": 50,
    "subtalker_dosample": True, "subtalker_temperature": 0.9, "subtalker_top_p": 1.0, "subtalker_top_k": 50,
    "max_new_tokens": 8192,
}  # fmt: skip
_DECODER = {
    "attention_bias": False, "attention_dropout": 0, "head_dim": 16, "hidden_act": "silu", "num_attention_heads": 4,
    "num_hidden_layers": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1000000,
    "num_code_groups": CODEBOOKS,
}  # fmt: skip


def config(kind: str = "custom_voice", *, projected: bool = True) -> dict[str, Any]:
    """config.json. projected: the predictor is narrower than the talker, as in the 1.7B; else as wide, as in 0.6B."""
    predictor = {
        **_DECODER, "model_type": "qwen3_tts_talker_code_predictor", "hidden_size": WIDTH // 2 if projected else WIDTH,
        "intermediate_size": 64, "max_position_embeddings": 512, "rope_scaling": None, "vocab_size": CODES,
    }  # fmt: skip
    preset = kind == "custom_voice"
    dialects = {name: False for name in VOICES} | {"eric": "sichuan_dialect", "dylan": "beijing_dialect"}
    talker = {
        **_DECODER, "model_type": "qwen3_tts_talker", "code_predictor_config": predictor, "hidden_size": WIDTH,
        "intermediate_size": 96, "max_position_embeddings": 1024, "vocab_size": CODES + 1024,
        "rope_scaling": {"interleaved": True, "mrope_section": [4, 2, 2], "rope_type": "default"},
        "text_hidden_size": TEXT_WIDTH, "text_vocab_size": TEXT_VOCAB, **_shifted(CODEC_IDS),
        "codec_language_id": _shifted(LANGUAGES), "spk_id": _shifted(VOICES) if preset else {},
        "spk_is_dialect": dialects if preset else {},
    }  # fmt: skip
    made = {
        "architectures": ["Qwen3TTSForConditionalGeneration"], "model_type": "qwen3_tts",
        "tokenizer_type": "qwen3_tts_tokenizer_12hz", "tts_model_size": "1b7" if projected else "0b6",
        "tts_model_type": kind, "assistant_token_id": vocabulary()["assistant"],
        "im_start_token_id": SPECIAL["<|im_start|>"], "im_end_token_id": SPECIAL["<|im_end|>"],
        "tts_pad_token_id": SPECIAL["<tts_pad>"], "tts_bos_token_id": SPECIAL["<tts_text_bos>"],
        "tts_eos_token_id": SPECIAL["<tts_text_eod>"], "talker_config": talker,
    }  # fmt: skip
    return made | ({"speaker_encoder_config": dict(SPEAKER)} if kind == "base" else {})


def write(folder: Path, kind: str = "custom_voice", *, projected: bool = True, seed: int = 0) -> Path:
    """Write config, weights, tokenizer and generation_config.json into `folder`, which is returned."""
    folder.mkdir(parents=True, exist_ok=True)
    values = config(kind, projected=projected)
    (folder / "config.json").write_text(json.dumps(values, indent=1), "utf-8")
    (folder / "generation_config.json").write_text(json.dumps(GENERATION), "utf-8")
    write_tokenizer(folder)
    save_file(weights(values, seed=seed), str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def vocabulary() -> dict[str, int]:
    """Ids of the tokens that are no control tokens: the bytes as GPT-2 writes them, then the merges."""
    printable = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in printable]
    symbol = {b: chr(b) for b in printable} | {b: chr(256 + n) for n, b in enumerate(others)}
    tokens = [symbol[b] for b in range(256)] + [pair.replace(" ", "") for pair in MERGES]
    return {token: i for i, token in enumerate(tokens)}


def write_tokenizer(folder: Path) -> None:
    """vocab.json, merges.txt and tokenizer_config.json, as the official folders have them."""
    (folder / "vocab.json").write_text(json.dumps(vocabulary(), ensure_ascii=False), "utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n", "utf-8")
    plain = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    made = {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None, "clean_up_tokenization_spaces": False,
        "added_tokens_decoder": {str(i): {"content": token, **plain} for token, i in SPECIAL.items()},
        "eos_token": "<|im_end|>", "errors": "replace", "model_max_length": 131072, "pad_token": "<|endoftext|>",
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer", "unk_token": None,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(made), "utf-8")


def weights(values: dict[str, Any], *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights by official name for a config.json, such that logits differ by more than rounding does."""
    rng = np.random.default_rng(seed)
    shapes = _shapes(values)
    return {name: _random(rng, name, shape).astype(np.float32) for name, shape in shapes.items()}


def _shifted(ids: dict[str, int]) -> dict[str, int]:
    return {name: i - SHIFT for name, i in ids.items()}


def _random(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    if "embedding" in name:
        return 0.5 * values
    if len(shape) > 1:
        return values * (1.5 / np.sqrt(np.prod(shape[1:])))
    return 1 + 0.1 * values if "norm" in name else 0.05 * values


def _shapes(values: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    talker = values["talker_config"]
    predictor, width, text = talker["code_predictor_config"], talker["hidden_size"], talker["text_hidden_size"]
    out: dict[str, tuple[int, ...]] = {
        "talker.model.text_embedding.weight": (talker["text_vocab_size"], text),
        "talker.model.codec_embedding.weight": (talker["vocab_size"], width),
        "talker.codec_head.weight": (talker["vocab_size"], width),
        **_linear("talker.text_projection.linear_fc1", text, text, bias=True),
        **_linear("talker.text_projection.linear_fc2", width, text, bias=True),
        **_decoder("talker.model", talker),
        **_decoder("talker.code_predictor.model", predictor),
    }
    for i in range(CODEBOOKS - 1):
        out[f"talker.code_predictor.model.codec_embedding.{i}.weight"] = (predictor["vocab_size"], width)
        out[f"talker.code_predictor.lm_head.{i}.weight"] = (predictor["vocab_size"], predictor["hidden_size"])
    if predictor["hidden_size"] != width:
        name = "talker.code_predictor.small_to_mtp_projection"
        out |= _linear(name, predictor["hidden_size"], width, bias=True)
    return out | (_speaker(values["speaker_encoder_config"]) if values["tts_model_type"] == "base" else {})


def _linear(name: str, outs: int, ins: int, *, bias: bool = False) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outs, ins)} | ({f"{name}.bias": (outs,)} if bias else {})


def _decoder(name: str, c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    width, inner, d = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    q, kv = c["num_attention_heads"] * d, c["num_key_value_heads"] * d
    out: dict[str, tuple[int, ...]] = {f"{name}.norm.weight": (width,)}
    for i in range(c["num_hidden_layers"]):
        layer = f"{name}.layers.{i}"
        for part, outs, ins in (("q", q, width), ("k", kv, width), ("v", kv, width), ("o", width, q)):
            out |= _linear(f"{layer}.self_attn.{part}_proj", outs, ins)
        for part, outs, ins in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
            out |= _linear(f"{layer}.mlp.{part}_proj", outs, ins)
        out |= {f"{layer}.self_attn.{part}_norm.weight": (d,) for part in "qk"}
        out |= {f"{layer}.{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return out


def _speaker(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    channels, kernels, scale = c["enc_channels"], c["enc_kernel_sizes"], c["enc_res2net_scale"]
    wide, squeezed, attention = channels[-1], c["enc_se_channels"], c["enc_attention_channels"]
    out = _conv("blocks.0.conv", channels[0], c["mel_dim"], kernels[0])
    for i in range(1, len(channels) - 1):
        width, block = channels[i], f"blocks.{i}"
        out |= _conv(f"{block}.tdnn1.conv", width, channels[i - 1], 1) | _conv(f"{block}.tdnn2.conv", width, width, 1)
        for j in range(scale - 1):
            out |= _conv(f"{block}.res2net_block.blocks.{j}.conv", width // scale, width // scale, kernels[i])
        out |= _conv(f"{block}.se_block.conv1", squeezed, width, 1)
        out |= _conv(f"{block}.se_block.conv2", width, squeezed, 1)
    out |= _conv("mfa.conv", wide, wide, kernels[-1]) | _conv("asp.tdnn.conv", attention, 3 * wide, 1)
    return out | _conv("asp.conv", wide, attention, 1) | _conv("fc", c["enc_dim"], 2 * wide, 1)


def _conv(name: str, outs: int, ins: int, kernel: int) -> dict[str, tuple[int, ...]]:
    return {f"speaker_encoder.{name}.weight": (outs, ins, kernel), f"speaker_encoder.{name}.bias": (outs,)}
