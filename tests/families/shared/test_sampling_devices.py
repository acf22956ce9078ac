"""The compiled sampler, the torch net and the MLX net against plain float64 numpy: the same tokens, seed by seed."""

from __future__ import annotations

import numpy as np
import pytest
from sampling_oracle import adjusted, distribution, drawn

from izwi_lab.backends import native
from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared import chooser
from izwi_lab.families.shared.sampling import Sampling, rules_of, sample_token, share
from izwi_lab.families.shared.steps import Session, Step
from izwi_lab.families.shared.tally import Tally

PLACES = ["compiled", "torch", "mlx", "mlx compiled"]


@pytest.fixture(params=PLACES)
def place(request, monkeypatch):
    """A backend, and where it chooses."""
    assert native.library("sampler", wait=True) is not None, native.status()
    compiled = "compiled" in request.param
    if not compiled:
        monkeypatch.setattr(chooser, "host_sampler", lambda: None)
    else:
        assert chooser.host_sampler() is not None
    return MLXBackend("cpu") if "mlx" in request.param else TorchBackend()


def cases(count):
    """Logits with ties and -inf, and settings of every kind, also over the edges."""
    rng = np.random.default_rng(5)
    for number in range(count):
        size = int(rng.choice([7, 33, 1000, 5003]))
        logits = (rng.standard_normal(size) * rng.choice([0.5, 2, 6])).astype(np.float32)
        if number % 3 == 0:
            logits = np.round(logits * 4) / 4
        if number % 5 == 0:
            logits[rng.random(size) < 0.2] = -np.inf
            logits[0] = 1.0
        sampling = Sampling(
            temperature=float(rng.choice([0, 0.3, 1, 2.5])), top_k=int(rng.choice([0, 0, 1, 3, 50, size, 9 * size])),
            top_p=float(rng.choice([1, 1, 1e-6, 0.5, 0.95, 0.999])), min_p=float(rng.choice([0, 0, 0.02, 0.3, 1])),
            repetition_penalty=float(rng.choice([1, 1.3, 0.8])), frequency_penalty=float(rng.choice([0, 0.2, -0.1])),
            presence_penalty=float(rng.choice([0, 0.5])),
            logit_bias={} if number % 2 else {int(rng.integers(1, size)): -np.inf, 0: 1.5},
        )  # fmt: skip
        allowed = rng.integers(-(2**31), 2**31, (size + 31) // 32).astype(np.int32) if number % 4 == 0 else None
        if allowed is not None:
            allowed[0] |= 1
        history, prompt = rng.integers(0, size, rng.integers(0, 30)).tolist(), rng.integers(0, size, 9).tolist()
        yield number, logits, sampling, history, prompt, allowed


def test_every_place_draws_what_plain_numpy_draws(place):
    for number, logits, sampling, history, prompt, allowed in cases(80):
        values, there = adjusted(logits, sampling, history, prompt, allowed), place.array(logits)
        rules = rules_of(sampling, there, history, place, prompt=prompt, allowed=allowed)
        for seed in range(4):
            chance = share(np.random.Generator(np.random.Philox(seed + 10 * number)))
            token, top = chooser.Chooser(place).token(there, rules, chance)
            assert token == drawn(values, sampling, (chance + 0.5) / 2**31), (number, seed, sampling)
            assert top == pytest.approx(values.max(), rel=1e-5)
        weights = place.numpy(chooser.Chooser(place).weights(there, rules)[0])
        ids, p = distribution(values, sampling)
        expected = np.zeros(len(logits))
        expected[ids] = p
        np.testing.assert_allclose(weights / weights.sum(), expected, atol=2e-6)


def test_a_large_flat_vocabulary(place):
    logits = (np.random.default_rng(1).standard_normal(70_001) * 3).astype(np.float32)
    for sampling in (Sampling(temperature=1), Sampling(temperature=1, top_p=0.95), Sampling(temperature=0.7, top_k=40)):
        source, values = np.random.Generator(np.random.Philox(3)), adjusted(logits, sampling)
        chances = np.random.Generator(np.random.Philox(3))
        for _ in range(3):
            expected = drawn(values, sampling, chances.random())
            assert sample_token(place.array(logits), sampling, source, [], place) == expected


def test_a_draft_is_kept_and_replaced_as_it_should_be(place):
    p, q = np.array([5, 3, 0, 2]) * 10**11, np.array([1, 1, 1, 1]) * 10**11
    one = chooser.Chooser(place)
    judge = lambda draft, chance, at=0: one.judged(place.array(p), place.array(q), draft, chance, at)  # noqa: E731
    assert judge(0, 0.999)[0] and judge(1, 0.999)[0]  # likelier than it was drawn
    assert judge(3, 0.79)[0] and not judge(3, 0.81)[0]  # 0.2 / 0.25
    assert not judge(2, 0.0)[0]
    assert [judge(2, 0.5, int(at * 2**31))[1] for at in (0, 0.8, 0.85)] == [0, 0, 1]  # 0.25 against 0.05 is left
    assert one.judged(place.array(p), place.array(p), 3, 0.9999, 0)[0]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_named(place, bad):
    logits = np.array([1, bad, 2, 0], np.float32)
    for sampling in (Sampling(), Sampling(temperature=1), Sampling(temperature=1, top_p=0.9, top_k=3)):
        with pytest.raises(InvalidInputError, match=r"NaN|infinity"):
            sample_token(place.array(logits), sampling, np.random.default_rng(0), [], place)


def test_a_mask_of_another_size_is_refused(place):
    for mask in (np.zeros(2, np.int32), np.zeros(1, np.int64)):
        with pytest.raises(InvalidInputError, match=r"int32 \[1\] for 4"):
            sample_token(
                place.array(np.zeros(4, np.float32)), Sampling(), np.random.default_rng(0), [], place, allowed=mask
            )


def test_the_likeliest_and_their_logarithms(place):
    logits = np.round(np.random.default_rng(2).standard_normal(500) * 3, 1).astype(np.float32)
    step = Step(place.array(logits), place.array(np.zeros(3, np.float32)), 7, 0.01, place, text=lambda t: f"<{t}>")
    expected = logits - np.log(np.exp(logits.astype(np.float64)).sum())
    assert [p for _, p in step.logprobs(9)] == pytest.approx(np.sort(expected)[::-1][:9], abs=1e-5)
    assert all(p == pytest.approx(expected[t], abs=1e-5) for t, p in step.logprobs(9))
    assert step.logprob(17) == pytest.approx(expected[17], abs=1e-5)
    assert len(step.top(9_999)) == 500 and sum(p for _, p in step.top(500)) == pytest.approx(1, abs=1e-5)
    best = int(logits.argmax())
    assert step.candidates(1)[0][:2] == (best, f"<{best}>")
    assert f"'<{best}>'" in repr(step) and "7:" in repr(step)
    assert f"&lt;{best}&gt;" in step._repr_html_() and f"<{best}>" not in step._repr_html_()
    with pytest.raises(InvalidInputError, match="500"):
        step.logprob(500)


class _Elsewhere(TorchBackend):
    """Counts where tokens are chosen, which is not the host."""

    def __init__(self):
        super().__init__()
        self.device = "meta"

    def array(self, values, *, dtype=None):
        self.device = "cpu"
        out = super().array(values, dtype=dtype)
        self.device = "meta"
        return out


@pytest.mark.parametrize("backend", [TorchBackend(), _Elsewhere()], ids=["host", "device"])
def test_counts_follow_a_session(backend):
    session = Session(backend, {}, seed=0)
    session.prompt_ids, session.tokens = [1, 2, 2], [3]
    tally = Tally(6, backend)

    def check():
        tally.follow(session.prompt_ids, session.tokens)
        assert [int(c) for c in tally.counts] == np.bincount(session.tokens, minlength=6).tolist()
        assert {i for i in range(6) if tally.seen[i]} == {*session.prompt_ids, *session.tokens}

    check()
    held = tally.counts
    session.tokens += [4, 4]
    check()
    assert tally.counts is held  # went on counting
    session.tokens.append(0)
    check()
    session.tokens = session.tokens[:2]  # trimmed
    check()
    session.tokens[1] = 5  # written over, and grown
    check()
    session.prompt_ids, session.tokens = [*session.prompt_ids, *session.tokens, 5], []  # a second prompt
    check()
