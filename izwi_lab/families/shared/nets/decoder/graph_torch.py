"""Steps of the torch decoder with fixed shapes, and their capture as CUDA graphs, one for each cache size.

A graph bakes addresses in, and capturing costs as much as hundreds of steps. So graphs own their caches and outlive
sessions: a session's caches are copied in once, its state then holds the graph's arrays, and when another session needs
them it gets its own copy back. The next session of the same size pays a copy, not a capture.

A step is a function (state, at, inputs, baked) -> outputs that reads no number from the device, and no state["length"]:
`at`, int64 [1], is the position; `inputs` are copied in before each replay; `baked` is what a graph holds for good.
"""

from __future__ import annotations

import logging
import operator
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any

import torch

from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.cache_torch import (
    Frequencies,
    KeysValues,
    quantise,
    read,
    reserve,
    rotations,
)
from izwi_lab.families.shared.nets.decoder.config import DecoderConfig

LIMIT = 4  # graphs kept, and as many sets of caches
WARM_UP = 2  # steps before a capture: libraries choose and load their kernels

Inputs = tuple[torch.Tensor, ...]
Outputs = tuple[torch.Tensor, ...]
FixedStep = Callable[[dict[str, Any], torch.Tensor, Inputs, Any], Outputs]
Capture = Callable[[Callable[[], Outputs]], tuple[Callable[[], None], Outputs]]

_log = logging.getLogger(__name__)


class FixedPiece:
    """As `cache_torch.Piece` for one token, whose position, int64 [1], is known only on the device.

    Layers see the whole capacity of their caches under a mask. `state` must have room.
    """

    def __init__(
        self, c: DecoderConfig, state: dict[str, Any], like: torch.Tensor, frequencies: Frequencies, at: torch.Tensor
    ) -> None:
        self.c, self.state, self.at, self._dtype = c, state, at, like.dtype
        self._masks: dict[tuple[int, int, int], torch.Tensor] = {}
        self.rotations = rotations(frequencies, at.float(), like.dtype)

    def keys_values(self, layer: int, k: torch.Tensor, v: torch.Tensor, *, ordered: bool = False) -> KeysValues:
        """Store k and v [B, Hkv, 1, d]; give all slots [B, Hkv, capacity, d] and a mask.

        The mask is what is added to scores, [1, capacity]: of a bool one, attention would make that at every layer.
        ordered has no meaning here: no tap is open in a fixed step.
        """
        ring, capacity = self.c.ring_of(layer), self.state["k"][layer].shape[2]
        slot = self.at % ring if ring else self.at
        for name, values in (("k", k), ("v", v)):
            parts = quantise(values) if cache.is_int8(self.state) else (values,)
            for suffix, part in zip(("", "_scale"), parts, strict=False):
                self.state[name + suffix][layer].index_copy_(2, slot, part)
        return (
            *read(self.state, layer, 0, capacity, self._dtype),
            self._mask(ring, self.c.window_of(layer), capacity),
        )

    def conv_inputs(self, layer: int, x: torch.Tensor) -> torch.Tensor:
        """Store the gated input [B, 1, D]; give it after the K - 1 before, zeros before the first position."""
        held = self.state["conv"][layer]
        held.index_copy_(1, self.at % held.shape[1], x)
        wanted = self.at + torch.arange(1 - self.c.conv_kernel, 1, device=x.device)
        return held.index_select(1, wanted % held.shape[1]) * (wanted >= 0)[:, None]

    def _mask(self, ring: int, window: int, capacity: int) -> torch.Tensor:
        key = (ring, window, capacity)
        if key not in self._masks:
            slots = torch.arange(capacity, device=self.at.device)
            held = self.at - (self.at - slots) % ring if ring else slots  # the position in each slot
            seen = (held >= 0) & (held <= self.at)
            seen = seen & (held > self.at - window) if window else seen
            nothing = torch.zeros(1, capacity, dtype=self._dtype, device=self.at.device)
            self._masks[key] = nothing.masked_fill(~seen, -torch.inf)
        return self._masks[key]


def text_step(net: Any, frequencies: Frequencies) -> FixedStep:
    """The step of a text model: the input is a token, ids [1, 1]; the outputs are logits [1, V] and hidden [1, D]."""
    net = weakref.proxy(net)  # which owns the graphs

    def step(state: dict[str, Any], at: torch.Tensor, inputs: Inputs, baked: Hashable) -> Outputs:
        x = net.embed(inputs[0])
        x = net.through(x, FixedPiece(net.config, state, x, frequencies, at))[:, -1]
        return net.head(x), x

    return step


class Held(list[Any]):
    """A list of a state whose arrays belong to a graph; weakly known there."""


class Captured:
    """A fixed step with its caches, inputs and outputs. like, inputs: what has the sizes and dtypes to capture."""

    def __init__(
        self, step: FixedStep, like: dict[str, Any], inputs: Inputs, baked: Hashable, capture: Capture
    ) -> None:
        device = next(a for a in (*like["k"], *like["conv"]) if a is not None).device
        lists = ((name, arrays) for name, arrays in like.items() if name != "length")
        self.state = {n: [None if a is None else torch.zeros_like(a) for a in arrays] for n, arrays in lists}
        self.at = torch.zeros(1, dtype=torch.int64, device=device)
        self.inputs = tuple(torch.zeros_like(i, device=device) for i in inputs)
        self.baked = baked
        self.replay, self.outputs = capture(lambda: step(self.state, self.at, self.inputs, baked))
        self._guests: dict[str, weakref.ref[Held]] = {}

    def run(self, position: int, inputs: Inputs) -> Outputs:
        """The outputs at a position, their own copies: a Step outlives the next replay."""
        self.at.fill_(position)
        for mine, theirs in zip(self.inputs, inputs, strict=True):
            mine.copy_(theirs, non_blocking=True)
        self.replay()
        return tuple(o.clone() for o in self.outputs)

    def fits(self, state: dict[str, Any], baked: Hashable) -> bool:
        """True for a state of the same sizes and dtypes, and the same baked values."""
        return bool(self.baked == baked and _sizes(self.state) == _sizes(state))

    def holds(self, state: dict[str, Any]) -> bool:
        """True if all arrays of `state` are this graph's."""
        return all(
            len(state.get(name, ())) == len(own) and all(map(operator.is_, state[name], own))
            for name, own in self.state.items()
        )

    def busy(self) -> bool:
        """True while a state holds some of the arrays."""
        return any(True for _ in self._shared())

    def take(self, state: dict[str, Any]) -> None:
        """Copy the caches of `state` in and let it hold these; a state that held them gets copies of its own."""
        for held, layer in list(self._shared()):
            held[layer] = held[layer].clone()
        for name, own in self.state.items():
            for mine, theirs in zip(own, state[name], strict=True):
                if mine is not None:
                    mine.copy_(theirs)
            state[name] = Held(own)
            self._guests[name] = weakref.ref(state[name])

    def _shared(self) -> Any:
        for name, guest in self._guests.items():
            held = guest()
            for layer, array in enumerate(held or ()):
                if array is not None and array is self.state[name][layer]:
                    yield held, layer


class Graphs:
    """A step as graphs, the one used last at the end. Once a capture failed, `run` gives None for good.

    c: of the decoder whose caches the step writes. Threads take turns: inputs and outputs lie at fixed addresses.
    """

    def __init__(self, c: DecoderConfig, step: FixedStep, capture: Capture) -> None:
        self._config, self._step, self._capture = c, step, capture
        self._kept: list[Captured] = []
        self._failed = False
        self._turn = threading.Lock()

    def run(
        self, state: dict[str, Any], like: torch.Tensor, inputs: Inputs, *, baked: Hashable = None, room: int = 0
    ) -> Outputs | None:
        """One step; the state grows by one position.

        like: see `reserve`. inputs: of equal shapes every time; host memory must be pinned to spare a wait. room: of
        the caches at least, in positions.
        """
        with self._turn:
            if self._failed:
                return None
            position = state["length"]
            reserve(state, self._config, like, max(position + 1, room))
            graph = self._kept[-1] if self._kept else None
            if graph is None or graph.baked != baked or not graph.holds(state):
                try:
                    graph = self._graph_for(state, inputs, baked)
                except RuntimeError as error:
                    self._failed = True
                    self._kept.clear()
                    _log.warning("CUDA graph capture failed; steps are computed without from now on: %s", error)
                    return None
                self._kept.append(graph)
            outputs = graph.run(position, inputs)
            state["length"] = position + 1
            return outputs

    def _graph_for(self, state: dict[str, Any], inputs: Inputs, baked: Hashable) -> Captured:
        """The graph that holds `state` or now takes it, out of `_kept`."""
        fitting = [g for g in self._kept if g.fits(state, baked)]
        graph = next((g for g in fitting if g.holds(state)), None)
        if graph is not None:
            self._kept.remove(graph)
            return graph
        graph = next((g for g in fitting if not g.busy()), None)
        if graph is None and len(self._kept) >= LIMIT:
            graph = fitting[0] if fitting else None
            drop = next((g for g in self._kept if not g.busy()), None if fitting else self._kept[0])
            if drop is not None:  # a state that holds its arrays keeps them
                self._kept.remove(drop)
                graph = None
        if graph is None:
            graph = Captured(self._step, state, inputs, baked, self._capture)
        else:
            self._kept.remove(graph)
        graph.take(state)
        return graph


def _sizes(state: dict[str, Any]) -> Any:
    return {n: [a if a is None else (a.shape, a.dtype) for a in state[n]] for n in sorted(state) if n != "length"}


def cuda_capture(step: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
    """Warm `step` up on a side stream and capture it: (replay, outputs)."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # others may allocate meanwhile
        outputs = step()
    return graph.replay, outputs


def graphs(net: Any, backend: Any, frequencies: Frequencies) -> Graphs | None:
    """Captured steps for `net`, or None on devices other than CUDA."""
    cuda = backend.device.startswith("cuda")
    return Graphs(net.config, text_step(net, frequencies), cuda_capture) if cuda else None
