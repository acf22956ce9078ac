"""Qwen3-TTS-Tokenizer-12Hz on MLX. Twin of torch_net.py."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn
from mlx.utils import tree_flatten

from izwi_lab.backends.base import Backend
from izwi_lab.codecs.qwen3_tts_12hz.config import DILATIONS, KERNEL, CodecConfig, DecoderConfig
from izwi_lab.families.shared.nets.causal_conv.mlx_net import CausalConv1d, CausalUp1d, Snake, name_slots
from izwi_lab.families.shared.nets.rvq.mlx_net import Quantiser, SplitQuantiser
from izwi_lab.families.shared.nets.seanet.mlx_net import SeanetEncoder
from izwi_lab.families.shared.nets.windowed.mlx_net import Linear, Windowed
from izwi_lab.families.shared.taps import tap


class ConvNeXt(nn.Module):
    """A depthwise convolution, then per position a norm and two products, scaled and added. [B, T, C] -> [B, T, C]."""

    def __init__(self, width):
        super().__init__()
        self.dwconv = CausalConv1d(width, width, KERNEL, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = Linear(width, 4 * width)
        self.pwconv2 = Linear(4 * width, width)
        self.gamma = mx.zeros(width)

    def __call__(self, x, state):
        """See the class."""
        y = self.pwconv1(self.norm(self.dwconv(x, state)))
        return x + self.gamma * self.pwconv2(nn.gelu(y))


class Unit(nn.Module):
    """Two convolutions with Snake before each, added to what came in."""

    def __init__(self, width, dilation):
        super().__init__()
        self.act1, self.act2 = Snake(width), Snake(width)
        self.conv1 = CausalConv1d(width, width, KERNEL, dilation=dilation)
        self.conv2 = CausalConv1d(width, width, 1)

    def __call__(self, x, state):
        """x: [B, T, C] -> [B, T, C]."""
        return self.conv2(self.conv1(x, state, act=self.act1), state, act=self.act2, residual=x)


class Block(nn.Module):
    """A stage of the vocoder: `rate` times the rows, half the channels."""

    def __init__(self, width, rate):
        super().__init__()
        units = [Unit(width // 2, dilation) for dilation in DILATIONS]
        self.block = [Snake(width), CausalUp1d(width, width // 2, 2 * rate, rate), *units]

    def __call__(self, x, state):
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
        self.upsample = [[CausalUp1d(c.latent, c.latent, ratio, ratio), ConvNeXt(c.latent)] for ratio in c.ratios]
        stages = [Block(c.width >> i, rate) for i, rate in enumerate(c.rates)]
        last = c.width >> len(c.rates)
        self.decoder = [CausalConv1d(c.latent, c.width, KERNEL), *stages, Snake(last), CausalConv1d(last, 1, KERNEL)]

    def __call__(self, codes, state):
        """codes: int [B, K, F] -> samples float32 [B, F * frame_samples]."""
        return self.vocode(self.latent(codes, state), state)

    def latent(self, codes, state):
        """codes: int [B, K, F] -> float32 [B, F, C], what the vocoder reads."""
        x = tap("decoder.codes", self.quantizer.decode(codes))
        x = tap("decoder.latent", self.pre_conv(x, state))
        return tap("decoder.transformer", self.pre_transformer(x, state))

    def vocode(self, x, state):
        """x: what `latent` gives -> samples float32 [B, F * frame_samples]. It sees `past_frames` back."""
        for i, (up, block) in enumerate(self.upsample):
            x = tap(f"decoder.upsample.{i}", block(up(x, state), state))
        first, *stages, act, last = self.decoder
        x = first(x, state)
        for i, stage in enumerate(stages):
            x = tap(f"decoder.stages.{i}", stage(x, state))
        return tap("decoder.samples", mx.clip(last(x, state, act=act)[..., 0], -1, 1))


class Encoder(nn.Module):
    """Samples to codes."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        c = config.encoder
        self.seanet = SeanetEncoder(c.seanet)
        self.quantizer = SplitQuantiser(
            config.codebooks, c.codebook_size, c.dim, c.seanet.transformer.width, search=True
        )

    def __call__(self, samples, state):
        """samples: float32 [B, S] -> codes int [B, K, ceil(S / frame_samples)]."""
        return self.quantizer.encode(self.seanet(samples[..., None], state))


class CodecNet(nn.Module):
    """Both halves. A state (an empty dict to begin with) holds the past of one stream through one of them."""

    def __init__(self, config: CodecConfig):
        super().__init__()
        self.encoder = Encoder(config)
        self.decoder = Decoder(config.decoder, config.codebooks)

    def finalize(self, backend: Backend) -> None:
        """Name the states, compute the codebooks' lengths, lay the weights out."""
        name_slots(self)
        for module in self.modules():
            if isinstance(module, Quantiser):
                module.finalize()
            elif isinstance(module, (CausalConv1d, Linear, Snake)):
                module.finalize(backend)

    def held_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(p.nbytes for _, p in tree_flatten(self.parameters()))
