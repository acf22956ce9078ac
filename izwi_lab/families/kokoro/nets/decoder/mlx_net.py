"""The acoustic decoder on MLX: what is said, pitch and energy to features for the vocoder (names of kokoro 0.9.4)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.nets.adain.mlx_net import LeakyBlock
from izwi_lab.families.kokoro.nets.generator.mlx_net import Generator
from izwi_lab.families.kokoro.nets.padding.mlx_net import Real
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d
from izwi_lab.families.shared.taps import tap


class Decoder(nn.Module):
    """AdaIN blocks over the frames, the last of which doubles time; holds the vocoder, as the checkpoint does."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        width, style, residual = config.decoder_width, config.style, config.residual_width
        joined = width + 2 + residual
        self.encode = LeakyBlock(config.hidden + 2, width, style)
        self.decode = [LeakyBlock(joined, width, style) for _ in range(3)] + [
            LeakyBlock(joined, config.istft.upsample_channels, style, upsample=True)
        ]
        self.F0_conv = Conv1d(1, 1, 3, stride=2, padding=1)
        self.N_conv = Conv1d(1, 1, 3, stride=2, padding=1)
        self.asr_res = [Conv1d(config.hidden, residual, 1)]
        self.generator = Generator(config)

    def __call__(
        self, asr: mx.array, f0: mx.array, energy: mx.array, s: mx.array, real: Real | None = None
    ) -> mx.array:
        """asr: [B, F, D], f0 and energy: [B, 2F] -> features [B, 2F, upsample_channels]."""
        pitch, loud = self.F0_conv(f0[..., None]), self.N_conv(energy[..., None])
        x = self.encode(mx.concatenate([tap("asr", asr), pitch, loud], axis=-1), s, "decoder.encode", real)
        beside = mx.concatenate([self.asr_res[0](asr), pitch, loud], axis=-1)
        for index, block in enumerate(self.decode):
            x = block(mx.concatenate([x, beside], axis=-1), s, f"decoder.decode.{index}", real)
        return x
