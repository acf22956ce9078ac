"""Silero VAD's net in torch. Twin of mlx_net.py. Shapes: N frames in time order, C channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.families.shared.taps import tap


class SileroNet(nn.Module):
    """Spectrum, four convolutions, one LSTM over time, one logit per frame."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.stft_conv = nn.Conv1d(1, 2 * config.bins, config.fft, stride=config.hop, bias=False)
        widths = (config.bins, *config.widths)
        for n, stride in enumerate(config.strides):
            setattr(self, f"conv{n + 1}", nn.Conv1d(widths[n], widths[n + 1], 3, stride=stride, padding=1))
        self.lstm_cell = nn.LSTMCell(widths[-1], config.hidden)
        self.final_conv = nn.Conv1d(config.hidden, 1, 1)

    def forward(self, frames, state):
        """Frames [N, 64 + 512], state (h, c) [128] each -> probabilities [N], the state after the last frame."""
        c = self.config
        x = F.pad(frames[:, None], (0, 64), mode="reflect")[:, 0]
        x = x.unfold(1, c.fft, c.hop) @ self.stft_conv.weight[:, 0].T  # [N, 4, 2 bins]
        x = tap("spectrum", (x[..., : c.bins] ** 2 + x[..., c.bins :] ** 2).sqrt()).transpose(1, 2)
        for n in range(len(c.strides)):
            x = getattr(self, f"conv{n + 1}")(x).relu()
        x = tap("features", x[..., 0])
        cell = self.lstm_cell
        weights = [cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh]
        start = [s[None, None] for s in state]
        out, h, cell_state = torch.lstm(x[:, None], start, weights, True, 1, 0.0, False, False, False)
        x = tap("lstm", out[:, 0])
        logits = x.relu() @ self.final_conv.weight[0] + self.final_conv.bias
        return tap("probability", logits.sigmoid()[:, 0]), (h[0, 0], cell_state[0, 0])
