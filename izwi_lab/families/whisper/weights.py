"""Checkpoints to canonical Whisper weights: transformers' names, torch's layout, the file's own dtype.

CTranslate2 fuses projections; their rows are taken apart as views of the mapped file, so nothing is copied here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.artifacts.tensors import Tensor
from izwi_lab.errors import CheckpointError
from izwi_lab.families.whisper.config import GenerationConfig, WhisperConfig

Weights = dict[str, Tensor]


def read(checkpoint: Checkpoint, folder: Path, layout: str) -> tuple[WhisperConfig, GenerationConfig, Weights]:
    """The net's config, decoding settings and weights from an opened checkpoint of one of the layouts Whisper reads."""
    if layout == "ctranslate2":
        return read_ctranslate2(checkpoint)
    if layout == "hf":
        side = folder / "generation_config.json"
        try:
            generation = json.loads(side.read_text("utf-8")) if side.exists() else {}
        except ValueError as error:
            raise CheckpointError(f"{side} is not JSON: {error}.", hint="Fetch the model again.") from error
        return read_hf(checkpoint, generation)
    raise CheckpointError(f"Whisper does not read the layout {layout!r}.", hint="Expected 'hf' or 'ctranslate2'.")


def read_hf(checkpoint: Checkpoint, generation: Mapping[str, Any]) -> tuple[WhisperConfig, GenerationConfig, Weights]:
    """A transformers folder: config.json, generation_config.json (may be empty), safetensors."""
    config = WhisperConfig.from_hf(checkpoint.config)
    rules = generation or checkpoint.config
    settings = GenerationConfig.of(
        config,
        rules.get("suppress_tokens"),
        rules.get("begin_suppress_tokens"),
        generation.get("alignment_heads"),
    )
    weights: Weights = {}
    for name in checkpoint.names:
        if name == "proj_out.weight":  # tied to embed_tokens in every Whisper
            continue
        tensor = checkpoint.read(name)
        if not isinstance(tensor, Tensor):
            raise CheckpointError(f"{name} is quantised in affine groups; Whisper expects dense weights.")
        weights[name if name.startswith("model.") else f"model.{name}"] = tensor
    return config, settings, weights


def read_ctranslate2(checkpoint: Checkpoint) -> tuple[WhisperConfig, GenerationConfig, Weights]:
    """A CTranslate2 folder (`WhisperSpec`): model.bin, config.json."""
    spec = getattr(checkpoint, "spec", "")
    if spec != "WhisperSpec":
        raise CheckpointError(f"{checkpoint.folder} holds a {spec or 'foreign'} model, expected WhisperSpec.")
    config = _ctranslate2_config(checkpoint)
    side = checkpoint.config
    settings = GenerationConfig.of(
        config, side.get("suppress_ids"), side.get("suppress_ids_begin"), side.get("alignment_heads")
    )
    weights: Weights = {}
    for conv in ("conv1", "conv2"):
        for kind in ("weight", "bias"):
            weights[f"model.encoder.{conv}.{kind}"] = _dense(checkpoint, f"encoder/{conv}/{kind}")
    weights["model.decoder.embed_tokens.weight"] = _dense(checkpoint, "decoder/embeddings/weight")
    for side_name, layers in (("encoder", config.encoder_layers), ("decoder", config.decoder_layers)):
        weights[f"model.{side_name}.embed_positions.weight"] = _dense(
            checkpoint, f"{side_name}/position_encodings/encodings"
        )
        _norm(checkpoint, weights, f"model.{side_name}.layer_norm", f"{side_name}/layer_norm")
        for n in range(layers):
            _layer(checkpoint, weights, f"model.{side_name}.layers.{n}", f"{side_name}/layer_{n}", config.d_model)
    return config, settings, weights


def _ctranslate2_config(checkpoint: Checkpoint) -> WhisperConfig:
    def count(side: str) -> int:
        found = [int(m[1]) for n in checkpoint.names if (m := re.match(rf"{side}/layer_(\d+)/", n))]
        if not found:
            raise CheckpointError(f"{checkpoint.folder}: no {side} layers in model.bin.")
        return 1 + max(found)

    attributes: Mapping[str, float] = getattr(checkpoint, "attributes", {})
    vocab, width = _two(checkpoint, "decoder/embeddings/weight")
    heads = [int(attributes.get(f"{side}/num_heads", width // 64)) for side in ("encoder", "decoder")]
    mel = checkpoint.shape("encoder/conv1/weight")
    return WhisperConfig(
        vocab_size=vocab,
        d_model=width,
        encoder_layers=count("encoder"),
        decoder_layers=count("decoder"),
        encoder_attention_heads=heads[0],
        decoder_attention_heads=heads[1],
        encoder_ffn_dim=_two(checkpoint, "encoder/layer_0/ffn/linear_0/weight")[0],
        decoder_ffn_dim=_two(checkpoint, "decoder/layer_0/ffn/linear_0/weight")[0],
        num_mel_bins=mel[1] if len(mel) == 3 else 0,
        max_source_positions=_two(checkpoint, "encoder/position_encodings/encodings")[0],
        max_target_positions=_two(checkpoint, "decoder/position_encodings/encodings")[0],
    )


def _layer(checkpoint: Checkpoint, out: Weights, to: str, source: str, width: int) -> None:
    q, k, v = (slice(n * width, (n + 1) * width) for n in range(3))
    fused = f"{source}/self_attention/linear_0"  # rows: queries, keys, values
    _linear(checkpoint, out, f"{to}.self_attn.q_proj", fused, q)
    _linear(checkpoint, out, f"{to}.self_attn.k_proj", fused, k, bias=False)  # stored as zeros; Whisper has none
    _linear(checkpoint, out, f"{to}.self_attn.v_proj", fused, v)
    _linear(checkpoint, out, f"{to}.self_attn.out_proj", f"{source}/self_attention/linear_1")
    _norm(checkpoint, out, f"{to}.self_attn_layer_norm", f"{source}/self_attention/layer_norm")
    if source.startswith("decoder"):
        cross = f"{source}/attention"  # linear_0 queries, linear_1 keys and values
        _linear(checkpoint, out, f"{to}.encoder_attn.q_proj", f"{cross}/linear_0")
        _linear(checkpoint, out, f"{to}.encoder_attn.k_proj", f"{cross}/linear_1", q, bias=False)
        _linear(checkpoint, out, f"{to}.encoder_attn.v_proj", f"{cross}/linear_1", k)
        _linear(checkpoint, out, f"{to}.encoder_attn.out_proj", f"{cross}/linear_2")
        _norm(checkpoint, out, f"{to}.encoder_attn_layer_norm", f"{cross}/layer_norm")
    _linear(checkpoint, out, f"{to}.fc1", f"{source}/ffn/linear_0")
    _linear(checkpoint, out, f"{to}.fc2", f"{source}/ffn/linear_1")
    _norm(checkpoint, out, f"{to}.final_layer_norm", f"{source}/ffn/layer_norm")


def _linear(
    checkpoint: Checkpoint, out: Weights, to: str, source: str, rows: slice | None = None, *, bias: bool = True
) -> None:
    for kind in ("weight", "bias") if bias else ("weight",):
        tensor = _dense(checkpoint, f"{source}/{kind}")
        out[f"{to}.{kind}"] = tensor if rows is None else Tensor(tensor.data[rows], tensor.dtype)


def _norm(checkpoint: Checkpoint, out: Weights, to: str, source: str) -> None:
    out[f"{to}.weight"] = _dense(checkpoint, f"{source}/gamma")
    out[f"{to}.bias"] = _dense(checkpoint, f"{source}/beta")


def _dense(checkpoint: Checkpoint, name: str) -> Tensor:
    tensor = checkpoint.read(name)
    if not isinstance(tensor, Tensor) or not isinstance(tensor.data, np.ndarray):
        raise CheckpointError(f"{name} is not a dense tensor.")
    return tensor


def _two(checkpoint: Checkpoint, name: str) -> tuple[int, int]:
    shape = checkpoint.shape(name)
    if len(shape) != 2:
        raise CheckpointError(f"{name} has shape {list(shape)}, expected a matrix.")
    return shape[0], shape[1]
