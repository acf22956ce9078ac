"""How many tokens of prompts fit a step."""

from __future__ import annotations

import pytest

from izwi_lab.engine.pace import LEAST, Pace


def paced(*, token_s, answer_s=0.005, answering=False, most=512, noise=(1.0,), steps=40):
    """A pace of 25 ms after steps on a machine where they cost so much."""
    pace = Pace(0.025, most=most)
    for step in range(steps):
        n = pace.tokens(answering=answering)
        pace.learn(prefill=0, answering=True, seconds=answer_s * noise[step % len(noise)])
        spent = answer_s + n * token_s  # the weights are read for prompts too
        pace.learn(prefill=n, answering=answering, seconds=spent * noise[(step + 1) % len(noise)])
    return pace


@pytest.mark.parametrize("token_s", [0.0002, 0.0008])
@pytest.mark.parametrize("answering", [False, True])
def test_a_step_takes_as_long_as_it_should(token_s, answering):
    pace = paced(token_s=token_s, answering=answering)
    spent = pace.tokens(answering=answering) * token_s + 0.005
    assert spent == pytest.approx(0.025, rel=0.05)


def test_steps_that_others_disturbed_do_not_count():
    pace = paced(token_s=0.0005, noise=(1.0, 1.0, 1.0, 6.0))
    assert pace.tokens(answering=False) == pytest.approx(40, abs=2)


def test_a_device_to_which_tokens_cost_nothing_takes_as_many_as_it_may():
    pace = Pace(0.025, most=512)
    for _ in range(6):
        pace.learn(prefill=pace.tokens(answering=False), answering=False, seconds=0.008)
    assert pace.tokens(answering=False) == 512


def test_a_context_that_grows_makes_pieces_smaller():
    pace = paced(token_s=0.0005)
    for _ in range(8):
        pace.learn(prefill=50, answering=False, seconds=0.055)
    assert pace.tokens(answering=False) == 20


def test_the_rest_of_a_prompt_says_little():
    pace = paced(token_s=0.0005)
    for _ in range(20):
        pace.learn(prefill=2, answering=False, seconds=0.05)
    assert pace.tokens(answering=False) == 40


def test_dear_answers_that_ended_are_forgotten():
    pace = Pace(0.025, most=512)
    for _ in range(10):
        pace.learn(prefill=0, answering=True, seconds=0.2)  # over a long context
    worst_s = 0.0
    for step in range(40):
        n = pace.tokens(answering=True)
        spent = 0.005 + 0.0005 * n
        pace.learn(prefill=n, answering=True, seconds=spent)
        worst_s = max(worst_s, spent if step else 0.0)
    assert worst_s < 0.04


@pytest.mark.parametrize("bare_s", [0.02, 0.03, 0.04])
def test_what_a_step_costs_anyway_does_not_make_pieces_small(bare_s):
    """A large model whose tokens are cheap, and whose answers came before."""
    pace = paced(token_s=0.0001, answer_s=bare_s)
    assert pace.tokens(answering=False) == pytest.approx(125, abs=10)


def test_prompts_go_on_where_answers_take_all_of_a_step():
    assert paced(token_s=0.0002, answer_s=0.2, answering=True).tokens(answering=True) == pytest.approx(62, abs=1)
    assert paced(token_s=1.0).tokens(answering=False) == LEAST
