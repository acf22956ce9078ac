"""Choosing a token on a torch device: one value comes back to the host. See rules.py for what the rules mean."""

from __future__ import annotations

import torch
from torch import nn

from izwi_lab.families.shared.nets.sampler.rules import COLDEST, DRAW_BITS, WEIGHT_BITS, Rules


class Sampler(nn.Module):
    """No parameters. Logits are native [V] of any float dtype, unless said otherwise."""

    def __init__(self, config: None = None):
        super().__init__()

    def token(self, logits: torch.Tensor, rules: Rules, share: int) -> tuple[int, float]:
        """The chosen id and the largest logit under the rules. share: the random number, of 2^31."""
        token, top = self.chosen(logits, rules, share)
        found = torch.stack((token.float(), top)).tolist()  # ids below 2^24 are exact in float32
        return int(found[0]), float(found[1])

    def chosen(
        self, logits: torch.Tensor, rules: Rules, share: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `token`, and nothing comes back to the host: the id int64 [] and the largest logit float32 [].

        share: may be on the device, int64 []. The id is one of the vocabulary whatever the logits hold.
        """
        if rules.temperature == 0 or rules.top_k == 1:
            values = self.adjusted(logits, rules)
            return values.argmax(), values.max()
        weights, top = self.weights(logits, rules)
        return self.drawn(weights, share), top

    def weights(self, logits: torch.Tensor, rules: Rules) -> tuple[torch.Tensor, torch.Tensor]:
        """Whole-number weights int64 [V] of what may be drawn, and the largest logit under the rules."""
        values = self.adjusted(logits, rules)
        top = values.max()
        if rules.temperature == 0 or rules.top_k == 1:
            best = torch.zeros_like(values, dtype=torch.int64)
            return best.scatter(0, values.argmax()[None], 1 << WEIGHT_BITS), top
        size, ranked = values.shape[0], 0 < rules.top_k < values.shape[0]
        weights = self._weighed(values, top, rules)
        if ranked or rules.top_p < 1 << DRAW_BITS:
            best = values.topk(rules.top_k).values if ranked else values.sort(descending=True).values
            count = rules.top_k if ranked else size
            if rules.top_p < 1 << DRAW_BITS:
                sums = self._weighed(best, top, rules).cumsum(0)
                count = torch.clamp((sums < share_of(sums[-1], rules.top_p)).sum() + 1, max=count)
                least = best.gather(0, (count - 1)[None])  # an index would be fetched
            else:
                least = best[-1]
            above, tied = values > least, values == least  # of these, the ones with the lowest ids
            room = count - above.sum()
            weights = weights * (above | (tied & (tied.cumsum(0) <= room)))
        if rules.min_weight:
            weights = weights * (weights >= rules.min_weight)
        return weights, top

    def drawn(self, weights: torch.Tensor, share: int | torch.Tensor) -> torch.Tensor:
        """An id, native, drawn by weight; the last where all weights are 0."""
        sums = weights.cumsum(0)
        return torch.searchsorted(sums[:-1], share_of(sums[-1], share)[None], right=True)[0]

    def judged(self, p: torch.Tensor, q: torch.Tensor, draft: int, chance: float, share: int) -> tuple[bool, int]:
        """Whether a draft drawn by the weights q is kept as one drawn by p, and else what takes its place.

        Leviathan et al. 2023 (arXiv:2211.17192): kept with min(1, p / q); else drawn from max(0, p - q).
        """
        mine, theirs = p / p.sum(), q / q.sum()
        kept = chance * theirs[draft] < mine[draft]
        left = torch.clamp(mine - theirs, min=0)
        rest = (left / left.max() * float(1 << WEIGHT_BITS)).nan_to_num(0).to(torch.int64)
        other = self.drawn(torch.where(left.max() > 0, rest, p), share)
        found = torch.stack((kept.to(torch.int64), other)).tolist()
        return bool(found[0]), int(found[1])

    def logprobs(self, logits: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Log-probability float32 [T] of ids [T] under logits [T, V]."""
        wide = logits.float()
        return wide.gather(1, ids.long()[:, None])[:, 0] - wide.logsumexp(1)

    def best(self, logits: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The k likeliest ids and their log-probabilities, best first, and log(sum(exp(logits)))."""
        wide = logits.float()
        values, ids = wide.topk(k)
        whole = wide.logsumexp(0)
        return ids, values - whole, whole

    def adjusted(self, logits: torch.Tensor, r: Rules) -> torch.Tensor:
        """Float32 [V] under penalties, bias and the allowed set."""
        values = logits.float()
        if r.seen is not None:
            punished = torch.where(values > 0, values / r.repetition, values * r.repetition)
            values = torch.where(r.seen, punished, values)
        if r.counts is not None:
            values = values - (r.counts * r.frequency + (r.counts > 0) * r.presence)
        if r.bias is not None:
            values = values.index_add(0, r.bias_ids, r.bias)
        if r.allowed is not None:
            bits = (r.allowed[:, None] >> torch.arange(32, dtype=torch.int32, device=values.device)) & 1
            values = values.masked_fill(bits.flatten()[: values.shape[0]] == 0, -torch.inf)
        return values

    def _weighed(self, values: torch.Tensor, top: torch.Tensor, r: Rules) -> torch.Tensor:
        shares = torch.exp((values - top) / max(r.temperature, COLDEST))
        return (shares * float(1 << WEIGHT_BITS)).nan_to_num(0).to(torch.int64)


def share_of(total: torch.Tensor, share: int | torch.Tensor) -> torch.Tensor:
    """floor(total * share / 2^31) without overflow, for total < 2^62 and share <= 2^31."""
    low = total & ((1 << DRAW_BITS) - 1)
    return (total >> DRAW_BITS) * share + ((low * share) >> DRAW_BITS)
