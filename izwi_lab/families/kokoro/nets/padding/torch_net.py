"""What is real in a padded batch, on torch: pieces of different lengths in one array, none of which sees the padding.

A layer that looks at its neighbours or at the whole of time needs to know; what looks at one step alone may leave
anything in the padding. `None` in place of a `Real` is a batch without padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from izwi_lab.families.shared.nets.lstm.torch_net import BiLSTM


class Real:
    """lengths: of the real beginning of each row, in steps of the time axis."""

    def __init__(self, lengths: Sequence[int], device: torch.device) -> None:
        self.lengths, self._device = tuple(int(n) for n in lengths), device
        counts = torch.tensor(self.lengths, device=device)
        self.mask = torch.arange(max(self.lengths), device=device) < counts[:, None]  # bool [B, T]
        self._counts = counts.view(-1, 1, 1)
        self._times: dict[tuple[int, int], Real] = {}

    def times(self, rate: int, extra: int = 0) -> Real:
        """The same after time was stretched by `rate`, with some steps more."""
        if (rate, extra) not in self._times:
            self._times[rate, extra] = Real([n * rate + extra for n in self.lengths], self._device)
        return self._times[rate, extra]

    def only(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, C] with zeros for padding, as a convolution sees beyond the end of a piece by itself."""
        return x.masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def moments(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [B, T, C] -> (variance, mean) over the real steps, [B, 1, C]."""
        mean = self.only(x).sum(1, keepdim=True) / self._counts
        return self.only(x - mean).square().sum(1, keepdim=True) / self._counts, mean

    def moved(self, x: torch.Tensor, way: int) -> torch.Tensor:
        """x: [B, T, C] with each real part moved to the end (way 1), or back to the beginning (way -1)."""
        size = x.shape[1]
        padding = size - self._counts.view(-1, 1)
        return taken(x, (torch.arange(size, device=self._device) - way * padding) % size)


def only(x: torch.Tensor, real: Real | None) -> torch.Tensor:
    """x: [B, T, C] with zeros for padding."""
    return x if real is None else real.only(x)


def both_ways(lstm: BiLSTM, x: torch.Tensor, real: Real | None) -> torch.Tensor:
    """x: [B, T, inputs] -> [B, T, width]; backwards from the end of each piece.

    The way back is taken through rows moved to the end of the batch, so that they come before the padding: packed
    sequences would do it in one run, but not on every device.
    """
    if real is None:
        return lstm(x)
    forward, back = lstm(x), real.moved(lstm(real.moved(x, 1)), -1)
    half = lstm.hidden_size
    return torch.cat([forward[..., :half], back[..., half:]], dim=-1)


def taken(x: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    """x: [B, T, C], frames: int [F] of all rows, or [B, F] of each -> [B, F, C]."""
    if frames.dim() == 1:
        return x[:, frames]
    return x.gather(1, frames.long().unsqueeze(-1).expand(-1, -1, x.shape[-1]))
