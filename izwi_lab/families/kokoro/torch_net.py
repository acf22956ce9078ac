"""Kokoro on torch: the whole net, with the parameter names of the official checkpoint (weight norm folded)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn as nn

from izwi_lab.backends.base import Backend
from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.nets.albert.torch_net import Albert
from izwi_lab.families.kokoro.nets.decoder.torch_net import Decoder
from izwi_lab.families.kokoro.nets.padding.torch_net import Real, taken
from izwi_lab.families.kokoro.nets.prosody.torch_net import ProsodyPredictor, TextEncoder
from izwi_lab.families.shared.taps import tap


class KokoroNet(nn.Module):
    """Phoneme ids and a style vector to samples, in the four parts that the step API calls."""

    def __init__(self, config: KokoroConfig) -> None:
        super().__init__()
        self.bert = Albert(config.albert, config.n_tokens)
        self.bert_encoder = nn.Linear(config.albert.hidden, config.hidden)
        self.predictor = ProsodyPredictor(config)
        self.text_encoder = TextEncoder(config)
        self.decoder = Decoder(config)

    packed = False  # held by kernels that take one piece at a time

    def finalize(self, backend: Backend) -> None:
        """On a CPU, switch the blocks to the native kernels where they can be built."""
        if backend.device == "cpu" and backend.dtype in ("float32", "bfloat16"):
            from izwi_lab.families.kokoro.native_torch import attach

            self.packed = attach(self, float32=backend.dtype == "float32")

    def held_bytes(self) -> int:
        """Bytes of the weights, packed or not."""
        plain = sum(p.nbytes for p in self.state_dict().values() if p.device.type != "meta")
        return plain + sum(m.native.nbytes for m in self.modules() if getattr(m, "native", None) is not None)

    def real(self, lengths: Sequence[int]) -> Real:
        """What is real in a batch of rows of these lengths, padded to the longest."""
        return Real(lengths, self.bert_encoder.weight.device)

    def durations(self, ids: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """ids: [B, T], s: [B, style] -> (encoded [B, T, D + style], duration logits [B, T, max_duration])."""
        return self.predictor.durations(tap("bert_encoder", self.bert_encoder(self.bert(ids))), s)

    def curves(self, encoded: torch.Tensor, frames: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """encoded: [B, T, D + style], frames: int [F], which phoneme each frame shows -> (pitch, energy), [B, 2F]."""
        return self.predictor.curves(encoded[:, frames], s)

    def features(
        self,
        ids: torch.Tensor,
        frames: torch.Tensor,
        f0: torch.Tensor,
        energy: torch.Tensor,
        s: torch.Tensor,
        read: Real | None = None,
        real: Real | None = None,
    ) -> torch.Tensor:
        """ids: [B, T], frames: int [F], f0 and energy: [B, 2F] -> what the vocoder reads, [B, 2F, channels].

        frames is [B, F] where rows differ; then read and real say how many ids and frames are real in each.
        """
        return self.decoder(taken(self.text_encoder(ids, read), frames), f0, energy, s, real)

    def samples(
        self, features: torch.Tensor, har: torch.Tensor, s: torch.Tensor, real: Real | None = None
    ) -> torch.Tensor:
        """features: [B, 2F, channels], har: [B, 120 F + 1, n_fft + 2] -> [B, S]."""
        return self.decoder.generator(tap("generator.features", features), tap("har", har), s, real)
