"""Llama-shaped chat models (SmolLM2): from a GGUF file, an official folder, or random weights, to a TextModel.

The verbs and their shapes are in `families/shared/text_model.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from izwi_lab.artifacts.checkpoint import Checkpoint, open_checkpoint
from izwi_lab.backends.base import Backend, BackendPlan
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.llama import config as configs
from izwi_lab.families.llama.weights import gguf_rules, hf_rules
from izwi_lab.families.shared import text_processor
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.families.shared.text_processor import TextProcessor
from izwi_lab.families.shared.weights import Renamed, Weight

_NET = "izwi_lab.families.shared.nets.decoder"


def load(
    variant: ModelVariant,
    folder: Path | None,
    plan: BackendPlan,
    backend: Backend,
    *,
    layout: str,
    load_format: str = "auto",
) -> TextModel:
    """See families.protocols.FamilyLoader. Layouts: gguf, hf, mlx.

    Raises:
        CheckpointError: files missing, damaged, or of another kind of model.
    """
    if load_format == "dummy":
        from izwi_lab import catalog

        return _built(variant, plan, backend, configs.from_hf(catalog.config(variant)), None, None)
    if folder is None:
        raise InvalidInputError(f"{variant.id} needs its files to load.", hint="load_format='dummy' needs none.")
    checkpoint = open_checkpoint(folder, layout)
    try:
        if layout == Layout.GGUF:
            shape = checkpoint.shape("token_embd.weight")
            tied = "output.weight" not in checkpoint.names
            config = configs.from_gguf(
                checkpoint.config, vocab_size=shape[0], tied=tied, rope_factors=_rope_factors(checkpoint)
            )
            weights = Renamed(checkpoint, gguf_rules(config))
            path = getattr(checkpoint, "path", folder)
            processor = text_processor.from_gguf(path, checkpoint.config)
        elif layout in (Layout.HF, Layout.MLX):
            config = configs.from_hf(checkpoint.config)
            weights = Renamed(checkpoint, hf_rules(config))
            processor = text_processor.from_folder(folder, checkpoint.config)
        else:
            raise CheckpointError(f"llama cannot be read from the layout {layout!r}.", hint="Expected gguf, hf or mlx.")
        return _built(variant, plan, backend, config, weights, processor)
    finally:
        checkpoint.close()


def _rope_factors(checkpoint: Checkpoint) -> list[float]:
    name = "rope_freqs.weight"
    if name not in checkpoint.names:
        return []
    weight = checkpoint.read(name)
    return [float(f) for f in weight.float32().ravel()]


def _built(
    variant: ModelVariant,
    plan: BackendPlan,
    backend: Backend,
    config: DecoderConfig,
    weights: Mapping[str, Weight] | None,
    processor: TextProcessor | None,
) -> TextModel:
    net = backend.net(_NET, "DecoderLM", config, weights)
    return TextModel(variant, plan, backend, net, config, processor)
