"""The decoder on torch. Parameters are named as in transformers.

Taps: embed, layers.N.attn and .mlp (what the branch adds), layers.N.conv (the same of a conv layer),
layers.N.attn.pattern (attention probabilities [B, H, T, S]), layers.N, norm, logits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import nn

from izwi_lab.backends import host
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder import cache, graph_torch, native_torch
from izwi_lab.families.shared.nets.decoder.attention_torch import attend, shown
from izwi_lab.families.shared.nets.decoder.cache_torch import Piece, frequencies, pool, rotate, rotations
from izwi_lab.families.shared.nets.decoder.config import CONV, DecoderConfig
from izwi_lab.families.shared.nets.decoder.pack_torch import Pack
from izwi_lab.families.shared.taps import tap, tapped, wanted

TextPiece = tuple[torch.Tensor, dict, bool]  # ids [T], the state of their sequence, and whether the Step is wanted


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis; the scale is weight, or weight + offset in float32."""

    def __init__(self, width: int, c: DecoderConfig):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(width))
        self.eps, self.offset = c.norm_eps, c.norm_offset
        self._scale = None

    def finalize(self) -> None:
        """After loading: the scale is computed once."""
        self._scale = self.scale().detach()  # a plain tensor: the weight is not a parameter a second time

    def scale(self) -> torch.Tensor:
        """What the normed values are multiplied by."""
        return self.weight.float() + self.offset if self.offset else self.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """See the class."""
        if self._scale.dtype != x.dtype:  # 1 + w would lose its last bits in a narrow dtype
            return F.rms_norm(x.float(), x.shape[-1:], self._scale, self.eps).to(x.dtype)
        return F.rms_norm(x, x.shape[-1:], self._scale, self.eps)


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

    def forward(self, x: torch.Tensor, piece: Piece | Pack) -> torch.Tensor:
        """See the class."""
        c, i = self.c, self.index
        q, k, v = self.project(x)
        q, k = rotate(q, k, *piece.rotations[c.layer_types[i]])
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
        self.in_proj = nn.Linear(width, 3 * width, bias=c.conv_bias)
        self.conv = nn.Conv1d(width, width, c.conv_kernel, groups=width, bias=c.conv_bias)
        self.out_proj = nn.Linear(width, width, bias=c.conv_bias)

    def forward(self, x: torch.Tensor, piece: Piece | Pack) -> torch.Tensor:
        """See the class."""
        before, after, x = self.in_proj(x).chunk(3, dim=-1)
        inputs = piece.conv_inputs(self.index, before * x)
        y = self._convolved(inputs)
        y = piece.own(y) if isinstance(piece, Pack) else y
        return tap(f"layers.{self.index}.conv", self.out_proj(after * y))

    def _convolved(self, inputs: torch.Tensor) -> torch.Tensor:
        """[B, K - 1 + T, D] -> [B, T, D], summed in float32, one tap after the other.

        torch's own convolution takes four to ten times as long on a processor, and keeps a kernel for every length.
        """
        taps = self.conv.weight[:, 0].T.float()  # [K, D]
        inputs, rows = inputs.float(), inputs.shape[1] + 1 - len(taps)
        y = inputs[:, :rows] * taps[0]
        for k in range(1, len(taps)):
            y = torch.addcmul(y, inputs[:, k : k + rows], taps[k])
        y = y if self.conv.bias is None else y + self.conv.bias.float()
        return y.to(self.conv.weight.dtype)


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

    def forward(self, x: torch.Tensor, piece: Piece | Pack) -> torch.Tensor:
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

    def __init__(self, c: DecoderConfig, **embeddings: nn.Module):
        super().__init__()
        self.config = c
        for name, table in embeddings.items():
            setattr(self, name, table)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_layers))
        self.norm = RMSNorm(c.hidden_size, c)
        self._frequencies, self._first = {}, None

    def finalize(self, backend, *, first: int = 0) -> None:
        """After loading: norm scales once, dense projections fused, rotations of the `first` positions."""
        for module in self.modules():
            if isinstance(module, RMSNorm):
                module.finalize()
        for layer in self.layers:
            if hasattr(layer, "self_attn"):
                layer.self_attn.fuse()
            layer.mlp.fuse()
            host.return_freed_memory()  # the unfused copies of all layers would be a third of a dense model
        self._frequencies = frequencies(self.config, torch.device(backend.device))
        if first:
            positions = torch.arange(first, dtype=torch.float32, device=backend.device)
            self._first = rotations(self._frequencies, positions, backend.torch_dtype)

    def through(self, x: torch.Tensor, piece: Piece | Pack) -> torch.Tensor:
        """Embeddings [B, T, D] through all layers -> normed hidden states [B, T, D]."""
        for layer in self.layers:
            x = layer(x, piece)
        return tap("norm", self.norm(x))

    def hidden(self, x: torch.Tensor, state: dict) -> torch.Tensor:
        """Embeddings [B, T, D] -> normed hidden states [B, T, D]; the state grows by T."""
        piece = Piece(self.config, state, x, self._frequencies, self._first)
        x = self.through(x, piece)
        state["length"] = piece.stop
        return x

    def hidden_together(self, xs: Sequence[torch.Tensor], states: Sequence[dict]) -> list[torch.Tensor]:
        """As hidden for several sequences in one pass over the weights: embeddings [T, D] of each -> [T, D] of each.

        Under open taps they go one after the other.
        """
        if len(xs) < 2 or tapped():
            return [self.hidden(x[None], state)[0] for x, state in zip(xs, states, strict=True)]
        pack = Pack(self.config, xs, states, self._frequencies)
        return pack.split(self.through(pack.x, pack))


class DecoderLM(nn.Module):
    """ids [B, T] and the state of a session -> logits [B, V] and hidden [B, D] of the last position.

    The state (see `cache.py`) grows by T. On the CPU pieces go through the compiled step where it serves them, on CUDA
    single tokens through a captured graph; open taps go through this code.
    """

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = config
        self.model = Decoder(config, embed_tokens=nn.Embedding(config.vocab_size, config.hidden_size))
        if not config.tied:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.step, self.graphs = None, None

    def finalize(self, backend) -> None:
        """After loading: fuse dense projections, describe the weights to the compiled step."""
        self.model.finalize(backend)
        dtype, embed = backend.torch_dtype, self.model.embed_tokens
        self._like = torch.empty(0, dtype=dtype, device=backend.device)
        self._embed_scale = float(torch.tensor(self.config.embed_scale, dtype=dtype))  # rounded as the checkpoint's
        head = None if self.config.tied else self.lm_head
        self.step = native_torch.native_step(self.model, backend, embed=embed, head=head)
        self.graphs = graph_torch.graphs(self, backend, self.model._frequencies)

    def weight_bytes(self) -> int:
        """Bytes of all weights as held."""
        return sum(t.nbytes for t in (*self.parameters(), *self.buffers()))

    def state(self, kv_dtype: str | None = None) -> dict:
        """Empty caches. kv_dtype: None for the compute dtype, or "int8"."""
        return cache.empty(kv_dtype)

    def pool(self, blocks: int, block: int) -> dict:
        """Caches for many sequences: `blocks` of `block` positions."""
        return pool(self.config, self._like, blocks, block)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Ids [B, T] -> [B, T, D]."""
        x = self.model.embed_tokens(ids)
        return tap("embed", x if self.config.embed_scale == 1.0 else x * self._embed_scale)

    def through(self, x: torch.Tensor, piece: Piece | Pack) -> torch.Tensor:
        """See `Decoder.through`."""
        return self.model.through(x, piece)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden states [..., D] -> logits [..., V]."""
        if not self.config.tied:
            return tap("logits", self.lm_head(x))
        table = self.model.embed_tokens
        return tap("logits", F.linear(x, table.weight) if isinstance(table, nn.Embedding) else table.as_linear(x))

    def forward(self, ids: torch.Tensor, state: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """See the class."""
        if self._compiled(ids):
            return self.step.run(ids, state)
        if self.graphs is not None and ids.numel() == 1 and not tapped() and not cache.is_paged(state):
            done = self.graphs.run(state, self.model.norm.weight, (ids,))
            if done is not None:
                return done
        last = self.model.hidden(self.embed(ids), state)[:, -1]
        return self.head(last), last

    def every(self, ids: torch.Tensor, state: dict) -> tuple[torch.Tensor, torch.Tensor]:
        """As forward, of all positions: logits [B, T, V], hidden [B, T, D]."""
        if self._compiled(ids):
            return self.step.run(ids, state, every=True)
        x = self.model.hidden(self.embed(ids), state)
        return self.head(x), x

    def together(self, pieces: Sequence[TextPiece]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces (ids [T], state, wants) of different sequences -> logits [N, V] and hidden [N, D].

        N: the pieces that want, each its last position, in order; every state grows by its ids. Those that the
        compiled step serves alone go through it, and give the bits that they give alone. Pieces of one paged state
        follow each other; see `NativeStep.run_together`. A wrong id or a state without room raises before anything
        changes.
        """
        near = [i for i, (ids, _, _) in enumerate(pieces) if self._compiled(ids[None])]
        if len(near) == len(pieces):
            return self._near(pieces)
        pieces = [merged(run) for _, run in groupby(pieces, key=lambda piece: id(piece[1]))]
        near = [i for i, (ids, _, _) in enumerate(pieces) if self._compiled(ids[None])]
        self._check(pieces)
        far = [i for i in range(len(pieces)) if i not in near]
        if not near:
            return self._far(pieces)
        done = self._near([pieces[i] for i in near]), self._far([pieces[i] for i in far])
        order = [i for i in (*near, *far) if pieces[i][2]]
        back = sorted(range(len(order)), key=order.__getitem__)
        logits, hidden = (torch.cat([part.float() for part in parts])[back] for parts in zip(*done, strict=True))
        return logits, hidden

    def _near(self, pieces: Sequence[TextPiece]) -> tuple[torch.Tensor, torch.Tensor]:
        """`together` through the compiled step."""
        if not pieces:
            return torch.empty(0, self.config.vocab_size), torch.empty(0, self.config.hidden_size)
        return self.step.run_together([piece[:2] for piece in pieces], wants=[wants for _, _, wants in pieces])

    def _far(self, pieces: Sequence[TextPiece]) -> tuple[torch.Tensor, torch.Tensor]:
        """`together` through this code, in one pass or one after the other."""
        if len(pieces) == 1 or tapped():
            done = [self(ids[None], state) for ids, state, _ in pieces]
            wanted = [(logits, hidden) for (logits, hidden), (_, _, wants) in zip(done, pieces, strict=True) if wants]
            none = [tuple(part[:0] for part in done[0])]
            logits, hidden = (torch.cat(parts) for parts in zip(*(wanted or none), strict=True))
            return logits, hidden
        x = self.embed(torch.cat([ids for ids, _, _ in pieces])[None])[0]
        xs = x.split([len(ids) for ids, _, _ in pieces])
        hidden = self.model.hidden_together(xs, [state for _, state, _ in pieces])
        lasts = [h[-1] for h, (_, _, wants) in zip(hidden, pieces, strict=True) if wants]
        if not lasts:
            return x.new_empty(0, self.config.vocab_size), x.new_empty(0, self.config.hidden_size)
        last = torch.stack(lasts)
        return self.head(last), last

    def _check(self, pieces: Sequence[TextPiece]) -> None:
        """Raise what `together` raises. Ids on a device are not waited for."""
        for ids, state, _ in pieces:
            if not len(ids):
                raise InvalidInputError("A piece without a position.", hint="Expected at least one id.")
            cache.check_room(state, state["length"] + len(ids))
            if ids.device.type == "cpu" and not 0 <= ids.min() <= ids.max() < self.config.vocab_size:
                raise IndexError(f"ids from {ids.min()} to {ids.max()} in a vocabulary of {self.config.vocab_size}")

    def _compiled(self, ids: torch.Tensor) -> bool:
        return self.step is not None and len(ids) == 1 and not tapped() and self.step.serves(ids.shape[1])


def merged(pieces: Iterable[TextPiece]) -> TextPiece:
    """Pieces of one state that follow each other, as one. Only the last of them may be wanted."""
    ids, states, wants = zip(*pieces, strict=True)
    return (ids[0] if len(ids) == 1 else torch.cat(ids), states[0], wants[-1])


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
