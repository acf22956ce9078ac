"""Qwen3-TTS-Tokenizer-12Hz on torch. Parameters are named as in the checkpoint, but for SEANet and the codebooks.

Taps: encoder.* (see the shared SEANet), decoder.codes, decoder.latent, decoder.layers.N, decoder.transformer,
decoder.upsample.N, decoder.stages.N, decoder.samples.
"""

from __future__ import annotations

import torch
import torch.nn as nn
import torch.nn.functional as F

from izwi_lab.backends.base import Backend
from izwi_lab.codecs.qwen3_tts_12hz.config import DILATIONS, KERNEL, CodecConfig, DecoderConfig
from izwi_lab.families.shared.nets.causal_conv import native_torch
from izwi_lab.families.shared.nets.causal_conv.torch_net import CausalConv1d, CausalUp1d, Snake, State, name_slots
from izwi_lab.families.shared.nets.rvq.torch_net import Quantiser, SplitQuantiser
from izwi_lab.families.shared.nets.seanet.torch_net import SeanetEncoder
from izwi_lab.families.shared.nets.windowed.torch_net import Linear, Windowed
from izwi_lab.families.shared.taps import tap


class ConvNeXt(nn.Module):
    """A depthwise convolution, then per position a norm and two products, scaled and added. [B, T, C] -> [B, T, C]."""

    def __init__(self, width):
        super().__init__()
        self.dwconv = CausalConv1d(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width, 1e-6)
        self.pwconv1 = Linear(width, 4 * width)
        self.pwconv2 = Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """See the class."""
        y = self.pwconv1(self.norm(self.dwconv(x, state)))
        return x + self.gamma * self.pwconv2(F.gelu(y))


class Unit(nn.Module):
    """Two convolutions with Snake before each, added to what came in."""

    def __init__(self, width, dilation):
        super().__init__()
        self.act1, self.act2 = Snake(width), Snake(width)
        self.conv1 = CausalConv1d(width, width, KERNEL, dilation=dilation)
        self.conv2 = CausalConv1d(width, width, 1)

    def forward(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """x: [B, T, C] -> [B, T, C]."""
        return self.conv2(self.conv1(x, state, act=self.act1), state, act=self.act2, residual=x)


class Block(nn.Module):
    """A stage of the vocoder: `rate` times the rows, half the channels."""

    def __init__(self, width, rate):
        super().__init__()
        units = [Unit(width // 2, dilation) for dilation in DILATIONS]
        self.block = nn.ModuleList([Snake(width), CausalUp1d(width, width // 2, 2 * rate, rate), *units])

    def forward(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """x: [B, T, C] -> [B, T * rate, C / 2]."""
        act, up, *units = self.block
        x = up(x, state, act=act)
        for unit in units:
            x = unit(x, state)
        return x


class Decoder(nn.Module):
    """Codes to samples."""

    def __init__(self, c: DecoderConfig, codebooks: int):
        super().__init__()
        self.quantizer = SplitQuantiser(codebooks, c.codebook_size, c.code_width // 2, c.code_width, sums=True)
        self.pre_conv = CausalConv1d(c.code_width, c.latent, 3)
        self.pre_transformer = Windowed(c.transformer, "decoder.layers")
        self.upsample = nn.ModuleList(
            nn.ModuleList([CausalUp1d(c.latent, c.latent, ratio, ratio), ConvNeXt(c.latent)]) for ratio in c.ratios
        )
        stages = [Block(c.width >> i, rate) for i, rate in enumerate(c.rates)]
        last = c.width >> len(c.rates)
        self.decoder = nn.ModuleList(
            [CausalConv1d(c.latent, c.width, KERNEL), *stages, Snake(last), CausalConv1d(last, 1, KERNEL)]
        )

    def forward(self, codes: torch.Tensor, state: State) -> torch.Tensor:
        """codes: int [B, K, F] -> samples float32 [B, F * frame_samples]."""
        return self.vocode(self.latent(codes, state), state)

    def latent(self, codes: torch.Tensor, state: State) -> torch.Tensor:
        """codes: int [B, K, F] -> float32 [B, F, C], what the vocoder reads."""
        x = tap("decoder.codes", self.quantizer.decode(codes))
        x = tap("decoder.latent", self.pre_conv(x, state))
        return tap("decoder.transformer", self.pre_transformer(x, state))

    def vocode(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """x: what `latent` gives -> samples float32 [B, F * frame_samples]. It sees `past_frames` back."""
        for i, (up, block) in enumerate(self.upsample):
            x = tap(f"decoder.upsample.{i}", block(up(x, state), state))
        first, *stages, act, last = self.decoder
        x = first(x, state)
        for i, stage in enumerate(stages):
            x = tap(f"decoder.stages.{i}", stage(x, state))
        return tap("decoder.samples", last(x, state, act=act)[..., 0].clamp(-1, 1))


class Encoder(nn.Module):
    """Samples to codes."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        c = config.encoder
        self.seanet = SeanetEncoder(c.seanet)
        self.quantizer = SplitQuantiser(
            config.codebooks, c.codebook_size, c.dim, c.seanet.transformer.width, search=True
        )

    def forward(self, samples: torch.Tensor, state: State) -> torch.Tensor:
        """samples: float32 [B, S] -> codes int [B, K, ceil(S / frame_samples)]."""
        return self.quantizer.encode(self.seanet(samples[..., None], state))


class CodecNet(nn.Module):
    """Both halves. A state (an empty dict to begin with) holds the past of one stream through one of them."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config.decoder, config.codebooks)

    def finalize(self, backend: Backend) -> None:
        """Name the states, compute the codebooks' lengths, and on a CPU switch to the native kernels."""
        name_slots(self)
        for module in self.modules():
            if isinstance(module, Quantiser):
                module.finalize()
        if backend.device == "cpu" and backend.dtype in ("float32", "bfloat16"):
            native_torch.attach(self.decoder, float32=backend.dtype == "float32")
            native_torch.attach(self.encoder, float32=True)

    def held_bytes(self) -> int:
        """Bytes of the weights, packed or not."""
        return native_torch.held_bytes(self)
