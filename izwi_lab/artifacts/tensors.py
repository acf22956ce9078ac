"""Host tensors as checkpoints hold them: dense (any dtype, possibly mapped from disk) or affine-quantised.

Readers make them, backends turn them into native arrays. bfloat16 has no numpy dtype, so its bits travel as uint16.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

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
class AffineTensor:
    """A matrix [out, in] in affine groups along `in`: w = q * scale + bias, q unsigned of `bits` bits (4 or 8).

    q: uint32 [out, in * bits / 32], first value in the lowest bits (the MLX packing); scales, biases: float32, or
    float16 where that is exact, [out, in / group_size]. GGUF Q4_0, Q4_1 and Q8_0 map onto it exactly, as do 4 and
    8 bit MLX checkpoints.
    """

    q: np.ndarray
    scales: np.ndarray
    biases: np.ndarray
    bits: int
    group_size: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the matrix it stands for: [out, in]."""
        return (self.q.shape[0], self.q.shape[1] * 32 // self.bits)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, scales and biases."""
        return int(self.q.nbytes + self.scales.nbytes + self.biases.nbytes)

    def codes(self) -> np.ndarray:
        """The codes unpacked: uint8 [out, in]."""
        if self.bits == 8:
            return np.ascontiguousarray(self.q).view(np.uint8).reshape(self.shape)
        pair = np.ascontiguousarray(self.q).view(np.uint8)
        return np.stack([pair & 15, pair >> 4], axis=-1).reshape(self.shape)

    def float32(self) -> np.ndarray:
        """The dense matrix, float32 [out, in]."""
        out, width = self.shape
        groups = self.codes().reshape(out, width // self.group_size, self.group_size).astype(np.float32)
        dense: np.ndarray = (groups * self.scales[..., None] + self.biases[..., None]).reshape(out, width)
        return dense
