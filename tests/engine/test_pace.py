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
        spent = (answer_s if answering else 0.0) + n * token_s
        pace.learn(prefill=n, answering=answering, seconds=spent * noise[(step + 1) % len(noise)])
    return pace


@pytest.mark.parametrize("token_s", [0.0002, 0.0008])
@pytest.mark.parametrize("answering", [False, True])
def test_a_step_takes_as_long_as_it_should(token_s, answering):
    pace = paced(token_s=token_s, answering=answering)
    spent = pace.tokens(answering=answering) * token_s + (0.005 if answering else 0.0)
    assert spent == pytest.approx(0.025, rel=0.05)


def test_steps_that_others_disturbed_do_not_count():
    pace = paced(token_s=0.0005, noise=(1.0, 1.0, 1.0, 6.0))
    assert pace.tokens(answering=False) == pytest.approx(50, abs=2)


def test_a_device_to_which_tokens_cost_nothing_takes_as_many_as_it_may():
    pace = Pace(0.025, most=512)
    for _ in range(6):
        pace.learn(prefill=pace.tokens(answering=False), answering=False, seconds=0.008)
    assert pace.tokens(answering=False) == 512


def test_a_context_that_grows_makes_pieces_smaller():
    pace = paced(token_s=0.0005)
    for _ in range(8):
        pace.learn(prefill=50, answering=False, seconds=0.05)
    assert pace.tokens(answering=False) == 25


def test_the_rest_of_a_prompt_says_little():
    pace = paced(token_s=0.0005)
    for _ in range(20):
        pace.learn(prefill=2, answering=False, seconds=0.005)
    assert pace.tokens(answering=False) == 50


def test_prompts_go_on_where_answers_take_all_of_a_step():
    assert paced(token_s=0.0002, answer_s=0.2, answering=True).tokens(answering=True) == pytest.approx(62, abs=1)
    assert paced(token_s=1.0).tokens(answering=False) == LEAST
