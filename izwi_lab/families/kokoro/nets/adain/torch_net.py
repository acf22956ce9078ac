"""Residual blocks with adaptive instance norm on torch (StyleTTS 2, Li et al. 2023; names of kokoro 0.9.4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from izwi_lab.families.kokoro.nets.padding.torch_net import Real, only
from izwi_lab.families.shared.nets.conv_stack.torch_net import Conv1d, DoublePool
from izwi_lab.families.shared.taps import tap

NORM_EPS = 1e-5


class AdaIN1d(nn.Module):
    """Instance norm over time whose scale and shift come from the style vector."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def forward(self, x: torch.Tensor, s: torch.Tensor, real: Real | None = None) -> torch.Tensor:
        """x: [B, T, C], s: [B, style] -> [B, T, C], with zeros for padding."""
        gamma, beta = self.modulation(s).unsqueeze(1).chunk(2, dim=-1)
        plain = real is None
        variance, mean = torch.var_mean(x, dim=1, correction=0, keepdim=True) if plain else real.moments(x)
        scale = (1 + gamma) * torch.rsqrt(variance + NORM_EPS)
        return only(torch.addcmul(beta - mean * scale, x, scale), real)

    def modulation(self, s: torch.Tensor) -> torch.Tensor:
        """s: [B, style] -> gamma and beta side by side, float32 [B, 2C]."""
        return F.linear(s.to(self.fc.weight.dtype), self.fc.weight).float() + self.fc.bias


class SnakeBlock(nn.Module):
    """Three pairs of (AdaIN, Snake, convolution), each pair added to its input (`AdaINResBlock1` upstream)."""

    native: Any = None

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], style: int) -> None:
        super().__init__()
        self.convs1 = nn.ModuleList(
            Conv1d(channels, channels, kernel, padding=(kernel - 1) * d // 2, dilation=d) for d in dilations
        )
        self.convs2 = nn.ModuleList(Conv1d(channels, channels, kernel, padding=(kernel - 1) // 2) for _ in dilations)
        self.adain1 = nn.ModuleList(AdaIN1d(style, channels) for _ in dilations)
        self.adain2 = nn.ModuleList(AdaIN1d(style, channels) for _ in dilations)
        self.alpha1 = nn.ParameterList(torch.ones(1, channels, 1) for _ in dilations)
        self.alpha2 = nn.ParameterList(torch.ones(1, channels, 1) for _ in dilations)

    def forward(self, x: torch.Tensor, s: torch.Tensor, name: str, real: Real | None = None) -> torch.Tensor:
        """x: [B, T, C] -> [B, T, C]."""
        if self.native is not None and x.shape[0] == 1:
            return tap(name, self.native(x, s))
        for conv1, conv2, norm1, norm2, alpha1, alpha2 in zip(
            self.convs1, self.convs2, self.adain1, self.adain2, self.alpha1, self.alpha2, strict=True
        ):
            inner = conv1(snake(norm1(x, s, real), alpha1))
            x = x + conv2(snake(norm2(inner, s, real), alpha2))
        return tap(name, x)


class LeakyBlock(nn.Module):
    """(AdaIN, leaky ReLU, convolution) twice beside a shortcut, optionally doubling time (`AdainResBlk1d` upstream)."""

    native: Any = None

    def __init__(self, inputs: int, outputs: int, style: int, upsample: bool = False) -> None:
        super().__init__()
        self.conv1 = Conv1d(inputs, outputs, 3, padding=1)
        self.conv2 = Conv1d(outputs, outputs, 3, padding=1)
        self.norm1 = AdaIN1d(style, inputs)
        self.norm2 = AdaIN1d(style, outputs)
        self.conv1x1 = Conv1d(inputs, outputs, 1, bias=False) if inputs != outputs else None
        self.pool = DoublePool(inputs) if upsample else None

    def forward(self, x: torch.Tensor, s: torch.Tensor, name: str, real: Real | None = None) -> torch.Tensor:
        """x: [B, T, Cin] -> [B, T or 2T, Cout]."""
        if self.native is not None and x.shape[0] == 1:
            return tap(name, self.native(x, s))
        inner = F.leaky_relu(self.norm1(x, s, real), 0.2)
        if self.pool is not None:
            real = real and real.times(2)
            inner = only(self.pool(inner), real)
            x = x.repeat_interleave(2, dim=1)
        inner = self.conv1(inner)
        inner = self.conv2(F.leaky_relu(self.norm2(inner, s, real), 0.2))
        if self.conv1x1 is not None:
            x = self.conv1x1(x)
        return tap(name, (inner + x) * 0.5**0.5)


def snake(x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """X + sin^2(alpha x) / alpha, with alpha [1, C, 1] (Ziyin et al. 2020)."""
    a = alpha.view(-1).float()
    return x + torch.sin(x * a).square() / a
