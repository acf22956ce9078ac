"""A long text said piece by piece: which piece is the last, and the random numbers of each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def marking_the_last(prompts: Iterator[T]) -> Iterator[tuple[T, bool]]:
    """Each prompt and whether it is the last; one is read ahead, which is cheap beside speaking it."""
    prompt = next(prompts)
    for following in prompts:
        yield prompt, False
        prompt = following
    yield prompt, True


def base_seed(seed: int | None) -> int:
    """The seed, or a new one."""
    return int(np.random.SeedSequence().generate_state(1, np.uint64)[0] >> 1) if seed is None else int(seed)


def piece_seed(base: int, index: int) -> int:
    """A piece's own seed, so that pieces do not depend on how many were made before; the first one's is the base."""
    return base if index == 0 else int(np.random.SeedSequence([base, index]).generate_state(1, np.uint64)[0] >> 1)
