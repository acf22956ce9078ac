"""The decoder on MLX. Parameters are named as in transformers; taps: embed, layers.N[.attn|.mlp], norm, logits."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from izwi_lab.families.shared.nets.decoder.config import DecoderConfig, room_for
from izwi_lab.families.shared.taps import tap


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis; the scale is weight + offset."""

    def __init__(self, width: int, c: DecoderConfig):
        super().__init__()
        self.weight = mx.ones((width,))
        self.eps, self.offset = c.norm_eps, c.norm_offset

    def scale(self) -> mx.array:
        """What the normed values are multiplied by."""
        return self.weight + self.offset if self.offset else self.weight

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        return mx.fast.rms_norm(x, self.scale(), self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and a cache. x [B, T, D] -> [B, T, D]."""

    def __init__(self, c: DecoderConfig, index: int):
        super().__init__()
        self.c, self.index = c, index
        self.q_proj = nn.Linear(c.hidden_size, c.num_heads * c.head_dim, bias=c.attention_bias)
        self.k_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.attention_bias)
        self.v_proj = nn.Linear(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = nn.Linear(c.num_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)
        if c.qk_norm:
            self.q_norm = RMSNorm(c.head_dim, c)
            self.k_norm = RMSNorm(c.head_dim, c)

    def project(self, x: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Heads first: q [B, H, T, d], k and v [B, Hkv, T, d]."""
        c = self.c
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.reshape(*x.shape[:2], c.num_heads, c.head_dim).swapaxes(1, 2)
        k = k.reshape(*x.shape[:2], c.num_kv_heads, c.head_dim).swapaxes(1, 2)
        v = v.reshape(*x.shape[:2], c.num_kv_heads, c.head_dim).swapaxes(1, 2)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def __call__(self, x: mx.array, state: dict, ropes: dict, masks: dict) -> mx.array:
        """See the class."""
        c, i, start, T = self.c, self.index, state["length"], x.shape[1]
        q, k, v = self.project(x)
        cos, sin = ropes[c.layer_types[i]]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        state["k"][i][:, :, start : start + T] = k
        state["v"][i][:, :, start : start + T] = v
        window = c.window_of(i)
        first = max(0, start + 1 - window) if window else 0
        k, v = state["k"][i][:, :, first : start + T], state["v"][i][:, :, first : start + T]
        mask = masks[c.layer_types[i]] if T > 1 else None
        y = mx.fast.scaled_dot_product_attention(q, k, v, scale=c.attn_scale, mask=mask)
        return self.o_proj(y.swapaxes(1, 2).reshape(*x.shape[:2], -1))


class MLP(nn.Module):
    """Gated: down(act(gate x) * up x)."""

    def __init__(self, c: DecoderConfig):
        super().__init__()
        self.c = c
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        act = nn.silu(gate) if self.c.activation == "silu" else nn.gelu_approx(gate)
        return self.down_proj(act * up)


class Layer(nn.Module):
    """Attention and MLP, each with its norms, added to the residual stream."""

    def __init__(self, c: DecoderConfig, index: int):
        super().__init__()
        self.c, self.index = c, index
        self.self_attn = Attention(c, index)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c)
        if c.post_norms:
            self.pre_feedforward_layernorm = RMSNorm(c.hidden_size, c)
            self.post_feedforward_layernorm = RMSNorm(c.hidden_size, c)

    def __call__(self, x: mx.array, state: dict, ropes: dict, masks: dict) -> mx.array:
        """See the class."""
        post = self.c.post_norms
        y = self.self_attn(self.input_layernorm(x), state, ropes, masks)
        y = tap(f"layers.{self.index}.attn", self.post_attention_layernorm(y) if post else y)
        x = x + y
        y = self.mlp(self.pre_feedforward_layernorm(x) if post else self.post_attention_layernorm(x))
        y = tap(f"layers.{self.index}.mlp", self.post_feedforward_layernorm(y) if post else y)
        return tap(f"layers.{self.index}", x + y)


class Model(nn.Module):
    """Embeddings, layers, last norm."""

    def __init__(self, c: DecoderConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = [Layer(c, i) for i in range(c.num_layers)]
        self.norm = RMSNorm(c.hidden_size, c)


class DecoderLM(nn.Module):
    """ids [B, T] and the state of a session -> logits [B, V] and hidden [B, D] of the last position.

    state: {"length": positions cached, "k": [one per layer], "v": [...]}, caches [B, Hkv, capacity, d]; see `state`.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = Model(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def weight_bytes(self) -> int:
        """Bytes of all weights as held."""
        return sum(p.nbytes for _, p in tree_flatten(self.parameters()))

    def state(self) -> dict:
        """An empty cache."""
        return {"length": 0, "k": [], "v": []}

    def embed(self, ids: mx.array) -> mx.array:
        """Ids [B, T] -> [B, T, D]."""
        x = self.model.embed_tokens(ids)
        if self.config.embed_scale != 1.0:
            x = x * mx.array(self.config.embed_scale, x.dtype)
        return tap("embed", x)

    def hidden(self, x: mx.array, state: dict) -> mx.array:
        """Embeddings [B, T, D] -> normed hidden states [B, T, D]; the state grows by T."""
        start, T = state["length"], x.shape[1]
        reserve(state, self.config, x, start + T)
        ropes = {kind: angles(r, start, T, x) for kind, r in self.config.ropes}
        masks = {kind: mask_of(self.config, kind, start, T) for kind in ropes} if T > 1 else {}
        for layer in self.model.layers:
            x = layer(x, state, ropes, masks)
        state["length"] = start + T
        return tap("norm", self.model.norm(x))

    def head(self, x: mx.array) -> mx.array:
        """Hidden states [..., D] -> logits [..., V]."""
        return tap("logits", self.model.embed_tokens.as_linear(x) if self.config.tied else self.lm_head(x))

    def __call__(self, ids: mx.array, state: dict) -> tuple[mx.array, mx.array]:
        """See the class."""
        last = self.hidden(self.embed(ids), state)[:, -1]
        return self.head(last), last


def reserve(state: dict, c: DecoderConfig, like: mx.array, positions: int) -> None:
    """Make room for `positions` in the caches, in buckets; what is cached is kept."""
    held = state["k"][0].shape[2] if state["k"] else 0
    if positions <= held:
        return
    room = room_for(positions, held, c.max_positions)
    shape = (like.shape[0], c.num_kv_heads, room - held, c.head_dim)
    for name in ("k", "v"):
        old = state[name] or [None] * c.num_layers
        more = [mx.zeros(shape, like.dtype) for _ in old]
        state[name] = [m if o is None else mx.concatenate([o, m], axis=2) for o, m in zip(old, more, strict=True)]


def angles(rope, start: int, T: int, like: mx.array) -> tuple[mx.array, mx.array]:
    """Cos and sin [T, d / 2] for positions start .. start + T, in the dtype of `like`."""
    angle = mx.arange(start, start + T, dtype=mx.float32)[:, None] * mx.array(rope.inv_freq, mx.float32)
    return (mx.cos(angle) * rope.gain).astype(like.dtype), (mx.sin(angle) * rope.gain).astype(like.dtype)


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Half-split rotation of x [B, H, T, d]."""
    a, b = mx.split(x, 2, axis=-1)
    return mx.concatenate((a * cos - b * sin, b * cos + a * sin), axis=-1)


def mask_of(c: DecoderConfig, kind: str, start: int, T: int) -> mx.array | str:
    """Which keys a query sees, bool [T, keys]; "causal" where plain causal order says it all."""
    window = c.window_of(c.layer_types.index(kind)) if kind in c.layer_types else 0
    if start == 0 and (not window or window >= T):
        return "causal"
    first = max(0, start + 1 - window) if window else 0
    queries, keys = mx.arange(start, start + T)[:, None], mx.arange(first, start + T)
    seen = keys <= queries
    return seen & (keys > queries - window) if window else seen
