"""Outputs under load equal the outputs alone: mixed requests, late arrivals, cancels, too few blocks."""

from __future__ import annotations

import numpy as np
import pytest
from lanes import ask, lane, mixed, pieces, run, talker, tokens

from izwi_lab.backends.mlx_backend import MLXBackend


def loaded(model, made, rng, *, count, cancels=0.0):
    """Requests that arrive while others run; gives (job, reply alone, how far it may have come)."""
    waiting = [mixed(model, rng) for _ in range(count)]
    alone = [model.generate(prompt, **as_options(options)) for prompt, options in waiting]
    jobs, stops = [], {}
    for number, (prompt, options) in enumerate(waiting):
        job = ask(model, prompt, options)
        jobs.append(job)
        made.add(job)
        if rng.random() < cancels:
            stops[job] = number + int(rng.integers(1, 12))
        for _ in range(int(rng.integers(0, 4))):
            made.stop_cancelled()
            made.settle()
            if made.ready:
                made.step()
        for stopped in [j for j, at in stops.items() if at <= number]:
            stopped.token.cancel()
    run(made)
    return jobs, alone, stops


def as_options(options):
    return {name: getattr(options, name) for name in options.__slots__}


@pytest.mark.parametrize("kind", ["paged", "slots"])
@pytest.mark.parametrize("seed", [0, 1])
def test_sixty_four_mixed_requests_say_what_they_say_alone(kind, seed):
    model = talker(kind)
    made = lane(model, sequences=8, blocks=24)
    jobs, alone, stops = loaded(model, made, np.random.default_rng(seed), count=64, cancels=0.2)
    whole = 0
    for job, expected in zip(jobs, alone, strict=True):
        deltas = pieces(job)
        said = tokens(deltas)
        if job in stops and deltas[-1].finish_reason == "cancelled":
            assert said == expected.tokens[: len(said)]
            continue
        whole += 1
        assert said == expected.tokens
        assert "".join(d.text for d in deltas) == expected.text
        assert deltas[-1].finish_reason == expected.finish_reason
        assert deltas[-1].usage.completion_tokens == expected.usage.completion_tokens
        likely = [d.logprob.logprob for d in deltas if d.logprob is not None]
        assert likely == pytest.approx([each.logprob for each in expected.logprobs], abs=1e-3)
    assert whole >= 40
    assert len(made) == len(made.scheduler) == 0
    made.scheduler.blocks.check([])
    assert made.scheduler.blocks.stats().used == 0
    if kind == "paged":
        assert made.metrics.preemptions.value("tiny") > 0, "there was always room: the test shows nothing"
        assert made.metrics.prefix_hits.value("tiny") > 0


def test_mlx_under_load_says_what_it_says_alone():
    model = talker("paged", MLXBackend("cpu"))
    made = lane(model, sequences=4, blocks=24)
    jobs, alone, _ = loaded(model, made, np.random.default_rng(5), count=10)
    assert [tokens(pieces(job)) for job in jobs] == [reply.tokens for reply in alone]
    assert made.scheduler.blocks.stats().used == 0
