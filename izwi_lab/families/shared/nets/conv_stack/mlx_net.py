"""Channels-last convolutions on MLX: [B, T, C] in and out, float32 activations whatever the weights' dtype."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn


class Conv1d(nn.Conv1d):
    """A convolution over time. The product runs in the weights' dtype, the bias is added in float32."""

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, Cin] -> [B, T', Cout]."""
        y = mx.conv1d(
            x.astype(self.weight.dtype), self.weight, self.stride, self.padding, self.dilation, self.groups
        ).astype(mx.float32)
        return y + self.bias if "bias" in self else y


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
