"""What is real in a padded batch, on MLX: pieces of different lengths in one array, none of which sees the padding.

A layer that looks at its neighbours or at the whole of time needs to know; what looks at one step alone may leave
anything in the padding. `None` in place of a `Real` is a batch without padding.
"""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from izwi_lab.families.shared.nets.lstm.mlx_net import BiLSTM


class Real:
    """lengths: of the real beginning of each row, in steps of the time axis."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(int(n) for n in lengths)
        counts = mx.array(self.lengths)
        self.mask = mx.arange(max(self.lengths)) < counts[:, None]  # bool [B, T]
        self._counts = counts[:, None, None].astype(mx.float32)
        self._times: dict[tuple[int, int], Real] = {}

    def times(self, rate: int, extra: int = 0) -> Real:
        """The same after time was stretched by `rate`, with some steps more."""
        if (rate, extra) not in self._times:
            self._times[rate, extra] = Real([n * rate + extra for n in self.lengths])
        return self._times[rate, extra]

    def only(self, x: mx.array) -> mx.array:
        """x: [B, T, C] with zeros for padding, as a convolution sees beyond the end of a piece by itself."""
        return mx.where(self.mask[..., None], x, mx.zeros((), x.dtype))

    def moments(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """x: [B, T, C] -> (variance, mean) over the real steps, [B, 1, C]."""
        mean = self.only(x).sum(1, keepdims=True) / self._counts
        return mx.square(self.only(x - mean)).sum(1, keepdims=True) / self._counts, mean

    def backwards(self, x: mx.array) -> mx.array:
        """x: [B, T, C] with each real part in reverse; done twice, it is x again."""
        places = mx.arange(x.shape[1])
        turned = mx.where(self.mask, mx.array(self.lengths)[:, None] - 1 - places, places)
        return mx.take_along_axis(x, turned[..., None], axis=1)


def only(x: mx.array, real: Real | None) -> mx.array:
    """x: [B, T, C] with zeros for padding."""
    return x if real is None else real.only(x)


def both_ways(lstm: BiLSTM, x: mx.array, real: Real | None) -> mx.array:
    """x: [B, T, inputs] -> [B, T, width]; backwards from the end of each piece."""
    return lstm(x) if real is None else lstm(x, turn=real.backwards)


def taken(x: mx.array, frames: mx.array) -> mx.array:
    """x: [B, T, C], frames: int [F] of all rows, or [B, F] of each -> [B, F, C]."""
    return x[:, frames] if frames.ndim == 1 else mx.take_along_axis(x, frames[..., None], axis=1)
