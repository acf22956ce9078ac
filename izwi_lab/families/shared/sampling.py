"""Choosing the next token: one implementation for every backend, in numpy, so equal seeds draw equal tokens.

Greedy without penalties stays on the device and waits for it once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.errors import InvalidInputError

_NO_BIAS: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to choose. temperature 0 takes the most likely token, after penalties and bias.

    top_k: 0 keeps all. top_p: the smallest set with at least this probability. min_p: drop tokens below this share of
    the best one's probability. repetition_penalty divides positive and multiplies negative logits of tokens seen in
    prompt or output (arXiv:1909.05858); frequency_penalty (per occurrence) and presence_penalty (once) are subtracted
    for tokens of the output. logit_bias: token id -> added to its logit.

    >>> Sampling(temperature=0.8, top_p=0.95).greedy
    False
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _NO_BIAS)

    def __post_init__(self) -> None:
        rules = (
            ("temperature", 0 <= self.temperature < math.inf, "a number from 0"),
            ("top_k", isinstance(self.top_k, (int, np.integer)) and self.top_k >= 0, "a whole number from 0"),
            ("top_p", 0 < self.top_p <= 1, "a number over 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number over 0"),
            ("frequency_penalty", abs(self.frequency_penalty) < math.inf, "a finite number"),
            ("presence_penalty", abs(self.presence_penalty) < math.inf, "a finite number"),
            ("logit_bias", all(b < math.inf for b in self.logit_bias.values()), "finite, or -inf to ban a token"),
        )
        for name, good, expected in rules:
            if not good:
                raise InvalidInputError(f"Sampling: {name} must be {expected}, got {getattr(self, name)!r}.")

    @property
    def greedy(self) -> bool:
        """True if no random number is drawn."""
        return self.temperature == 0 or self.top_k == 1

    @property
    def plain(self) -> bool:
        """True if logits are used as they come."""
        neutral = (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) == (1.0, 0.0, 0.0)
        return neutral and not self.logit_bias


GREEDY = Sampling()


def sample_token(
    logits: Native,
    sampling: Sampling,
    rng: np.random.Generator,
    history: Sequence[int],
    backend: Backend,
    *,
    prompt: Sequence[int] = (),
) -> int:
    """The next token from native logits [V].

    history: tokens generated so far; prompt: the ids before them, which only the repetition penalty looks at.

    Raises:
        InvalidInputError: the logits hold NaN, or every token is banned; a bias names no token.
    """
    if sampling.greedy and sampling.plain:
        best = int(logits.argmax().item())
        _check_top(float(logits[best].item()))
        return best
    values = adjusted(backend.numpy(logits), sampling, history, prompt)
    _check_top(float(values.max()))
    if sampling.greedy:
        return int(values.argmax())
    ids, p = distribution(values, sampling)
    place = int(np.searchsorted(np.cumsum(p), rng.random() * p.sum(), side="right"))
    return int(ids[min(place, len(ids) - 1)])


def adjusted(logits: np.ndarray, sampling: Sampling, history: Sequence[int], prompt: Sequence[int] = ()) -> np.ndarray:
    """Logits [V] with penalties and bias applied, float64."""
    values = logits.astype(np.float64)
    if sampling.repetition_penalty != 1.0 and (history or prompt):
        seen = np.unique(np.asarray([*prompt, *history], np.int64))
        at = values[seen]
        values[seen] = np.where(at > 0, at / sampling.repetition_penalty, at * sampling.repetition_penalty)
    if history and (sampling.frequency_penalty or sampling.presence_penalty):
        seen, counts = np.unique(np.asarray(history, np.int64), return_counts=True)
        values[seen] -= counts * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < len(values):
            raise InvalidInputError(f"logit_bias names token {token}; ids go from 0 to {len(values) - 1}.")
        values[token] += bias
    return values


def distribution(values: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """What may be drawn: ids in rising order and their probabilities, which sum to 1."""
    with np.errstate(over="ignore"):  # a tiny temperature leaves only the best
        scaled = (values - values.max()) / sampling.temperature
    ids = np.arange(len(scaled))
    if 0 < sampling.top_k < len(ids):
        ids = np.sort(np.argpartition(-scaled, sampling.top_k - 1)[: sampling.top_k])
    p = np.exp(scaled[ids])
    p /= p.sum()
    if sampling.top_p < 1:
        kept = _nucleus(p, sampling.top_p)
        ids, p = ids[kept], p[kept]
    if sampling.min_p > 0:
        kept = np.flatnonzero(p >= sampling.min_p * p.max())
        ids, p = ids[kept], p[kept]
    return ids, p / p.sum()


def _check_top(top: float) -> None:
    if math.isnan(top):
        raise InvalidInputError("The logits hold NaN.", hint="Compute in a wider dtype, or check the weights.")
    if top == -math.inf:
        raise InvalidInputError("No token may be chosen: every logit is -inf.", hint="Ban fewer tokens.")


def _nucleus(p: np.ndarray, top_p: float) -> np.ndarray:
    """Positions, rising, of the smallest set of probability top_p."""
    # Those below (1 - top_p) / V sum to less than 1 - top_p, so they are never needed: sort only the others.
    likely = np.flatnonzero(p >= (1 - top_p) / len(p))
    order = likely[np.argsort(-p[likely], kind="stable")]
    count = int(np.searchsorted(np.cumsum(p[order]), top_p * (1 - 1e-12))) + 1
    return np.sort(order[:count])
