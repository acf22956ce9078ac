"""A transformer over a window of the past, on torch, with its keys and values in a state.

With `one_by_one` each query attends as if it came alone, so that sums are taken in the same order in any chunking.
Parameters are named as in transformers' Mimi.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn as nn
import torch.nn.functional as F

from izwi_lab.families.shared.nets.causal_conv.torch_net import State
from izwi_lab.families.shared.nets.windowed.config import WindowedConfig
from izwi_lab.families.shared.taps import tap


class Linear(nn.Linear):
    """The product runs in the weights' dtype; what comes in and out is float32, and so is the bias.

    `native`, where a net sets it, takes over for a batch of one.
    """

    native: Callable[[torch.Tensor], torch.Tensor] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., ins] -> [..., outs]."""
        if self.native is not None and x.shape[0] == 1 and x.dim() == 3:
            return self.native(x)
        y = F.linear(x.to(self.weight.dtype), self.weight).float()
        return y if self.bias is None else y + self.bias


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, in float32."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.empty(width)), eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> the same shape."""
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


class Scale(nn.Module):
    """A factor for each channel (LayerScale, arXiv 2103.17239)."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.empty(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [..., C] -> the same shape."""
        return x * self.scale


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        self.gate_proj = Linear(c.width, c.inner, bias=False)
        self.up_proj = Linear(c.width, c.inner, bias=False)
        self.down_proj = Linear(c.inner, c.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """Two products with an exact GELU between them."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        self.fc1 = Linear(c.width, c.inner, bias=False)
        self.fc2 = Linear(c.inner, c.width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Attention over the window. x [B, T, D] -> [B, T, D]."""

    slot = ""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        self.c = c
        inner = c.heads * c.head_dim
        self.q_proj = Linear(c.width, inner, bias=False)
        self.k_proj = Linear(c.width, inner, bias=False)
        self.v_proj = Linear(c.width, inner, bias=False)
        self.o_proj = Linear(inner, c.width, bias=False)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        """[B, T, H * d] -> [B, H, T, d]."""
        return x.unflatten(-1, (self.c.heads, self.c.head_dim)).transpose(1, 2)

    def forward(self, x: torch.Tensor, state: State, place: Place) -> torch.Tensor:
        """See the class."""
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        q, k = rotate(q, *place.rotations), rotate(k, *place.rotations)
        keep = self.c.window - 1
        kept = state.get(self.slot) or (k.new_zeros(*k.shape[:2], keep, k.shape[3]),) * 2
        k, v = torch.cat([kept[0], k], dim=2), torch.cat([kept[1], v], dim=2)
        new = q.shape[2]
        state[self.slot] = (k[:, :, new:].clone(), v[:, :, new:].clone())
        step = 1 if self.c.one_by_one else new
        parts = [
            F.scaled_dot_product_attention(
                q[:, :, i : i + step],
                k[:, :, i : i + step + keep],
                v[:, :, i : i + step + keep],
                attn_mask=place.masks[i],
            )
            for i in range(0, new, step)
        ]
        y = torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]
        return self.o_proj(y.transpose(1, 2).flatten(2))


class Place:
    """Where a chunk lies in its stream: the angles of its positions, and which keys may be seen."""

    def __init__(self, c: WindowedConfig, past: int, new: int, like: torch.Tensor):
        position = torch.arange(past, past + new, device=like.device)
        steps = torch.arange(0, c.head_dim, 2, device=like.device) / c.head_dim
        angles = torch.outer(position.double(), c.theta ** -steps.double())  # exact however long the stream is
        self.rotations = (angles.cos().float(), angles.sin().float())
        there = torch.arange(past - c.window + 1, past + new, device=like.device) >= 0  # [window - 1 + T]
        if c.one_by_one:
            self.masks = there.unfold(0, c.window, 1)[:, None].unbind()  # each [1, window]
        else:
            place = torch.arange(new + c.window - 1, device=like.device)
            behind = place[c.window - 1 :, None] - place
            self.masks = (there & (behind >= 0) & (behind < c.window),)  # [T, window - 1 + T]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary positions, half split. x: [B, H, T, d]; cos, sin: [T, d / 2]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


class Layer(nn.Module):
    """Attention and MLP, each on a normed input, scaled and added."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        norm = RMSNorm if c.gated else nn.LayerNorm
        self.input_layernorm = norm(c.width, c.eps)
        self.self_attn = Attention(c)
        self.self_attn_layer_scale = Scale(c.width)
        self.post_attention_layernorm = norm(c.width, c.eps)
        self.mlp = GatedMLP(c) if c.gated else MLP(c)
        self.mlp_layer_scale = Scale(c.width)

    def forward(self, x: torch.Tensor, state: State, place: Place) -> torch.Tensor:
        """x: [B, T, D] -> [B, T, D]."""
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), state, place))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class Windowed(nn.Module):
    """The transformer. Taps: <taps>.N, what comes out of layer N."""

    slot = ""

    def __init__(self, c: WindowedConfig, taps: str):
        super().__init__()
        self.c, self.taps = c, taps
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        if c.outside:
            self.input_proj = Linear(c.outside, c.width)
            self.norm = RMSNorm(c.width, c.eps)
            self.output_proj = Linear(c.width, c.outside)

    def forward(self, x: torch.Tensor, state: State) -> torch.Tensor:
        """x: [B, T, D] (or the width outside) -> the same shape."""
        x = self.input_proj(x) if self.c.outside else x
        past = int(state.get(self.slot, 0))
        state[self.slot] = torch.tensor(past + x.shape[1])
        place = Place(self.c, past, x.shape[1], x)
        for i, layer in enumerate(self.layers):
            x = tap(f"{self.taps}.{i}", layer(x, state, place))
        return self.output_proj(self.norm(x)) if self.c.outside else x
