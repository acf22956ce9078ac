"""Sizes of Mimi's encoder."""

from __future__ import annotations

import math
from dataclasses import dataclass

from izwi_lab.families.shared.nets.windowed.config import WindowedConfig


@dataclass(frozen=True, slots=True)
class SeanetConfig:
    """filters: channels of the first convolution, doubled at each of `ratios` (in encoding order, samples first).

    transformer: what follows SEANet; its width is SEANet's last. halve: the factor by which the rate falls at the end.
    """

    transformer: WindowedConfig
    filters: int = 64
    ratios: tuple[int, ...] = (4, 5, 6, 8)
    kernel: int = 7
    last_kernel: int = 3
    residual_kernel: int = 3
    compress: int = 2
    halve: int = 2

    @property
    def frame_samples(self) -> int:
        """Samples that make one frame."""
        return math.prod(self.ratios) * self.halve
