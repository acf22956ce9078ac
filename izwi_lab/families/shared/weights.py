"""From a checkpoint's names to a net's: an ordered table of rules, applied as the weights are read."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from izwi_lab.artifacts.checkpoint import Checkpoint
from izwi_lab.artifacts.tensors import AffineRows, AffineTensor, Tensor

Weight = Tensor | AffineTensor


@dataclass(frozen=True, slots=True)
class Rule:
    r"""Names that match `pattern` wholly become `name` (with \1 and so on; None drops them), weights are changed."""

    pattern: str
    name: str | None
    change: Callable[[Weight], Weight] | None = None


class Renamed(Mapping[str, Weight]):
    """A checkpoint under a net's names. A weight is read each time it is asked for and not kept."""

    def __init__(self, checkpoint: Checkpoint, rules: Sequence[Rule]) -> None:
        """The first rule that matches a name holds; names without a rule keep theirs."""
        self._checkpoint = checkpoint
        self._sources: dict[str, tuple[str, Rule | None]] = {}
        for source in checkpoint.names:
            rule, name = _target(source, rules)
            if name is not None:
                self._sources[name] = (source, rule)

    @property
    def quantised(self) -> tuple[str, ...] | None:
        """Names of the weights that come as AffineTensor; None where the reader cannot tell without reading."""
        known = getattr(self._checkpoint, "quantised", None)
        return None if known is None else tuple(n for n, (source, _) in self._sources.items() if source in known)

    def __getitem__(self, name: str) -> Weight:
        source, rule = self._sources[name]
        weight = self._checkpoint.read(source)
        return rule.change(weight) if rule is not None and rule.change is not None else weight

    def affine_rows(self, name: str) -> AffineRows | None:
        """A quantised weight to be read in blocks of rows; None where only `[]` gives it."""
        source, rule = self._sources[name]
        read = getattr(self._checkpoint, "affine_rows", None)
        if read is None or (rule is not None and rule.change is not None):
            return None
        found: AffineRows | None = read(source)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)


def _target(source: str, rules: Sequence[Rule]) -> tuple[Rule | None, str | None]:
    for rule in rules:
        if match := re.fullmatch(rule.pattern, source):
            return rule, None if rule.name is None else match.expand(rule.name)
    return None, source


def take_rows(weight: Weight, rows: np.ndarray) -> Weight:
    """Rows in another order, dense or quantised."""
    if isinstance(weight, Tensor):
        return Tensor(weight.data[rows], weight.dtype)
    return weight.rows(rows)


def half_split_rows(heads: int, head_dim: int) -> np.ndarray:
    """Row order that turns interleaved rotary pairs (llama.cpp, Mistral) into halves (Hugging Face)."""
    return np.arange(heads * head_dim).reshape(heads, head_dim // 2, 2).swapaxes(1, 2).reshape(-1)
