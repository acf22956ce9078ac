"""Channels-last convolutions on torch: [B, T, C] in and out, float32 activations whatever the weights' dtype."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F


class Conv1d(nn.Conv1d):
    """A convolution over time. The product runs in the weights' dtype, the bias is added in float32.

    `native`, where a family sets it, takes over for a batch of one.
    """

    native: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, Cin] -> [B, T', Cout]."""
        if self.native is not None and x.shape[0] == 1:
            return self.native(x)
        # [B, T, C] seen as [B, C, 1, T] is already in torch's channels_last format: no copy on any device.
        image = x.to(self.weight.dtype).transpose(1, 2).unsqueeze(2)
        y = F.conv2d(
            image,
            self.weight.unsqueeze(2),
            None,
            (1, self.stride[0]),
            (0, self.padding[0]),
            (1, self.dilation[0]),
            self.groups,
        )
        y = y.squeeze(2).transpose(1, 2).float()
        return y if self.bias is None else y + self.bias


class ConvTranspose1d(nn.ConvTranspose1d):
    """A transposed convolution over time whose kernel is twice its stride: each output has two contributions."""

    native: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, Cin] -> [B, T * stride, Cout]."""
        if self.native is not None and x.shape[0] == 1:
            return self.native(x)
        y = F.conv_transpose1d(
            x.to(self.weight.dtype).transpose(1, 2), self.weight, None, self.stride[0], self.padding[0]
        )
        return y.transpose(1, 2).float() + self.bias


class DoublePool(nn.Module):
    """A depthwise transposed convolution, kernel 3, stride 2, padding 1, output padding 1: doubles the time axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, 3))
        self.bias = nn.Parameter(torch.empty(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, C] -> [B, 2T, C]: even outputs see tap 1, odd ones tap 2 and the next input's tap 0."""
        w = self.weight[:, 0].float()
        following = F.pad(x[:, 1:], (0, 0, 0, 1))
        pair = torch.stack([x * w[:, 1], x * w[:, 2] + following * w[:, 0]], dim=2)
        return pair.flatten(1, 2) + self.bias
