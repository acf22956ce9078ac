"""The blocks of ggml's quantised types as affine groups, exactly: 4, 5, 6 and 8 bit codes with their scales.

Layouts: ggml-common.h and ggml-quants.c of llama.cpp b6000. Blocks of 32 become groups of 32; Q4_K and Q5_K (256
values, eight 6-bit scales) too; Q6_K (sixteen 8-bit scales) becomes groups of 16. Other types are expanded by the
`gguf` package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor, Steps, Tensor, pack_codes
from izwi_lab.errors import MissingExtraError

# codes (uint8, or packed uint32), and either scales and biases (None: around zero) or the integers and steps of the
# scales, then those of the biases
_Parts = (
    tuple[np.ndarray, np.ndarray, np.ndarray | None]
    | tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]
)
_ROWS_VALUES = 1 << 20  # values unpacked at once: what is needed in passing stays small


def affine(kind: str, raw: np.ndarray, shape: tuple[int, ...]) -> AffineTensor:
    """Blocks (uint8) of a matrix [..., out, in] as an AffineTensor [out, in]. kind: one of AFFINE."""
    bits, block, group, unpack = AFFINE[kind]
    out, width = math.prod(shape[:-1]), shape[-1]
    rows = raw.reshape(out, -1)
    per_row = rows.shape[1] * block // width  # bytes of a block
    q = np.empty((out, width * bits // 32), "<u4")
    heads = []
    step = max(1, _ROWS_VALUES // width)
    for start in range(0, out, step):
        codes, *head = unpack(rows[start : start + step].reshape(-1, per_row))
        q[start : start + step] = (
            pack_codes(codes.reshape(-1, width), bits) if codes.dtype == np.uint8 else (codes.reshape(-1, q.shape[1]))
        )
        heads.append(head)
    parts = [None if p[0] is None else np.concatenate(p).reshape(out, -1) for p in zip(*heads, strict=True)]
    if len(parts) == 2:
        scales, biases = parts
        assert scales is not None
        return AffineTensor(q, *_scaled(scales, biases, bits), bits, group)
    return _with_steps(q, parts, bits, group)


def expanded(raw: np.ndarray, type_id: int, shape: tuple[int, ...]) -> Tensor:
    """Blocks of any other type, dense float32.

    Raises:
        MissingExtraError: without the `gguf` package.
    """
    try:
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize
    except ImportError:
        raise MissingExtraError("gguf", "starter") from None
    rows = raw.reshape(*shape[:-1], -1)
    values = dequantize(rows, GGMLQuantizationType(type_id))
    return Tensor(np.asarray(values, np.float32).reshape(shape), "float32")


def _scaled(scales: np.ndarray, biases: np.ndarray | None, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """(scales, biases); None stands for -2^(bits - 1) * scale, float16 where that is exact, else float32."""
    if biases is not None:
        return scales, biases
    wide = scales.astype(np.float32) * np.float32(-(1 << (bits - 1)))
    with np.errstate(over="ignore"):
        narrow = wide.astype(np.float16)
    if np.array_equal(narrow.astype(np.float32), wide):
        return scales, narrow
    return scales.astype(np.float32), wide


def _with_steps(q: np.ndarray, parts: list[np.ndarray | None], bits: int, group: int) -> AffineTensor:
    ints, steps, bias_ints, bias_steps = parts
    assert ints is not None and steps is not None
    scale = Steps(ints, steps)
    scales = scale.float32()
    if bias_ints is None or bias_steps is None:
        return AffineTensor(q, scales, scales * np.float32(-(1 << (bits - 1))), bits, group, scale)
    bias = Steps(bias_ints, bias_steps)
    return AffineTensor(q, scales, bias.float32(), bits, group, scale, bias)


def _half(blocks: np.ndarray, start: int, count: int = 1) -> np.ndarray:
    """`count` float16 of every block: [blocks, count]."""
    return np.ascontiguousarray(blocks[:, start : start + 2 * count]).view("<f2")


def _nibbles(blocks: np.ndarray) -> np.ndarray:
    """Ggml's order (low halves are values 0-15, high halves 16-31) to ours: uint8 [n, 16] -> uint32 [n, 4]."""
    words = np.ascontiguousarray(blocks).view("<u8")  # [n, 2]: sixteen nibble pairs
    low, high = words & 0x0F0F0F0F0F0F0F0F, (words >> 4) & 0x0F0F0F0F0F0F0F0F
    out = np.empty((len(words), 4), "<u4")
    for at, part in ((0, low), (2, high)):
        pairs = part | (part >> 4)  # bytes 0, 2, 4, 6 now hold two neighbours each
        pairs &= 0x00FF00FF00FF00FF
        pairs |= pairs >> 8
        pairs &= 0x0000FFFF0000FFFF
        pairs |= pairs >> 16
        out[:, at : at + 2] = pairs.astype("<u4")  # the lower 32 bits
    return out


def _halves(low: np.ndarray) -> np.ndarray:
    """Nibble pairs uint8 [n, c] as codes uint8 [n, 2 c]: all low halves, then all high ones."""
    codes = np.empty((len(low), 2, low.shape[1]), np.uint8)
    np.bitwise_and(low, 15, out=codes[:, 0])
    np.right_shift(low, 4, out=codes[:, 1])
    return codes.reshape(len(low), -1)


def _q4_0(blocks: np.ndarray) -> _Parts:
    return _nibbles(blocks[:, 2:]), _half(blocks, 0), None  # w = d * (q - 8)


def _q4_1(blocks: np.ndarray) -> _Parts:
    return _nibbles(blocks[:, 4:]), _half(blocks, 0), _half(blocks, 2)  # w = d * q + m


def _fifth(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Codes of 5 bits: nibble pairs [n, 16] and the fifth bits of values 0 .. 31 [n, 4]."""
    codes = _halves(low)
    bits = np.unpackbits(np.ascontiguousarray(high), axis=1, bitorder="little")
    codes |= bits << np.uint8(4)
    return codes


def _q5_0(blocks: np.ndarray) -> _Parts:
    return _fifth(blocks[:, 6:], blocks[:, 2:6]), _half(blocks, 0), None  # w = d * (q - 16)


def _q5_1(blocks: np.ndarray) -> _Parts:
    return _fifth(blocks[:, 8:], blocks[:, 4:8]), _half(blocks, 0), _half(blocks, 2)


def _q8_0(blocks: np.ndarray) -> _Parts:
    return blocks[:, 2:] ^ np.uint8(0x80), _half(blocks, 0), None  # w = d * q, q signed


def _six_bit_scales(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eight scales and eight minima of 6 bits in 12 bytes (get_scale_min_k4): uint8 [n, 12] -> int8 [n, 8] twice."""
    low, mid, high = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (high & 15) | ((low >> 6) << 4)], axis=1)
    minima = np.concatenate([mid & 63, (high >> 4) | ((mid >> 6) << 4)], axis=1)
    return scales.view(np.int8), minima.view(np.int8)


def _q4_k(blocks: np.ndarray) -> _Parts:
    # halves d, dmin; 12 bytes of scales; 128 bytes: 32 nibble pairs make groups 2i (low) and 2i + 1 (high)
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    codes = _halves(blocks[:, 16:].reshape(-1, 32))
    return codes, scales, _half(blocks, 0), minima, -_half(blocks, 2)  # w = d * scale * q - dmin * minimum


def _q5_k(blocks: np.ndarray) -> _Parts:
    scales, minima = _six_bit_scales(blocks[:, 4:16])
    codes = _halves(np.ascontiguousarray(blocks[:, 48:]).reshape(-1, 32)).reshape(-1, 8, 32)
    high = blocks[:, 16:48]  # bit g of byte j: the fifth bit of value j of group g
    for g in range(8):
        codes[:, g] |= ((high >> np.uint8(g)) & 1) << np.uint8(4)
    return codes, scales, _half(blocks, 0), minima, -_half(blocks, 2)


def _q6_k(blocks: np.ndarray) -> _Parts:
    # 128 bytes of low halves, 64 of high pairs, 16 int8 scales, half d. Of each 128 values, 32 at a time take the low
    # halves of bytes 0-31, of 32-63, the high halves of 0-31, of 32-63, and bits 0-1, 2-3, 4-5, 6-7 of the high bytes.
    low = blocks[:, :128].reshape(-1, 2, 2, 32)
    high = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    codes = np.empty((len(blocks), 2, 4, 32), np.uint8)
    np.bitwise_and(low, 15, out=codes[:, :, :2])
    np.right_shift(low, 4, out=codes[:, :, 2:])
    for part in range(4):
        codes[:, :, part : part + 1] |= ((high >> np.uint8(2 * part)) & 3) << np.uint8(4)
    scales = np.ascontiguousarray(blocks[:, 192:208]).view(np.int8)
    return codes, scales, _half(blocks, 208), None, None  # w = d * scale * (q - 32)


# kind -> bits, values in a block, group size, how to unpack blocks
_Unpack = Callable[[np.ndarray], _Parts]
AFFINE: dict[str, tuple[int, int, int, _Unpack]] = {
    "Q4_0": (4, 32, 32, _q4_0),
    "Q4_1": (4, 32, 32, _q4_1),
    "Q5_0": (5, 32, 32, _q5_0),
    "Q5_1": (5, 32, 32, _q5_1),
    "Q8_0": (8, 32, 32, _q8_0),
    "Q4_K": (4, 256, 32, _q4_k),
    "Q5_K": (5, 256, 32, _q5_k),
    "Q6_K": (6, 256, 16, _q6_k),
}
