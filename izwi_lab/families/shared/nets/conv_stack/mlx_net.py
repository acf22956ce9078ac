"""Channels-last convolutions on MLX: [B, T, C] in and out, float32 activations whatever the weights' dtype."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.backends.streams_mlx import by_columns, product


class Conv1d(nn.Conv1d):
    """A convolution over time. The product runs in the weights' dtype, the bias is added in float32.

    On the CPU it is a product of matrices after `finalize`: five times as fast as `mx.conv1d` on two cores.
    """

    _multiplies = False

    def finalize(self, backend) -> None:
        """After loading: weights in the order that a CPU's products like."""
        if backend.device == "cpu" and self.groups in (1, self.weight.shape[0]):
            self.weight, self._multiplies = by_columns(self.weight), True

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, Cin] -> [B, T', Cout]."""
        x = x.astype(self.weight.dtype)
        if self._multiplies:
            y = self._multiplied(x)
        else:
            y = mx.conv1d(x, self.weight, self.stride, self.padding, self.dilation, self.groups)
        y = y.astype(mx.float32)
        return y + self.bias if "bias" in self else y

    def _multiplied(self, x: mx.array) -> mx.array:
        x = mx.pad(x, [(0, 0), (self.padding, self.padding), (0, 0)]) if self.padding else x
        kernel = self.weight.shape[1]
        length = x.shape[1] - (kernel - 1) * self.dilation  # of what the first tap sees
        seen = [x[:, i * self.dilation : i * self.dilation + length : self.stride] for i in range(kernel)]
        if self.groups == 1:
            return product(mx.concatenate(seen, axis=-1) if kernel > 1 else seen[0], self.weight.flatten(1).T)
        wide = self.weight[..., 0].astype(mx.float32)  # one channel on its own: nothing to multiply by columns
        y = seen[0] * wide[:, 0]
        for i in range(1, kernel):
            y = y + seen[i] * wide[:, i]
        return y.astype(x.dtype)


class ConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution over time whose kernel is twice its stride: each output has two contributions."""

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, Cin] -> [B, T * stride, Cout]."""
        y = mx.conv_transpose1d(x.astype(self.weight.dtype), self.weight, self.stride, self.padding)
        return y.astype(mx.float32) + self.bias


class DoublePool(nn.Module):
    """A depthwise transposed convolution, kernel 3, stride 2, padding 1, output padding 1: doubles the time axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, 1, 3))
        self.bias = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, C] -> [B, 2T, C]: even outputs see tap 1, odd ones tap 2 and the next input's tap 0."""
        w = self.weight[:, 0].astype(mx.float32)
        following = mx.pad(x[:, 1:], [(0, 0), (0, 1), (0, 0)])
        pair = mx.stack([x * w[:, 1], x * w[:, 2] + following * w[:, 0]], axis=2)
        return pair.flatten(1, 2) + self.bias
