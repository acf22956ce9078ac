"""Attention patterns: who looks at whom, by layer and head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder.config import CONV
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.families.shared.text_model import Messages, TextModel
from izwi_lab.lab import plots
from izwi_lab.lab.labels import as_prompt, labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AttentionPatterns(Mapping[int, np.ndarray]):
    """Probabilities by layer, float32 [H, T, S]: row t is where position t looks, and sums to 1.

    S equals T; positions that a query cannot see (later ones, those behind a sliding window) have 0. tokens: labels of
    the T positions. Layers without attention (short convolutions) are not there.
    """

    patterns: Mapping[int, np.ndarray]
    tokens: tuple[str, ...]

    def __repr__(self) -> str:
        heads = next(iter(self.patterns.values())).shape[0]
        return f"AttentionPatterns({len(self.patterns)} layers, {heads} heads, {len(self.tokens)} tokens)"

    def __getitem__(self, layer: int) -> np.ndarray:
        return self.patterns[layer]

    def __iter__(self) -> Iterator[int]:
        return iter(self.patterns)

    def __len__(self) -> int:
        return len(self.patterns)

    def table(self, layer: int, *, head: int | None = None) -> Any:
        """A pandas DataFrame, queries down and keys along; the mean of all heads unless one is named."""
        shown = self._shown(layer, head)
        numbered = [f"{i} {token}" for i, token in enumerate(self.tokens)]
        return plots.pandas().DataFrame(shown, index=numbered, columns=numbered)

    def plot(self, layer: int, *, head: int | None = None) -> Figure:
        """One layer as an image; the mean of all heads unless one is named."""
        title = f"layer {layer}, {'mean of all heads' if head is None else f'head {head}'}"
        return plots.image(self._shown(layer, head), self.tokens, title=title)

    def _shown(self, layer: int, head: int | None) -> np.ndarray:
        if layer not in self.patterns:
            raise InvalidInputError(
                f"There is no pattern of layer {layer}.", hint=f"There are: {sorted(self.patterns)}."
            )
        heads = self.patterns[layer]
        if head is None:
            mean: np.ndarray = heads.mean(axis=0)
            return mean
        if not 0 <= head < len(heads):
            raise InvalidInputError(f"There is no head {head}.", hint=f"There are 0 to {len(heads) - 1}.")
        one: np.ndarray = heads[head]
        return one


def attention(
    model: TextModel, prompt: Messages | Prompt, *, layers: int | Sequence[int] | None = None
) -> AttentionPatterns:
    """Where each position of the prompt looks. layers: one, some, or all with attention where none is named.

    Each layer holds H * T * T float32: name layers for a long prompt.

    Raises:
        InvalidInputError: a layer that has no attention, or a prompt the model cannot read.

    >>> izwi.lab.attention(model, "The cat sat.", layers=[3]).plot(3)      # doctest: +SKIP
    """
    read = as_prompt(model, prompt)
    able = [i for i, kind in enumerate(model.config.layer_types) if kind != CONV]
    named = able if layers is None else [layers] if isinstance(layers, int) else layers
    fits = isinstance(named, Iterable) and all(isinstance(i, (int, np.integer)) and i in able for i in named)
    chosen = sorted({int(i) for i in named}) if fits else []
    if not chosen or isinstance(layers, bool):
        raise InvalidInputError(f"layers is {layers!r:.80}.", hint=f"Layers with attention: {able}.")
    with model.tap([_name(layer) for layer in chosen]) as acts:
        model.prefill(model.session(), read)
    T = len(read)
    return AttentionPatterns(
        {layer: _whole(acts.history[_name(layer)], T) for layer in chosen}, labels(model, read.ids)
    )


def _name(layer: int) -> str:
    return f"layers.{layer}.attn.pattern"


def _whole(pieces: Sequence[np.ndarray], T: int) -> np.ndarray:
    """Patterns [1, H, t, s] of the pieces that the prompt was read in -> [H, T, T].

    The last key of a piece is its last query; the first is the first key that its first query sees.
    """
    whole = np.zeros((pieces[0].shape[1], T, T), np.float32)
    stop = 0
    for piece in pieces:
        start, stop = stop, stop + piece.shape[2]
        whole[:, start:stop, stop - piece.shape[3] : stop] = piece[0]
    return whole
