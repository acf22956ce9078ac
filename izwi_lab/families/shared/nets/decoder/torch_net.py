"""The decoder on torch. Parameters are named as in transformers; taps: embed, layers.N[.attn|.mlp], norm, logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.families.shared.nets.decoder import native_torch
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig, room_for
from izwi_lab.families.shared.taps import tap, tapped


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis; the scale is weight + offset."""

    def __init__(self, width: int, c: DecoderConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps, self.offset = c.norm_eps, c.norm_offset

    def scale(self) -> torch.Tensor:
        """What the normed values are multiplied by."""
        return self.weight + self.offset if self.offset else self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return F.rms_norm(x, x.shape[-1:], self.scale(), self.eps)


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
        self.fused = None

    def fuse(self) -> None:
        """One product for q, k and v: the three weights become views of one matrix."""
        self.fused = fused((self.q_proj, self.k_proj, self.v_proj))

    def project(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Heads first: q [B, H, T, d], k and v [B, Hkv, T, d]."""
        c = self.c
        if self.fused is not None:
            kv = c.num_kv_heads * c.head_dim
            q, k, v = F.linear(x, *self.fused).split((c.num_heads * c.head_dim, kv, kv), dim=-1)
        else:
            q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.unflatten(-1, (c.num_heads, c.head_dim)).transpose(1, 2)
        k = k.unflatten(-1, (c.num_kv_heads, c.head_dim)).transpose(1, 2)
        v = v.unflatten(-1, (c.num_kv_heads, c.head_dim)).transpose(1, 2)
        if c.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        return q, k, v

    def forward(self, x: torch.Tensor, state: dict, ropes: dict, masks: dict) -> torch.Tensor:
        """See the class."""
        c, i, start, T = self.c, self.index, state["length"], x.shape[1]
        q, k, v = self.project(x)
        cos, sin = ropes[c.layer_types[i]]
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        keys, values = state["k"][i], state["v"][i]
        keys[:, :, start : start + T] = k
        values[:, :, start : start + T] = v
        window = c.window_of(i)
        first = max(0, start + 1 - window) if window else 0
        k, v = keys[:, :, first : start + T], values[:, :, first : start + T]
        if T == 1:  # every query head of a key head as a row: no mask and no copies of keys
            rows = q.view(q.shape[0], c.num_kv_heads, -1, c.head_dim)
            y = F.scaled_dot_product_attention(rows, k, v, scale=c.attn_scale).reshape(x.shape[0], 1, -1)
        else:
            mask = masks[c.layer_types[i]]
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, is_causal=mask is None, scale=c.attn_scale, enable_gqa=q.shape[1] != k.shape[1]
            )
            y = y.transpose(1, 2).flatten(2)
        return self.o_proj(y)


class MLP(nn.Module):
    """Gated: down(act(gate x) * up x)."""

    def __init__(self, c: DecoderConfig):
        super().__init__()
        self.c = c
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)
        self.fused = None

    def fuse(self) -> None:
        """One product for gate and up: the two weights become views of one matrix."""
        self.fused = fused((self.gate_proj, self.up_proj))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self.fused is not None:
            gate, up = F.linear(x, *self.fused).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(x), self.up_proj(x)
        act = F.silu(gate) if self.c.activation == "silu" else F.gelu(gate, approximate="tanh")
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

    def forward(self, x: torch.Tensor, state: dict, ropes: dict, masks: dict) -> torch.Tensor:
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
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_layers))
        self.norm = RMSNorm(c.hidden_size, c)


class DecoderLM(nn.Module):
    """ids [B, T] and the state of a session -> logits [B, V] and hidden [B, D] of the last position.

    state: {"length": positions cached, "k": [one per layer], "v": [...]}, caches [B, Hkv, capacity, d]; see `state`.
    A single token on the CPU goes through the compiled step when it is there; open taps go through this code.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = Model(config)
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.step = None

    def finalize(self, backend) -> None:
        """After loading: fuse dense projections, describe the weights to the compiled step."""
        for layer in self.model.layers:
            layer.self_attn.fuse()
            layer.mlp.fuse()
        self.step = native_torch.native_step(self, backend)

    def weight_bytes(self) -> int:
        """Bytes of all weights as held."""
        return sum(t.nbytes for t in (*self.parameters(), *self.buffers()))

    def state(self) -> dict:
        """An empty cache."""
        return {"length": 0, "k": [], "v": []}

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [B, T] -> [B, T, D]."""
        x = self.model.embed_tokens(ids)
        if self.config.embed_scale != 1.0:
            x = x * torch.tensor(self.config.embed_scale, dtype=x.dtype, device=x.device)
        return tap("embed", x)

    def hidden(self, x: torch.Tensor, state: dict) -> torch.Tensor:
        """Embeddings [B, T, D] -> normed hidden states [B, T, D]; the state grows by T."""
        start, T = state["length"], x.shape[1]
        reserve(state, self.config, x, start + T)
        ropes = {kind: angles(r, start, T, x) for kind, r in self.config.ropes}
        masks = {kind: mask_of(self.config, kind, start, T, x) for kind in ropes} if T > 1 else {}
        for layer in self.model.layers:
            x = layer(x, state, ropes, masks)
        state["length"] = start + T
        return tap("norm", self.model.norm(x))

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        if not self.config.tied:
            return tap("logits", self.lm_head(x))
        table = self.model.embed_tokens
        return tap("logits", F.linear(x, table.weight) if isinstance(table, nn.Embedding) else table.as_linear(x))

    def forward(self, ids: torch.Tensor, state: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        if self.step is not None and ids.numel() == 1 and not tapped() and self.step.ready():
            reserve(state, self.config, self.model.norm.weight, state["length"] + 1)
            return self.step.run(int(ids), state)
        last = self.hidden(self.embed(ids), state)[:, -1]
        return self.head(last), last


def fused(layers: tuple[nn.Module, ...]) -> tuple[torch.Tensor, torch.Tensor | None] | None:
    """(weight, bias) of Linear layers stacked; their parameters become views. None where a layer is quantised."""
    if not all(type(layer) is nn.Linear for layer in layers):
        return None
    together = []
    for name in ("weight", "bias"):
        parts = [getattr(layer, name) for layer in layers]
        if parts[0] is None:
            together.append(None)
            continue
        whole = torch.cat(parts)
        for layer, part in zip(layers, whole.split([len(p) for p in parts]), strict=True):
            setattr(layer, name, nn.Parameter(part, requires_grad=False))
        together.append(whole)
    return tuple(together)


def reserve(state: dict, c: DecoderConfig, like: torch.Tensor, positions: int) -> None:
    """Make room for `positions` in the caches, in buckets; what is cached is kept."""
    held = state["k"][0].shape[2] if state["k"] else 0
    if positions <= held:
        return
    room = room_for(positions, held, c.max_positions)
    batch = state["k"][0].shape[0] if state["k"] else like.shape[0] if like.dim() == 3 else 1
    for name in ("k", "v"):
        old = state[name]
        state[name] = []
        for i in range(c.num_layers):
            grown = like.new_zeros(batch, c.num_kv_heads, room, c.head_dim)
            if held:
                grown[:, :, :held] = old[i]
                old[i] = None
            state[name].append(grown)


def angles(rope, start: int, T: int, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Cos and sin [T, d / 2] for positions start .. start + T, in the dtype of `like`."""
    inv_freq = torch.tensor(rope.inv_freq, dtype=torch.float32, device=like.device)
    angle = torch.arange(start, start + T, dtype=torch.float32, device=like.device)[:, None] * inv_freq
    return (angle.cos() * rope.gain).to(like.dtype), (angle.sin() * rope.gain).to(like.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Half-split rotation of x [B, H, T, d]."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def mask_of(c: DecoderConfig, kind: str, start: int, T: int, like: torch.Tensor) -> torch.Tensor | None:
    """Which keys a query sees, bool [T, keys]; None where plain causal order says it all."""
    window = c.window_of(c.layer_types.index(kind)) if kind in c.layer_types else 0
    if start == 0 and (not window or window >= T):
        return None
    first = max(0, start + 1 - window) if window else 0
    queries = torch.arange(start, start + T, device=like.device)[:, None]
    keys = torch.arange(first, start + T, device=like.device)
    seen = keys <= queries
    return seen & (keys > queries - window) if window else seen
