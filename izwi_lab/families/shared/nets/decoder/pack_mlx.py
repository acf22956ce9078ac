"""Pieces of several sequences side by side on their way through the MLX decoder, each with caches of its own."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import mlx.core as mx

from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.attention_mlx import attend
from izwi_lab.families.shared.nets.decoder.cache_mlx import Frequencies, Piece, expand, quantise
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig
from izwi_lab.families.shared.nets.decoder.pack import Rows

View = tuple[mx.array, mx.array]  # slots [N * S] that N decodes see, and which of them are meant, bool [N, 1, 1, S]


class Pack:
    """Embeddings [T, D] of several sequences as one piece `x` [1, R, D]: those of a pool together, its decodes first.

    Layers take it as a `Piece`: norms and products see rows, attention and convolutions each sequence for itself.
    """

    def __init__(
        self, c: DecoderConfig, xs: Sequence[mx.array], states: Sequence[dict[str, Any]], frequencies: Frequencies
    ) -> None:
        self._rows = Rows([len(x) for x in xs], [cache.pool_of(state) for state in states])
        order = self._rows.order
        self.x = mx.concatenate([xs[i] for i in order])[None]
        self.pieces = [Piece(c, states[i], xs[i][None], frequencies) for i in order]
        self._before = c.conv_kernel - 1
        positions = mx.array([at for p in self.pieces for at in range(p.start, p.stop)], mx.int32)
        self.rotations = {kind: (periods, gain, positions) for kind, (periods, gain) in frequencies.items()}
        self._groups = [(self._group([self.pieces[i] for i in g.members], g.pooled), g.rows) for g in self._rows.groups]

    def _group(self, pieces: list[Piece], pooled: bool) -> Piece | _Pooled:
        return _Pooled(pieces, self.x.dtype) if pooled else pieces[0]

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, scale: float) -> mx.array:
        """Store rotated k and v [1, Hkv, R, d]; each query of q [1, H, R, d] on its own sequence -> [1, R, H * d]."""
        parts = []
        for group, rows in self._groups:
            mine = q[:, :, rows], k[:, :, rows], v[:, :, rows]
            if isinstance(group, Piece):
                parts.append(attend(mine[0], *group.keys_values(layer, *mine[1:]), scale))
            else:
                parts += group.attend(layer, *mine, scale)
        return mx.concatenate(parts, axis=1)

    def conv_inputs(self, layer: int, x: mx.array) -> mx.array:
        """Store the gated inputs [1, R, D]; give those of each piece after the K - 1 before it, one after the other."""
        rows = [x[:, a:b] for a, b in self._rows.edges]
        parts = [part for p, own in zip(self.pieces, rows, strict=True) for part in (*p.conv_past(layer, own), own)]
        whole = mx.concatenate(parts, axis=1)
        for p, own in zip(self.pieces, rows, strict=True):
            p.conv_store(layer, own)
        return whole

    @cached_property
    def _kept(self) -> mx.array:
        return mx.array(self._rows.after(self._before))

    def own(self, y: mx.array) -> mx.array:
        """Of what a convolution makes of `conv_inputs`, the rows [1, R, D] that saw one sequence."""
        return mx.take(y, self._kept, axis=1)

    def split(self, y: mx.array) -> list[mx.array]:
        """Rows [1, R, D] as those of each sequence [T, D], in the order they came; the states have grown by them."""
        out = [y[0]] * len(self.pieces)
        for i, p, (a, b) in zip(self._rows.order, self.pieces, self._rows.edges, strict=True):
            out[i], p.state["length"] = y[0, a:b], p.stop
        return out


class _Pooled:
    """Pieces of one pool, whose decodes come first: stored at once, and decodes computed at once where that pays.

    All is stored before any is read: a pool of which a view waits to be read would be copied by the next writing.
    """

    def __init__(self, pieces: list[Piece], dtype: mx.Dtype) -> None:
        self._pieces, self._dtype = pieces, dtype
        self._slots = mx.array([slot for p in pieces for slot in p.slots()])
        singles = [p for p in pieces if p.size == 1]
        self._singles = singles if len(singles) > 1 and gathers() else []
        self._views: dict[int, View] = {}

    def attend(self, layer: int, q: mx.array, k: mx.array, v: mx.array, scale: float) -> list[mx.array]:
        """As `Pack.attend`, in parts."""
        state, at = self._pieces[0].state, len(self._singles)
        for name, values in (("k", k), ("v", v)):
            parts = quantise(values) if cache.is_int8(state) else (values,)
            for suffix, part in zip(("", "_scale"), parts, strict=False):
                state[name + suffix][layer][:, :, self._slots] = part
        out = [self._decodes(layer, q[:, :, :at], scale)] if at else []
        for p in self._pieces[at:]:
            out.append(attend(q[:, :, at : at + p.size], *p.seen(layer), scale))
            at += p.size
        return out

    def _decodes(self, layer: int, q: mx.array, scale: float) -> mx.array:
        """Queries [1, H, N, d], one of each of N sequences -> [1, N, H * d]."""
        first = self._singles[0]
        window, state = first.c.window_of(layer), first.state
        if window not in self._views:
            self._views[window] = self._view(window)
        slots, seen = self._views[window]
        keys, values = (self._gathered(state, name, layer, slots) for name in ("k", "v"))
        return attend(q.swapaxes(0, 2), keys, values, seen, scale).swapaxes(0, 1)

    def _gathered(self, state: dict[str, Any], name: str, layer: int, slots: mx.array) -> mx.array:
        """Keys or values in the slots [N * S] -> [N, Hkv, S, d]."""
        held = mx.take(state[name][layer], slots, axis=2)
        if cache.is_int8(state):
            held = expand(held, mx.take(state[f"{name}_scale"][layer], slots, axis=2), self._dtype)
        return held[0].reshape(held.shape[1], len(self._singles), -1, held.shape[3]).swapaxes(0, 1)

    def _view(self, window: int) -> View:
        """What the decodes see with a window (0: all). Shorter ones repeat their last slot, which is not meant."""
        block, lasts = self._singles[0].state["block"], [p.start for p in self._singles]
        firsts = [max(0, last + 1 - window) if window else 0 for last in lasts]
        most = max(last + 1 - first for first, last in zip(firsts, lasts, strict=True))
        longest = max(len(p.blocks) for p in self._singles)
        blocks = mx.array([p.blocks + [0] * (longest - len(p.blocks)) for p in self._singles])
        ends = mx.array([firsts, lasts])
        positions = mx.arange(most) + ends[0][:, None]
        inside = mx.minimum(positions, ends[1][:, None])
        slots = mx.take_along_axis(blocks, inside // block, axis=1) * block + inside % block
        return slots.flatten(), (positions <= ends[1][:, None])[:, None, None]


def gathers() -> bool:
    """Whether a copy of what decodes see, and one product, beat a product for each: where launches cost more."""
    return bool(mx.default_device().type == mx.DeviceType.gpu)
