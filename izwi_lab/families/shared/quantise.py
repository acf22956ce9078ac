"""Quantisation of a loaded text model: its matrices in affine groups, everything else shared with the dense one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping

from izwi_lab.artifacts.quantise import affine, check_form
from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.backends.base import Backend, Net
from izwi_lab.backends.loading import AFFINE_PARTS
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.text_model import TextModel

_NET = "izwi_lab.families.shared.nets.decoder"


def quantize(model: TextModel, *, bits: int = 4, group_size: int = 64) -> TextModel:
    """The same text model with its matrices in affine groups, as `mx.quantize` makes them; `model` stays as it is.

    Every Linear and the embedding whose width is a multiple of the group size are quantised; norms and convolutions
    stay. Serves any dense text model on either backend, random ones too.

    Args:
        model: from `load`, dense.
        bits: 4, 5, 6 or 8.
        group_size: columns that share a scale: 32, 64 or 128.

    Raises:
        InvalidInputError: not a text model, one that is quantised already, or no matrix has whole groups.

    >>> small = izwi.quantize(izwi.load("Qwen3-0.6B"), bits=4)      # doctest: +SKIP
    """
    check_form(bits, group_size)
    if not isinstance(model, TextModel):
        raise InvalidInputError(f"quantize takes a text model, got {type(model).__name__}.", hint="Load a chat model.")
    if model.net is None:
        raise InvalidInputError(f"{model.variant.id} was closed.", hint="Load it again.")
    shapes = model.backend.parameters(model.net)
    if any(name.endswith(AFFINE_PARTS) for name in shapes):
        raise InvalidInputError(
            f"{model.variant.id} is quantised already.", hint="Quantise a dense model, such as the official bf16 one."
        )
    chosen = {n for n, s in shapes.items() if len(s) == 2 and n.endswith(".weight") and s[1] % group_size == 0}
    if not chosen:
        widths = sorted({s[1] for s in shapes.values() if len(s) == 2})
        raise InvalidInputError(
            f"No matrix of {model.variant.id} has whole groups of {group_size}; the widths are {widths}.",
            hint="Choose a smaller group size.",
        )
    weights = _Quantising(model.backend, model.net, shapes, chosen, bits, group_size)
    net = model.backend.net(_NET, "DecoderLM", model.config, weights)
    plan = dataclasses.replace(model.plan, quantisation=f"{bits}bit")
    return type(model)(model.variant, plan, model.backend, net, model.config, model.processor)


class _Quantising(Mapping[str, Tensor | AffineTensor]):
    """A net's weights by name; those in `quantised` are made when they are asked for, and not kept."""

    def __init__(
        self,
        backend: Backend,
        net: Net,
        shapes: Mapping[str, tuple[int, ...]],
        quantised: set[str],
        bits: int,
        group_size: int,
    ) -> None:
        self._backend, self._net, self._shapes = backend, net, shapes
        self._bits, self._group_size = bits, group_size
        self.quantised = tuple(n for n in shapes if n in quantised)

    def __getitem__(self, name: str) -> Tensor | AffineTensor:
        weight = self._backend.weight(self._net, name)
        return affine(weight, bits=self._bits, group_size=self._group_size) if name in self.quantised else weight

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
