"""The code predictor's choices for several sessions at once, each by its own sampling and random numbers.

Bad logits of one session are its own: its codes are 0 from there on, and `errors` says what was wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from izwi_lab.backends.base import Backend, Native, Net
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.shared.sampling import Sampling, check_top, plain_rules, sample_token, share

Drawer = tuple[Sampling, np.random.Generator]


class Choices(Protocol):
    """Who chooses for N sessions; the random numbers of each are drawn in the order in which it draws them alone."""

    def choose(self, logits: Native, index: int) -> Sequence[int] | Native:
        """The codes of codebook `index`, from logits [N, V]."""

    def errors(self) -> list[Exception | None]:
        """What was wrong with the logits of each session. To be asked when all codes are chosen."""


def choices(net: Net, backend: Backend, config: TTSConfig, drawers: Sequence[Drawer]) -> Choices:
    """Where codes are chosen best: on a device that would have to be waited for, there."""
    return _OnDevice(net, backend, config, drawers) if net.whole else _OnHost(backend, drawers)


class _OnHost:
    def __init__(self, backend: Backend, drawers: Sequence[Drawer]) -> None:
        self._backend, self._drawers = backend, drawers
        self._errors: list[Exception | None] = [None] * len(drawers)

    def choose(self, logits: Native, index: int) -> list[int]:
        self._backend.evaluate(logits)
        return [self._chosen(number, logits[number]) for number in range(len(self._drawers))]

    def errors(self) -> list[Exception | None]:
        return self._errors

    def _chosen(self, number: int, logits: Native) -> int:
        sampling, rng = self._drawers[number]
        if self._errors[number] is None:
            try:
                return sample_token(logits, sampling, rng, (), self._backend)
            except InvalidInputError as error:
                self._errors[number] = error
        return 0


class _OnDevice:
    def __init__(self, net: Net, backend: Backend, config: TTSConfig, drawers: Sequence[Drawer]) -> None:
        self._net, self._backend, self._tops = net, backend, list[Native]()
        self._rules = [plain_rules(sampling, config.predictor_vocab) for sampling, _ in drawers]
        rest = range(config.codebooks - 1)
        shares = [[0 if sampling.greedy else share(rng) for _ in rest] for sampling, rng in drawers]
        self._shares = backend.array(np.asarray(shares, np.int64))

    def choose(self, logits: Native, index: int) -> Native:
        codes, tops = self._net.chosen(logits, self._rules, self._shares[:, index - 1])
        self._tops.append(tops)
        return codes

    def errors(self) -> list[Exception | None]:
        tops = np.stack([self._backend.numpy(tops) for tops in self._tops], axis=1)
        return [_wrong(row.tolist()) for row in tops]


def _wrong(tops: Sequence[float]) -> Exception | None:
    """What is wrong with logits of which these are the largest, if anything."""
    try:
        for top in tops:
            check_top(top)
    except InvalidInputError as error:
        return error
    return None
