"""Affine quantisation of a dense matrix, value for value as MLX's `mx.quantize` does it.

Of each group the end of larger magnitude is exact: bias is that end, and the scale is made to put zero on a code.
Source: mlx 0.32 `affine_quantize` (mlx/backend/cpu/quantized.cpp), computed in float32.
"""

from __future__ import annotations

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor, Tensor, pack_codes
from izwi_lab.errors import InvalidInputError

BITS, GROUPS = (4, 5, 6, 8), (32, 64, 128)
_LEAST_SCALE = np.float32(1e-7)
_BLOCK_VALUES = 1 << 20  # values quantised at once, to bound memory


def affine(weight: np.ndarray | Tensor, *, bits: int = 4, group_size: int = 64) -> AffineTensor:
    """A dense matrix as affine groups along its rows.

    Scales and biases are rounded to the weight's own dtype (float16, bfloat16), as MLX stores them; codes come from
    the unrounded ones. Then |w - w'| <= |scale| / 2, plus the rounding of scale and bias; a code at the far end of its
    group (0 or 2^bits - 1) may be cut off, by at most |scale| / 2 more.

    Args:
        weight: [out, in], float32, float16 or bfloat16 (a Tensor); `in` a multiple of group_size.
        bits: 4, 5, 6 or 8.
        group_size: 32, 64 or 128.

    Raises:
        InvalidInputError: another width, group or shape, or values that are not finite.

    >>> affine(np.eye(64, dtype=np.float32)).bits
    4
    """
    check_form(bits, group_size)
    dense = weight if isinstance(weight, Tensor) else Tensor.of(np.asarray(weight))
    if len(dense.shape) != 2 or dense.shape[1] % group_size:
        raise InvalidInputError(
            f"A weight of shape {list(dense.shape)} has no whole groups of {group_size} along its rows.",
            hint="Expected a matrix [out, in] whose width is a multiple of the group size.",
        )
    out, width = dense.shape
    q = np.empty((out, width * bits // 32), np.uint32)
    stored = np.float16 if dense.dtype == "float16" else np.float32
    scales = np.empty((out, width // group_size), stored)
    biases = np.empty_like(scales)
    step = max(1, _BLOCK_VALUES // width)
    for start in range(0, out, step):
        rows = slice(start, min(start + step, out))
        values = Tensor(dense.data[rows], dense.dtype).float32()
        codes, scale, bias = _quantised(values.reshape(len(values), -1, group_size), bits)
        q[rows] = pack_codes(codes.reshape(values.shape), bits)
        scales[rows], biases[rows] = (_bfloat16(scale), _bfloat16(bias)) if dense.dtype == "bfloat16" else (scale, bias)
    return AffineTensor(q, scales, biases, bits, group_size)


def check_form(bits: int, group_size: int) -> None:
    """Raise InvalidInputError unless `affine` has this width and group size."""
    if bits not in BITS or group_size not in GROUPS:
        raise InvalidInputError(
            f"There is no quantisation to bits={bits!r}, group_size={group_size!r}.",
            hint=f"Bits are one of {BITS}, group sizes one of {GROUPS}.",
        )


def _quantised(groups: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Codes uint8 [rows, G, group], scales and biases float32 [rows, G], of values [rows, G, group]."""
    most = np.float32((1 << bits) - 1)
    low, high = groups.min(-1), groups.max(-1)
    if not (np.isfinite(low).all() and np.isfinite(high).all()):
        raise InvalidInputError("The weight holds values that are not finite.", hint="Check the checkpoint.")
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / most, _LEAST_SCALE)
    scale = np.where(below, scale, -scale)
    edge = np.where(below, low, high)
    steps = np.rint(edge / scale)  # the code of zero
    none = steps == 0
    scale = np.where(none, scale, edge / np.where(none, np.float32(1), steps))
    bias = np.where(none, np.float32(0), edge)
    codes = np.rint((groups - bias[..., None]) / scale[..., None])
    return np.clip(codes, 0, most).astype(np.uint8), scale, bias


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """Float32 rounded to the nearest bfloat16, still as float32."""
    bits = values.view(np.uint32)
    rounded: np.ndarray = ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
