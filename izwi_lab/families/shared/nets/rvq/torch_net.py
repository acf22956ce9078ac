"""Residual vector quantisers on torch, the first codebook apart. Codes int [B, K, T], vectors float32 [B, T, D]."""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from izwi_lab.families.shared.nets.windowed.torch_net import Linear


class Quantiser(nn.Module):
    """`count` codebooks, each for what those before it left over.

    codebooks: the centroids, [count, size, dim]. search: it has `input_proj` and can encode; sums: it has `output_proj`
    and can decode.
    """

    def __init__(self, count, size, dim, width, *, search=False, sums=False):
        super().__init__()
        self.codebooks = nn.Parameter(torch.empty(count, size, dim))
        if search:
            self.input_proj = Linear(width, dim, bias=False)
        if sums:
            self.output_proj = Linear(dim, width, bias=False)
        self.half = None

    def finalize(self) -> None:
        """After loading: half the squared length of each centroid, [count, size]."""
        self.half = self.codebooks.detach().square().sum(-1) / 2

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """The nearest centroids, one codebook after the other: |x - c|^2 is least where x.c - |c|^2 / 2 is most."""
        x, codes = self.input_proj(x), []
        for table, half in zip(self.codebooks, self.half, strict=True):
            codes.append((x @ table.T - half).argmax(-1))
            x = x - table[codes[-1]]
        return torch.stack(codes, dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """The sum of the centroids, projected."""
        count, size, dim = self.codebooks.shape
        rows = codes + torch.arange(0, count * size, size, device=codes.device)[:, None]
        first, *others = F.embedding(rows, self.codebooks.reshape(-1, dim)).unbind(1)
        return self.output_proj(sum(others, first))  # one order of sums, which torch's own does not keep


class SplitQuantiser(nn.Module):
    """A quantiser of one codebook (what is said) and one of the others (how it sounds), both of the same vector."""

    def __init__(self, count, size, dim, width, *, search=False, sums=False):
        super().__init__()
        self.first = Quantiser(1, size, dim, width, search=search, sums=sums)
        self.rest = Quantiser(count - 1, size, dim, width, search=search, sums=sums)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, D] -> [B, K, T]."""
        return torch.cat([self.first.encode(x), self.rest.encode(x)], dim=1)

    def decode(self, codes: torch.Tensor) -> torch.Tensor:
        """codes: [B, K, T] -> [B, T, D]."""
        return self.first.decode(codes[:, :1]) + self.rest.decode(codes[:, 1:])
