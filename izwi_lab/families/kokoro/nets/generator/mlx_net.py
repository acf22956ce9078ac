"""The iSTFTNet vocoder on MLX (Kaneko et al. 2022, with a harmonic source; names of kokoro 0.9.4)."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.nets.adain.mlx_net import SnakeBlock
from izwi_lab.families.kokoro.nets.padding.mlx_net import Real, only
from izwi_lab.families.kokoro.source import inverse_basis, inverse_envelopes
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d, ConvTranspose1d
from izwi_lab.families.shared.taps import tap


class Source(nn.Module):
    """The weights that merge the harmonics into one excitation; the sum itself is made in `source.py`."""

    def __init__(self, harmonics: int) -> None:
        super().__init__()
        self.l_linear = nn.Linear(harmonics, 1)


class Generator(nn.Module):
    """Features and the source's spectrum to samples: two upsampling stages, then an inverse short Fourier transform."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        istft, style = config.istft, config.style
        self.istft = istft
        self.kernels = len(istft.resblock_kernels)
        self.m_source = Source(config.harmonics)
        self.ups, self.noise_convs = [], []
        self.noise_res, self.resblocks = [], []
        stages = len(istft.upsample_rates)
        for i, (rate, kernel) in enumerate(zip(istft.upsample_rates, istft.upsample_kernels, strict=True)):
            wide, width = istft.upsample_channels >> i, istft.upsample_channels >> (i + 1)
            self.ups.append(ConvTranspose1d(wide, width, kernel, rate, padding=(kernel - rate) // 2))
            for size, dilations in zip(istft.resblock_kernels, istft.resblock_dilations, strict=True):
                self.resblocks.append(SnakeBlock(width, size, dilations, style))
            bins = istft.n_fft + 2
            if i + 1 < stages:
                step = 1
                for later in istft.upsample_rates[i + 1 :]:
                    step *= later
                self.noise_convs.append(Conv1d(bins, width, 2 * step, stride=step, padding=(step + 1) // 2))
                self.noise_res.append(SnakeBlock(width, 7, (1, 3, 5), style))
            else:
                self.noise_convs.append(Conv1d(bins, width, 1))
                self.noise_res.append(SnakeBlock(width, 11, (1, 3, 5), style))
        self.conv_post = Conv1d(width, istft.n_fft + 2, 7, padding=3)

    def __call__(self, x: mx.array, har: mx.array, s: mx.array, real: Real | None = None) -> mx.array:
        """x: [B, T, D], har: [B, 60 T + 1, n_fft + 2], s: [B, style] -> samples [B, S]; of har the padding is zeros."""
        for i in range(len(self.ups)):
            x = self.stage(i, x, har, s, real)
            real = self.made(i, real)
        x = tap("generator.conv_post", self.conv_post(only(nn.leaky_relu(x, 0.01), real)))
        return tap("audio", self.inverse(x, real))

    def stage(self, i: int, x: mx.array, har: mx.array, s: mx.array, real: Real | None = None) -> mx.array:
        """One upsampling with its view of the source: [B, T, Cin] -> [B, T * rate (+ 1 in the last stage), Cout]."""
        made = self.made(i, real)
        excitation = self.noise_res[i](self.noise_convs[i](har), s, f"generator.noise_res.{i}", made)
        x = self.ups[i](only(nn.leaky_relu(x, 0.1), real))
        if i + 1 == len(self.ups):
            x = mx.concatenate([x[:, 1:2], x], axis=1)  # reflected by one on the left
        x = tap(f"generator.ups.{i}", x + excitation)
        total = None
        for j in range(i * self.kernels, (i + 1) * self.kernels):
            y = self.resblocks[j](x, s, f"generator.resblocks.{j}", made)
            total = y if total is None else total + y
        return total / self.kernels

    def made(self, i: int, real: Real | None) -> Real | None:
        """What of a stage's output is real."""
        return real and real.times(self.istft.upsample_rates[i], int(i + 1 == len(self.ups)))

    def inverse(self, x: mx.array, real: Real | None = None) -> mx.array:
        """Log magnitudes and phase arguments [B, T, n_fft + 2] -> samples [B, (T - 1) * hop]."""
        half, hop = self.istft.n_fft // 2 + 1, self.istft.hop
        magnitude, phase = mx.exp(x[..., :half]), mx.sin(x[..., half:])
        spectrum = mx.concatenate([magnitude * mx.cos(phase), magnitude * mx.sin(phase)], axis=-1)
        frames = only(spectrum @ mx.array(inverse_basis(self.istft.n_fft)), real)
        count, steps = x.shape[1], self.istft.n_fft // hop
        out = sum(
            mx.pad(frames[..., j * hop : (j + 1) * hop], [(0, 0), (j, steps - 1 - j), (0, 0)]) for j in range(steps)
        )
        trim = self.istft.n_fft // 2
        counts = (count,) if real is None else real.lengths
        scale = mx.array(inverse_envelopes(counts, self.istft.n_fft, hop))
        return out.flatten(1)[:, trim:-trim] * scale
