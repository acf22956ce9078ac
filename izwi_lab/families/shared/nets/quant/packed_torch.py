"""Affine matrices for torch's packed int4 kernels, on the CPU without a compiler and on CUDA.

Both compute w = (q - 8) * scale + zero of 4-bit q, so zero = bias + 8 * scale. On the CPU a matrix of wider codes is
two, side by side: the low four bits, and what is above them with 16 times the scale; x goes in twice. Activations,
scales, zeros and products are bfloat16 whatever the compute dtype (sums are float32): torch's kernels for the other
dtypes are thirty times slower, as slow as expanding.
"""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import nn

from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.families.shared.nets.quant.rows_torch import Rows

_log = logging.getLogger(__name__)
_BLOCK_VALUES = 1 << 22  # values held as integers while packing: 16 MB
_ROWS = 64  # rows that torch's CPU layout interleaves; blocks of them pack on their own
_MULTIPLE = 16  # of rows that the CPU kernel takes
INNER_K_TILES = 8
TOLERANCE = 0.02  # of the largest product: bfloat16 keeps 8 bits


class PackedCPU(nn.Module):  # type: ignore[misc]
    """Codes for `_weight_int4pack_mm_for_cpu`: q [rows, cols / 2] or, of more than 4 bits, [rows, cols]."""

    def __init__(self, weight: AffineTensor) -> None:
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        padded = -(-self.rows // _MULTIPLE) * _MULTIPLE
        self.register_buffer("q", _packed(weight, padded))
        s, b = weight.scales.astype(np.float32), weight.biases.astype(np.float32)
        zeros = b + (1 << (self.bits - 1)) * s  # of the middle code: rounding the scale does not move the middle
        if self.bits > 4:
            s, zeros = np.concatenate([s, 16 * s], axis=1), np.concatenate([8 * s, zeros], axis=1)
        pair = np.zeros((s.shape[1], padded, 2), np.float32)
        pair[:, : self.rows, 0] = s.T
        pair[:, : self.rows, 1] = zeros.T
        self.register_buffer("scales", torch.from_numpy(pair).to(torch.bfloat16))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        flat = x.reshape(-1, self.cols).to(torch.bfloat16)
        if self.bits > 4:
            flat = torch.cat([flat, flat], dim=-1)
        y = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.q, self.group_size, self.scales)
        return y[:, : self.rows].to(x.dtype).view(*x.shape[:-1], self.rows)


def _packed(weight: AffineTensor, padded: int) -> torch.Tensor:
    step = max(1, _BLOCK_VALUES // (weight.shape[1] * _ROWS)) * _ROWS
    parts = []
    for start in range(0, padded, step):
        codes = weight.rows(slice(start, start + step)).codes()
        if weight.bits > 4:
            high = (codes >> 4) + np.uint8(8 - (1 << (weight.bits - 5)))  # the middle of what is above is 8 too
            codes = np.concatenate([codes & 15, high], axis=1)
        whole = np.zeros((min(step, padded - start), codes.shape[1]), np.int32)
        whole[: len(codes)] = codes
        parts.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(torch.from_numpy(whole), 1))
    return torch.cat(parts)


class PackedCUDA(nn.Module):  # type: ignore[misc]
    """4-bit codes for `_weight_int4pack_mm`: scales and zeros bfloat16 [cols / group_size, rows, 2]."""

    def __init__(self, weight: AffineTensor, device: str) -> None:
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        q = np.ascontiguousarray(weight.q).view(np.uint8)  # byte j: code 2j low, 2j + 1 high; torch wants them swapped
        swapped = torch.from_numpy((q << np.uint8(4)) | (q >> np.uint8(4))).to(device)
        self.register_buffer("q", torch.ops.aten._convert_weight_to_int4pack(swapped, INNER_K_TILES))
        s, b = weight.scales.astype(np.float32), weight.biases.astype(np.float32)
        pair = torch.from_numpy(np.stack([s.T, (b + 8 * s).T], axis=-1))
        self.register_buffer("scales", pair.to(device, torch.bfloat16).contiguous())

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        flat = x.reshape(-1, self.cols).to(torch.bfloat16)
        y = torch.ops.aten._weight_int4pack_mm(flat, self.q, self.group_size, self.scales)
        return y.to(x.dtype).view(*x.shape[:-1], self.rows)


def cuda_form(weight: AffineTensor, device: str) -> PackedCUDA | Rows:
    """The packed form if its product agrees with the expanded one on this device, else the expanded one."""
    rows = Rows(weight, device)
    try:
        packed = PackedCUDA(weight, device)
        x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
        agrees, error, largest = agree(packed.product(x), rows.product(x))
    except RuntimeError as failure:
        _log.warning("packed int4 is not used for a matrix of %s on %s: %s", list(weight.shape), device, failure)
        return rows
    if agrees:
        return packed
    _log.warning(
        "packed int4 is not used for a matrix of %s in groups of %d on %s: its product is off by %.3g where the "
        "largest value is %.3g (allowed: %g of it)",
        *(list(weight.shape), weight.group_size, device, error, largest, TOLERANCE),
    )
    return rows


def agree(found: torch.Tensor, expected: torch.Tensor) -> tuple[bool, float, float]:
    """(whether they agree within TOLERANCE of the largest value, the largest difference, the largest value)."""
    error = float((found.float() - expected.float()).abs().max())
    largest = float(expected.float().abs().max())
    return bool(error <= TOLERANCE * largest), error, largest
