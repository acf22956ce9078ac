"""What both backends share when they load a net: strict name checks and seeded random weights."""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor, Tensor
from izwi_lab.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def split(weights: Mapping[str, Tensor | AffineTensor]) -> tuple[dict[str, Tensor], dict[str, AffineTensor]]:
    """(dense, quantised). Each weight is asked for once: a mapping that reads as it goes need not hold them all."""
    dense: dict[str, Tensor] = {}
    affine: dict[str, AffineTensor] = {}
    for name, weight in weights.items():
        if isinstance(weight, AffineTensor):
            affine[name] = weight
        else:
            dense[name] = weight
    return dense, affine


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


def random_weight(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """A seeded random weight for `load_format="dummy"`: the same on every backend for the same name and seed.

    Matrices ~ N(0, 1/fan_in); norm scales (1-d "weight") near 1; biases near 0.
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(name.encode())]))
    values = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) > 1:
        values *= 1.0 / np.sqrt(max(1, int(np.prod(shape[1:]))))
    elif name.endswith("weight") and len(shape) == 1:
        values = 1.0 + 0.02 * values
    else:
        values = 0.02 * values
    return Tensor(values.astype(np.float32), "float32")
