"""Frames of Qwen3-TTS through the shared decoder's compiled step: one call for the talker, one for each other code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from izwi_lab.families.shared.nets.decoder import cache
from izwi_lab.families.shared.nets.decoder.native_torch import NativeStep, native_step, servable


class Compiled:
    """The compiled steps of a `torch_net.TTSNet`. Shapes as there; logits and hidden states are float32."""

    def __init__(self, net: Any, talker: NativeStep, predictor: NativeStep) -> None:
        part, first = net.talker.code_predictor, net.talker.model.codec_embedding
        tables = [first, *part.model.codec_embedding[:-1]]
        project = part.small_to_mtp_projection if net.config.projected else None
        self._talker, self._predictor = talker, predictor
        self._inputs = [predictor.input(t, project=project, head=h) for t, h in zip(tables, part.lm_head, strict=True)]
        self._caches = threading.local()  # of the predictor: written anew with every frame, so never a session's

    def ready(self) -> bool:
        """True once the library is compiled."""
        return self._talker.ready() and self._predictor.ready()

    def serves(self, positions: int) -> bool:
        """Whether `talk` takes so many positions faster than the plain path."""
        return self._talker.serves(positions)

    def talk(self, x: torch.Tensor, state: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings [T, H] -> logits [1, V], hidden [1, H] of the last; the state grows by T."""
        return self._talker.run_rows(x, (), state)

    def talk_together(self, pieces: Sequence[tuple[torch.Tensor, dict[str, Any]]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Pieces (embeddings [T, H], state) of several sequences: logits [N, V], hidden [N, H] of the last of each."""
        return self._talker.run_rows_together([(x, (), state) for x, state in pieces])

    def predict_together(
        self,
        hidden: Sequence[torch.Tensor],
        firsts: Sequence[int],
        choose: Callable[[torch.Tensor, int], Sequence[int]],
    ) -> list[list[int]]:
        """As `TTSNet.predict_together`."""
        held = self._caches.__dict__.setdefault("states", [])
        held += [cache.empty() for _ in range(len(firsts) - len(held))]
        states = held[: len(firsts)]
        for state in states:
            state["length"] = 0
        codes, rows = [[first] for first in firsts], list(hidden)
        for index, given in enumerate(self._inputs, 1):
            pieces = [(row, frame[-1:], state) for row, frame, state in zip(rows, codes, states, strict=True)]
            logits, _ = self._predictor.run_rows_together(pieces, given)
            for frame, code in zip(codes, choose(logits, index), strict=True):
                frame.append(code)
            rows = [None] * len(rows)
        return codes


def compiled(net: Any, backend: Any) -> Compiled | None:
    """The compiled steps for a net, or None where they cannot serve it: another device, dtype or group size."""
    part, model = net.talker.code_predictor, net.talker.model
    extras = [model.codec_embedding, part.lm_head, part.model.codec_embedding]
    if net.config.projected:
        extras.append(part.small_to_mtp_projection)
    talker = native_step(model, backend, head=net.talker.codec_head)
    predictor = native_step(part.model, backend)
    if talker is None or predictor is None or not all(servable(m) for m in extras):
        return None
    return Compiled(net, talker, predictor)
