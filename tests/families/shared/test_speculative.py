"""Speculative decoding: the very distribution of plain decoding, on tables, random nets and rings."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sampling_oracle import adjusted, distribution
from tiny_text import HYBRID, config, table_model, text_model

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.speculative import DraftModel, PromptLookup, drawn
from izwi_lab.families.shared.steps import Prompt

HOT = Sampling(temperature=0.9, top_p=0.95, repetition_penalty=1.1, frequency_penalty=0.2)
SETTINGS = {
    "temperature": Sampling(temperature=1.3),
    "filters": Sampling(temperature=0.9, top_k=4, top_p=0.9, min_p=0.05),
    "penalties": Sampling(temperature=1.0, repetition_penalty=1.5, frequency_penalty=0.4, presence_penalty=-0.6,
                          logit_bias={1: 0.7, 4: -np.inf}),
}  # fmt: skip
PROMPT = [0, 3, 2, 0, 3, 1, 2, 0]
RUNS = 1500


def prompt(ids):
    return Prompt(np.array(ids, np.int32))


def plain(model, ids, sampling, max_tokens, seed=0):
    session = model.session(seed=seed, max_tokens=max_tokens)
    step = model.prefill(session, prompt(ids))
    while not session.done:
        step = model.decode(session, model.sample(session, step, sampling))
    return session


def speculated(model, ids, sampling, max_tokens, drafts, seed=0):
    session = model.session(seed=seed, max_tokens=max_tokens)
    step = model.prefill(session, prompt(ids))
    said = [token for token, _ in drawn(model, session, step, sampling, drafts)]
    assert said == session.tokens
    return session


def joint(rows, sampling, length):
    """The exact probability of every continuation of PROMPT."""
    found = {(): 1.0}
    for _ in range(length):
        longer = {}
        for said, p in found.items():
            values = adjusted(rows[[*PROMPT, *said][-1]], sampling, list(said), PROMPT)
            ids, chances = distribution(values, sampling)
            longer.update({(*said, int(i)): p * c for i, c in zip(ids, chances, strict=True)})
        found = longer
    return found


def chi_squared(counts, expected):
    """The statistic and where its 99.9 % point about is (Wilson and Hilferty); rare outcomes are put together."""
    common = {k: p for k, p in expected.items() if p * RUNS >= 5}
    pairs = [(counts.get(k, 0), p * RUNS) for k, p in common.items()]
    pairs.append((RUNS - sum(o for o, _ in pairs), RUNS - sum(e for _, e in pairs)))
    pairs = [(o, e) for o, e in pairs if e > 1]
    free = len(pairs) - 1
    return sum((o - e) ** 2 / e for o, e in pairs), free * (1 - 2 / (9 * free) + 3.09 * (2 / (9 * free)) ** 0.5) ** 3


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_three_tokens_have_the_exact_joint_distribution(name, kind):
    rng = np.random.default_rng(4)
    rows, others = rng.standard_normal((2, 5, 5)) * 1.2
    model, sampling = table_model(rows), SETTINGS[name]
    drafts = PromptLookup(2, 3) if kind == "lookup" else DraftModel(table_model(others), 2)
    start = model.session()
    step, counts = model.prefill(start, prompt(PROMPT)), {}
    for seed in range(RUNS):
        session = start.fork()
        session.rng, session.max_tokens = np.random.Generator(np.random.Philox(seed)), 3
        said = tuple(token for token, _ in drawn(model, session, step, sampling, drafts))
        counts[said] = counts.get(said, 0) + 1
    statistic, limit = chi_squared(counts, joint(rows, sampling, 3))
    assert statistic < limit
    wrong, limit = chi_squared(counts, joint(others, sampling, 3))  # the test tells p from q
    assert wrong > 5 * limit


@pytest.mark.parametrize("sampling", [None, HOT], ids=["greedy", "hot"])
@pytest.mark.parametrize("backend", ["torch", "mlx"])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_rings_and_convolutions_are_rewound(backend, sampling, kv_dtype):
    model = text_model(config(HYBRID), TorchBackend() if backend == "torch" else MLXBackend("cpu"))
    ids = [*range(40), *range(40, 10, -1)] * 4  # 280: past both rings
    session = model.session(seed=3, max_tokens=40, kv_dtype=kv_dtype)
    step = model.prefill(session, prompt(ids))
    other = session.fork()
    here = step
    while not other.done:
        here = model.decode(other, model.sample(other, here, sampling))
    for drafts in (PromptLookup(2, 8), *([DraftModel(model, 5)] if sampling is None else [])):
        one = session.fork()
        steps = [s for _, s in drawn(model, one, step, sampling, drafts)]
        assert one.tokens == other.tokens
        np.testing.assert_allclose(steps[-1].numpy(), here.numpy(), atol=2e-3 * np.abs(here.numpy()).max())


def test_greedy_equals_plain_greedy_with_a_draft_that_guesses_wrong():
    model, draft = text_model(config()), text_model(config(HYBRID), seed=1)
    ids = list(range(30))
    expected = plain(model, ids, None, 30).tokens
    assert speculated(model, ids, None, 30, DraftModel(draft, 4)).tokens == expected
    assert speculated(model, ids, None, 30, DraftModel(model, 4)).tokens == expected


def test_repetition_costs_few_passes():
    model = table_model(np.roll(np.eye(7), 1, axis=1) * 20)  # counts round and round
    session = speculated(model, [0, 1, 2, 3, 4, 5, 6, 0], None, 64, PromptLookup(3, 8))
    assert session.tokens == [(i + 1) % 7 for i in range(64)]
    assert model.net.passes <= 1 + 12


def test_hopeless_guesses_shrink():
    rng = np.random.default_rng(0)
    model = table_model(rng.standard_normal((50, 50)))
    seen = []
    every = model.net.every
    model.net.every = lambda ids, state: seen.append(ids.shape[1]) or every(ids, state)
    speculated(model, rng.integers(0, 50, 400).tolist(), Sampling(temperature=1.0), 60, PromptLookup(3, 8))
    assert max(seen[1:9]) > 1 and np.mean(seen[20:]) < 1.3


@pytest.mark.parametrize("kind", ["lookup", "draft"])
def test_the_end_token_max_tokens_and_the_context_end_it(kind):
    rows = np.roll(np.eye(7), 1, axis=1) * 20
    model = table_model(rows, context=20)
    drafts = PromptLookup() if kind == "lookup" else DraftModel(table_model(rows, context=15), 4)
    ids = [0, 1, 2, 3, 4, 5, 6, 0]
    for limit in (1, 2, 5, None):
        expected, found = plain(model, ids, None, limit), speculated(model, ids, None, limit, drafts)
        assert (found.tokens, found.finish_reason) == (expected.tokens, expected.finish_reason) and found.done
    assert len(found.tokens) == 13 and found.finish_reason == "length"  # one more than the context holds
    model._stops = frozenset([4])
    found = speculated(model, ids, None, 10, drafts)
    assert (found.tokens, found.finish_reason) == ([1, 2, 3, 4], "stop")


def test_who_takes_the_tokens_may_stop_anywhere_and_go_on():
    model = text_model(config(HYBRID))
    ids = list(range(20)) * 3
    whole = plain(model, ids, HOT, 16, seed=5)
    for stop in (1, 2, 3, 6, 9):
        session = model.session(seed=5, max_tokens=16)
        step = model.prefill(session, prompt(ids))
        taken = list(itertools.islice(drawn(model, session, step, HOT, PromptLookup()), stop))
        assert [t for t, _ in taken] == whole.tokens[:stop] == session.tokens
        step = model.advance(session)
        while not session.done:
            step = model.decode(session, model.sample(session, step, HOT))
        assert session.tokens == whole.tokens  # also the random numbers are those of plain decoding


def test_a_caller_may_end_the_answer():
    model = table_model(np.eye(5))
    session = model.session()
    step = model.prefill(session, prompt(PROMPT))
    for index, _ in enumerate(drawn(model, session, step, None, PromptLookup())):
        if index == 3:
            session.done, session.finish_reason = True, "stop"
    assert len(session.tokens) == 4


def test_stepping_the_session_in_between_is_refused():
    model = table_model(np.eye(5))
    session = model.session()
    run = drawn(model, session, model.prefill(session, prompt(PROMPT)), None, PromptLookup())
    next(run)
    model.advance(session)
    with pytest.raises(InvalidInputError, match="Fork"):
        next(run)


def test_options_and_foreign_drafts_are_refused():
    for bad in ({"ngram": 0}, {"tokens": 0}, {"tokens": 33}, {"tokens": 2.5}):
        with pytest.raises(InvalidInputError, match=f"{next(iter(bad))} must be"):
            PromptLookup(**bad)
    model = table_model(np.eye(5))
    session = model.session()
    step = model.prefill(session, prompt(PROMPT))
    for draft, match in ((table_model(np.eye(6)), "6 tokens"), (text_model(config(vocab=5), MLXBackend("cpu")), "mlx")):
        with pytest.raises(InvalidInputError, match=match):
            next(drawn(model, session, step, None, DraftModel(draft)))
