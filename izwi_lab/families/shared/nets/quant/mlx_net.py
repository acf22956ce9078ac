"""Affine layers on MLX: its own packing and quantized matmul, for which this form was made.

`mx.quantized_matmul` takes any mixture of dtypes and computes in the widest of them. On a GPU scales and biases are
held in the compute dtype where that loses nothing (a bfloat16 checkpoint computed in bfloat16); else in float32, and
the product is float32 until it is rounded to the compute dtype. On the CPU they are always float32: MLX's own sums of
bfloat16 lose 3 % there and take ten times as long. A matrix in groups of 16, which MLX does not have, is expanded to
the compute dtype at load.

On the CPU MLX computes a product on one thread: the rows of a matrix are shared out among streams, one for each core.
"""

from __future__ import annotations

from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from izwi_lab.artifacts.tensors import AffineTensor
from izwi_lab.backends.loading import Unread
from izwi_lab.backends.streams_mlx import shares, spare
from izwi_lab.errors import CheckpointError

GROUPS = (32, 64, 128)  # what mx.quantized_matmul takes
_BLOCK_VALUES = 1 << 22  # values expanded at once: 16 MB of floats
_PRODUCT_VALUES = 1 << 24  # the largest matrix expanded for one product
_PRODUCT_TOKENS = 8  # on the CPU expanding pays from so many tokens on: 2.5 times faster at 128
_SHARE_VALUES = 1 << 16  # the smallest part of a matrix for a stream of its own: 60 us of work for one token

Stream = mx.ThreadLocalStream | None  # None: the one in use
Part = tuple[Stream, mx.array, mx.array, mx.array]  # q, scales and biases of some rows


class Affine(nn.Module):
    """A matrix [rows, cols]: w = code * scale + bias, in groups of `group_size` along a row.

    q: uint32 [rows, cols * bits / 32]; scales, biases: [rows, cols / group_size]. Or expanded: [rows, cols].
    """

    def __init__(self, weight: AffineTensor, dtype: mx.Dtype, device: str):
        super().__init__()
        self.rows, self.cols = weight.shape
        self.bits, self.group_size = weight.bits, weight.group_size
        self._expands = device == "cpu" and self.rows * self.cols <= _PRODUCT_VALUES
        if self.group_size in GROUPS:
            self.q = mx.array(np.ascontiguousarray(weight.q))
            self.scales, self.biases = held(weight, mx.float32 if device == "cpu" else dtype)
            self._parts = shared_out(self.q, self.scales, self.biases, self.group_size, device)
        else:
            self.expanded = expand(weight, dtype)

    def product(self, x: mx.array) -> mx.array:
        """X [..., cols] -> [..., rows]."""
        if "expanded" in self:
            return x @ self.expanded.T
        y = [self._part(x, *part) for part in self._parts]
        return (y[0] if len(y) == 1 else mx.concatenate(y, axis=-1)).astype(x.dtype)

    def _part(self, x: mx.array, stream: Stream, q: mx.array, scales: mx.array, biases: mx.array) -> mx.array:
        form = {"group_size": self.group_size, "bits": self.bits, "stream": stream}
        if self._expands and x.size >= _PRODUCT_TOKENS * self.cols:
            w = mx.dequantize(q, scales, biases, **form)
            return mx.matmul(x.astype(w.dtype), mx.contiguous(w.T, stream=stream), stream=stream)
        return mx.quantized_matmul(x, q, scales, biases, transpose=True, **form)

    def lookup(self, ids: mx.array, dtype: mx.Dtype) -> mx.array:
        """Rows by number: ids [...] -> [..., cols]."""
        if "expanded" in self:
            return self.expanded[ids]
        q, scales, biases = self.q[ids], self.scales[ids], self.biases[ids]
        return mx.dequantize(q, scales, biases, group_size=self.group_size, bits=self.bits).astype(dtype)


def shared_out(q: mx.array, scales: mx.array, biases: mx.array, group_size: int, device: str) -> list[Part]:
    """The stream and the rows of each part of a matrix: views, of which the first is for the stream in use."""
    count = shares(scales.size * group_size, _SHARE_VALUES) if device == "cpu" else 1
    if count == 1:
        return [(None, q, scales, biases)]
    edges = [q.shape[0] * i // count for i in range(count + 1)]
    rows = [slice(*edge) for edge in pairwise(edges)]
    streams = (None, *spare())
    parts = [(stream, q[r], scales[r], biases[r]) for stream, r in zip(streams, rows, strict=False)]
    mx.eval(parts)  # no array may wait for the thread that loads
    return parts


def held(weight: AffineTensor, dtype: mx.Dtype) -> list[mx.array]:
    """[scales, biases] in `dtype` where every one of them is exact in it, else in float32."""
    wide = [mx.array(np.ascontiguousarray(v, np.float32)) for v in (weight.scales, weight.biases)]
    narrow = [v.astype(dtype) for v in wide]
    exact = all(mx.array_equal(n.astype(mx.float32), w).item() for n, w in zip(narrow, wide, strict=True))
    return narrow if exact else wide


def expand(weight: AffineTensor, dtype: mx.Dtype) -> mx.array:
    """The dense matrix, a block of rows at a time."""
    step = max(1, _BLOCK_VALUES // weight.shape[1])
    parts = []
    for start in range(0, weight.shape[0], step):
        parts.append(mx.array(weight.rows(slice(start, start + step)).float32()).astype(dtype))
        mx.eval(parts[-1])
    return mx.concatenate(parts)


class AffineLinear(Affine):
    """In the place of nn.Linear."""

    def __init__(self, weight: AffineTensor, dtype: mx.Dtype, device: str, bias: mx.array | None):
        super().__init__(weight, dtype, device)
        if bias is not None:
            self.bias = bias

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        y = self.product(x)
        return y + self.bias if "bias" in self else y


class AffineEmbedding(Affine):
    """In the place of nn.Embedding; `as_linear` is the tied output head."""

    def __init__(self, weight: AffineTensor, dtype: mx.Dtype, device: str):
        super().__init__(weight, dtype, device)
        self.dtype = dtype

    def __call__(self, ids: mx.array) -> mx.array:
        """See the class."""
        return self.lookup(ids, self.dtype)

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
            new = AffineLinear(weight, backend.mlx_dtype, backend.device, old.get("bias"))
        else:
            new = AffineEmbedding(weight, backend.mlx_dtype, backend.device)
        if owner in modules:
            setattr(modules[owner], child, new)
        else:  # a list of modules, which has no name of its own
            holder, _, listed = owner.rpartition(".")
            modules[holder][listed][int(child)] = new
        mx.eval(new.parameters())
