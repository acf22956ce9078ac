"""Silero VAD's fixed sizes at 16 kHz."""

from __future__ import annotations

from dataclasses import dataclass

SAMPLE_RATE_HZ = 16_000
FRAME = 512  # new samples per step, 32 ms
CONTEXT = 64  # samples of the frame before


@dataclass(frozen=True, slots=True)
class SileroConfig:
    """Sizes of the net; v6 has no others. widths and strides: of the four convolutions."""

    fft: int = 256
    hop: int = 128
    widths: tuple[int, ...] = (128, 64, 64, 128)
    strides: tuple[int, ...] = (1, 2, 2, 1)
    hidden: int = 128

    @property
    def bins(self) -> int:
        """Frequencies of the spectrum."""
        return self.fft // 2 + 1
