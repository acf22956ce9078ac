"""A one-layer bidirectional LSTM on MLX, with torch's parameter names and gate order (i, f, g, o)."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn


class BiLSTM(nn.Module):
    """Both directions of one layer; the output holds forward then backward, each of `width // 2`."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        hidden = width // 2
        for suffix in ("", "_reverse"):
            setattr(self, f"weight_ih_l0{suffix}", mx.zeros((4 * hidden, inputs)))
            setattr(self, f"weight_hh_l0{suffix}", mx.zeros((4 * hidden, hidden)))
            setattr(self, f"bias_ih_l0{suffix}", mx.zeros((4 * hidden,)))
            setattr(self, f"bias_hh_l0{suffix}", mx.zeros((4 * hidden,)))

    def __call__(self, x: mx.array, turn: Callable[[mx.array], mx.array] | None = None) -> mx.array:
        """x: [B, T, inputs] -> [B, T, width]. turn: what reverses rows of different lengths, and is its own inverse."""
        turn = turn or _reversed
        forward = self._direction(x, "")
        backward = turn(self._direction(turn(x), "_reverse"))
        return mx.concatenate([forward, backward], axis=-1)

    def _direction(self, x: mx.array, suffix: str) -> mx.array:
        bias = self[f"bias_ih_l0{suffix}"] + self[f"bias_hh_l0{suffix}"]
        gates = (x.astype(self[f"weight_ih_l0{suffix}"].dtype) @ self[f"weight_ih_l0{suffix}"].T) + bias  # [B, T, 4H]
        recurrent = self[f"weight_hh_l0{suffix}"].T
        h = c = mx.zeros((x.shape[0], recurrent.shape[0]), dtype=gates.dtype)
        out = []
        for t in range(x.shape[1]):
            i, f, g, o = mx.split(gates[:, t] + h @ recurrent, 4, axis=-1)
            c = mx.sigmoid(f) * c + mx.sigmoid(i) * mx.tanh(g)
            h = mx.sigmoid(o) * mx.tanh(c)
            out.append(h)
        return mx.stack(out, axis=1).astype(mx.float32)


def _reversed(x: mx.array) -> mx.array:
    return x[:, ::-1]
