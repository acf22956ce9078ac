"""MLX's affine quantisation: which tensors of a checkpoint form a quantised matrix, and exact unpacking of any bits.

A matrix X is stored as X.weight (uint32, codes packed along the row, first code in the lowest bits), X.scales and
X.biases; bits and group size are in config.json under "quantization", with per-module overrides keyed by module path.
Source: mlx 0.30 `mx.quantize`, mlx-lm 0.28 `utils.load_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor, Tensor, unpack_codes
from izwi_lab.errors import CheckpointError

_BITS = (2, 3, 4, 5, 6, 8)
_KEPT_BITS = (4, 5, 6, 8)  # what AffineTensor holds; the other widths are unpacked to dense
_KEPT_GROUPS = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Triplet:
    """The three tensors of a quantised matrix, by their names in the file."""

    codes: str
    scales: str
    biases: str
    bits: int
    group_size: int

    def dense_shape(self, packed: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the matrix from the shape of its codes."""
        return (*packed[:-1], packed[-1] * 32 // self.bits)

    def kept(self, packed: tuple[int, ...]) -> bool:
        """Whether it stays quantised, as an AffineTensor; other forms are unpacked to dense."""
        return self.bits in _KEPT_BITS and self.group_size in _KEPT_GROUPS and len(packed) == 2


def find_triplets(
    config: Mapping[str, Any], names: Collection[str], shape: Callable[[str], tuple[int, ...]]
) -> dict[str, Triplet]:
    """The quantised matrices among `names`, keyed by the name of their codes (X.weight); empty without quantisation.

    Raises:
        CheckpointError: a quantisation mode or bit width that MLX's affine form does not have, or shapes that do not
            fit the config.
    """
    table = config.get("quantization")
    if not isinstance(table, Mapping):
        return {}
    found = {}
    for name in names:
        module = name.removesuffix(".scales")
        codes, biases = f"{module}.weight", f"{module}.biases"
        if module == name or codes not in names:
            continue
        triplet = _triplet(module, _settings(module, table), has_biases=biases in names)
        _check_shapes(triplet, shape)
        found[codes] = triplet
    return found


def _settings(module: str, table: Mapping[str, Any]) -> Mapping[str, Any]:
    override = table.get(module)
    if not isinstance(override, Mapping):
        return table
    common = {k: table[k] for k in ("bits", "group_size", "mode") if k in table}
    return {**common, **override}


def _triplet(module: str, settings: Mapping[str, Any], *, has_biases: bool) -> Triplet:
    mode = settings.get("mode", "affine")
    if mode != "affine" or not has_biases:
        raise CheckpointError(
            f"{module} is quantised with mode {mode!r}{'' if has_biases else ' and has no biases'}.",
            hint="Only MLX's affine mode (weight, scales, biases) is supported; use an affine or unquantised model.",
        )
    bits, group_size = settings.get("bits", 4), settings.get("group_size", 64)
    if bits not in _BITS or type(group_size) is not int or group_size < 1:
        raise CheckpointError(
            f"{module} is quantised with bits={bits!r}, group_size={group_size!r}.",
            hint=f"Bits must be one of {_BITS} and group_size a positive whole number; check config.json.",
        )
    return Triplet(f"{module}.weight", f"{module}.scales", f"{module}.biases", bits, group_size)


def _check_shapes(triplet: Triplet, shape: Callable[[str], tuple[int, ...]]) -> None:
    packed, scales, biases = shape(triplet.codes), shape(triplet.scales), shape(triplet.biases)
    fits = len(packed) >= 2 and scales == biases and scales[:-1] == packed[:-1]
    if not fits or scales[-1] * triplet.group_size * triplet.bits != packed[-1] * 32:
        raise CheckpointError(
            f"{triplet.codes}: codes {list(packed)}, scales {list(scales)} and biases {list(biases)} do not fit "
            f"bits={triplet.bits} and group_size={triplet.group_size}.",
            hint="Check the quantization table of config.json.",
        )


def assemble(triplet: Triplet, codes: Tensor, scales: Tensor, biases: Tensor) -> Tensor | AffineTensor:
    """The matrix as AffineTensor (4, 5, 6 and 8 bits, rank 2, groups up to 128), else dense float32."""
    if codes.dtype != "uint32":
        raise CheckpointError(f"{triplet.codes} has dtype {codes.dtype}; quantised codes are uint32.")
    scale, bias = scales.float32(), biases.float32()
    if triplet.kept(codes.shape):
        return AffineTensor(codes.data, scale, bias, triplet.bits, triplet.group_size)
    values = unpack_codes(codes.data, triplet.bits)
    grouped = values.reshape(*scale.shape, triplet.group_size).astype(np.float32)
    return Tensor((grouped * scale[..., None] + bias[..., None]).reshape(values.shape), "float32")
