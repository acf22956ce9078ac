"""The speaker encoder on MLX: ECAPA-TDNN (arXiv:2005.07143) as qwen-tts 0.1.1 builds it, with its parameter names."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.qwen3_tts.config import SpeakerConfig
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d
from izwi_lab.families.shared.taps import tap

_LEAST_VARIANCE = 1e-12


class SameConv(nn.Module):
    """A convolution that keeps the length, its ends filled by reflection, then a ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1) -> None:
        super().__init__()
        self.reach = dilation * (kernel - 1)
        self.conv = Conv1d(inputs, outputs, kernel, dilation=dilation)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, F, Cin] -> [B, F, Cout]."""
        if self.reach:
            left = self.reach // 2
            right = self.reach - left
            # Without the sample at the edge itself, as torch reflects.
            x = mx.concatenate([x[:, left:0:-1], x, x[:, -2 : -right - 2 : -1]], axis=1)
        return nn.relu(self.conv(x))


class Res2NetBlock(nn.Module):
    """Groups of channels, each convolved with the result of the one before added; the first passes through."""

    def __init__(self, channels: int, scale: int, kernel: int, dilation: int) -> None:
        super().__init__()
        width = channels // scale
        self.scale = scale
        self.blocks = [SameConv(width, width, kernel, dilation) for _ in range(scale - 1)]

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, F, C] -> [B, F, C]."""
        first, *groups = mx.split(x, self.scale, axis=-1)
        done = [first]
        for index, (block, group) in enumerate(zip(self.blocks, groups, strict=True)):
            done.append(block(group if index == 0 else group + done[-1]))
        return mx.concatenate(done, axis=-1)


class SqueezeExcitation(nn.Module):
    """Channels weighted by what their means say."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = Conv1d(channels, width, 1)
        self.conv2 = Conv1d(width, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, F, C] -> [B, F, C]."""
        gate = mx.sigmoid(self.conv2(nn.relu(self.conv1(x.mean(axis=1, keepdims=True)))))
        return x * gate


class SERes2NetBlock(nn.Module):
    """TDNN, Res2Net, TDNN, squeeze-excitation, and the input added."""

    def __init__(self, config: SpeakerConfig, index: int) -> None:
        super().__init__()
        inputs, channels = config.channels[index - 1], config.channels[index]
        self.tdnn1 = SameConv(inputs, channels)
        self.res2net_block = Res2NetBlock(channels, config.scale, config.kernels[index], config.dilations[index])
        self.tdnn2 = SameConv(channels, channels)
        self.se_block = SqueezeExcitation(channels, config.se_channels)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, F, C] -> [B, F, C]."""
        return self.se_block(self.tdnn2(self.res2net_block(self.tdnn1(x)))) + x


class AttentiveStatistics(nn.Module):
    """Mean and deviation over time, weighted by attention that sees the plain ones."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.tdnn = SameConv(3 * channels, width)
        self.conv = Conv1d(width, channels, 1)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, F, C] -> [B, 2C]."""
        plain = mx.concatenate(_statistics(x, mx.full((*x.shape[:-1], 1), 1 / x.shape[1])), axis=-1)
        seen = mx.concatenate([x, mx.broadcast_to(plain[:, None], (*x.shape[:-1], plain.shape[-1]))], axis=-1)
        weights = mx.softmax(self.conv(mx.tanh(self.tdnn(seen))), axis=1)
        return mx.concatenate(_statistics(x, tap("speaker.attention", weights)), axis=-1)


def _statistics(x: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    mean = (weights * x).sum(axis=1)
    variance = (weights * (x - mean[:, None]) ** 2).sum(axis=1)
    return mean, mx.sqrt(mx.maximum(variance, _LEAST_VARIANCE))


class SpeakerEncoder(nn.Module):
    """A voice as one vector: log-mel frames in, the talker's speaker embedding out."""

    def __init__(self, config: SpeakerConfig) -> None:
        super().__init__()
        first = SameConv(config.mel_bins, config.channels[0], config.kernels[0], config.dilations[0])
        inner = range(1, len(config.channels) - 1)
        self.blocks = [first, *(SERes2NetBlock(config, index) for index in inner)]
        wide = config.channels[-1]
        self.mfa = SameConv(wide, wide, config.kernels[-1], config.dilations[-1])
        self.asp = AttentiveStatistics(wide, config.attention_channels)
        self.fc = Conv1d(2 * wide, config.width, 1)

    def finalize(self, backend) -> None:
        """After loading: lay the weights out."""
        for module in self.modules():
            if isinstance(module, Conv1d):
                module.finalize(backend)

    def __call__(self, mel: mx.array) -> mx.array:
        """Mel [B, F, M], F over 4 -> embedding [B, D]."""
        x, seen = mel, []
        for index, block in enumerate(self.blocks):
            x = tap(f"speaker.blocks.{index}", block(x))
            seen.append(x)
        x = tap("speaker.mfa", self.mfa(mx.concatenate(seen[1:], axis=-1)))
        x = tap("speaker.asp", self.asp(x))
        return tap("speaker.embedding", self.fc(x[:, None])[:, 0])
