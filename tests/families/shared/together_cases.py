"""Steps of several sequences, decodes and pieces of prompts, beside which each of them is also computed alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

SIZES = (1, 40, 1, 1, 9, 1)  # positions of each sequence in a step
BEFORE = (5, 0, 130, 300, 70, 17)  # and those read before it
WANTS = (True, False, True, True, True, True)
BLOCK, BLOCKS = 16, 60
KINDS = ("plain", "paged", "mixed", "int8 plain", "int8 paged")


@dataclass(frozen=True, slots=True)
class Case:
    """ids: of each sequence, int64 [before + 2 * size]; blocks: of each, None for caches of its own."""

    ids: list[np.ndarray]
    blocks: list[np.ndarray | None]
    kv_dtype: str | None


def case_of(kind: str, vocab: int) -> Case:
    """What the sequences read, and where they lie."""
    rng = np.random.default_rng(len(kind))
    order, blocks, used = rng.permutation(BLOCKS).astype(np.int32), [], 0
    ids = [rng.integers(0, vocab, before + 2 * size) for before, size in zip(BEFORE, SIZES, strict=True)]
    for number, own in enumerate(ids):
        count = -(-len(own) // BLOCK)
        paged = "paged" in kind or ("mixed" in kind and number % 2 == 0)
        blocks.append(order[used : used + count] if paged else None)
        used += count
    assert used <= BLOCKS
    return Case(ids, blocks, "int8" if "int8" in kind else None)
