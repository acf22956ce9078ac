"""Kokoro on MLX: the whole net, with the parameter names of the official checkpoint (weight norm folded)."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.nets.albert.mlx_net import Albert
from izwi_lab.families.kokoro.nets.decoder.mlx_net import Decoder
from izwi_lab.families.kokoro.nets.padding.mlx_net import Real, taken
from izwi_lab.families.kokoro.nets.prosody.mlx_net import ProsodyPredictor, TextEncoder
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

    packed = False  # its weights are as they were: a batch can be computed

    def held_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(p.nbytes for _, p in tree_flatten(self.parameters()))

    def real(self, lengths: Sequence[int]) -> Real:
        """What is real in a batch of rows of these lengths, padded to the longest."""
        return Real(lengths)

    def durations(self, ids: mx.array, s: mx.array) -> tuple[mx.array, mx.array]:
        """ids: [B, T], s: [B, style] -> (encoded [B, T, D + style], duration logits [B, T, max_duration])."""
        return self.predictor.durations(tap("bert_encoder", self.bert_encoder(self.bert(ids))), s)

    def curves(self, encoded: mx.array, frames: mx.array, s: mx.array) -> tuple[mx.array, mx.array]:
        """encoded: [B, T, D + style], frames: int [F], which phoneme each frame shows -> (pitch, energy), [B, 2F]."""
        return self.predictor.curves(encoded[:, frames], s)

    def features(
        self,
        ids: mx.array,
        frames: mx.array,
        f0: mx.array,
        energy: mx.array,
        s: mx.array,
        read: Real | None = None,
        real: Real | None = None,
    ) -> mx.array:
        """ids: [B, T], frames: int [F], f0 and energy: [B, 2F] -> what the vocoder reads, [B, 2F, channels].

        frames is [B, F] where rows differ; then read and real say how many ids and frames are real in each.
        """
        return self.decoder(taken(self.text_encoder(ids, read), frames), f0, energy, s, real)

    def samples(self, features: mx.array, har: mx.array, s: mx.array, real: Real | None = None) -> mx.array:
        """features: [B, 2F, channels], har: [B, 120 F + 1, n_fft + 2] -> [B, S]."""
        return self.decoder.generator(tap("generator.features", features), tap("har", har), s, real)
