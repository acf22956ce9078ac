"""Tiny random Whispers: one set of weights, as transformers folder, as CTranslate2 folder, on both backends."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from izwi_lab import catalog
from izwi_lab.backends import native
from izwi_lab.backends.base import BackendPlan
from izwi_lab.families.whisper import model as whisper

SIZES = MappingProxyType(
    dict(
        vocab_size=51_865,
        d_model=64,
        encoder_layers=2,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=128,
        decoder_ffn_dim=128,
        num_mel_bins=80,
        max_source_positions=100,
        max_target_positions=64,
    )
)
HEADS = [[2, 1], [1, 0], [2, 3]]


def open_backend(name: str, dtype: str = "float32"):
    if name == "torch":
        from izwi_lab.backends.torch_backend import TorchBackend

        return TorchBackend("cpu", dtype)
    from izwi_lab.backends.mlx_backend import MLXBackend

    return MLXBackend("cpu", dtype)


def load(folder: Path, backend: str = "torch", dtype: str = "float32", layout: str = "hf"):
    plan = BackendPlan(backend, "cpu", dtype, "test")
    return whisper.load(catalog.get("Whisper-base"), folder, plan, open_backend(backend, dtype), layout=layout)


def vocabulary() -> str:
    """A tokenizer.json with Whisper's ids: single bytes as words, placeholders, the control tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {**{c: i for i, c in enumerate(letters)}, **{f"[{i}]": i for i in range(len(letters), 50_257)}}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|endoftext|>", *[f"<|x{i}|>" for i in range(105)], "<|notimestamps|>"])
    return tokenizer.to_str()


@pytest.fixture(scope="session")
def hf_model():
    """A tiny transformers Whisper with weights large enough that its choices differ."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    config = WhisperConfig(
        **SIZES, decoder_start_token_id=50_258, bos_token_id=50_257, eos_token_id=50_257, pad_token_id=50_257
    )
    model = WhisperForConditionalGeneration(config).eval()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("encoder.embed_positions.weight"):
                values = p  # sinusoids
            elif "embed" in name:
                values = torch.randn(p.shape, generator=draw) * 0.5
            elif p.dim() > 1:
                values = torch.randn(p.shape, generator=draw) / p[0].numel() ** 0.5
            elif "layer_norm" in name and name.endswith("weight"):
                values = 1 + 0.1 * torch.randn(p.shape, generator=draw)
            else:
                values = 0.1 * torch.randn(p.shape, generator=draw)
            p.copy_(values.half().float())  # exact in float16, so every layout holds the same numbers
    return model


@pytest.fixture(scope="session")
def folders(hf_model, tmp_path_factory) -> dict[str, Path]:
    """The model's weights as {"hf": folder, "ctranslate2": folder}."""
    root = tmp_path_factory.mktemp("whisper")
    out = {"hf": root / "hf", "ctranslate2": root / "ct2"}
    generation = {"suppress_tokens": [1, 2, 7], "begin_suppress_tokens": [220, 50_257], "alignment_heads": HEADS}
    hf_model.save_pretrained(out["hf"])
    (out["hf"] / "generation_config.json").write_text(json.dumps(generation))
    out["ctranslate2"].mkdir()
    side = {"suppress_ids": [1, 2, 7], "suppress_ids_begin": [220, 50_257], "alignment_heads": HEADS}
    (out["ctranslate2"] / "config.json").write_text(json.dumps(side))
    weights = {k: v.numpy() for k, v in hf_model.state_dict().items()}
    (out["ctranslate2"] / "model.bin").write_bytes(ctranslate2_file(weights))
    for folder in out.values():
        (folder / "tokenizer.json").write_text(vocabulary())
    native.library("whisper", wait=True)
    return out


def ctranslate2_file(w: dict[str, np.ndarray]) -> bytes:
    """The weights as CTranslate2 lays them out, float16."""
    tensors: dict[str, np.ndarray] = {}
    for side, count in (("encoder", SIZES["encoder_layers"]), ("decoder", SIZES["decoder_layers"])):
        tensors[f"{side}/num_heads"] = np.array(SIZES[f"{side}_attention_heads"], np.int16)
        tensors[f"{side}/position_encodings/encodings"] = w[f"model.{side}.embed_positions.weight"]
        norm(tensors, w, f"{side}/layer_norm", f"model.{side}.layer_norm")
        for n in range(count):
            to, source = f"{side}/layer_{n}", f"model.{side}.layers.{n}"
            attention(tensors, w, f"{to}/self_attention", f"{source}.self_attn", ("qkv",))
            norm(tensors, w, f"{to}/self_attention/layer_norm", f"{source}.self_attn_layer_norm")
            if side == "decoder":
                attention(tensors, w, f"{to}/attention", f"{source}.encoder_attn", ("q", "kv"))
                norm(tensors, w, f"{to}/attention/layer_norm", f"{source}.encoder_attn_layer_norm")
            for i, name in enumerate(("fc1", "fc2")):
                for kind in ("weight", "bias"):
                    tensors[f"{to}/ffn/linear_{i}/{kind}"] = w[f"{source}.{name}.{kind}"]
            norm(tensors, w, f"{to}/ffn/layer_norm", f"{source}.final_layer_norm")
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            tensors[f"encoder/{conv}/{kind}"] = w[f"model.encoder.{conv}.{kind}"]
    tensors["decoder/embeddings/weight"] = w["model.decoder.embed_tokens.weight"]
    return serialised(tensors)


def attention(out, w, to, source, groups):
    for i, group in enumerate(groups):
        weights = [w[f"{source}.{p}_proj.weight"] for p in group]
        biases = [w.get(f"{source}.{p}_proj.bias", np.zeros(SIZES["d_model"], np.float32)) for p in group]
        out[f"{to}/linear_{i}/weight"], out[f"{to}/linear_{i}/bias"] = np.concatenate(weights), np.concatenate(biases)
    for kind in ("weight", "bias"):
        out[f"{to}/linear_{len(groups)}/{kind}"] = w[f"{source}.out_proj.{kind}"]


def norm(out, w, to, source):
    out[f"{to}/gamma"], out[f"{to}/beta"] = w[f"{source}.weight"], w[f"{source}.bias"]


def serialised(tensors: dict[str, np.ndarray]) -> bytes:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    out = struct.pack("<I", 6) + text("WhisperSpec") + struct.pack("<II", 3, len(tensors))
    for name, values in tensors.items():
        array = values if values.dtype == np.int16 else values.astype(np.float16)
        out += text(name) + struct.pack("<B", array.ndim) + b"".join(struct.pack("<I", d) for d in array.shape)
        out += struct.pack("<BI", 2 if array.dtype == np.int16 else 4, array.nbytes) + array.tobytes()
    return out + struct.pack("<I", 1) + text("decoder/projection/weight") + text("decoder/embeddings/weight")


@pytest.fixture(scope="session")
def models(folders):
    """The same weights as {"torch", "plain" (torch without the native step), "mlx", "ctranslate2"}."""
    out = {
        "torch": load(folders["hf"]),
        "plain": load(folders["hf"]),
        "mlx": load(folders["hf"], "mlx"),
        "ctranslate2": load(folders["ctranslate2"], layout="ctranslate2"),
    }
    out["plain"].net.native = None
    return out


@pytest.fixture
def mel() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((80, 200)).astype(np.float32) * 0.5
