"""Frames of Qwen3-TTS through the shared decoder's compiled step: one call for the talker, one for each other code."""

from __future__ import annotations

import threading
from collections.abc import Callable
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

    def predict(self, hidden: torch.Tensor, c0: int, choose: Callable[[torch.Tensor, int], int]) -> list[int]:
        """As `TTSNet.predict`."""
        state = self._caches.__dict__.setdefault("state", cache.empty())
        state["length"] = 0
        codes, rows = [c0], hidden
        for index, given in enumerate(self._inputs, 1):
            logits, _ = self._predictor.run_rows(rows, codes[-1:], state, given)
            codes.append(choose(logits, index))
            rows = None
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
