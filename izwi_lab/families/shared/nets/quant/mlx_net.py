"""Affine layers on MLX: its own packing and quantized matmul, for which this form was made."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.backends.loading import Unread
from izwi_lab.errors import CheckpointError


class Affine(nn.Module):
    """A matrix [rows, cols]: w = code * scale + bias, in groups of `group_size` along a row.

    q: uint32 [rows, cols * bits / 32]; scales, biases: [rows, cols / group_size].
    """

    def __init__(self, weight: AffineTensor, dtype: mx.Dtype):
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        self.q = mx.array(np.ascontiguousarray(weight.q))
        self.scales = mx.array(np.ascontiguousarray(weight.scales)).astype(dtype)
        self.biases = mx.array(np.ascontiguousarray(weight.biases)).astype(dtype)

    def product(self, x: mx.array) -> mx.array:
        """X [..., cols] -> [..., rows]."""
        return mx.quantized_matmul(
            x, self.q, self.scales, self.biases, transpose=True, group_size=self.group_size, bits=self.bits
        )

    def lookup(self, ids: mx.array) -> mx.array:
        """Rows by number: ids [...] -> [..., cols]."""
        q, scales, biases = self.q[ids], self.scales[ids], self.biases[ids]
        return mx.dequantize(q, scales, biases, group_size=self.group_size, bits=self.bits)


class AffineLinear(Affine):
    """In the place of nn.Linear."""

    def __init__(self, weight: AffineTensor, dtype: mx.Dtype, bias: mx.array | None):
        super().__init__(weight, dtype)
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        y = self.product(x)
        return y + self.bias if "bias" in self else y


class AffineEmbedding(Affine):
    """In the place of nn.Embedding; `as_linear` is the tied output head."""

    def __call__(self, ids: mx.array) -> mx.array:
        """See the class."""
        return self.lookup(ids)

    def as_linear(self, x: mx.array) -> mx.array:
        """X [..., cols] -> [..., rows]."""
        return self.product(x)


def use_affine(net: nn.Module, affine: Unread, backend) -> None:
    """Put affine layers where `affine` has a weight "<module>.weight"; entries are consumed, to free them early."""
    modules = dict(net.named_modules())
    for name in list(affine):
        path, _, leaf = name.rpartition(".")
        owner, _, child = path.rpartition(".")
        old = modules.get(path)
        if leaf != "weight" or not isinstance(old, (nn.Linear, nn.Embedding)):
            raise CheckpointError(f"{name} is quantised, but the net has no Linear or Embedding of that name.")
        weight = affine.pop(name)
        if weight.shape != tuple(old.weight.shape):
            raise CheckpointError(f"{name} has the shape {weight.shape}, the net expects {tuple(old.weight.shape)}.")
        if isinstance(old, nn.Linear):
            new = AffineLinear(weight, backend.mlx_dtype, old.get("bias"))
        else:
            new = AffineEmbedding(weight, backend.mlx_dtype)
        parent = modules[owner]
        if isinstance(parent, (list, tuple)):
            parent[int(child)] = new
        else:
            setattr(parent, child, new)
        mx.eval(new.parameters())
