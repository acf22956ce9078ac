"""A piece of a text on its way through the MLX decoder: rotations, masks, and the caches it reads and writes."""

from __future__ import annotations

from typing import Any

import mlx.core as mx

from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.config import CONV, DecoderConfig

Frequencies = dict[str, tuple[mx.array, float]]
KeysValues = tuple[mx.array, mx.array, mx.array | str | None]


class Piece:
    """T positions from `start` on. like: [B, T, D] in the compute dtype. Makes room in the caches of `state`."""

    def __init__(self, c: DecoderConfig, state: dict[str, Any], like: mx.array, frequencies: Frequencies) -> None:
        self.c, self.state, self.start, self.size = c, state, state["length"], like.shape[1]
        self.stop = self.start + self.size
        self._dtype, self._int8 = like.dtype, cache.is_int8(state)
        self._masks: dict[Any, mx.array] = {}
        cache.check_room(state, self.stop)
        self.blocks: list[int] = state["blocks"].tolist() if cache.is_paged(state) else []
        if not self.blocks or not state["conv"]:
            reserve(state, c, like, self.stop, batch=like.shape[0])
        self.rotations = {k: (frequency, gain, self.start) for k, (frequency, gain) in frequencies.items()}

    def keys_values(self, layer: int, k: mx.array, v: mx.array, *, ordered: bool = False) -> KeysValues:
        """Store k and v [B, Hkv, T, d]; give what the piece sees, [B, Hkv, S, d], and a mask.

        The mask is bool [T, S]; None means everything for one position, "causal" order for several. ordered: keys lie
        in order of their positions, from the first that the first query sees.
        """
        window, ring = self.c.window_of(layer), 0 if self.blocks else self.c.ring_of(layer)
        first = max(0, self.start + 1 - window) if window else 0
        stored = self._stored(k, v)
        if not ring or self.stop <= ring:
            self._store(layer, stored, ring)
            return self.seen(layer)
        if self.size > 1 or ordered:  # what is seen may be overwritten by what is stored: copy it before
            past = [self._read(layer, a, b) for a, b in cache.slot_runs(first, self.start, ring)]
            new = tuple(expand(codes, scale, k.dtype) for codes, scale in stored.values()) if self._int8 else (k, v)
            keys, values = (mx.concatenate(list(parts), axis=2) for parts in zip(*past, new, strict=True))
            self._store(layer, stored, ring)
            return keys, values, self._mask(first, window)
        self._store(layer, stored, ring)
        runs = cache.slot_runs(first, self.stop, ring)
        if len(runs) == 1:
            return (*self._read(layer, *runs[0]), None)
        return (*self._read(layer, 0, ring), self._around(first % ring, self.start % ring, ring))

    def seen(self, layer: int) -> KeysValues:
        """What `keys_values` gives, of a layer that holds all positions the piece sees, its own as well."""
        window = self.c.window_of(layer)
        first = max(0, self.start + 1 - window) if window else 0
        return (*self._read(layer, first, self.stop), self._mask(first, window))

    def slots(self) -> list[int]:
        """Where the positions of a paged piece lie in its pool."""
        return [slot for run in self._runs(self.start, self.stop, 0) for slot in range(*run)]

    def conv_inputs(self, layer: int, x: mx.array) -> mx.array:
        """Store the gated inputs [B, T, D]; give them after the K - 1 before, zeros before the first position."""
        whole = mx.concatenate([*self.conv_past(layer, x), x], axis=1)
        self.conv_store(layer, x)
        return whole

    def conv_past(self, layer: int, x: mx.array) -> list[mx.array]:
        """The K - 1 gated inputs before the piece, in parts [B, n, D]; zeros before the first position."""
        held, before = self.state["conv"][layer], self.c.conv_kernel - 1
        first = max(0, self.start - before)
        missing = mx.zeros((x.shape[0], before - (self.start - first), x.shape[2]), x.dtype)
        return [missing, *(held[:, a:b] for a, b in cache.slot_runs(first, self.start, held.shape[1]))]

    def conv_store(self, layer: int, x: mx.array) -> None:
        """Keep the last gated inputs of [B, T, D]."""
        held = self.state["conv"][layer]
        at = max(self.start, self.stop - held.shape[1])
        for a, b in cache.slot_runs(at, self.stop, held.shape[1]):
            held[:, a:b] = x[:, at - self.start : at - self.start + b - a]
            at += b - a

    def _stored(self, k: mx.array, v: mx.array) -> dict[str, tuple[mx.array, ...]]:
        """What the caches hold of k and v: themselves, or codes and scales."""
        return {"k": quantise(k), "v": quantise(v)} if self._int8 else {"k": (k,), "v": (v,)}

    def _store(self, layer: int, stored: dict[str, tuple[mx.array, ...]], ring: int) -> None:
        """Write the last `ring` positions."""
        at = max(self.start, self.stop - ring) if ring else self.start
        for a, b in self._runs(at, self.stop, ring):
            source = slice(at - self.start, at - self.start + b - a)
            for name, parts in stored.items():
                for suffix, part in zip(("", "_scale"), parts, strict=False):
                    self.state[name + suffix][layer][:, :, a:b] = part[:, :, source]
            at += b - a

    def _runs(self, first: int, stop: int, ring: int) -> list[tuple[int, int]]:
        if not self.blocks:
            return cache.slot_runs(first, stop, ring)
        return cache.block_runs(self.blocks, self.state["block"], first, stop)

    def _read(self, layer: int, a: int, b: int) -> tuple[mx.array, mx.array]:
        parts = [read(self.state, layer, start, stop, self._dtype) for start, stop in self._runs(a, b, 0)]
        if len(parts) == 1:
            return parts[0]
        k, v = zip(*parts, strict=True)
        return mx.concatenate(list(k), axis=2), mx.concatenate(list(v), axis=2)

    def _mask(self, first: int, window: int) -> mx.array | str | None:
        """Which keys from `first` on a query sees; "causal" or None where order alone says it."""
        if self.size == 1:
            return None
        if not window or window >= self.stop:
            return "causal"  # the last query sees the last key
        if (first, window) not in self._masks:
            queries, keys = mx.arange(self.start, self.stop)[:, None], mx.arange(first, self.stop)
            self._masks[first, window] = (keys <= queries) & (keys > queries - window)
        return self._masks[first, window]

    def _around(self, first: int, last: int, ring: int) -> mx.array:
        """A window that wraps: slots up to `last` and from `first` on, bool [1, ring]."""
        if (first, last, ring) not in self._masks:
            slots = mx.arange(ring)[None]
            self._masks[first, last, ring] = (slots >= first) | (slots <= last)
        return self._masks[first, last, ring]


def frequencies(c: DecoderConfig) -> Frequencies:
    """Periods float32 [d / 2] (one over the rotary frequencies) and gain, by type of layer."""
    return {k: (1.0 / mx.array(r.inv_freq, mx.float32), r.gain) for k, r in c.ropes if k in c.layer_types}


def rotate(x: mx.array, periods: mx.array, gain: float, start: int | mx.array) -> mx.array:
    """Half-split rotation of x [B, H, T, d] at the positions from start on, or [1, H, T, d] at positions int32 [T]."""
    y = x if isinstance(start, int) else x.swapaxes(0, 2)
    y = mx.fast.rope(y, x.shape[-1], traditional=False, base=None, scale=1.0, offset=start, freqs=periods)
    y = y if isinstance(start, int) else y.swapaxes(0, 2)
    return y if gain == 1.0 else y * gain


def quantise(x: mx.array) -> tuple[mx.array, mx.array]:
    """Symmetric int8 codes of x [..., d] and their scales, float32 [...]."""
    wide = x.astype(mx.float32)
    scale = mx.abs(wide).max(axis=-1) / cache.INT8_PEAK
    codes = mx.round(wide / mx.maximum(scale, mx.finfo(mx.float32).smallest_normal)[..., None])
    return codes.astype(mx.int8), scale


def expand(codes: mx.array, scale: mx.array, dtype: mx.Dtype) -> mx.array:
    """The values of int8 codes [..., d] with scales [...]."""
    return (codes.astype(mx.float32) * scale[..., None]).astype(dtype)


def read(state: dict[str, Any], layer: int, a: int, b: int, dtype: mx.Dtype) -> tuple[mx.array, mx.array]:
    """Keys and values in the slots a .. b, [B, Hkv, b - a, d]: views of the caches, or expanded codes."""
    k, v = state["k"][layer][:, :, a:b], state["v"][layer][:, :, a:b]
    if not cache.is_int8(state):
        return k, v
    scales = state["k_scale"][layer][:, :, a:b], state["v_scale"][layer][:, :, a:b]
    return expand(k, scales[0], dtype), expand(v, scales[1], dtype)


def reserve(state: dict[str, Any], c: DecoderConfig, like: mx.array, positions: int, *, batch: int = 1) -> None:
    """Make room for `positions` in the caches; what is cached is kept. like: an array of the dtype."""
    int8 = cache.is_int8(state)
    lists = {name: state.setdefault(name, []) or [None] * c.num_layers for name in cache.names(int8)}
    types = {name: getattr(mx, t) for name, t in cache.dtypes(int8, str(like.dtype).rpartition(".")[2]).items()}
    for layer, kind in enumerate(c.layer_types):
        main = lists["conv" if kind == CONV else "k"][layer]
        held = 0 if main is None else main.shape[1 if kind == CONV else 2]
        room = cache.capacity_for(c, layer, positions, held)
        if room == held:
            continue
        for name, shape in cache.shapes(c, layer, room, int8).items():
            if shape is None:
                continue
            grown, old = mx.zeros((batch, *shape), types[name]), lists[name][layer]
            if old is not None:
                grown[:, :, :held] = old
            lists[name][layer] = grown
    for name, arrays in lists.items():
        state[name] = arrays


def pool(c: DecoderConfig, like: mx.array, blocks: int, block: int, *, int8: bool = False) -> dict[str, Any]:
    """Caches for paged states: lists with room for `blocks` of `block` positions. like: see `reserve`."""
    kinds = cache.dtypes(int8, str(like.dtype).rpartition(".")[2])
    return {
        name: [None if s is None else mx.zeros(s, getattr(mx, kinds[name])) for s in shapes]
        for name, shapes in cache.pool_shapes(c, blocks, block, int8).items()
    }
