"""Sampling: options, statistics, and equal draws in host memory and on both backends."""

from __future__ import annotations

import numpy as np
import pytest

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.sampling import Sampling, sample_token
from izwi_lab.families.shared.steps import Session

LOGITS = np.array([2.0, 1.0, 0.5, -1.0, 1.9, -3.0], np.float32)


def rng(seed=0):
    return np.random.Generator(np.random.Philox(seed))


def draw(sampling, count=4000, history=(), prompt=(), seed=0, allowed=None):
    backend, source = TorchBackend(), rng(seed)
    logits = backend.array(LOGITS)
    one = lambda: sample_token(logits, sampling, source, list(history), backend, prompt=prompt, allowed=allowed)  # noqa: E731
    return [one() for _ in range(count)]


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.6])
def test_frequencies_follow_the_softmax(temperature):
    p = np.exp(LOGITS.astype(float) / temperature)
    p /= p.sum()
    counts = np.bincount(draw(Sampling(temperature=temperature)), minlength=6)
    chi2 = ((counts - 4000 * p) ** 2 / (4000 * p)).sum()
    assert chi2 < 20.5  # 99.9 % point of 5 degrees of freedom


def test_filters_keep_exactly_what_they_should():
    assert set(draw(Sampling(temperature=1.0, top_k=2), 500)) == {0, 4}
    assert set(draw(Sampling(temperature=1.0, top_p=0.5), 500)) == {0, 4}
    assert set(draw(Sampling(temperature=1.0, min_p=0.3), 500)) == {0, 1, 4}
    assert set(draw(Sampling(temperature=5.0, top_k=1), 50)) == {0}


def test_greedy_applies_penalties_and_bias():
    assert draw(Sampling(), 1) == [0]
    assert draw(Sampling(repetition_penalty=2.0), 1, history=[0]) == [4]
    assert draw(Sampling(repetition_penalty=2.0), 1, prompt=[0]) == [4]
    assert draw(Sampling(presence_penalty=1.0), 1, prompt=[0]) == [0]
    assert draw(Sampling(frequency_penalty=0.06), 1, history=[0, 0]) == [4]
    assert draw(Sampling(logit_bias={3: 9.0}), 1) == [3]
    only = np.array([0b101000], np.int32)
    assert draw(Sampling(repetition_penalty=2.0), 1, history=[3], allowed=only) == [3]
    assert draw(Sampling(repetition_penalty=4.0), 1, history=[3], allowed=only) == [5]  # -1 becomes -4: below -3


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, top_p=0.9, repetition_penalty=1.1)])
def test_equal_seeds_draw_equal_tokens_on_both_backends(sampling):
    runs = []
    for backend in (TorchBackend(), MLXBackend("cpu")):
        source, history = rng(7), []
        logits = backend.array(np.random.default_rng(2).standard_normal(1000).astype(np.float32) * 2)
        for _ in range(50):
            history.append(sample_token(logits, sampling, source, history, backend))
        runs.append(history)
    assert runs[0] == runs[1]


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"min_p": 2},
     {"repetition_penalty": 0}, {"logit_bias": {1: float("nan")}}],
)  # fmt: skip
def test_bad_options_are_named(options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        Sampling(**options)


def test_bias_outside_the_vocabulary_is_an_error():
    with pytest.raises(InvalidInputError, match="0 to 5"):
        draw(Sampling(logit_bias={6: 1.0}), 1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=1.0), Sampling(repetition_penalty=1.1)])
def test_nan_logits_are_an_error_not_a_token(sampling):
    for backend in (TorchBackend(), MLXBackend("cpu")):
        with pytest.raises(InvalidInputError, match="NaN"):
            sample_token(backend.array(np.full(6, np.nan, np.float32)), sampling, rng(), [1], backend)


def test_banning_every_token_is_an_error():
    with pytest.raises(InvalidInputError, match="No token"):
        draw(Sampling(temperature=1.0, logit_bias=dict.fromkeys(range(6), -np.inf)), 1)


def test_a_tiny_temperature_takes_the_best():
    assert set(draw(Sampling(temperature=1e-320), 20)) == {0}


@pytest.mark.parametrize("options", [{"top_k": 2.5}, {"logit_bias": {1: float("inf")}}])
def test_options_that_would_fail_later_are_refused_at_once(options):
    with pytest.raises(InvalidInputError, match=next(iter(options))):
        Sampling(temperature=1.0, **options)


@pytest.mark.parametrize("seed", [-1, 2.5, "7"])
def test_seeds_are_whole_numbers_from_zero(seed):
    with pytest.raises(InvalidInputError, match="seed"):
        Session(TorchBackend(), {}, seed=seed)
