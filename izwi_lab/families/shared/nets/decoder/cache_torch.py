"""A piece of a text on its way through the torch decoder: rotations, masks, and the caches it reads and writes."""

from __future__ import annotations

from typing import Any

import torch

from izwi_lab.backends import late_torch
from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.config import CONV, DecoderConfig, Rope

Frequencies = dict[str, tuple[torch.Tensor, float]]
Rotations = dict[str, tuple[torch.Tensor, torch.Tensor]]
KeysValues = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]


class Piece:
    """T positions from `start` on. like: [B, T, D] in the compute dtype. Makes room in the caches of `state`.

    frequencies: None where a pack rotates. first: rotations of the positions from 0 on, as many as are worth keeping.
    """

    def __init__(
        self,
        c: DecoderConfig,
        state: dict[str, Any],
        like: torch.Tensor,
        frequencies: Frequencies | None,
        first: Rotations | None = None,
    ) -> None:
        self.c, self.state, self.start, self.size = c, state, state["length"], like.shape[1]
        self.stop = self.start + self.size
        self._like, self._int8 = like, cache.is_int8(state)
        self._masks: dict[Any, torch.Tensor] = {}
        cache.check_room(state, self.stop)
        self.blocks: list[int] = state["blocks"].tolist() if cache.is_paged(state) else []
        if not self.blocks or not state["conv"]:
            reserve(state, c, like, self.stop, batch=like.shape[0])
        if first and self.stop <= min(len(cos) for cos, _ in first.values()):
            run = slice(self.start, self.stop)
            self.rotations = {kind: (cos[run], sin[run]) for kind, (cos, sin) in first.items()}
        elif frequencies is not None:
            positions = torch.arange(self.start, self.stop, dtype=torch.float32, device=like.device)
            self.rotations = rotations(frequencies, positions, like.dtype)

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor, *, ordered: bool = False) -> KeysValues:
        """Store k and v [B, Hkv, T, d]; give what the piece sees, [B, Hkv, S, d], and a mask.

        The mask is bool [T, S]; None means everything for one position, causal order for several. ordered: keys lie in
        order of their positions, from the first that the first query sees.
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
            keys, values = (torch.cat(parts, dim=2) for parts in zip(*past, new, strict=True))
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

    def conv_inputs(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Store the gated inputs [B, T, D]; give them after the K - 1 before, zeros before the first position."""
        whole = torch.cat((*self.conv_past(layer, x), x), dim=1)
        self.conv_store(layer, x)
        return whole

    def conv_past(self, layer: int, x: torch.Tensor) -> list[torch.Tensor]:
        """The K - 1 gated inputs before the piece, in parts [B, n, D]; zeros before the first position."""
        held, before = self.state["conv"][layer], self.c.conv_kernel - 1
        first = max(0, self.start - before)
        missing = x.new_zeros(x.shape[0], before - (self.start - first), x.shape[2])
        return [missing, *(held[:, a:b] for a, b in cache.slot_runs(first, self.start, held.shape[1]))]

    def conv_store(self, layer: int, x: torch.Tensor) -> None:
        """Keep the last gated inputs of [B, T, D]."""
        held = self.state["conv"][layer]
        at = max(self.start, self.stop - held.shape[1])
        for a, b in cache.slot_runs(at, self.stop, held.shape[1]):
            held[:, a:b] = x[:, at - self.start : at - self.start + b - a]
            at += b - a

    def _stored(self, k: torch.Tensor, v: torch.Tensor) -> dict[str, tuple[torch.Tensor, ...]]:
        """What the caches hold of k and v: themselves, or codes and scales."""
        return {"k": quantise(k), "v": quantise(v)} if self._int8 else {"k": (k,), "v": (v,)}

    def _store(self, layer: int, stored: dict[str, tuple[torch.Tensor, ...]], ring: int) -> None:
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

    def _read(self, layer: int, a: int, b: int) -> tuple[torch.Tensor, torch.Tensor]:
        parts = [read(self.state, layer, start, stop, self._like.dtype) for start, stop in self._runs(a, b, 0)]
        if len(parts) == 1:
            return parts[0]
        k, v = zip(*parts, strict=True)
        return torch.cat(k, dim=2), torch.cat(v, dim=2)

    def _mask(self, first: int, window: int) -> torch.Tensor | None:
        """Which keys from `first` on a query sees; None where order alone says it."""
        if self.size == 1 or (self.start == 0 and (not window or window >= self.size)):
            return None
        if (first, window) not in self._masks:
            device = self._like.device
            queries = torch.arange(self.start, self.stop, device=device)[:, None]
            keys = torch.arange(first, self.stop, device=device)
            seen = keys <= queries
            self._masks[first, window] = seen & (keys > queries - window) if window else seen
        return self._masks[first, window]

    def _around(self, first: int, last: int, ring: int) -> torch.Tensor:
        """A window that wraps: slots up to `last` and from `first` on, bool [1, ring]."""
        if (first, last, ring) not in self._masks:
            slots = torch.arange(ring, device=self._like.device)[None]
            self._masks[first, last, ring] = (slots >= first) | (slots <= last)
        return self._masks[first, last, ring]


def frequencies(c: DecoderConfig, device: torch.device) -> Frequencies:
    """Rotary frequencies float32 [d] and gain, by type of layer, on a device: negative in the first half of a head.

    So one product gives the cosines of both halves, and the sines with the signs that `rotate` wants.
    """

    def held(rope: Rope) -> torch.Tensor:
        half = torch.tensor(rope.inv_freq, dtype=torch.float32, device=device)
        return torch.cat((-half, half))

    return {kind: (held(rope), rope.gain) for kind, rope in c.ropes if kind in c.layer_types}


def rotations(frequencies: Frequencies, positions: torch.Tensor, dtype: torch.dtype) -> Rotations:
    """Cos and sin [T, d] by type of layer, for float32 positions [T]; the sines of the first half are negative."""
    out = {}
    for kind, (inv_freq, gain) in frequencies.items():
        angle = positions[:, None] * inv_freq
        cos, sin = angle.cos(), angle.sin()
        out[kind] = (cos.to(dtype), sin.to(dtype)) if gain == 1.0 else ((cos * gain).to(dtype), (sin * gain).to(dtype))
    return out


def rotate(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half-split rotation of q [B, H, T, d] and k [B, Hkv, T, d], with few operations or little memory."""
    if q.shape[2] > 1:
        return _turned(q, cos, sin), _turned(k, cos, sin)
    x = torch.cat((q, k), dim=1)  # a single token pays by the operation
    a, b = x.chunk(2, dim=-1)
    x = x * cos + torch.cat((b, a), dim=-1) * sin
    return x[:, : q.shape[1]], x[:, q.shape[1] :]


def _turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    cos, sin = cos.chunk(2, dim=-1)[1], sin.chunk(2, dim=-1)[1]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def quantise(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Symmetric int8 codes of x [..., d] and their scales, float32 [...]."""
    wide = x.float()
    scale = wide.abs().amax(dim=-1) / cache.INT8_PEAK
    codes = (wide / scale.clamp_min(torch.finfo(torch.float32).tiny)[..., None]).round()
    return codes.to(torch.int8), scale


def expand(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The values of int8 codes [..., d] with scales [...]."""
    return (codes.float() * scale[..., None]).to(dtype)


def read(state: dict[str, Any], layer: int, a: int, b: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values in the slots a .. b, [B, Hkv, b - a, d]: views of the caches, or expanded codes."""
    k, v = state["k"][layer][:, :, a:b], state["v"][layer][:, :, a:b]
    if not cache.is_int8(state):
        return k, v
    scales = state["k_scale"][layer][:, :, a:b], state["v_scale"][layer][:, :, a:b]
    return expand(k, scales[0], dtype), expand(v, scales[1], dtype)


def reserve(state: dict[str, Any], c: DecoderConfig, like: torch.Tensor, positions: int, *, batch: int = 1) -> None:
    """Make room for `positions` in the caches; what is cached is kept. like: a tensor of the dtype and device."""
    int8 = cache.is_int8(state)
    lists = {name: state.setdefault(name, []) or [None] * c.num_layers for name in cache.names(int8)}
    types = {name: getattr(torch, t) for name, t in cache.dtypes(int8, str(like.dtype).rpartition(".")[2]).items()}
    for layer, kind in enumerate(c.layer_types):
        main = lists["conv" if kind == CONV else "k"][layer]
        held = 0 if main is None else main.shape[1 if kind == CONV else 2]
        room = cache.capacity_for(c, layer, positions, held)
        if room == held:
            continue
        for name, shape in cache.shapes(c, layer, room, int8).items():
            if shape is None:
                continue
            old = lists[name][layer]
            grown = like.new_zeros((batch, *shape), dtype=types[name])
            if old is not None:
                grown[:, :, :held] = old
            lists[name][layer] = grown
    for name, arrays in lists.items():
        state[name] = arrays


def pool(c: DecoderConfig, like: torch.Tensor, blocks: int, block: int, *, int8: bool = False) -> dict[str, Any]:
    """Caches for paged states: lists with room for `blocks` of `block` positions. like: see `reserve`.

    On the CPU their memory is taken when they are written to.
    """
    late = late_torch.serves(like.device.type)

    def made(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return late_torch.zeros(shape, dtype) if late else like.new_zeros(shape, dtype=dtype)

    kinds = cache.dtypes(int8, str(like.dtype).rpartition(".")[2])
    return {
        name: [None if s is None else made(s, getattr(torch, kinds[name])) for s in shapes]
        for name, shapes in cache.pool_shapes(c, blocks, block, int8).items()
    }
