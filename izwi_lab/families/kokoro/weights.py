"""Kokoro's weights: from either layout to the net's own names, converted once, mapped afterwards.

The official checkpoint holds five state dicts, each under `module.`, with weight norm as g and v; the int8 export holds
the products. Both become plain `weight`s here: w = g * v / |v| over every axis but the first.

The converted file holds what the plan computes in: bfloat16 where it multiplies in bfloat16 (the very rounding that
the load would do), else float32, which is exact for both layouts. What shapes durations and pitch is float32 always.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab import catalog
from izwi_lab.artifacts.checkpoint import Checkpoint, open_checkpoint
from izwi_lab.artifacts.converted import converted
from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import CheckpointError

# Durations are rounded to frames and the pitch is summed into a phase: a small error there is heard, and the parts that
# make them are a twentieth of the work. The small ones below cost nothing wide.
KEEP_FLOAT32 = (
    "bert.*",
    "bert_encoder.*",
    "predictor.*",
    "text_encoder.*",
    "*.bias",
    "*.fc.weight",
    "*.alpha?.*",
    "*.pool.weight",
    "decoder.F0_conv.*",
    "decoder.N_conv.*",
    "decoder.generator.m_source.*",
    "decoder.generator.noise_convs.*",
    "decoder.generator.conv_post.*",
)
_UNUSED = re.compile(r"bert\.pooler\.|\.position_ids$|\.norm\.(weight|bias)$")
_FORMAT = 1


def load(folder: Path, layout: str, dtype: str) -> Checkpoint:
    """The weights in `folder` under the net's names, from the converted file (made on the first call)."""
    pattern = "*.pth" if layout == "kokoro_torch" else "kokoro*.onnx"
    sources = sorted(folder.glob(pattern))
    if not sources:
        raise CheckpointError(f"No {pattern} in {folder}.", hint="Fetch the model again, or give its folder.")
    stored = dtype if dtype == "bfloat16" else "float32"

    def build() -> dict[str, Tensor | AffineTensor]:
        raw = open_checkpoint(folder, layout)
        try:
            return {name: _stored(name, tensor, stored) for name, tensor in canonical(raw).items()}
        finally:
            raw.close()

    return converted(sources, f"kokoro-{stored}-v{_FORMAT}", build)


def config_values(folder: Path, variant: ModelVariant) -> Mapping[str, Any]:
    """config.json of the folder; the export comes without one, and then the catalog's copy of the official one."""
    path = folder / "config.json"
    if not path.is_file():
        return catalog.config(variant)
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}.", hint="Fetch the model again.") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no object.", hint="Fetch the model again.")
    return values


def canonical(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Every tensor of an opened checkpoint under the net's name, float32, weight norm folded."""
    found: dict[str, np.ndarray] = {}
    for name in checkpoint.names:
        short = name.replace(".module.", ".", 1)
        tensor = checkpoint.read(name)
        if _UNUSED.search(short):
            _check_identity(short, tensor)
        else:
            found[short] = tensor.float32()
    return {name: Tensor(value, "float32") for name, value in fold(found).items()}


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Multiply out weight norm: X.weight_g and X.weight_v become X.weight. Rows whose v is zero stay zero."""
    out: dict[str, np.ndarray] = {}
    for name, value in tensors.items():
        if name.endswith(".weight_g"):
            continue
        if not name.endswith(".weight_v"):
            out[name] = value
            continue
        base = name.removesuffix("_v")
        if base + "_g" not in tensors:
            raise CheckpointError(f"{name} has no {base}_g.", hint="Fetch the checkpoint again.")
        norm = np.sqrt(np.sum(value.astype(np.float64) ** 2, axis=tuple(range(1, value.ndim)), keepdims=True))
        scale = tensors[base + "_g"].reshape(norm.shape) / np.where(norm == 0, 1, norm)
        out[base] = np.asarray(value * scale, np.float32)
    return out


def _check_identity(name: str, tensor: Tensor | AffineTensor) -> None:
    """Instance norms have no scale and shift upstream; a checkpoint that trained some would need another net."""
    if ".norm." in name and not np.all(tensor.float32() == (1.0 if name.endswith("weight") else 0.0)):
        raise CheckpointError(f"{name} is not the identity, which this net takes it for.", hint="Use Kokoro v1.0.")


def _stored(name: str, tensor: Tensor, dtype: str) -> Tensor:
    if dtype == "float32" or any(fnmatch.fnmatchcase(name, p) for p in KEEP_FLOAT32):
        return Tensor(np.ascontiguousarray(tensor.data), "float32")
    bits = np.ascontiguousarray(tensor.data).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16  # to nearest, ties to even, as torch rounds
    return Tensor(rounded.astype(np.uint16), "bfloat16")
