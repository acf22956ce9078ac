"""Logit lens: what the model would say if it stopped after each layer (nostalgebraist, "interpreting GPT", 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.steps import Prompt
from izwi_lab.families.shared.text_model import Messages, TextModel
from izwi_lab.lab import plots
from izwi_lab.lab.labels import as_prompt, labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_AT_ONCE = 1 << 24  # logits held at a time, of one layer


@dataclass(frozen=True, slots=True)
class LensToken:
    """A token that a layer would say next."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class LogitLens:
    """The k likeliest next tokens by layer and position.

    layers: "embed", "layers.0" … and "norm", which is what the model says. positions: those of the prompt, [P];
    tokens: what stands there. ids int32, probabilities float32: [layers, P, k], likeliest first. texts: labels by id.
    """

    layers: tuple[str, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    ids: np.ndarray
    probabilities: np.ndarray
    texts: dict[int, str]

    def __repr__(self) -> str:
        said = self.top("norm", self.positions[-1])[0]
        return f"LogitLens({len(self.layers)} layers, {len(self.positions)} positions, says {said.text!r})"

    def top(self, layer: str, position: int = -1) -> list[LensToken]:
        """What `layer` would say after `position` of the prompt; -1 is the last one looked at."""
        if layer not in self.layers:
            raise InvalidInputError(f"There is no layer {layer!r}.", hint=f"Layers: {', '.join(self.layers)}.")
        if position != -1 and position not in self.positions:
            raise InvalidInputError(f"Position {position} was not looked at.", hint=f"Looked at: {self.positions}.")
        row, column = self.layers.index(layer), -1 if position == -1 else self.positions.index(position)
        found = zip(self.ids[row, column], self.probabilities[row, column], strict=True)
        return [LensToken(int(i), self.texts[int(i)], float(p)) for i, p in found]

    def table(self) -> Any:
        """A pandas DataFrame, a row per layer: the k tokens of one position, or the likeliest of each position."""
        pandas = plots.pandas()
        shown = [[self._cells(row, column) for column in range(len(self.positions))] for row in range(len(self.layers))]
        if len(self.positions) == 1:
            columns = [f"{rank + 1}" for rank in range(self.ids.shape[2])]
            return pandas.DataFrame([cells[0] for cells in shown], index=list(self.layers), columns=columns)
        columns = [f"{at} {token}" for at, token in zip(self.positions, self.tokens, strict=True)]
        return pandas.DataFrame([[c[0] for c in cells] for cells in shown], index=list(self.layers), columns=columns)

    def plot(self) -> Figure:
        """Layers up, positions along, the likeliest token in each cell, coloured by its probability."""
        best = [[self.texts[int(i)] for i in row] for row in self.ids[:, :, 0]]
        return plots.grid(
            self.probabilities[:, :, 0], best, rows=self.layers, columns=self.tokens, label="probability of the token"
        )

    def _cells(self, row: int, column: int) -> list[str]:
        found = zip(self.ids[row, column], self.probabilities[row, column], strict=True)
        return [f"{self.texts[int(i)]} {p:.0%}" for i, p in found]


def logit_lens(
    model: TextModel, prompt: Messages | Prompt, *, k: int = 5, positions: str | Sequence[int] = "last"
) -> LogitLens:
    """Read every layer's residual stream through the last norm and the head.

    k: tokens kept. positions: "last", "all", or places in the prompt. Reading costs the head once per layer and
    position.

    Raises:
        InvalidInputError: a k or a position that there is not, or a prompt the model cannot read.

    >>> izwi.lab.logit_lens(model, "The capital of France is").table()      # doctest: +SKIP
    """
    read = as_prompt(model, prompt)
    if not 1 <= k <= model.config.vocab_size:
        raise InvalidInputError(f"k is {k}.", hint=f"Expected 1 to {model.config.vocab_size}.")
    at = _places(positions, len(read))
    last = model.config.num_layers
    names = ("embed", *(f"layers.{i}" for i in range(last)), "norm")
    with model.tap(names) as acts:
        model.prefill(model.session(), read)
    streams = [np.concatenate(acts.history[name], axis=1)[0, list(at)] for name in names]
    found = [_likeliest(model, stream, k, normed=name == "norm") for name, stream in zip(names, streams, strict=True)]
    ids = np.stack([i for i, _ in found])
    kept = sorted(set(ids.ravel().tolist()))
    here = labels(model, read.ids[list(at)])
    texts = dict(zip(kept, labels(model, kept), strict=True))
    return LogitLens(names, at, here, ids, np.stack([p for _, p in found]), texts)


def _places(positions: str | Sequence[int], length: int) -> tuple[int, ...]:
    if isinstance(positions, str):
        if positions not in ("last", "all"):
            raise InvalidInputError(f"positions is {positions!r}.", hint="Expected 'last', 'all' or a list of numbers.")
        return (length - 1,) if positions == "last" else tuple(range(length))
    wrong = [p for p in positions if not -length <= p < length]
    if wrong or not len(positions):
        raise InvalidInputError(f"positions holds {wrong or 'nothing'}.", hint=f"The prompt has {length} ids.")
    return tuple(int(p) % length for p in positions)


def _likeliest(model: TextModel, stream: np.ndarray, k: int, *, normed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Stream [P, D] -> ids int32 [P, k] and probabilities float32 [P, k]; not all logits are held at once."""
    step = max(1, _AT_ONCE // model.config.vocab_size)
    ids, probabilities = [], []
    for start in range(0, len(stream), step):
        logits = model.read_out(stream[start : start + step], normed=normed)
        some = np.argpartition(logits, -k, axis=-1)[:, -k:]
        values = np.take_along_axis(logits, some, axis=-1)
        order = np.argsort(-values, axis=-1, kind="stable")
        peak = logits.max(axis=-1, keepdims=True)
        total = np.exp(logits - peak).sum(axis=-1, keepdims=True, dtype=np.float64)
        ids.append(np.take_along_axis(some, order, axis=-1).astype(np.int32))
        probabilities.append((np.exp(np.take_along_axis(values, order, axis=-1) - peak) / total).astype(np.float32))
    return np.concatenate(ids), np.concatenate(probabilities)
