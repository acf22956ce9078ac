"""Choosing a token on MLX: one value comes back to the host. See rules.py for what the rules mean."""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from izwi_lab.families.shared.nets.sampler.rules import COLDEST, DRAW_BITS, WEIGHT_BITS, Rules


class Sampler(nn.Module):
    """No parameters. Logits are native [V] of any float dtype, unless said otherwise."""

    def __init__(self, config: None = None):
        super().__init__()

    def token(self, logits: mx.array, rules: Rules, share: int) -> tuple[int, float]:
        """The chosen id and the largest logit under the rules. share: the random number, of 2^31."""
        token, top = self.chosen(logits, rules, share)
        found = mx.stack((token.astype(mx.float32), top)).tolist()  # ids below 2^24 are exact in float32
        return int(found[0]), float(found[1])

    def chosen(self, logits: mx.array, rules: Rules, share: int) -> tuple[mx.array, mx.array]:
        """As `token`, not computed yet: the id uint32 [] and the largest logit float32 []."""
        if rules.temperature == 0 or rules.top_k == 1:
            values = self.adjusted(logits, rules)
            return values.argmax(), values.max()  # argmax passes NaN over, max does not
        weights, top = self.weights(logits, rules)
        return self.drawn(weights, share), top

    def weights(self, logits: mx.array, rules: Rules) -> tuple[mx.array, mx.array]:
        """Whole-number weights int64 [V] of what may be drawn, and the largest logit under the rules."""
        values = self.adjusted(logits, rules)
        top = values.max()
        size, ranked = values.shape[0], 0 < rules.top_k < values.shape[0]
        if rules.temperature == 0 or rules.top_k == 1:
            return (mx.arange(size) == values.argmax()).astype(mx.int64) * (1 << WEIGHT_BITS), top
        weights = self._weighed(values, top, rules)
        if ranked or rules.top_p < 1 << DRAW_BITS:
            best = mx.sort(mx.topk(values, rules.top_k) if ranked else values)[::-1]
            count = mx.array(rules.top_k if ranked else size)
            if rules.top_p < 1 << DRAW_BITS:
                sums = mx.cumsum(self._weighed(best, top, rules))
                count = mx.minimum((sums < share_of(sums[-1], rules.top_p)).sum() + 1, count)
                least = best[count - 1]
            else:
                least = best[-1]
            tied = values == least  # of these, the ones with the lowest ids
            room = count - (values > least).sum()
            weights = weights * ((values > least) | (tied & (mx.cumsum(tied.astype(mx.int32)) <= room)))
        if rules.min_weight:
            weights = weights * (weights >= rules.min_weight)
        return weights, top

    def drawn(self, weights: mx.array, share: int) -> mx.array:
        """An id, native, drawn by weight."""
        sums = mx.cumsum(weights)
        return mx.argmax(sums > share_of(sums[-1], share))

    def judged(self, p: mx.array, q: mx.array, draft: int, chance: float, share: int) -> tuple[bool, int]:
        """Whether a draft drawn by the weights q is kept as one drawn by p, and else what takes its place.

        Leviathan et al. 2023 (arXiv:2211.17192): kept with min(1, p / q); else drawn from max(0, p - q).
        """
        mine = p.astype(mx.float32) / p.sum().astype(mx.float32)
        theirs = q.astype(mx.float32) / q.sum().astype(mx.float32)
        kept = chance * theirs[draft] < mine[draft]
        left = mx.maximum(mine - theirs, 0)
        most = left.max()
        rest = (left / mx.where(most > 0, most, 1.0) * float(1 << WEIGHT_BITS)).astype(mx.int64)
        other = self.drawn(mx.where(most > 0, rest, p), share)
        found = mx.stack((kept.astype(mx.int32), other.astype(mx.int32))).tolist()
        return bool(found[0]), int(found[1])

    def logprobs(self, logits: mx.array, ids: mx.array) -> mx.array:
        """Log-probability float32 [T] of ids [T] under logits [T, V]."""
        wide = logits.astype(mx.float32)
        return mx.take_along_axis(wide, ids[:, None], axis=1)[:, 0] - mx.logsumexp(wide, axis=1)

    def best(self, logits: mx.array, k: int) -> tuple[mx.array, mx.array, mx.array]:
        """The k likeliest ids and their log-probabilities, best first, and log(sum(exp(logits)))."""
        wide = logits.astype(mx.float32)
        whole = mx.logsumexp(wide)
        ids = mx.argpartition(-wide, k - 1)[:k] if k < wide.shape[0] else mx.arange(k)
        ids = ids[mx.argsort(-wide[ids])]
        return ids, wide[ids] - whole, whole

    def adjusted(self, logits: mx.array, r: Rules) -> mx.array:
        """Float32 [V] under penalties, bias and the allowed set."""
        values = logits.astype(mx.float32)
        if r.seen is not None:
            punished = mx.where(values > 0, values / r.repetition, values * r.repetition)
            values = mx.where(r.seen, punished, values)
        if r.counts is not None:
            values = values - (r.counts * r.frequency + (r.counts > 0) * r.presence)
        if r.bias is not None:
            values = values.at[r.bias_ids].add(r.bias)
        if r.allowed is not None:
            bits = (r.allowed[:, None] >> mx.arange(32)) & 1
            values = mx.where(bits.flatten()[: values.shape[0]] == 0, -math.inf, values)
        return values

    def _weighed(self, values: mx.array, top: mx.array, r: Rules) -> mx.array:
        # A difference of infinities is NaN: `top` refuses the token then, but the cast must be defined.
        shares = mx.nan_to_num(mx.exp((values - top) / max(r.temperature, COLDEST)))
        return (shares * float(1 << WEIGHT_BITS)).astype(mx.int64)


def share_of(total: mx.array, share: int) -> mx.array:
    """floor(total * share / 2^31) without overflow, for total < 2^62 and share <= 2^31."""
    low = total & ((1 << DRAW_BITS) - 1)
    return (total >> DRAW_BITS) * share + ((low * share) >> DRAW_BITS)
