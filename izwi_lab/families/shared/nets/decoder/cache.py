"""Bookkeeping of the decoder's caches: how far they grow, where positions lie, what belongs to a state. No arrays.

A state is {"length": positions cached, "k": [...], "v": [...], "conv": [...]}, one entry per layer: k and v
[B, Hkv, capacity, d] of attention layers, conv [B, CONV_RING, D] (the gated inputs) of conv layers, None where a layer
has no such cache; the lists are empty before the first position. An int8 state holds k and v as int8 and also
"k_scale" and "v_scale", float32 [B, Hkv, capacity]. Position p of a layer lies at slot p % ring (`slot_runs`).

A paged state has k and v from a pool that sequences share, and also "blocks", the numbers int32 [N] of those that are
its own, and "block", the positions of one: position p lies at slot blocks[p // block] * block + p % block of every
attention layer, whatever its window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.nets.decoder.config import BUCKET, CONV, CONV_RING, DecoderConfig

INT8 = "int8"
INT8_PEAK = 127.0
SCALES = ("k_scale", "v_scale")


def empty(kv_dtype: str | None = None) -> dict[str, Any]:
    """A state without positions. kv_dtype: None for the compute dtype, or "int8".

    Raises:
        InvalidInputError: another dtype.
    """
    if kv_dtype not in (None, INT8):
        raise InvalidInputError(f"kv_dtype is {kv_dtype!r}.", hint="Expected None (the compute dtype) or 'int8'.")
    return {"length": 0, **{name: [] for name in names(kv_dtype == INT8)}}


def names(int8: bool) -> tuple[str, ...]:
    """The lists of arrays in a state."""
    return ("k", "v", "conv", *(SCALES if int8 else ()))


def is_int8(state: Mapping[str, Any]) -> bool:
    """True for a state whose keys and values are int8."""
    return "k_scale" in state


def room_for(positions: int, held: int, limit: int) -> int:
    """Positions that a cache of `held` grows to, to hold `positions`: a quarter more than before, in whole buckets."""
    buckets = -(-max(positions, held + held // 4) // BUCKET) * BUCKET
    return max(positions, min(buckets, -(-limit // BUCKET) * BUCKET))


def capacity_for(c: DecoderConfig, layer: int, positions: int, held: int) -> int:
    """Slots that the cache of a layer has after growing from `held`, to hold `positions`; never less than `held`."""
    if c.layer_types[layer] == CONV:
        return CONV_RING
    ring = c.ring_of(layer)
    needed = min(positions, ring) if ring else positions
    if needed <= held:
        return held
    room = room_for(needed, held, c.max_positions)
    return min(room, ring) if ring else room


def slot_runs(first: int, stop: int, ring: int) -> list[tuple[int, int]]:
    """Slots of positions first .. stop in order, as contiguous (start, stop) runs: one, or two where a ring wraps.

    At most `ring` positions (ring 0: any number, one run).
    """
    if not ring or first >= stop:
        return [(first, stop)]
    turn = -(-(first + 1) // ring) * ring  # the first multiple of ring after `first`
    cuts = [first, turn, stop] if turn < stop else [first, stop]
    return [(a % ring, a % ring + b - a) for a, b in pairwise(cuts)]


def is_paged(state: Mapping[str, Any]) -> bool:
    """True for a state whose keys and values lie in blocks of a pool."""
    return "blocks" in state


def pool_of(state: Mapping[str, Any]) -> int:
    """A number that paged states of one pool share; 0 for others."""
    return id(next(k for k in state["k"] if k is not None)) if is_paged(state) else 0


def check_room(state: Mapping[str, Any], positions: int) -> None:
    """Raise where a paged state has no blocks for so many positions; others grow.

    Raises:
        InvalidInputError: more positions than the blocks have room for.
    """
    if is_paged(state) and len(state["blocks"]) * state["block"] < positions:
        raise InvalidInputError(
            f"{len(state['blocks'])} blocks of {state['block']} have no room for {positions} positions."
        )


def block_runs(blocks: Sequence[int], block: int, first: int, stop: int) -> list[tuple[int, int]]:
    """As `slot_runs` in a paged state: contiguous (start, stop) runs of slots, blocks that lie side by side joined."""
    runs: list[tuple[int, int]] = []
    while first < stop:
        at = blocks[first // block] * block + first % block
        count = min(block - first % block, stop - first)
        if runs and runs[-1][1] == at:
            runs[-1] = (runs[-1][0], at + count)
        else:
            runs.append((at, at + count))
        first += count
    return runs


def shapes(c: DecoderConfig, layer: int, capacity: int, int8: bool) -> dict[str, tuple[int, ...] | None]:
    """What each list of a state holds for a layer, without the batch axis."""
    if c.layer_types[layer] == CONV:
        conv = (CONV_RING, c.hidden_size)
        return {name: conv if name == "conv" else None for name in names(int8)}
    wide, narrow = (c.num_kv_heads, capacity, c.head_dim), (c.num_kv_heads, capacity)
    return {n: None if n == "conv" else narrow if n in SCALES else wide for n in names(int8)}


def fits(state: Any, c: DecoderConfig) -> bool:
    """True for a state of batch 1 that this config's nets can go on with: every layer has room for what it holds."""
    try:
        length, int8 = state["length"], is_int8(state)
        lists = {name: state[name] for name in names(int8)}
        if type(length) is not int or not 0 <= length <= c.max_positions or set(state) != {"length", *lists}:
            return False
        if not any(lists.values()):
            return length == 0 and all(held == [] for held in lists.values())
        if any(len(held) != c.num_layers for held in lists.values()):
            return False
        return all(_layer_fits(lists, c, layer, length, int8) for layer in range(c.num_layers))
    except (KeyError, TypeError, IndexError, AttributeError):
        return False


def _layer_fits(lists: Mapping[str, Any], c: DecoderConfig, layer: int, length: int, int8: bool) -> bool:
    capacity = 0 if c.layer_types[layer] == CONV else int(lists["k"][layer].shape[2])
    ring = c.ring_of(layer)
    if c.layer_types[layer] != CONV and (capacity < (min(length, ring) if ring else length) or 0 < ring < capacity):
        return False
    for name, shape in shapes(c, layer, capacity, int8).items():
        held = lists[name][layer]
        if shape is None:
            if held is not None:
                return False
        elif tuple(held.shape) != (1, *shape) or (int8 and name in ("k", "v") and not _is_int8_array(held)):
            return False
    return True


def _is_int8_array(array: Any) -> bool:
    return str(array.dtype).rpartition(".")[2] == INT8


def dtypes(int8: bool, compute: str) -> dict[str, str]:
    """The dtype of each list of a state, by name; compute: that of the net."""
    if not int8:
        return dict.fromkeys(names(int8), compute)
    return {"k": INT8, "v": INT8, "conv": compute, "k_scale": "float32", "v_scale": "float32"}


def pool_shapes(c: DecoderConfig, blocks: int, block: int, int8: bool) -> dict[str, list[tuple[int, ...] | None]]:
    """What each list of a pool holds, by layer; convolutions have no blocks."""
    layers = [shapes(c, layer, blocks * block, int8) for layer in range(c.num_layers)]
    paged = (name for name in names(int8) if name != "conv")
    return {name: [None if s[name] is None else (1, *s[name]) for s in layers] for name in paged}  # type: ignore[misc]
