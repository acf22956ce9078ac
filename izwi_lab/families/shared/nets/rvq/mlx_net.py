"""Residual vector quantisers on MLX, the first codebook apart. Twin of torch_net.py."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from izwi_lab.families.shared.nets.windowed.mlx_net import Linear


class Quantiser(nn.Module):
    """`count` codebooks, each for what those before it left over; see torch_net.py."""

    def __init__(self, count, size, dim, width, *, search=False, sums=False):
        super().__init__()
        self.codebooks = mx.zeros((count, size, dim))
        if search:
            self.input_proj = Linear(width, dim, bias=False)
        if sums:
            self.output_proj = Linear(dim, width, bias=False)
        self._half = None

    def finalize(self) -> None:
        """After loading: half the squared length of each centroid, [count, size]."""
        self._half = mx.square(self.codebooks).sum(-1) / 2

    def encode(self, x):
        """The nearest centroids, one codebook after the other: |x - c|^2 is least where x.c - |c|^2 / 2 is most."""
        x, codes = self.input_proj(x), []
        for n in range(self.codebooks.shape[0]):
            table = self.codebooks[n]
            codes.append(mx.argmax(x @ table.T - self._half[n], axis=-1).astype(mx.int32))
            x = x - table[codes[-1]]
        return mx.stack(codes, axis=1)

    def decode(self, codes):
        """The sum of the centroids, projected."""
        count, size, dim = self.codebooks.shape
        rows = codes + mx.arange(0, count * size, size)[:, None]
        return self.output_proj(self.codebooks.reshape(-1, dim)[rows].sum(1))


class SplitQuantiser(nn.Module):
    """A quantiser of one codebook (what is said) and one of the others (how it sounds), both of the same vector."""

    def __init__(self, count, size, dim, width, *, search=False, sums=False):
        super().__init__()
        self.first = Quantiser(1, size, dim, width, search=search, sums=sums)
        self.rest = Quantiser(count - 1, size, dim, width, search=search, sums=sums)

    def encode(self, x):
        """x: [B, T, D] -> [B, K, T]."""
        return mx.concatenate([self.first.encode(x), self.rest.encode(x)], axis=1)

    def decode(self, codes):
        """codes: [B, K, T] -> [B, T, D]."""
        return self.first.decode(codes[:, :1]) + self.rest.decode(codes[:, 1:])
