"""Whole frames of Qwen3-TTS on their device: the host waits once for each, and on CUDA a frame is one captured graph.

A frame is the code predictor's K - 1 codes, each chosen where its logits are, then the sum of its embeddings with the
text that comes with it, then the talker's step. Shapes as in `torch_net.TTSNet`; K codebooks.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch

from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.cache_torch import Frequencies
from izwi_lab.families.shared.nets.decoder.graph_torch import (
    Capture,
    FixedPiece,
    FixedStep,
    Graphs,
    Inputs,
    Outputs,
    cuda_capture,
)
from izwi_lab.families.shared.nets.sampler.rules import Rules
from izwi_lab.families.shared.nets.sampler.torch_net import Sampler

ROOM = 512  # positions of the talker's caches at first, 41 s; doubled when full: each size is captured once

Made = tuple[list[int], list[float], tuple[torch.Tensor, torch.Tensor] | None]


class Frames:
    """Frames of a `TTSNet`, which owns this. capture: None where steps cannot be captured.

    Where a capture failed, frames are computed step by step from then on, still with one wait; so are those of paged
    states, whose caches lie elsewhere each time.
    """

    def __init__(self, net: Any, frequencies: Frequencies, capture: Capture | None) -> None:
        self._net = weakref.proxy(net)
        step = frame_step(net, frequencies)
        self._graphs = None if capture is None else Graphs(net.config.talker, step, capture)

    def run(
        self,
        hidden: torch.Tensor,
        c0: int,
        row: torch.Tensor | None,
        state: dict[str, Any],
        rules: Rules,
        shares: Sequence[int],
    ) -> Made:
        """See `TTSNet.frame`."""
        net, cuda, numbers = self._net, hidden.is_cuda, torch.tensor((c0, *shares))
        if cuda:
            numbers = numbers.pin_memory()  # else the copy would wait
        if row is not None and self._graphs is not None and not cache.is_paged(state):
            like, room = net.talker.model.norm.weight, _room(state["length"] + 1, net.config.talker.max_positions)
            found = self._graphs.run(state, like, (hidden, row, numbers), baked=rules, room=room)
            if found is not None:
                chosen, logits, last = found
                return *_fetched(c0, chosen), (logits, last)
        codes, chosen = predicted(net, hidden, numbers.to(hidden.device, non_blocking=cuda), rules)
        read = None if row is None else net.talk(net.frames(codes[None, :, None]) + row, state)
        return *_fetched(c0, chosen), read


def frame_step(net: Any, frequencies: Frequencies) -> FixedStep:
    """A frame as a fixed step; frequencies: of the talker.

    inputs: hidden [1, H], the text's row [1, 1, H], the numbers of `predicted`; baked: the Rules of the predictor.
    outputs: what `predicted` chose, logits [1, V], hidden [1, H].
    """
    net = weakref.proxy(net)

    def step(state: dict[str, Any], at: torch.Tensor, inputs: Inputs, baked: Any) -> Outputs:
        hidden, row, numbers = inputs
        codes, chosen = predicted(net, hidden, numbers, baked)
        x = net.frames(codes[None, :, None]) + row
        piece = FixedPiece(net.config.talker, state, x, frequencies, at)
        last = net.talker.model.through(x, piece)[:, -1]
        return chosen, net.talker.codec_head(last), last

    return step


def predicted(net: Any, hidden: torch.Tensor, numbers: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
    """The codes of a frame, int64 [K]; and float32 [2, K - 1]: those chosen here, and the largest logit of each choice.

    numbers: int64 [K] on the device, the code of codebook 0 and then the random numbers for the others, of 2^31.
    """
    sampler, tables = Sampler(), net.talker.code_predictor.model.codec_embedding
    codes, tops, state = [numbers[0]], [], net.predictor_state()
    x = net.codec(numbers[None, :1])
    x = torch.cat((hidden[:, None].to(x.dtype), x), dim=1)
    for index in range(1, net.config.codebooks):
        if index > 1:
            x = tables[index - 2](codes[-1].view(1, 1))
        logits = net.predictor_logits(x, index, state)
        code, top = sampler.chosen(logits[0], rules, numbers[index])
        codes.append(code)
        tops.append(top)
    together = torch.stack(codes)
    return together, torch.stack((together[1:].float(), torch.stack(tops)))  # ids below 2^24 are exact in float32


def _fetched(c0: int, chosen: torch.Tensor) -> tuple[list[int], list[float]]:
    codes, tops = chosen.tolist()
    return [c0, *map(int, codes)], tops


def _room(positions: int, most: int) -> int:
    room = ROOM
    while room < positions:
        room *= 2
    return min(room, most)


def frames(net: Any, backend: Any, frequencies: Frequencies) -> Frames | None:
    """Whole frames for `net`; None on the CPU, where nothing is waited for."""
    if backend.device == "cpu":
        return None
    return Frames(net, frequencies, cuda_capture if backend.device.startswith("cuda") else None)
