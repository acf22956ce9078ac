"""Affine matrices row by row on any torch device: blocks are expanded to floats, used and dropped."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.artifacts.tensors import AffineTensor

_BLOCK_VALUES = 1 << 22  # values expanded at once: 16 MB of floats


class Rows(nn.Module):  # type: ignore[misc]
    """A matrix [rows, cols]: w = code * scale + bias, in groups of `group_size` along a row.

    q: int32 [rows, cols * bits / 32], a bit stream; scales, biases: [rows, cols / group_size].
    """

    def __init__(self, weight: AffineTensor, device: str) -> None:
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        self.register_buffer("q", torch.from_numpy(np.ascontiguousarray(weight.q).view(np.int32)).to(device))
        self.register_buffer("scales", torch.from_numpy(np.ascontiguousarray(weight.scales)).to(device))
        self.register_buffer("biases", torch.from_numpy(np.ascontiguousarray(weight.biases)).to(device))

    def tensor(self) -> AffineTensor:
        """The host tensor it was made from, on the CPU without a copy."""
        q, scales, biases = (t.cpu().numpy() for t in (self.q, self.scales, self.biases))
        return AffineTensor(q.view(np.uint32), scales, biases, self.bits, self.group_size)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        step = max(1, _BLOCK_VALUES // self.cols)
        parts = [
            F.linear(x, self._expand(slice(start, start + step)).to(x.dtype)) for start in range(0, self.rows, step)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def lookup(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows by number: ids [...] -> [..., cols]."""
        return self._expand(ids.reshape(-1)).to(dtype).view(*ids.shape, self.cols)

    def _expand(self, index: torch.Tensor | slice) -> torch.Tensor:
        scales, biases = self.scales[index].float(), self.biases[index].float()
        grouped = codes(self.q[index], self.bits).view(len(scales), -1, self.group_size).float()
        return (grouped * scales.unsqueeze(-1) + biases.unsqueeze(-1)).view(-1, self.cols)


def codes(q: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes of a bit stream: int32 [rows, n] -> int32 [rows, n * 32 / bits]."""
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=q.device)
        return ((q.unsqueeze(-1) >> shifts) & mask).flatten(-2)
    # 32 codes are `bits` words; a code may straddle two. A row may end within such a block.
    words = F.pad(q, (0, -q.shape[1] % bits)).view(len(q), -1, bits).to(torch.int64) & 0xFFFFFFFF
    at = torch.arange(0, 32 * bits, bits, device=q.device)
    first, second = at // 32, (at // 32 + 1).clamp(max=bits - 1)
    pair = words[..., first] | (words[..., second] << 32)
    return ((pair >> (at % 32)) & mask).to(torch.int32).flatten(-2)[:, : q.shape[1] * 32 // bits]
