"""Causal convolutions on torch, channels last, with their past in a state: [B, T, C] in, [B, T', C'] out.

A state maps the `slot` of each module to what it keeps of the past. Arrays in it are replaced and never written, so a
copy of the mapping is a fork. `name_slots` gives every module of a net its own.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from izwi_lab.families.shared.nets.conv_stack.torch_net import Conv1d

State = dict[str, torch.Tensor | tuple[torch.Tensor, ...]]
Activation = Callable[[torch.Tensor], torch.Tensor]


class CausalConv1d(Conv1d):
    """A convolution whose output t sees inputs up to t (with a stride, up to the end of its own step).

    What is missing on the left at the start is zero, or the first row again (`replicate`). On the right the input is
    filled up to whole steps in the same way, which only the last chunk may need. `causal`, where it is set, takes over
    for a batch of one.
    """

    causal: Callable[..., torch.Tensor] | None = None
    slot = ""

    def __init__(self, ins, outs, kernel, *, stride=1, dilation=1, groups=1, bias=True, replicate=False):
        super().__init__(ins, outs, kernel, stride=stride, dilation=dilation, groups=groups, bias=bias)
        self.past = (kernel - 1) * dilation + 1 - stride
        self.replicate = replicate

    def before(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """The `past` rows that come before x, and the state moved on by x."""
        kept = state.get(self.slot)
        if kept is None:
            first = x[:, :1] if self.replicate else x.new_zeros(x.shape[0], 1, x.shape[2])
            kept = first.expand(-1, self.past, -1).contiguous()
        new = x[:, -self.past :]
        missing = self.past - new.shape[1]
        state[self.slot] = torch.cat([kept[:, -missing:], new], dim=1) if missing > 0 else new.clone()
        return kept

    def forward(
        self, x: torch.Tensor, state: State, *, act: Activation | None = None, residual: torch.Tensor | None = None
    ) -> torch.Tensor:
        """conv(act(x)) + residual. act(0) must be 0."""
        before = self.before(x, state) if self.past else None
        if missing := -x.shape[1] % self.stride[0]:
            x = torch.cat([x, x[:, -1:].expand(-1, missing, -1)], 1) if self.replicate else F.pad(x, (0, 0, 0, missing))
        if self.causal is not None and x.shape[0] == 1:
            return self.causal(x, before, act, residual)
        x = x if before is None else torch.cat([before, x], dim=1)
        y = super().forward(x if act is None else act(x))
        return y if residual is None else y + residual


class CausalUp1d(CausalConv1d):
    """A transposed convolution whose kernel is whole times its stride, as a convolution with `rate` times the outputs.

    Its weight is [rate * outs, ins, kernel / rate], phase by phase; `phases` of weights.py makes it of torch's form.
    """

    def __init__(self, ins, outs, kernel, rate):
        super().__init__(ins, rate * outs, kernel // rate)
        self.rate = rate

    def forward(self, x: torch.Tensor, state: State, *, act: Activation | None = None) -> torch.Tensor:
        """x: [B, T, ins] -> [B, T * rate, outs]."""
        return super().forward(x, state, act=act).unflatten(2, (self.rate, -1)).flatten(1, 2)


class Snake(nn.Module):
    """SnakeBeta: x + sin(alpha x)^2 / beta, both per channel, in float32 (arXiv 2006.08195; BigVGAN)."""

    def __init__(self, width):
        super().__init__()
        self.alpha = nn.Parameter(torch.empty(width))
        self.inverse_beta = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, C] -> the same shape."""
        return x + torch.sin(x * self.alpha).square() * self.inverse_beta


def name_slots(net: nn.Module) -> None:
    """Give every module that keeps a past its name in the state."""
    for name, module in net.named_modules():
        if hasattr(module, "slot"):
            module.slot = name
