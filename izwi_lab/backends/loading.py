"""What both backends share when they load a net: strict name checks and seeded random weights."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from statistics import NormalDist

import numpy as np

from izwi_lab.artifacts.tensors import AffineRows, AffineTensor, Tensor
from izwi_lab.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
AFFINE_PARTS = (".q", ".scales", ".biases", ".expanded")  # of affine layers, which no checkpoint names
_PARTS = 1 << 15  # of half the normal distribution
_BLOCK = 1 << 20  # values from one stream of random numbers


class Unread:
    """Quantised weights by name, read when they are taken; `use_affine` takes each once."""

    def __init__(self, weights: Mapping[str, Tensor | AffineTensor], names: Sequence[str]) -> None:
        self._weights, self._names = weights, dict.fromkeys(names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def pop(self, name: str) -> AffineTensor:
        """Read it and forget the name."""
        del self._names[name]
        weight = self._weights[name]
        assert isinstance(weight, AffineTensor)
        return weight

    def pop_rows(self, name: str) -> AffineRows | AffineTensor:
        """As `pop`, but still in its file where it can be read in blocks of rows."""
        rows = getattr(self._weights, "affine_rows", None)
        found: AffineRows | None = None if rows is None else rows(name)
        if found is None:
            return self.pop(name)
        del self._names[name]
        return found


def split(weights: Mapping[str, Tensor | AffineTensor]) -> tuple[dict[str, Tensor], Unread]:
    """(dense, quantised). A mapping with `quantised` (names) has these read one at a time, so they need not all be
    held twice; of any other mapping each weight is asked for once.
    """
    named = getattr(weights, "quantised", None)
    if named is not None:
        return {n: w for n in weights if n not in named and isinstance(w := weights[n], Tensor)}, Unread(weights, named)
    held = dict(weights.items())
    dense = {n: w for n, w in held.items() if isinstance(w, Tensor)}
    return dense, Unread({n: w for n, w in held.items() if n not in dense}, [n for n in held if n not in dense])


def check_names(expected: Shapes, found: Shapes) -> None:
    """Raise CheckpointError with a table unless names and shapes agree exactly."""
    rows = [f"  missing     {n}  {list(s)}" for n, s in expected.items() if n not in found]
    rows += [f"  unexpected  {n}  {list(s)}" for n, s in found.items() if n not in expected]
    rows += [
        f"  shape       {n}  expected {list(s)}, found {list(found[n])}"
        for n, s in expected.items()
        if n in found and tuple(found[n]) != tuple(s)
    ]
    if rows:
        shown = "\n".join(rows[:40]) + (f"\n  … and {len(rows) - 40} more" if len(rows) > 40 else "")
        raise CheckpointError(
            f"The checkpoint does not match the net ({len(rows)} differences):\n{shown}\n",
            hint="Check that the config belongs to these weights.",
        )


def random_weight(name: str, shape: tuple[int, ...], seed: int, dtype: str = "float32") -> Tensor:
    """A seeded random weight for `load_format="dummy"`: the same on every backend for the same name, seed and dtype.

    Matrices ~ N(0, 1/fan_in), cut at four deviations; norm scales (1-d "weight") near 1; biases near 0. Values come in
    `dtype` as they are made, so that a full-size net is never held in float32 besides.
    """
    values = _normal_table()
    if len(shape) > 1:
        values = values * np.float32(1.0 / np.sqrt(max(1, int(np.prod(shape[1:])))))
    elif name.endswith("weight"):
        values = 1 + np.float32(0.02) * values
    else:
        values = np.float32(0.02) * values
    stored = "bfloat16" if dtype == "bfloat16" else dtype
    table = _bfloat16(values) if stored == "bfloat16" else values.astype(stored)
    out = np.empty(int(np.prod(shape)), table.dtype)
    for block, start in enumerate(range(0, len(out), _BLOCK)):
        part = out[start : start + _BLOCK]
        stream = np.random.Philox(key=[seed, zlib.crc32(name.encode())], counter=[0, 0, block, 0])
        np.take(table, stream.random_raw(-(-len(part) // 4)).view(np.uint16)[: len(part)], out=part, mode="clip")
    return Tensor(out.reshape(shape), stored)


@cache
def _normal_table() -> np.ndarray:
    """The middles of 65536 equal parts of the normal distribution, float32: a random 16-bit number picks one."""
    middle = NormalDist().inv_cdf
    half = np.asarray([middle((i + 0.5) / (2 * _PARTS)) for i in range(_PARTS, 2 * _PARTS)], np.float32)
    return np.concatenate([-half[::-1], half])


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest bfloat16, as its bits: uint16."""
    bits = values.view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded
