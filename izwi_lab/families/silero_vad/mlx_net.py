"""Silero VAD's net in MLX. Twin of torch_net.py. Shapes: N frames in time order, C channels."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from izwi_lab.families.shared.taps import tap

_EVALUATE_EVERY = 64  # steps of the LSTM per graph


class LSTMCell(nn.Module):
    """One LSTM step, with torch's parameters and gate order i, f, g, o."""

    def __init__(self, width, hidden):
        super().__init__()
        self.weight_ih = mx.zeros((4 * hidden, width))
        self.weight_hh = mx.zeros((4 * hidden, hidden))
        self.bias_ih = mx.zeros(4 * hidden)
        self.bias_hh = mx.zeros(4 * hidden)

    def __call__(self, x, state):
        """X [N, C] in time order, state (h, c) -> all h [N, H], the last state."""
        h, c = state
        gates_in = x @ self.weight_ih.T + (self.bias_ih + self.bias_hh)
        out = []
        for n in range(x.shape[0]):
            i, f, g, o = mx.split(gates_in[n] + self.weight_hh @ h, 4)
            c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
            h = mx.sigmoid(o) * mx.tanh(c)
            out.append(h)
            if n % _EVALUATE_EVERY == _EVALUATE_EVERY - 1:
                mx.eval(h, c)
        return mx.stack(out), (h, c)


class SileroNet(nn.Module):
    """Spectrum, four convolutions, one LSTM over time, one logit per frame."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.stft_conv = nn.Conv1d(1, 2 * config.bins, config.fft, stride=config.hop, bias=False)
        widths = (config.bins, *config.widths)
        for n, stride in enumerate(config.strides):
            setattr(self, f"conv{n + 1}", nn.Conv1d(widths[n], widths[n + 1], 3, stride=stride, padding=1))
        self.lstm_cell = LSTMCell(widths[-1], config.hidden)
        self.final_conv = nn.Conv1d(config.hidden, 1, 1)

    def __call__(self, frames, state):
        """Frames [N, 64 + 512], state (h, c) [128] each -> probabilities [N], the state after the last frame."""
        c = self.config
        x = mx.concatenate([frames, frames[:, -2:-66:-1]], axis=1)  # mirrored by 64 samples on the right
        x = self.stft_conv(x[..., None])  # [N, 4, 2 bins]
        x = tap("spectrum", mx.sqrt(x[..., : c.bins] ** 2 + x[..., c.bins :] ** 2))
        for n in range(len(c.strides)):
            x = nn.relu(getattr(self, f"conv{n + 1}")(x))
        x = tap("features", x[:, 0])
        x, state = self.lstm_cell(x, state)
        x = tap("lstm", x)
        logits = self.final_conv(nn.relu(x)[:, None])[:, 0]
        return tap("probability", mx.sigmoid(logits)[:, 0]), state
