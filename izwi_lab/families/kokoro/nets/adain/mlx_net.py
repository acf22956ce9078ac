"""Residual blocks with adaptive instance norm on MLX (StyleTTS 2, Li et al. 2023; names of kokoro 0.9.4)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.kokoro.nets.padding.mlx_net import Real, only
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d, DoublePool
from izwi_lab.families.shared.taps import tap

NORM_EPS = 1e-5


class AdaIN1d(nn.Module):
    """Instance norm over time whose scale and shift come from the style vector."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def __call__(self, x: mx.array, s: mx.array, real: Real | None = None) -> mx.array:
        """x: [B, T, C], s: [B, style] -> [B, T, C], with zeros for padding."""
        gamma, beta = mx.split(self.modulation(s)[:, None], 2, axis=-1)
        if real is None:
            mean, variance = mx.mean(x, axis=1, keepdims=True), mx.var(x, axis=1, keepdims=True)
        else:
            variance, mean = real.moments(x)
        scale = (1 + gamma) * mx.rsqrt(variance + NORM_EPS)
        return only((beta - mean * scale) + x * scale, real)

    def modulation(self, s: mx.array) -> mx.array:
        """s: [B, style] -> gamma and beta side by side, float32 [B, 2C]."""
        return (s.astype(self.fc.weight.dtype) @ self.fc.weight.T).astype(mx.float32) + self.fc.bias


class SnakeBlock(nn.Module):
    """Three pairs of (AdaIN, Snake, convolution), each pair added to its input (`AdaINResBlock1` upstream)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], style: int) -> None:
        super().__init__()
        self.convs1 = [Conv1d(channels, channels, kernel, padding=(kernel - 1) * d // 2, dilation=d) for d in dilations]
        self.convs2 = [Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations]
        self.adain1 = [AdaIN1d(style, channels) for _ in dilations]
        self.adain2 = [AdaIN1d(style, channels) for _ in dilations]
        self.alpha1 = [mx.ones((1, channels, 1)) for _ in dilations]
        self.alpha2 = [mx.ones((1, channels, 1)) for _ in dilations]

    def __call__(self, x: mx.array, s: mx.array, name: str, real: Real | None = None) -> mx.array:
        """x: [B, T, C] -> [B, T, C]."""
        for conv1, conv2, norm1, norm2, alpha1, alpha2 in zip(
            self.convs1, self.convs2, self.adain1, self.adain2, self.alpha1, self.alpha2, strict=True
        ):
            inner = conv1(snake(norm1(x, s, real), alpha1))
            x = x + conv2(snake(norm2(inner, s, real), alpha2))
        return tap(name, x)


class LeakyBlock(nn.Module):
    """(AdaIN, leaky ReLU, convolution) twice beside a shortcut, optionally doubling time (`AdainResBlk1d` upstream)."""

    def __init__(self, inputs: int, outputs: int, style: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv1d(inputs, outputs, 3, padding=1)
        self.conv2 = Conv1d(outputs, outputs, 3, padding=1)
        self.norm1 = AdaIN1d(style, inputs)
        self.norm2 = AdaIN1d(style, outputs)
        self.conv1x1 = Conv1d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.pool = DoublePool(inputs) if upsample else None

    def __call__(self, x: mx.array, s: mx.array, name: str, real: Real | None = None) -> mx.array:
        """x: [B, T, Cin] -> [B, T or 2T, Cout]."""
        inner = nn.leaky_relu(self.norm1(x, s, real), 0.2)
        if self.pool is not None:
            real = real and real.times(2)
            inner = only(self.pool(inner), real)
            x = mx.repeat(x, 2, axis=1)
        inner = self.conv1(inner)
        inner = self.conv2(nn.leaky_relu(self.norm2(inner, s, real), 0.2))
        if self.conv1x1 is not None:
            x = self.conv1x1(x)
        return tap(name, (inner + x) * 0.5**0.5)


def snake(x: mx.array, alpha: mx.array) -> mx.array:
    """X + sin^2(alpha x) / alpha, with alpha [1, C, 1] (Ziyin et al. 2020)."""
    a = alpha.reshape(-1).astype(mx.float32)
    return x + mx.square(mx.sin(x * a)) / a
