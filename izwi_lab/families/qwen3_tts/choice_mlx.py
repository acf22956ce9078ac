"""Codes of several sequences chosen at once on MLX, not computed yet. Shapes: N sequences, V codes."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from izwi_lab.families.shared.nets.sampler.mlx_net import Sampler
from izwi_lab.families.shared.nets.sampler.rules import Rules


def chosen(logits: mx.array, rules: Sequence[Rules], shares: mx.array) -> tuple[mx.array, mx.array]:
    """See `torch_net.TTSNet.chosen`. Those with the same rules are one group."""
    groups = {rule: [i for i, other in enumerate(rules) if other == rule] for rule in rules}
    if len(groups) == 1:
        return _alike(logits, rules[0], shares)
    found = [_alike(logits[mx.array(rows)], rule, shares[mx.array(rows)]) for rule, rows in groups.items()]
    back = mx.argsort(mx.array([i for rows in groups.values() for i in rows]))
    codes, tops = (mx.concatenate(list(parts))[back] for parts in zip(*found, strict=True))
    return codes, tops


def _alike(logits: mx.array, rules: Rules, shares: mx.array) -> tuple[mx.array, mx.array]:
    """As `Sampler.chosen` row by row."""
    sampler = Sampler()
    codes, tops = mx.vmap(lambda row, share: sampler.chosen(row, rules, share))(logits, shares)
    return codes, tops
