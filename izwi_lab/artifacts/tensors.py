"""Host tensors as checkpoints hold them: dense (any dtype, possibly mapped from disk) or affine-quantised.

Readers make them, backends turn them into native arrays. bfloat16 has no numpy dtype, so its bits travel as uint16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

STEP_COLUMNS = 256  # columns that share a float16 step: ggml QK_K
DTYPE_BYTES = {
    "float32": 4,
    "float16": 2,
    "bfloat16": 2,
    "float64": 8,
    "int64": 8,
    "int32": 4,
    "int16": 2,
    "int8": 1,
    "uint8": 1,
    "uint16": 2,
    "uint32": 4,
    "uint64": 8,
    "bool": 1,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A dense tensor. `data` has the stored shape; for dtype "bfloat16" it is the uint16 bit pattern."""

    data: np.ndarray
    dtype: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape in elements."""
        return self.data.shape

    @property
    def nbytes(self) -> int:
        """Bytes as stored."""
        return int(self.data.nbytes)

    def float32(self) -> np.ndarray:
        """The values as float32 (a view when they already are)."""
        if self.dtype == "bfloat16":
            return (self.data.astype(np.uint32) << 16).view(np.float32)
        return self.data.astype(np.float32, copy=False)

    @staticmethod
    def of(array: np.ndarray) -> Tensor:
        """Wrap a numpy array of a plain dtype."""
        return Tensor(array, str(array.dtype))


@dataclass(frozen=True, slots=True)
class Steps:
    """Small integers times float16 steps, exactly: value[n, g] = ints[n, g] * steps[n, g * group / STEP_COLUMNS].

    ints: int8 [out, in / group]; steps: float16 [out, in / STEP_COLUMNS]. How K-quants store scales: 10 bits a group
    in place of 32.
    """

    ints: np.ndarray
    steps: np.ndarray

    def float32(self) -> np.ndarray:
        """The values, float32 [out, in / group]: 11 bits times 7 are exact."""
        groups = self.ints.reshape(*self.steps.shape, -1).astype(np.float32)
        values: np.ndarray = (groups * self.steps.astype(np.float32)[..., None]).reshape(self.ints.shape)
        return values

    def rows(self, index: np.ndarray | slice) -> Steps:
        """Some of the rows."""
        return Steps(self.ints[index], self.steps[index])


@dataclass(frozen=True, slots=True)
class AffineTensor:
    """A matrix [out, in] in affine groups along `in`: w = q * scale + bias, q unsigned of `bits` bits (4, 5, 6 or 8).

    q: uint32 [out, in * bits / 32], a bit stream along the row, first value in the lowest bits (the MLX packing; codes
    of 5 and 6 bits straddle words); scales, biases: float32, or float16 where that is exact, [out, in / group_size],
    groups of 16, 32, 64 or 128. scale_steps, bias_steps: the same values taken apart, where the checkpoint does; a
    matrix has none, the first alone (biases are then -2^(bits - 1) * scale), or both.
    GGUF Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K and Q6_K map onto it exactly, as do MLX checkpoints of these widths.
    """

    q: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int
    group_size: int
    scale_steps: Steps | None = None
    bias_steps: Steps | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix it stands for: [out, in]."""
        return (self.q.shape[0], self.q.shape[1] * 32 // self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and biases."""
        return int(self.q.nbytes + self.scales.nbytes + self.biases.nbytes)

    def rows(self, index: np.ndarray | slice) -> AffineTensor:
        """Some of the rows, in the order of `index`."""
        return AffineTensor(
            self.q[index],
            self.scales[index],
            self.biases[index],
            self.bits,
            self.group_size,
            self.scale_steps and self.scale_steps.rows(index),
            self.bias_steps and self.bias_steps.rows(index),
        )

    def whole(self) -> AffineTensor:
        """Itself; see AffineRows.whole."""
        return self

    def codes(self) -> np.ndarray:
        """The codes unpacked: uint8 [out, in]."""
        return unpack_codes(self.q, self.bits)

    def float32(self) -> np.ndarray:
        """The dense matrix, float32 [out, in]."""
        out, width = self.shape
        groups = self.codes().reshape(out, width // self.group_size, self.group_size).astype(np.float32)
        groups *= self.scales[..., None].astype(np.float32)
        groups += self.biases[..., None].astype(np.float32)
        return groups.reshape(out, width)


@dataclass(frozen=True, slots=True)
class AffineRows:
    """A matrix still in its file, for those who lay it out anew: read in blocks of rows, it is never held twice.

    read: rows from a number to another -> their AffineTensor. Valid while the checkpoint is open.
    """

    shape: tuple[int, int]
    bits: int
    group_size: int
    read: Callable[[int, int], AffineTensor]

    def rows(self, block: slice) -> AffineTensor:
        """Some of the rows. The types of scales and biases are the narrowest that are exact for this block."""
        start, stop, _ = block.indices(self.shape[0])
        return self.read(start, stop)

    def whole(self) -> AffineTensor:
        """All of it."""
        return self.read(0, self.shape[0])


def unpack_codes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Codes of 1 to 8 bits from a bit stream along the last axis: uint32 [..., n] -> uint8 [..., n * 32 / bits]."""
    stream = np.ascontiguousarray(packed).view(np.uint8)
    if bits == 8:
        return stream
    if bits == 4:
        return np.stack([stream & 15, stream >> 4], axis=-1).reshape(*packed.shape[:-1], -1)
    # Eight codes are `bits` bytes: they fit a 64-bit word.
    eights = np.zeros((*packed.shape[:-1], stream.shape[-1] // bits, 8), np.uint8)
    eights[..., :bits] = stream.reshape(*eights.shape[:-1], bits)
    words = eights.view("<u8")
    codes: np.ndarray = np.empty(eights.shape, np.uint8)
    for i in range(8):
        codes[..., i] = (words[..., 0] >> np.uint64(i * bits)) & np.uint64((1 << bits) - 1)
    return codes.reshape(*packed.shape[:-1], -1)


def pack_codes(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes uint8 [..., in] to a bit stream along the last axis: uint32 [..., in * bits / 32]; in: multiple of 32."""
    if bits == 8:
        return np.ascontiguousarray(codes).view("<u4")
    if bits == 4:
        pairs = np.ascontiguousarray(codes).view("<u2")
        return np.ascontiguousarray((pairs | (pairs >> 4)).astype(np.uint8)).view("<u4")
    eights = codes.reshape(*codes.shape[:-1], -1, 8)
    words = np.zeros(eights.shape[:-1], "<u8")
    for i in range(8):
        words |= eights[..., i].astype("<u8") << np.uint64(i * bits)
    stream = words[..., None].view(np.uint8)[..., :bits]
    return np.ascontiguousarray(stream.reshape(*codes.shape[:-1], -1)).view("<u4")
