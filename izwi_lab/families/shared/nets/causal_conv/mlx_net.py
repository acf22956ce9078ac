"""Causal convolutions on MLX, channels last, with their past in a state. Twin of torch_net.py."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from izwi_lab.backends.streams_mlx import share_rows
from izwi_lab.families.shared.nets.conv_stack.mlx_net import Conv1d

_SINE = 32  # multiplications in the time of a Snake on the CPU


class CausalConv1d(Conv1d):
    """A convolution whose output t sees inputs up to t; see torch_net.py."""

    def __init__(self, ins, outs, kernel, *, stride=1, dilation=1, groups=1, bias=True, replicate=False):
        super().__init__(ins, outs, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias)
        self.past = (kernel - 1) * dilation + 1 - stride
        self.replicate = replicate
        self.slot = ""

    def before(self, x, state):
        """The `past` rows that come before x, and the state moved on by x."""
        kept = state.get(self.slot)
        if kept is None:
            first = x[:, :1] if self.replicate else mx.zeros((x.shape[0], 1, x.shape[2]), x.dtype)
            kept = mx.repeat(first, self.past, axis=1)
        new = x[:, -self.past :]
        missing = self.past - new.shape[1]
        # A slice would keep the whole array alive; `contiguous` copies where that is much larger.
        state[self.slot] = mx.concatenate([kept[:, -missing:], new], axis=1) if missing > 0 else mx.contiguous(new)
        return kept

    def __call__(self, x, state, *, act=None, residual=None):
        """conv(act(x)) + residual. act(0) must be 0."""
        before = self.before(x, state) if self.past else None
        if missing := -x.shape[1] % self.stride:
            last = x[:, -1:] if self.replicate else mx.zeros((x.shape[0], 1, x.shape[2]), x.dtype)
            x = mx.concatenate([x, mx.repeat(last, missing, axis=1)], axis=1)
        x = x if before is None else mx.concatenate([before, x], axis=1)
        y = super().__call__(x if act is None else act(x))
        return y if residual is None else y + residual


class CausalUp1d(CausalConv1d):
    """A transposed convolution as a convolution with `rate` times the outputs; see torch_net.py."""

    def __init__(self, ins, outs, kernel, rate):
        super().__init__(ins, rate * outs, kernel // rate)
        self.rate = rate

    def __call__(self, x, state, *, act=None):
        """x: [B, T, ins] -> [B, T * rate, outs]."""
        y = super().__call__(x, state, act=act)
        return y.reshape(y.shape[0], y.shape[1] * self.rate, -1)


class Snake(nn.Module):
    """SnakeBeta: x + sin(alpha x)^2 / beta, both per channel, in float32."""

    def __init__(self, width):
        super().__init__()
        self.alpha = mx.zeros(width)
        self.inverse_beta = mx.zeros(width)
        self._shared = False

    def finalize(self, backend):
        """After loading: on the CPU, sines are shared out among its cores."""
        self._shared = backend.device == "cpu"

    def __call__(self, x):
        """x: [B, T, C] -> the same shape."""
        if self._shared:
            return share_rows(lambda rows: _snake(rows, self.alpha, self.inverse_beta), x, x.size * _SINE)
        return _snake(x, self.alpha, self.inverse_beta)


@mx.compile
def _snake(x, alpha, inverse_beta):
    return x + mx.square(mx.sin(x * alpha)) * inverse_beta


def name_slots(net):
    """Give every module that keeps a past its name in the state."""
    for name, module in net.named_modules():
        if hasattr(module, "slot"):
            module.slot = name
