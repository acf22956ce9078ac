"""A GGUF starter model as a folder of MLX weights, code for code, for programs that read no GGUF."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from izwi_lab import artifacts, catalog
from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.artifacts.gguf_tokenizer import gguf_tokenizer
from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.families.llama import config as configs
from izwi_lab.families.llama.weights import gguf_rules
from izwi_lab.families.shared.weights import Renamed


def write(variant: ModelVariant, folder: Path, *, dtype: str) -> Path:
    """Write config.json, model.safetensors and the tokenizer of a Llama-shaped variant. dtype: of all floats."""
    local = artifacts.fetch(variant)
    checkpoint = open_checkpoint(local.folder, str(local.layout))
    official = dict(catalog.config(variant))
    tensors: dict[str, np.ndarray] = {}
    packings: dict[str, dict[str, int]] = {}
    for name, weight in Renamed(checkpoint, gguf_rules(configs.from_hf(official))).items():
        if isinstance(weight, AffineTensor):
            module = name.removesuffix(".weight")
            packings[module] = {"bits": weight.bits, "group_size": weight.group_size}
            tensors |= {name: np.ascontiguousarray(weight.q)}
            tensors |= {
                f"{module}.scales": weight.scales.astype(dtype),
                f"{module}.biases": weight.biases.astype(dtype),
            }
        else:
            tensors[name] = np.ascontiguousarray(weight.float32().astype(dtype))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "mlx"})
    config: dict[str, Any] = {**official, "quantization": {"bits": 4, "group_size": 32, **packings}}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    tokenizer = gguf_tokenizer(next(local.folder.glob("*.gguf")), checkpoint.config)
    tokenizer.save(str(folder / "tokenizer.json"))
    end = tokenizer.id_to_token(int(checkpoint.config["tokenizer.ggml.eos_token_id"]))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end}
    (folder / "tokenizer_config.json").write_text(json.dumps(about), encoding="utf-8")
    checkpoint.close()
    return folder
