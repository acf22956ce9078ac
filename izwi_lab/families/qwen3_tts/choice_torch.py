"""Codes of several sequences chosen at once on their torch device. Shapes: N sequences, V codes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from izwi_lab.families.shared.nets.sampler.rules import Rules
from izwi_lab.families.shared.nets.sampler.torch_net import Sampler, share_of


def chosen(logits: torch.Tensor, rules: Sequence[Rules], shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `torch_net.TTSNet.chosen`. Those with the same rules are one group."""
    groups = {rule: [i for i, other in enumerate(rules) if other == rule] for rule in rules}
    if len(groups) == 1:
        return _alike(logits, rules[0], shares)
    found = [_alike(logits[rows], rule, shares[rows]) for rule, rows in groups.items()]
    back = torch.tensor([i for rows in groups.values() for i in rows], device=logits.device).argsort()
    codes, tops = (torch.cat(parts)[back] for parts in zip(*found, strict=True))
    return codes, tops


def _alike(logits: torch.Tensor, rules: Rules, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `Sampler.chosen` row by row."""
    if rules.temperature == 0 or rules.top_k == 1:
        return logits.argmax(dim=1), logits.float().amax(dim=1)
    sampler = Sampler()
    weights, tops = torch.vmap(lambda row: sampler.weights(row, rules))(logits)
    sums = weights.cumsum(1)
    drawn = torch.searchsorted(sums[:, :-1].contiguous(), share_of(sums[:, -1], shares)[:, None], right=True)
    return drawn[:, 0], tops
