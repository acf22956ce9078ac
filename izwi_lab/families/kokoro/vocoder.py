"""Kokoro's codec: acoustic features to samples, through the iSTFTNet part of the net."""

from __future__ import annotations

from typing import Any

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.backends.base import Backend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.source import harmonic_source, source_spectrum
from izwi_lab.families.kokoro.steps import AcousticFeatures
from izwi_lab.families.shared.taps import tap, tapped


class IstftVocoder:
    """Features -> Audio. It holds no state: equal features give equal samples."""

    def __init__(self, net: Any, backend: Backend, config: KokoroConfig) -> None:
        self.net, self.backend, self.config = net, backend, config
        merge = net.decoder.generator.m_source.l_linear
        self._weight = backend.numpy(merge.weight).reshape(-1)
        self._bias = float(backend.numpy(merge.bias)[0])

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self.config.rate_hz

    def source(self, f0: np.ndarray, rng: np.random.Generator | None) -> np.ndarray:
        """The excitation for a pitch curve: float32 [2F] -> [S]; rng draws its noise, None leaves it out."""
        return harmonic_source(f0, self._weight, self._bias, self.config, rng)

    def decode(self, codes: AcousticFeatures) -> Audio:
        """codes: what `model.decode` left in `session.codes` -> Audio, 600 samples per frame.

        Raises:
            InvalidInputError: there are no codes yet, or what came is something else.
        """
        if not isinstance(codes, AcousticFeatures):
            raise InvalidInputError(
                f"The vocoder expects AcousticFeatures, got {type(codes).__name__}.",
                hint="Call prefill and decode first; decode leaves them in session.codes.",
            )
        source = codes.source
        if tapped():
            source = self.backend.numpy(tap("har_source", self.backend.array(source, dtype="float32")))
        with self.backend.inference():
            har = self.backend.array(source_spectrum(source, self.config)[None], dtype="float32")
            style = self.backend.array(codes.style[:, : self.config.style], dtype="float32")
            samples = self.backend.numpy(self.net.samples(codes.features, har, style))
        return Audio(np.ascontiguousarray(samples[0], np.float32), self.rate_hz)
