"""Sampling written down plainly in float64 numpy: what the samplers of every backend are compared with."""

from __future__ import annotations

import numpy as np


def adjusted(logits, sampling, history=(), prompt=(), allowed=None):
    """Logits [V] with penalties, bias and the allowed set applied, float64."""
    values = np.asarray(logits, np.float64).copy()
    seen = np.unique(np.asarray([*prompt, *history], np.int64))
    at = values[seen]
    values[seen] = np.where(at > 0, at / sampling.repetition_penalty, at * sampling.repetition_penalty)
    seen, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
    values[seen] -= counts * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        values[token] += bias
    if allowed is not None:
        banned = [t for t in range(len(values)) if not (int(allowed[t // 32]) >> (t % 32)) & 1]
        values[banned] = -np.inf
    return values


def distribution(values, sampling):
    """What may be drawn: ids in rising order and their probabilities, which sum to 1. Of equals the lower id first."""
    if sampling.greedy:
        return np.array([values.argmax()]), np.ones(1)
    scaled = (values - values.max()) / sampling.temperature
    order = np.argsort(-scaled, kind="stable")[: sampling.top_k or None]
    p = np.exp(scaled[order])
    p /= p.sum()
    if sampling.top_p < 1:
        count = int(np.searchsorted(np.cumsum(p), sampling.top_p * (1 - 1e-9))) + 1
        order, p = order[:count], p[:count]
    kept = p >= sampling.min_p * p[0]
    order, p = order[kept], p[kept]
    rising = np.argsort(order)
    return order[rising], p[rising] / p.sum()


def drawn(values, sampling, chance):
    """The id at a random number in 0..1."""
    ids, p = distribution(values, sampling)
    return int(ids[min(int(np.searchsorted(np.cumsum(p), chance * p.sum(), side="right")), len(ids) - 1)])
