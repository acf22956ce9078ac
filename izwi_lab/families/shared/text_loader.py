"""Loading of text families, made once: from an official folder, MLX's, a GGUF file or nothing, to a TextModel.

A family says in a TextFamily what is its own: how to read its configuration and what its weights are called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from izwi_lab.artifacts.checkpoint import Checkpoint, open_checkpoint
from izwi_lab.backends import host
from izwi_lab.backends.base import Backend, BackendPlan
from izwi_lab.catalog.variant import Layout, ModelVariant
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.protocols import FamilyLoader
from izwi_lab.families.shared import text_processor
from izwi_lab.families.shared.dummy_weights import dummy_weights
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.text_model import TextModel
from izwi_lab.families.shared.text_processor import TextProcessor
from izwi_lab.families.shared.weights import Renamed, Rule, Weight

_NET = "izwi_lab.families.shared.nets.decoder"


class FolderRules(Protocol):
    """Rules for the names of a safetensors folder. mlx: its convolutions have MLX's axes."""

    def __call__(self, config: DecoderConfig, *, mlx: bool) -> Sequence[Rule]:
        """See the class."""


@dataclass(frozen=True, slots=True)
class TextFamily:
    """What differs between text families.

    from_hf: config.json -> DecoderConfig. from_gguf: an opened GGUF file -> DecoderConfig. Both raise CheckpointError
    on another model. stops: names of the control tokens that end an answer, beside those that the checkpoint lists
    (a GGUF file names only one or two of them).
    """

    name: str
    from_hf: Callable[[Mapping[str, Any]], DecoderConfig]
    hf_rules: FolderRules
    from_gguf: Callable[[Checkpoint], DecoderConfig]
    gguf_rules: Callable[[DecoderConfig], Sequence[Rule]]
    stops: tuple[str, ...] = ()


def loader(family: TextFamily) -> FamilyLoader:
    """`load` of a family; see families.protocols.FamilyLoader. Layouts: gguf, hf, mlx."""

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
            return _dummy(family, variant, plan, backend)
        if folder is None:
            raise InvalidInputError(f"{variant.id} needs its files to load.", hint="load_format='dummy' needs none.")
        checkpoint = open_checkpoint(folder, layout)
        try:
            config, rules, processor = _described(family, checkpoint, folder, layout)
            host.return_freed_memory()  # of building a tokenizer: beside the weights it would stay until the end
            return _built(variant, plan, backend, config, Renamed(checkpoint, rules), processor)
        finally:
            checkpoint.close()

    return load


def gguf_vocabulary(checkpoint: Checkpoint) -> tuple[int, bool]:
    """(tokens in the embedding, whether the head is tied to it) of a GGUF file."""
    return checkpoint.shape("token_embd.weight")[0], "output.weight" not in checkpoint.names


def _described(
    family: TextFamily, checkpoint: Checkpoint, folder: Path, layout: str
) -> tuple[DecoderConfig, Sequence[Rule], TextProcessor]:
    if layout == Layout.GGUF:
        config = family.from_gguf(checkpoint)
        path = getattr(checkpoint, "path", folder)
        processor = text_processor.from_gguf(path, checkpoint.config, stops=family.stops)
        return config, family.gguf_rules(config), processor
    if layout in (Layout.HF, Layout.MLX):
        config = family.from_hf(checkpoint.config)
        # mlx-lm marks the files it writes, so that unquantised ones are known by that.
        mlx = Layout.MLX in (layout, getattr(checkpoint, "metadata", {}).get("format"))
        processor = text_processor.from_folder(folder, checkpoint.config, stops=family.stops)
        return config, family.hf_rules(config, mlx=mlx), processor
    raise CheckpointError(f"{family.name} cannot be read from the layout {layout!r}.", hint="Expected gguf, hf or mlx.")


def _dummy(family: TextFamily, variant: ModelVariant, plan: BackendPlan, backend: Backend) -> TextModel:
    from izwi_lab import catalog

    values = catalog.config(variant)
    config = family.from_hf(values)
    weights = dummy_weights(config, values.get("quantization"))
    return _built(variant, plan, backend, config, weights, None)


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
