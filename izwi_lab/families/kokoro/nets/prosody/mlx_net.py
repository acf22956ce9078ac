"""Durations, pitch and energy on MLX, and the text encoder beside them (names of kokoro 0.9.4)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.nets.adain.mlx_net import LeakyBlock
from izwi_lab.families.kokoro.nets.padding.mlx_net import Real, both_ways, only
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d
from izwi_lab.families.shared.nets.lstm.mlx_net import BiLSTM
from izwi_lab.families.shared.taps import tap

NORM_EPS = 1e-5


class AdaLayerNorm(nn.Module):
    """Layer norm whose scale and shift come from the style vector."""

    def __init__(self, style: int, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(style, 2 * channels)

    def __call__(self, x: mx.array, s: mx.array) -> mx.array:
        """x: [B, T, C], s: [B, style] -> [B, T, C]."""
        gamma, beta = mx.split(self.fc(s)[:, None], 2, axis=-1)
        return (1 + gamma) * mx.fast.layer_norm(x, None, None, NORM_EPS) + beta


class DurationEncoder(nn.Module):
    """LSTMs and adaptive norms in turn; the style vector is joined to every step."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        self.lstms = []
        for _ in range(config.layers):
            self.lstms.append(BiLSTM(config.hidden + config.style, config.hidden))
            self.lstms.append(AdaLayerNorm(config.style, config.hidden))

    def __call__(self, x: mx.array, s: mx.array) -> mx.array:
        """x: [B, T, D], s: [B, style] -> [B, T, D + style]."""
        joined = mx.broadcast_to(s[:, None], (s.shape[0], x.shape[1], s.shape[1]))
        x = mx.concatenate([x, joined], axis=-1)
        for lstm, norm in zip(self.lstms[::2], self.lstms[1::2], strict=True):
            x = mx.concatenate([norm(lstm(x), s), joined], axis=-1)
        return tap("predictor.text_encoder", x)


class LinearNorm(nn.Module):
    """A linear layer; it exists for its name in the checkpoint."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear_layer = nn.Linear(inputs, outputs)

    def __call__(self, x: mx.array) -> mx.array:
        """x: [..., inputs] -> [..., outputs]."""
        return self.linear_layer(x)


class ProsodyPredictor(nn.Module):
    """How long each phoneme lasts, and the pitch and energy curves over the frames."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        width, style = config.hidden, config.style
        self.text_encoder = DurationEncoder(config)
        self.lstm = BiLSTM(width + style, width)
        self.duration_proj = LinearNorm(width, config.max_duration)
        self.shared = BiLSTM(width + style, width)
        self.F0 = curve_blocks(width, style)
        self.N = curve_blocks(width, style)
        self.F0_proj = Conv1d(width // 2, 1, 1)
        self.N_proj = Conv1d(width // 2, 1, 1)

    def durations(self, x: mx.array, s: mx.array) -> tuple[mx.array, mx.array]:
        """x: [B, T, D] -> (encoded [B, T, D + style], duration logits [B, T, max_duration])."""
        encoded = self.text_encoder(x, s)
        hidden = tap("predictor.lstm", self.lstm(encoded))
        return encoded, tap("predictor.duration_proj", self.duration_proj(hidden))

    def curves(self, frames: mx.array, s: mx.array) -> tuple[mx.array, mx.array]:
        """frames: [B, F, D + style] -> (pitch in Hz [B, 2F], energy [B, 2F])."""
        shared = tap("predictor.shared", self.shared(frames))
        pitch = energy = shared
        for index, block in enumerate(self.F0):
            pitch = block(pitch, s, f"predictor.F0.{index}")
        for index, block in enumerate(self.N):
            energy = block(energy, s, f"predictor.N.{index}")
        return tap("F0", self.F0_proj(pitch)[..., 0]), tap("N", self.N_proj(energy)[..., 0])


def curve_blocks(width: int, style: int) -> list[LeakyBlock]:
    """The three blocks of a curve; the second doubles time and halves the width."""
    return [
        LeakyBlock(width, width, style),
        LeakyBlock(width, width // 2, style, upsample=True),
        LeakyBlock(width // 2, width // 2, style),
    ]


class ChannelNorm(nn.Module):
    """Layer norm over channels with upstream's parameter names."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = mx.ones((channels,))
        self.beta = mx.zeros((channels,))

    def __call__(self, x: mx.array) -> mx.array:
        """x: [B, T, C] -> [B, T, C]."""
        return mx.fast.layer_norm(x, self.gamma, self.beta, NORM_EPS)


class TextEncoder(nn.Module):
    """Phoneme ids to what is said in each: convolutions, then an LSTM."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        width, kernel = config.hidden, config.text_kernel
        self.embedding = nn.Embedding(config.n_tokens, width)
        self.cnn = [
            [Conv1d(width, width, kernel, padding=(kernel - 1) // 2), ChannelNorm(width)] for _ in range(config.layers)
        ]
        self.lstm = BiLSTM(width, width)

    def __call__(self, ids: mx.array, real: Real | None = None) -> mx.array:
        """ids: [B, T] -> [B, T, D]."""
        x = only(self.embedding(ids), real)
        for conv, norm in self.cnn:
            x = only(nn.leaky_relu(norm(conv(x)), 0.2), real)
        return tap("text_encoder", both_ways(self.lstm, x, real))
