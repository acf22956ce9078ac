"""The acoustic decoder on torch: what is said, pitch and energy to features for the vocoder (names of kokoro 0.9.4)."""

from __future__ import annotations

import torch
import torch.nn as nn

from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.nets.adain.torch_net import LeakyBlock
from izwi_lab.families.kokoro.nets.generator.torch_net import Generator
from izwi_lab.families.kokoro.nets.padding.torch_net import Real
from izwi_lab.families.shared.nets.conv_stack.torch_net import Conv1d
from izwi_lab.families.shared.taps import tap


class Decoder(nn.Module):
    """AdaIN blocks over the frames, the last of which doubles time; holds the vocoder, as the checkpoint does."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        width, style, residual = config.decoder_width, config.style, config.residual_width
        joined = width + 2 + residual
        self.encode = LeakyBlock(config.hidden + 2, width, style)
        self.decode = nn.ModuleList(
            [LeakyBlock(joined, width, style) for _ in range(3)]
            + [LeakyBlock(joined, config.istft.upsample_channels, style, upsample=True)]
        )
        self.F0_conv = Conv1d(1, 1, 3, stride=2, padding=1)
        self.N_conv = Conv1d(1, 1, 3, stride=2, padding=1)
        self.asr_res = nn.ModuleList([Conv1d(config.hidden, residual, 1)])
        self.generator = Generator(config)

    def forward(
        self, asr: torch.Tensor, f0: torch.Tensor, energy: torch.Tensor, s: torch.Tensor, real: Real | None = None
    ) -> torch.Tensor:
        """asr: [B, F, D], f0 and energy: [B, 2F] -> features [B, 2F, upsample_channels]."""
        pitch, loud = self.F0_conv(f0.unsqueeze(-1)), self.N_conv(energy.unsqueeze(-1))
        x = self.encode(torch.cat([tap("asr", asr), pitch, loud], dim=-1), s, "decoder.encode", real)
        beside = torch.cat([self.asr_res[0](asr), pitch, loud], dim=-1)
        for index, block in enumerate(self.decode):
            x = block(torch.cat([x, beside], dim=-1), s, f"decoder.decode.{index}", real)
        return x
