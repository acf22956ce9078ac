"""A one-layer bidirectional LSTM on torch, with torch's own parameter names."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn


class BiLSTM(nn.LSTM):
    """Both directions of one layer; the output holds forward then backward, each of `width // 2`."""

    native: Any = None

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__(inputs, width // 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, inputs] -> [B, T, width]."""
        if self.native is not None and x.shape[0] == 1:
            return self.native(x)
        return super().forward(x.to(self.weight_ih_l0.dtype))[0].float()
