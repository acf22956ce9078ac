"""Affine matrices in panels of 16 rows, for the compiled CPU kernels (`backends/native/affine.h`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from izwi_lab.artifacts.tensors import AffineRows, AffineTensor, Steps
from izwi_lab.families.shared.nets.quant import native_torch

LANES = 16
_BLOCK_WORDS = 1 << 20  # packed at once: 4 MB, so that a mapped checkpoint is never whole in memory


class Panels(nn.Module):  # type: ignore[misc]
    """A matrix [rows, cols]: w = code * scale + bias, in groups of `group_size` along a row.

    q: int32 [panels, cols * bits / 32, 16], the last panel padded. scales, biases: [panels, cols / group_size, 16] in
    the narrowest type that is exact; uint8 [panels, bytes] where they are float16 steps and int8 integers. No biases
    where all are -2^(bits - 1) * scale.
    """

    def __init__(self, weight: AffineTensor | AffineRows) -> None:
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        q, parts = _packed(weight)
        self.register_buffer("q", q)
        scales, biases = _scale_buffers(parts, weight.bits)
        self.register_buffer("scales", scales)
        self.register_buffer("biases", biases)
        self._matrix = self.descriptor()

    def descriptor(self, add: torch.Tensor | None = None) -> native_torch.Matrix:
        """The descriptor for the compiled kernels; add: a float32 row of biases."""
        return native_torch.affine_matrix(self, add)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        lib = native_torch.kernels()
        assert lib is not None, "panels are made only where the kernels are"
        return native_torch.matmul(lib, self._matrix, x)

    def lookup(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows by number: ids [...] -> [..., cols]."""
        lib = native_torch.kernels()
        assert lib is not None, "panels are made only where the kernels are"
        return native_torch.lookup(lib, self._matrix, ids).to(dtype)


class _Scales(NamedTuple):
    """What a block of rows has beside its codes; see AffineTensor. biases: None for -2^(bits - 1) * scale."""

    scales: np.ndarray
    biases: np.ndarray | None
    scale_steps: Steps | None
    bias_steps: Steps | None


def _packed(weight: AffineTensor | AffineRows) -> tuple[torch.Tensor, list[_Scales]]:
    lib = native_torch.kernels()
    assert lib is not None, "panels are made only where the kernels are"
    rows, words = weight.shape[0], weight.shape[1] * weight.bits // 32
    out = torch.empty((-(-rows // LANES), words, LANES), dtype=torch.int32)
    step = max(1, _BLOCK_WORDS // (words * LANES))
    scales = []
    for panel in range(0, out.shape[0], step):
        block = weight.rows(slice(panel * LANES, (panel + step) * LANES))
        part = np.ascontiguousarray(block.q)
        lib.izwi_affine_pack(part.ctypes.data, len(part), weight.shape[1], weight.bits, out[panel].data_ptr())
        centred = np.array_equal(block.biases, _middles(block.scales, block.bits))
        biases = None if centred else _narrow(block.biases)
        scales.append(_Scales(_narrow(block.scales), biases, block.scale_steps, block.bias_steps))
    return out, scales


def _narrow(values: np.ndarray) -> np.ndarray:
    """As float16 where that is exact: those of all blocks are held until the last is packed."""
    return values.astype(np.float16) if _exact(values, torch.float16) else values


def _middles(scales: np.ndarray, bits: int) -> np.ndarray:
    return np.asarray(scales * scales.dtype.type(-(1 << (bits - 1))))


def _joined(parts: Sequence[Steps | None]) -> Steps | None:
    found = [p for p in parts if p is not None]  # all of a matrix, or none
    if len(found) < 2:
        return found[0] if found else None
    return Steps(np.concatenate([p.ints for p in found]), np.concatenate([p.steps for p in found]))


def _scale_buffers(parts: Sequence[_Scales], bits: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    centred = all(p.biases is None for p in parts)
    steps, bias_steps = _joined([p.scale_steps for p in parts]), _joined([p.bias_steps for p in parts])
    if steps is not None and (bias_steps is not None or centred):
        return _stepped(steps), None if centred or bias_steps is None else _stepped(bias_steps)
    blocks = [[p.scales for p in parts]]
    if not centred:  # in float32: -2^(bits - 1) times a float16 may not be one
        wide = [_middles(p.scales.astype(np.float32), bits) if p.biases is None else p.biases for p in parts]
        blocks.append([_narrow(b) for b in wide])
    kept = [b[0] if len(b) == 1 else np.concatenate(b) for b in blocks]  # float16 and float32 join as float32, exactly
    dtype = next(d for d in (torch.float16, torch.bfloat16, torch.float32) if all(_exact(v, d) for v in kept))
    narrow = [torch.from_numpy(_panels(v)).to(dtype) for v in kept]
    return narrow[0], None if centred else narrow[1]


def _exact(values: np.ndarray, dtype: torch.dtype) -> bool:
    if values.dtype == np.float16:
        if dtype != torch.bfloat16:
            return True
        values = values.astype(np.float32)
    if dtype == torch.bfloat16:
        return not bool((np.ascontiguousarray(values).view(np.uint32) & 0xFFFF).any())
    with np.errstate(over="ignore"):
        return bool(dtype == torch.float32 or np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _stepped(steps: Steps) -> torch.Tensor:
    """The bytes of a panel: its float16 steps [steps, 16], then its integers [groups, 16]."""
    parts = [np.ascontiguousarray(_panels(a)).view(np.uint8) for a in (steps.steps, steps.ints)]
    return torch.from_numpy(np.concatenate([p.reshape(len(p), -1) for p in parts], axis=1))


def _panels(rows: np.ndarray) -> np.ndarray:
    """[rows, n] -> [panels, n, 16], padded with zeros."""
    short = -len(rows) % LANES
    if short:
        rows = np.concatenate([rows, np.zeros((short, rows.shape[1]), rows.dtype)])
    # In numpy: torch would wake its threads for hundreds of small copies.
    return np.ascontiguousarray(rows.reshape(-1, LANES, rows.shape[1]).transpose(0, 2, 1))
