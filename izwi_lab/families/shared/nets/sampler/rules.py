"""What the samplers are told: the numbers of a `Sampling` as arrays and whole numbers. No framework.

Weights are whole numbers, floor(exp((logit - max) / temperature) * 2^42): sums are exact in any order, so every
backend draws the same token from the same random number, but for logits whose exponentials round differently.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WEIGHT_BITS = 42  # with up to 2^20 tokens a sum stays below 2^62
DRAW_BITS = 31  # of a random number, and of top_p
COLDEST = 1e-30  # a lower temperature would be 0 in float32; it leaves only the best tokens either way


@dataclass(frozen=True, slots=True)
class Rules:
    """How to choose from logits [V]. Arrays are native to the sampler: numpy for host memory.

    seen: bool [V], said in prompt or output; counts: int32 [V], how often it was put out; None where not needed.
    bias_ids int32 [n] and bias float32 [n]: added. allowed: int32 [ceil(V / 32)], bit t % 32 of word t // 32.
    temperature 0 takes the best. top_k: 0 for all. top_p: of 2^31. min_weight: of 2^42.
    """

    seen: Any = None
    counts: Any = None
    bias_ids: Any = None
    bias: Any = None
    allowed: Any = None
    repetition: float = 1.0
    frequency: float = 0.0
    presence: float = 0.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: int = 1 << DRAW_BITS
    min_weight: int = 0

    @property
    def plain(self) -> bool:
        """True if logits are used as they come."""
        return self.seen is None and self.counts is None and self.bias is None and self.allowed is None
