"""Mimi's encoder on MLX: samples to one vector per frame. Twin of torch_net.py."""

from __future__ import annotations

from mlx import nn

from izwi_lab.families.shared.nets.causal_conv.mlx_net import CausalConv1d
from izwi_lab.families.shared.nets.seanet.config import SeanetConfig
from izwi_lab.families.shared.nets.windowed.mlx_net import Windowed
from izwi_lab.families.shared.taps import tap


class Residual(nn.Module):
    """Two convolutions with ELU before each, added to what came in."""

    def __init__(self, width, c: SeanetConfig):
        super().__init__()
        inner = width // c.compress
        self.conv1 = CausalConv1d(width, inner, c.residual_kernel)
        self.conv2 = CausalConv1d(inner, width, 1)

    def __call__(self, x, state):
        """x: [B, T, C] -> [B, T, C]."""
        return self.conv2(self.conv1(x, state, act=nn.elu), state, act=nn.elu, residual=x)


class SeanetEncoder(nn.Module):
    """SEANet, transformer, downsampling. Taps: encoder.stages.N, encoder.seanet, encoder.layers.N, encoder.latent."""

    def __init__(self, c: SeanetConfig):
        super().__init__()
        self.first = CausalConv1d(1, c.filters, c.kernel)
        widths = [c.filters << i for i in range(len(c.ratios) + 1)]
        self.residuals = [Residual(w, c) for w in widths[:-1]]
        self.downs = [CausalConv1d(w, 2 * w, 2 * r, stride=r) for w, r in zip(widths[:-1], c.ratios, strict=True)]
        width = c.transformer.width
        self.last = CausalConv1d(widths[-1], width, c.last_kernel)
        self.transformer = Windowed(c.transformer, "encoder.layers")
        self.downsample = CausalConv1d(width, width, 2 * c.halve, stride=c.halve, bias=False, replicate=True)

    def __call__(self, x, state):
        """x: samples [B, S, 1] -> [B, F, D]. S may be no whole number of frames only in the last chunk."""
        x = self.first(x, state)
        for i, (residual, down) in enumerate(zip(self.residuals, self.downs, strict=True)):
            x = tap(f"encoder.stages.{i}", down(residual(x, state), state, act=nn.elu))
        x = tap("encoder.seanet", self.last(x, state, act=nn.elu))
        return tap("encoder.latent", self.downsample(self.transformer(x, state), state))
