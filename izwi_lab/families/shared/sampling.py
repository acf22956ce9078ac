"""Choosing the next token, where the logits are. Random numbers are drawn on the host: equal seeds, equal tokens.

Every backend works in float32 and in whole-number weights (nets/sampler/rules.py). Two of them may draw different
tokens from the same logits only where a random number falls within one rounding of an exponential (about 1e-7) of the
border between two tokens, or where two logits differ by less than that at the edge of top-k, top-p or min-p.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chooser import Chooser
from izwi_lab.families.shared.nets.sampler.rules import DRAW_BITS, WEIGHT_BITS, Rules
from izwi_lab.families.shared.tally import Tally

_NUMBERS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
)
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
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
                raise InvalidInputError(f"Sampling: {name} must be a number, got {value!r:.80}.")
        _check_bias(self.logit_bias)
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


def _check_bias(bias: object) -> None:
    if not isinstance(bias, Mapping):
        raise InvalidInputError(f"Sampling: logit_bias must be a mapping of token ids to numbers, got {bias!r:.80}.")
    for token, value in bias.items():
        if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
            raise InvalidInputError(
                f"Sampling: logit_bias names a token by {token!r:.80}, expected its id.",
                hint="model.tokenize(text, template=False).ids are the ids of a text.",
            )
        if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
            raise InvalidInputError(f"Sampling: logit_bias of token {token} must be a number, got {value!r:.80}.")


GREEDY = Sampling()
_BEST = Rules()


def sample_token(
    logits: Native,
    sampling: Sampling,
    rng: np.random.Generator,
    history: Sequence[int],
    backend: Backend,
    *,
    prompt: Sequence[int] = (),
    allowed: np.ndarray | None = None,
    tally: Tally | None = None,
) -> int:
    """The next token from native logits [V].

    history: tokens generated so far; prompt: the ids before them, which only the repetition penalty looks at.
    allowed: what may be chosen, int32 [ceil(V / 32)], bit t % 32 of word t // 32; None for all. tally: counts of this
    history and prompt that grow with them, so that they need not be counted for every token.

    Raises:
        InvalidInputError: the logits hold NaN or infinity, or every token is banned; a bias names no token.
    """
    rules = rules_of(sampling, logits, history, backend, prompt=prompt, allowed=allowed, tally=tally)
    token, top = Chooser(backend).token(logits, rules, 0 if sampling.greedy else share(rng))
    check_top(top)
    return token


def share(rng: np.random.Generator) -> int:
    """A random number as a share of 2^31."""
    return int(rng.random() * (1 << DRAW_BITS))


def rules_of(
    sampling: Sampling,
    logits: Native,
    history: Sequence[int],
    backend: Backend,
    *,
    prompt: Sequence[int] = (),
    allowed: np.ndarray | None = None,
    tally: Tally | None = None,
) -> Rules:
    """What the samplers are told; see `sample_token`."""
    if sampling.greedy and sampling.plain and allowed is None:
        return _BEST
    size = int(logits.shape[0])
    seen = counts = ids = bias = None
    repeats = sampling.repetition_penalty != 1.0
    if repeats or sampling.frequency_penalty or sampling.presence_penalty:
        tally = tally or Tally(size, backend)
        tally.follow(prompt, history)
        seen, counts = (tally.seen if repeats else None), tally.counts
    if sampling.logit_bias:
        ids = np.fromiter(sampling.logit_bias, np.int32, len(sampling.logit_bias))
        bias = np.fromiter(sampling.logit_bias.values(), np.float32, len(sampling.logit_bias))
        if wrong := [int(i) for i in ids if not 0 <= i < size]:
            raise InvalidInputError(f"logit_bias names token {wrong[0]}; ids go from 0 to {size - 1}.")
    if allowed is not None and (allowed.dtype != np.int32 or allowed.shape != (-(-size // 32),)):
        raise InvalidInputError(
            f"allowed is {allowed.dtype} {list(allowed.shape)}, expected int32 [{-(-size // 32)}] for {size} tokens."
        )
    return replace(
        plain_rules(sampling, size),
        seen=seen,
        counts=counts,
        bias_ids=ids,
        bias=bias,
        allowed=None if allowed is None else np.ascontiguousarray(allowed),
        repetition=sampling.repetition_penalty,
        frequency=sampling.frequency_penalty,
        presence=sampling.presence_penalty,
    )


def plain_rules(sampling: Sampling, size: int) -> Rules:
    """What the samplers are told where `size` logits are used as they come."""
    return Rules(
        temperature=sampling.temperature,
        top_k=min(int(sampling.top_k), size),
        top_p=round(sampling.top_p * (1 << DRAW_BITS)),
        min_weight=math.ceil(sampling.min_p * (1 << WEIGHT_BITS)),
    )


def check_top(top: float) -> None:
    """Raise unless `top`, the largest logit under the rules, is a finite number."""
    if math.isnan(top):
        raise InvalidInputError("The logits hold NaN.", hint="Compute in a wider dtype, or check the weights.")
    if top == math.inf:
        raise InvalidInputError("The logits hold infinity.", hint="Compute in a wider dtype, or check the weights.")
    if top == -math.inf:
        raise InvalidInputError("No token may be chosen: every logit is -inf.", hint="Ban fewer tokens.")
