"""A transformer over a window of the past, on MLX, with its keys and values in a state. Twin of torch_net.py."""

from __future__ import annotations

import mlx.core as mx
from mlx import nn

from izwi_lab.backends.streams_mlx import by_columns, product
from izwi_lab.families.shared.nets.windowed.config import WindowedConfig
from izwi_lab.families.shared.taps import tap


class Linear(nn.Linear):
    """The product runs in the weights' dtype; what comes in and out is float32, and so is the bias."""

    _shared = False

    def finalize(self, backend):
        """After loading: on the CPU, weights in the order that its products like."""
        if backend.device == "cpu":
            self.weight, self._shared = by_columns(self.weight), True

    def __call__(self, x):
        """x: [B, T, ins] -> [B, T, outs]."""
        x = x.astype(self.weight.dtype)
        y = (product(x, self.weight.T) if self._shared else x @ self.weight.T).astype(mx.float32)
        return y + self.bias if "bias" in self else y


class Scale(nn.Module):
    """A factor for each channel (LayerScale, arXiv 2103.17239)."""

    def __init__(self, width):
        super().__init__()
        self.scale = mx.zeros(width)

    def __call__(self, x):
        """x: [..., C] -> the same shape."""
        return x * self.scale


class GatedMLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        self.gate_proj = Linear(c.width, c.inner, bias=False)
        self.up_proj = Linear(c.width, c.inner, bias=False)
        self.down_proj = Linear(c.inner, c.width, bias=False)

    def __call__(self, x):
        """x: [B, T, D] -> [B, T, D]."""
        return self.down_proj(nn.silu(self.gate_proj(x)) * self.up_proj(x))


class MLP(nn.Module):
    """Two products with an exact GELU between them."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        self.fc1 = Linear(c.width, c.inner, bias=False)
        self.fc2 = Linear(c.inner, c.width, bias=False)

    def __call__(self, x):
        """x: [B, T, D] -> [B, T, D]."""
        return self.fc2(nn.gelu(self.fc1(x)))


class Attention(nn.Module):
    """Attention over the window. x [B, T, D] -> [B, T, D]."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        self.c, self.slot = c, ""
        inner = c.heads * c.head_dim
        self.q_proj = Linear(c.width, inner, bias=False)
        self.k_proj = Linear(c.width, inner, bias=False)
        self.v_proj = Linear(c.width, inner, bias=False)
        self.o_proj = Linear(inner, c.width, bias=False)

    def heads(self, x):
        """[B, T, H * d] -> [B, H, T, d]."""
        return x.reshape(*x.shape[:2], self.c.heads, self.c.head_dim).transpose(0, 2, 1, 3)

    def __call__(self, x, state, mask):
        """See the class."""
        c = self.c
        q, k, v = self.heads(self.q_proj(x)), self.heads(self.k_proj(x)), self.heads(self.v_proj(x))
        if (kept := state.get(self.slot)) is not None:
            k, v = mx.concatenate([kept[0], k], axis=2), mx.concatenate([kept[1], v], axis=2)
        first = max(0, k.shape[2] - (c.window - 1))
        state[self.slot] = (mx.contiguous(k[:, :, first:]), mx.contiguous(v[:, :, first:]))
        place = k.shape[2] - q.shape[2]
        q = mx.fast.rope(q, c.head_dim, traditional=False, base=c.theta, scale=1.0, offset=place)
        k = mx.fast.rope(k, c.head_dim, traditional=False, base=c.theta, scale=1.0, offset=0)
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=c.head_dim**-0.5, mask=mask)
        return self.o_proj(y.transpose(0, 2, 1, 3).flatten(2))


class Layer(nn.Module):
    """Attention and MLP, each on a normed input, scaled and added."""

    def __init__(self, c: WindowedConfig):
        super().__init__()
        norm = nn.RMSNorm if c.gated else nn.LayerNorm
        self.input_layernorm = norm(c.width, eps=c.eps)
        self.self_attn = Attention(c)
        self.self_attn_layer_scale = Scale(c.width)
        self.post_attention_layernorm = norm(c.width, eps=c.eps)
        self.mlp = GatedMLP(c) if c.gated else MLP(c)
        self.mlp_layer_scale = Scale(c.width)

    def __call__(self, x, state, mask):
        """x: [B, T, D] -> [B, T, D]."""
        x = x + self.self_attn_layer_scale(self.self_attn(self.input_layernorm(x), state, mask))
        return x + self.mlp_layer_scale(self.mlp(self.post_attention_layernorm(x)))


class Windowed(nn.Module):
    """The transformer. Taps: <taps>.N, what comes out of layer N."""

    def __init__(self, c: WindowedConfig, taps: str):
        super().__init__()
        self.c, self.taps = c, taps
        self.layers = [Layer(c) for _ in range(c.layers)]
        if c.outside:
            self.input_proj = Linear(c.outside, c.width)
            self.norm = nn.RMSNorm(c.width, eps=c.eps)
            self.output_proj = Linear(c.width, c.outside)

    def __call__(self, x, state):
        """x: [B, T, D] (or the width outside) -> the same shape."""
        x = self.input_proj(x) if self.c.outside else x
        kept = state.get(self.layers[0].self_attn.slot)
        mask = _mask(self.c, 0 if kept is None else kept[0].shape[2], x.shape[1])
        for i, layer in enumerate(self.layers):
            x = tap(f"{self.taps}.{i}", layer(x, state, mask))
        return self.output_proj(self.norm(x)) if self.c.outside else x


def _mask(c, past, new):
    """Who sees whom: [T, past + T]; None where a single query sees all."""
    if new == 1:
        return None
    position = mx.arange(past + new)
    behind = position[past:, None] - position
    return (behind >= 0) & (behind < c.window)
