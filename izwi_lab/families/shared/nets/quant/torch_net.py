"""Affine layers on torch: codes stay packed in memory, in panels of 16 rows (see backends/native/affine.h).

On the CPU the compiled kernels read the panels; without them, and on other devices, blocks of rows are expanded to
floats, multiplied and dropped, so the dense matrix never exists at once.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.backends.loading import Unread
from izwi_lab.errors import CheckpointError
from izwi_lab.families.shared.nets.quant import native_torch

LANES = 16
_BLOCK_VALUES = 1 << 22  # values expanded at once: 16 MB of floats


class Affine(nn.Module):
    """A matrix [rows, cols]: w = code * scale + bias, in groups of `group_size` along a row.

    q: int32 [panels, cols * bits / 32, 16]; scales, biases: [panels, cols / group_size, 16], the last panel padded.
    """

    def __init__(self, weight: AffineTensor, device: str):
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        self.panels = -(-self.rows // LANES)
        self.register_buffer("q", self._panels(weight.q.view(np.int32)).to(device))
        self.register_buffer("scales", self._panels(weight.scales).to(device))
        self.register_buffer("biases", self._panels(weight.biases).to(device))
        self._matrix = None
        self._on_cpu = device == "cpu" and self.cols % 32 == 0 and self.group_size % 32 == 0

    def _panels(self, rows: np.ndarray) -> torch.Tensor:
        if self.panels * LANES != self.rows:
            rows = np.concatenate([rows, np.zeros((self.panels * LANES - self.rows, rows.shape[1]), rows.dtype)])
        # In numpy: torch would wake its threads for hundreds of small copies.
        return torch.from_numpy(np.ascontiguousarray(rows.reshape(self.panels, LANES, -1).transpose(0, 2, 1)))

    def matrix(self, add: torch.Tensor | None = None) -> native_torch.Matrix:
        """The descriptor for the compiled kernels."""
        return native_torch.affine_matrix(self, add)

    def native(self):
        """The compiled library if it can serve this layer now."""
        return native_torch.library() if self._on_cpu else None

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        lib = self.native()
        if lib is not None:
            if self._matrix is None:
                self._matrix = self.matrix()
            return native_torch.matmul(lib, self._matrix, x)
        step = max(1, _BLOCK_VALUES // (self.cols * LANES))
        parts = [F.linear(x, self.dense(p, min(p + step, self.panels), x.dtype)) for p in range(0, self.panels, step)]
        out = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
        return out[..., : self.rows]

    def dense(self, start: int, stop: int, dtype: torch.dtype) -> torch.Tensor:
        """Panels [start, stop) as floats: [(stop - start) * 16, cols]."""
        return self._expand(self.q[start:stop], self.scales[start:stop], self.biases[start:stop]).to(dtype)

    def _expand(self, q: torch.Tensor, scales: torch.Tensor, biases: torch.Tensor) -> torch.Tensor:
        shifts = torch.arange(0, 32, self.bits, dtype=torch.int32, device=q.device)
        codes = (q.unsqueeze(2) >> shifts[:, None]) & ((1 << self.bits) - 1)  # [P, W, codes per word, 16]
        grouped = codes.reshape(q.shape[0], scales.shape[1], self.group_size, -1).float()
        w = grouped * scales.float().unsqueeze(2) + biases.float().unsqueeze(2)
        return w.permute(0, 3, 1, 2).reshape(-1, self.cols)

    def lookup(self, ids: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Rows by number: ids [...] -> [..., cols]."""
        flat = ids.reshape(-1)
        panel, lane = flat // LANES, flat % LANES
        q, scales, biases = (t[panel, :, lane].unsqueeze(-1) for t in (self.q, self.scales, self.biases))
        return self._expand(q, scales, biases).to(dtype).view(*ids.shape, self.cols)


class AffineLinear(Affine):
    """In the place of nn.Linear."""

    def __init__(self, weight: AffineTensor, device: str, bias: nn.Parameter | None):
        super().__init__(weight, device)
        self.bias = bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        y = self.product(x)
        return y if self.bias is None else y + self.bias


class AffineEmbedding(Affine):
    """In the place of nn.Embedding; `as_linear` is the tied output head."""

    def __init__(self, weight: AffineTensor, device: str, dtype: torch.dtype):
        super().__init__(weight, device)
        self.dtype = dtype

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.lookup(ids, self.dtype)

    def as_linear(self, x: torch.Tensor) -> torch.Tensor:
        """X [..., cols] -> [..., rows]."""
        return self.product(x)


def use_affine(net: nn.Module, affine: Unread, backend) -> None:
    """Put affine layers where `affine` has a weight "<module>.weight"; entries are consumed, to free them early."""
    for name in list(affine):
        path, _, leaf = name.rpartition(".")
        owner, _, child = path.rpartition(".")
        parent = net.get_submodule(owner) if path and _has(net, path) else None
        old = getattr(parent, child, None)
        if leaf != "weight" or not isinstance(old, (nn.Linear, nn.Embedding)):
            raise CheckpointError(f"{name} is quantised, but the net has no Linear or Embedding of that name.")
        weight = affine.pop(name)
        if weight.shape != tuple(old.weight.shape):
            raise CheckpointError(f"{name} has the shape {weight.shape}, the net expects {tuple(old.weight.shape)}.")
        if isinstance(old, nn.Linear):
            setattr(parent, child, AffineLinear(weight, backend.device, old.bias))
        else:
            setattr(parent, child, AffineEmbedding(weight, backend.device, backend.torch_dtype))


def _has(net: nn.Module, path: str) -> bool:
    try:
        net.get_submodule(path)
    except AttributeError:
        return False
    return True
