"""The decoder on MLX. Parameters are named as in transformers.

Taps: embed, layers.N.attn and .mlp (what the branch adds), layers.N.conv (the same of a conv layer),
layers.N.attn.pattern (attention probabilities [B, H, T, S]), layers.N, norm, logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, groupby

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from izwi_lab.backends.streams_mlx import by_columns
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.attention_mlx import attend, shown
from izwi_lab.families.shared.nets.decoder.cache_mlx import Piece, frequencies, pool, rotate
from izwi_lab.families.shared.nets.decoder.config import CONV, DecoderConfig
from izwi_lab.families.shared.nets.decoder.dense_mlx import Parts
from izwi_lab.families.shared.nets.decoder.pack_mlx import Pack
from izwi_lab.families.shared.taps import tap, tapped, wanted

TextPiece = tuple[mx.array, dict, bool]  # ids [T], the state of their sequence, and whether the Step is wanted


@partial(mx.compile, shapeless=True)
def gated(gate: mx.array, up: mx.array) -> mx.array:
    """SwiGLU's product in one kernel."""
    return gate * mx.sigmoid(gate) * up


@partial(mx.compile, shapeless=True)
def gated_gelu(gate: mx.array, up: mx.array) -> mx.array:
    """GeGLU's product in one kernel, GELU by its tanh form."""
    inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)  # sqrt(2 / pi)
    return 0.5 * gate * (1 + mx.tanh(inner)) * up


class Dense(nn.Linear):
    """nn.Linear; see `Parts` for what `finalize` makes of it."""

    _parts = None

    def finalize(self, backend) -> None:
        """After loading: on the CPU, the order and the parts that its products like."""
        if backend.device == "cpu":
            self.weight = by_columns(self.weight)
            self._parts = Parts(self.weight)

    def __call__(self, x: mx.array) -> mx.array:
        """X [..., ins] -> [..., outs]."""
        if self._parts is None:
            return super().__call__(x)
        y = self._parts.product(x)
        return y + self.bias if "bias" in self else y


class Table(nn.Embedding):
    """nn.Embedding, `as_linear` as in Dense."""

    _parts = None

    def finalize(self, backend) -> None:
        """See Dense."""
        if backend.device == "cpu":
            self.weight = by_columns(self.weight)
            self._parts = Parts(self.weight)

    def as_linear(self, x: mx.array) -> mx.array:
        """X [..., cols] -> [..., rows]."""
        return super().as_linear(x) if self._parts is None else self._parts.product(x)


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis; the scale is weight, or weight + offset in float32."""

    def __init__(self, width: int, c: DecoderConfig):
        super().__init__()
        self.weight = mx.ones((width,))
        self.eps, self.offset = c.norm_eps, c.norm_offset
        self._scale = None

    def finalize(self) -> None:
        """After loading: the scale is computed once."""
        self._scale = self.scale()

    def scale(self) -> mx.array:
        """What the normed values are multiplied by."""
        return self.weight.astype(mx.float32) + self.offset if self.offset else self.weight

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        if self._scale.dtype != x.dtype:  # 1 + w would lose its last bits in a narrow dtype
            return mx.fast.rms_norm(x.astype(mx.float32), self._scale, self.eps).astype(x.dtype)
        return mx.fast.rms_norm(x, self._scale, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and a cache. x [B, T, D] -> [B, T, D]."""

    def __init__(self, c: DecoderConfig, index: int):
        super().__init__()
        self.c, self.index = c, index
        self.q_proj = Dense(c.hidden_size, c.num_heads * c.head_dim, bias=c.attention_bias)
        self.k_proj = Dense(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.attention_bias)
        self.v_proj = Dense(c.hidden_size, c.num_kv_heads * c.head_dim, bias=c.attention_bias)
        self.o_proj = Dense(c.num_heads * c.head_dim, c.hidden_size, bias=c.attention_bias)
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

    def __call__(self, x: mx.array, piece: Piece | Pack) -> mx.array:
        """See the class."""
        c, i = self.c, self.index
        q, k, v = self.project(x)
        rotation = piece.rotations[c.layer_types[i]]
        q, k = rotate(q, *rotation), rotate(k, *rotation)
        name = f"layers.{i}.attn.pattern"
        if isinstance(piece, Pack):
            y = piece.attend(i, q, k, v, c.attn_scale)
        elif wanted(name):
            y = shown(name, q, *piece.keys_values(i, k, v, ordered=True), c.attn_scale)
        else:
            y = attend(q, *piece.keys_values(i, k, v), c.attn_scale)
        return self.o_proj(y)


class ShortConv(nn.Module):
    """Gated causal convolution per channel over the last inputs (LFM2). x [B, T, D] -> [B, T, D]."""

    def __init__(self, c: DecoderConfig, index: int):
        super().__init__()
        width = c.hidden_size
        self.index = index
        self.in_proj = Dense(width, 3 * width, bias=c.conv_bias)
        self.conv = nn.Conv1d(width, width, c.conv_kernel, groups=width, bias=c.conv_bias)
        self.out_proj = Dense(width, width, bias=c.conv_bias)

    def __call__(self, x: mx.array, piece: Piece | Pack) -> mx.array:
        """See the class."""
        before, after, x = mx.split(self.in_proj(x), 3, axis=-1)
        y = self.conv(piece.conv_inputs(self.index, before * x))
        y = piece.own(y) if isinstance(piece, Pack) else y
        return tap(f"layers.{self.index}.conv", self.out_proj(after * y))


class MLP(nn.Module):
    """Gated: down(act(gate x) * up x)."""

    def __init__(self, c: DecoderConfig):
        super().__init__()
        self.c = c
        self.gate_proj = Dense(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.up_proj = Dense(c.hidden_size, c.intermediate_size, bias=c.mlp_bias)
        self.down_proj = Dense(c.intermediate_size, c.hidden_size, bias=c.mlp_bias)

    def __call__(self, x: mx.array) -> mx.array:
        """See the class."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        return self.down_proj(gated(gate, up) if self.c.activation == "silu" else gated_gelu(gate, up))


class Layer(nn.Module):
    """Attention or convolution, then the MLP, each with its norms, added to the residual stream."""

    def __init__(self, c: DecoderConfig, index: int):
        super().__init__()
        self.c, self.index = c, index
        if c.layer_types[index] == CONV:
            self.conv = ShortConv(c, index)
        else:
            self.self_attn = Attention(c, index)
        self.mlp = MLP(c)
        self.input_layernorm = RMSNorm(c.hidden_size, c)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c)
        if c.post_norms:
            self.pre_feedforward_layernorm = RMSNorm(c.hidden_size, c)
            self.post_feedforward_layernorm = RMSNorm(c.hidden_size, c)

    def __call__(self, x: mx.array, piece: Piece | Pack) -> mx.array:
        """See the class."""
        post = self.c.post_norms
        mixed = self.conv if self.c.layer_types[self.index] == CONV else self.self_attn
        y = mixed(self.input_layernorm(x), piece)
        y = tap(f"layers.{self.index}.attn", self.post_attention_layernorm(y) if post else y)
        x = x + y
        y = self.mlp(self.pre_feedforward_layernorm(x) if post else self.post_attention_layernorm(x))
        y = tap(f"layers.{self.index}.mlp", self.post_feedforward_layernorm(y) if post else y)
        return tap(f"layers.{self.index}", x + y)


class Decoder(nn.Module):
    """Layers and the last norm: embeddings [B, T, D] and the state of a session -> normed hidden states [B, T, D].

    embeddings: the tables that a checkpoint keeps beside the layers, by name; whoever calls this reads them.
    """

    def __init__(self, c: DecoderConfig, **embeddings: nn.Module | list[nn.Module]):
        super().__init__()
        self.config = c
        for name, table in embeddings.items():
            setattr(self, name, table)
        self.layers = [Layer(c, i) for i in range(c.num_layers)]
        self.norm = RMSNorm(c.hidden_size, c)
        self._frequencies = {}

    def finalize(self, backend) -> None:
        """After loading: what every step needs, once."""
        for module in (self.norm, *(m for layer in self.layers for m in layer.modules())):
            if isinstance(module, RMSNorm):
                module.finalize()
            elif isinstance(module, Dense):
                module.finalize(backend)
        self._frequencies = frequencies(self.config)

    def through(self, x: mx.array, piece: Piece | Pack) -> mx.array:
        """Embeddings [B, T, D] through all layers -> normed hidden states [B, T, D]."""
        for layer in self.layers:
            x = layer(x, piece)
        return tap("norm", self.norm(x))

    def hidden(self, x: mx.array, state: dict) -> mx.array:
        """Embeddings [B, T, D] -> normed hidden states [B, T, D]; the state grows by T."""
        piece = Piece(self.config, state, x, self._frequencies)
        x = self.through(x, piece)
        state["length"] = piece.stop
        return x

    def hidden_together(self, xs: Sequence[mx.array], states: Sequence[dict]) -> list[mx.array]:
        """As hidden for several sequences in one pass over the weights: embeddings [T, D] of each -> [T, D] of each.

        Under open taps they go one after the other.
        """
        if len(xs) < 2 or tapped():
            return [self.hidden(x[None], state)[0] for x, state in zip(xs, states, strict=True)]
        pack = Pack(self.config, xs, states, self._frequencies)
        return pack.split(self.through(pack.x, pack))


class DecoderLM(nn.Module):
    """ids [B, T] and the state of a session -> logits [B, V] and hidden [B, D] of the last position.

    The state (see `cache.py`) grows by T.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config, embed_tokens=Table(config.vocab_size, config.hidden_size))
        if not config.tied:
            self.lm_head = Dense(config.hidden_size, config.vocab_size, bias=False)

    def finalize(self, backend) -> None:
        """After loading: see `Decoder.finalize`; the head likewise."""
        self.model.finalize(backend)
        head = self.model.embed_tokens if self.config.tied else self.lm_head
        if isinstance(head, (Dense, Table)):
            head.finalize(backend)
        self._like = mx.zeros(0, backend.mlx_dtype)
        self._embed_scale = mx.array(self.config.embed_scale, backend.mlx_dtype)  # rounded as the checkpoint's

    def weight_bytes(self) -> int:
        """Bytes of all weights as held."""
        return sum(p.nbytes for _, p in tree_flatten(self.parameters()))

    def state(self, kv_dtype: str | None = None) -> dict:
        """Empty caches. kv_dtype: None for the compute dtype, or "int8"."""
        return cache.empty(kv_dtype)

    def pool(self, blocks: int, block: int) -> dict:
        """Caches for many sequences: `blocks` of `block` positions."""
        return pool(self.config, self._like, blocks, block)

    def embed(self, ids: mx.array) -> mx.array:
        """Ids [B, T] -> [B, T, D]."""
        x = self.model.embed_tokens(ids)
        return tap("embed", x if self.config.embed_scale == 1.0 else x * self._embed_scale)

    def head(self, x: mx.array) -> mx.array:
        """Hidden states [..., D] -> logits [..., V]."""
        return tap("logits", self.model.embed_tokens.as_linear(x) if self.config.tied else self.lm_head(x))

    def __call__(self, ids: mx.array, state: dict) -> tuple[mx.array, mx.array]:
        """See the class."""
        if ids.shape[1] > 2 * self.config.num_layers and not tapped():
            # Of all but the last token only the caches are needed: what the last layer adds is never computed.
            self.model.hidden(self.embed(ids[:, :-1]), state)
            ids = ids[:, -1:]
        last = self.model.hidden(self.embed(ids), state)[:, -1]
        return self.head(last), last

    def every(self, ids: mx.array, state: dict) -> tuple[mx.array, mx.array]:
        """As __call__, of all positions: logits [B, T, V], hidden [B, T, D]."""
        x = self.model.hidden(self.embed(ids), state)
        return self.head(x), x

    def together(self, pieces: Sequence[TextPiece]) -> tuple[mx.array, mx.array]:
        """Pieces (ids [T], state, wants) of different sequences -> logits [N, V] and hidden [N, D].

        N: the pieces that want, each its last position, in order; every state grows by its ids. Pieces of one state
        follow each other. A state without room raises before anything changes.
        """
        pieces = [merged(run) for _, run in groupby(pieces, key=lambda piece: id(piece[1]))]
        self._check(pieces)
        if len(pieces) < 2 or tapped():
            done = [self(ids[None], state) for ids, state, _ in pieces]
            wanted = [step for step, (_, _, wants) in zip(done, pieces, strict=True) if wants]
            parts = [mx.concatenate(part) for part in zip(*wanted, strict=True)]
            return (parts[0], parts[1]) if parts else self._nothing()
        x = self.embed(mx.concatenate([ids for ids, _, _ in pieces])[None])[0]
        xs = mx.split(x, list(accumulate(len(ids) for ids, _, _ in pieces[:-1])))
        hidden = self.model.hidden_together(xs, [state for _, state, _ in pieces])
        lasts = [h[-1] for h, (_, _, wants) in zip(hidden, pieces, strict=True) if wants]
        if not lasts:
            return self._nothing()
        last = mx.stack(lasts)
        return self.head(last), last

    def _nothing(self) -> tuple[mx.array, mx.array]:
        """Logits and hidden of no position."""
        dtype = self.model.norm.weight.dtype
        return mx.zeros((0, self.config.vocab_size), dtype), mx.zeros((0, self.config.hidden_size), dtype)

    @staticmethod
    def _check(pieces: Sequence[TextPiece]) -> None:
        """Raise what `together` raises."""
        for ids, state, _ in pieces:
            if not len(ids):
                raise InvalidInputError("A piece without a position.", hint="Expected at least one id.")
            cache.check_room(state, state["length"] + len(ids))


def merged(pieces: Iterable[TextPiece]) -> TextPiece:
    """Pieces of one state that follow each other, as one. Only the last of them may be wanted."""
    ids, states, wants = zip(*pieces, strict=True)
    return (ids[0] if len(ids) == 1 else mx.concatenate(ids), states[0], wants[-1])
