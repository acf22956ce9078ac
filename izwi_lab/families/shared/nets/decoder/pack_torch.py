"""Pieces of several sequences side by side on their way through the torch decoder, each with caches of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.attention_torch import attend
from izwi_lab.families.shared.nets.decoder.cache_torch import Frequencies, Piece, expand, quantise, rotations
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.nets.decoder.pack import Rows

View = tuple[torch.Tensor, torch.Tensor]  # slots [N * S] that N decodes see, and what is added to scores [N, 1, 1, S]


class Pack:
    """Embeddings [T, D] of several sequences as one piece `x` [1, R, D]: those of a pool together, its decodes first.

    Layers take it as a `Piece`: norms and products see rows, attention and convolutions each sequence for itself.
    """

    def __init__(
        self, c: DecoderConfig, xs: Sequence[torch.Tensor], states: Sequence[dict[str, Any]], frequencies: Frequencies
    ) -> None:
        self._rows = Rows([len(x) for x in xs], [cache.pool_of(state) for state in states])
        order = self._rows.order
        self.x = torch.cat([xs[i] for i in order])[None]
        self.pieces = [Piece(c, states[i], xs[i][None], None) for i in order]
        self._before = c.conv_kernel - 1
        positions = [at for p in self.pieces for at in range(p.start, p.stop)]
        at = torch.tensor(positions, dtype=torch.float32, device=self.x.device)
        self.rotations = rotations(frequencies, at, self.x.dtype)
        self._groups = [(self._group([self.pieces[i] for i in g.members], g.pooled), g.rows) for g in self._rows.groups]

    def _group(self, pieces: list[Piece], pooled: bool) -> Piece | _Pooled:
        return _Pooled(pieces, self.x) if pooled else pieces[0]

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """Store rotated k and v [1, Hkv, R, d]; each query of q [1, H, R, d] on its own sequence -> [1, R, H * d]."""
        parts = []
        for group, rows in self._groups:
            mine = q[:, :, rows], k[:, :, rows], v[:, :, rows]
            if isinstance(group, Piece):
                parts.append(attend(mine[0], *group.keys_values(layer, *mine[1:]), scale))
            else:
                parts += group.attend(layer, *mine, scale)
        return torch.cat(parts, dim=1)

    def conv_inputs(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Store the gated inputs [1, R, D]; give those of each piece after the K - 1 before it, one after the other."""
        rows = [x[:, a:b] for a, b in self._rows.edges]
        parts = [part for p, own in zip(self.pieces, rows, strict=True) for part in (*p.conv_past(layer, own), own)]
        whole = torch.cat(parts, dim=1)
        for p, own in zip(self.pieces, rows, strict=True):
            p.conv_store(layer, own)
        return whole

    @cached_property
    def _kept(self) -> torch.Tensor:
        return torch.tensor(self._rows.after(self._before), device=self.x.device)

    def own(self, y: torch.Tensor) -> torch.Tensor:
        """Of what a convolution makes of `conv_inputs`, the rows [1, R, D] that saw one sequence."""
        return y.index_select(1, self._kept)

    def split(self, y: torch.Tensor) -> list[torch.Tensor]:
        """Rows [1, R, D] as those of each sequence [T, D], in the order they came; the states have grown by them."""
        out = [y[0]] * len(self.pieces)
        for i, p, (a, b) in zip(self._rows.order, self.pieces, self._rows.edges, strict=True):
            out[i], p.state["length"] = y[0, a:b], p.stop
        return out


class _Pooled:
    """Pieces of one pool, whose decodes come first: stored at once, and decodes computed at once where that pays."""

    def __init__(self, pieces: list[Piece], like: torch.Tensor) -> None:
        self._pieces, self._like = pieces, like
        self._slots = torch.tensor([slot for p in pieces for slot in p.slots()], device=like.device)
        singles = [p for p in pieces if p.size == 1]
        self._singles = singles if len(singles) > 1 and gathers(like.device) else []
        self._views: dict[int, View] = {}

    def attend(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> list[torch.Tensor]:
        """As `Pack.attend`, in parts."""
        state, at = self._pieces[0].state, len(self._singles)
        for name, values in (("k", k), ("v", v)):
            parts = quantise(values) if cache.is_int8(state) else (values,)
            for suffix, part in zip(("", "_scale"), parts, strict=False):
                state[name + suffix][layer].index_copy_(2, self._slots, part)
        out = [self._decodes(layer, q[:, :, :at], scale)] if at else []
        for p in self._pieces[at:]:
            out.append(attend(q[:, :, at : at + p.size], *p.seen(layer), scale))
            at += p.size
        return out

    def _decodes(self, layer: int, q: torch.Tensor, scale: float) -> torch.Tensor:
        """Queries [1, H, N, d], one of each of N sequences -> [1, N, H * d]."""
        first = self._singles[0]
        window, state = first.c.window_of(layer), first.state
        if window not in self._views:
            self._views[window] = self._view(window)
        slots, mask = self._views[window]
        keys, values = (self._gathered(state, name, layer, slots) for name in ("k", "v"))
        y = attend(q[0].transpose(0, 1)[:, :, None].contiguous(), keys, values, mask, scale)
        return y.transpose(0, 1)

    def _gathered(self, state: dict[str, Any], name: str, layer: int, slots: torch.Tensor) -> torch.Tensor:
        """Keys or values in the slots [N * S] -> [N, Hkv, S, d]."""
        held = state[name][layer].index_select(2, slots)
        if cache.is_int8(state):
            held = expand(held, state[f"{name}_scale"][layer].index_select(2, slots), self._like.dtype)
        return held[0].unflatten(1, (len(self._singles), -1)).transpose(0, 1)

    def _view(self, window: int) -> View:
        """What the decodes see with a window (0: all). Shorter ones repeat their last slot, which is masked."""
        device, block = self._like.device, self._singles[0].state["block"]
        lasts = [p.start for p in self._singles]
        firsts = [max(0, last + 1 - window) if window else 0 for last in lasts]
        most = -(-max(last + 1 - first for first, last in zip(firsts, lasts, strict=True)) // 16) * 16
        blocks = torch.nn.utils.rnn.pad_sequence([torch.tensor(p.blocks) for p in self._singles], batch_first=True)
        ends = torch.tensor([firsts, lasts])
        blocks, ends = blocks.to(device), ends.to(device)
        positions = torch.arange(most, device=device) + ends[0][:, None]
        inside = torch.minimum(positions, ends[1][:, None])
        slots = blocks.gather(1, inside // block) * block + inside % block
        mask = torch.zeros(positions.shape, dtype=self._like.dtype, device=device)
        return slots.flatten(), mask.masked_fill_(positions > ends[1][:, None], -torch.inf)[:, None, None]


def gathers(device: torch.device) -> bool:
    """Whether a copy of what decodes see, and one product, beat a product for each: where launches cost more."""
    return bool(device.type != "cpu")
