"""Steps of several sessions of a text model: the bits of each alone, however a prompt is cut and read again."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_text import FULL, HYBRID, config, text_model

from izwi_lab.backends import native
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.engine.pool import Pool
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.steps import Prompt, Reading
from izwi_lab.families.shared.text_session import cuts

PROMPT = np.random.default_rng(0).integers(0, 97, 130).astype(np.int32)
SAID = np.random.default_rng(1).integers(0, 97, 40).tolist()


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request):
    assert native.library("decoder", wait=True) is not None, native.status()
    made = text_model(config((FULL, FULL)), TorchBackend(dtype=request.param))
    made.net.step._most = 512  # as quantised weights have it: all through the compiled step
    return made


def entered(model, pool, number, said=()):
    session = model.session()
    model.enter(session, Prompt(PROMPT))
    pool.give(session, list(range(40 * number, 40 * number + 40)))
    session.tokens = list(said)
    return session


def test_how_a_prompt_is_cut_does_not_show(model):
    pool, found = Pool(model, 200, 8), []
    for number, sizes in enumerate(((130,), (2, 128), (50, 33, 47), (65, 65))):
        session = entered(model, pool, number)
        for size in sizes:
            (step,) = model.step_many([Reading(session, session.position, session.position + size)])
        found.append(step.numpy())
    for each in found[1:]:
        assert np.array_equal(each, found[0])
    assert np.array_equal(model.prefill(model.session(), Prompt(PROMPT)).numpy(), found[0])


def test_what_was_said_is_read_again_as_it_was_said(model):
    pool = Pool(model, 200, 8)
    session = entered(model, pool, 0)
    model.step_many([Reading(session, 0, 130)])
    for token in SAID:
        model.say(session, token)
        (step,) = model.step_many([Reading(session, session.position, session.position + 1)])
    for number, stops in enumerate(((170,), (100, 130, 150, 170), (140, 141, 170)), 1):
        again, at = entered(model, pool, number, SAID), 0
        for stop in stops:
            (found,) = model.step_many([Reading(again, at, stop, wants=stop == 170)])
            at = stop
        assert np.array_equal(found.numpy(), step.numpy())
        assert again.position == again.state["length"] == 170


def test_others_in_the_pass_change_nothing(model):
    pool = Pool(model, 200, 8)
    alone, beside = entered(model, pool, 0), entered(model, pool, 1)
    for session in (alone, beside):
        model.step_many([Reading(session, 0, 130, wants=False)])
        model.say(session, 5)
    other = entered(model, pool, 2)
    (expected,) = model.step_many([Reading(alone, 130, 131)])
    none, found = model.step_many([Reading(other, 0, 60, wants=False), Reading(beside, 130, 131)])
    assert none is None
    assert np.array_equal(found.numpy(), expected.numpy())
    assert (found.index, beside.position, other.position) == (130, 131, 60)


def test_a_failed_pass_leaves_everybody_where_they_stood(model, monkeypatch):
    pool = Pool(model, 200, 8)
    first, second = entered(model, pool, 0), entered(model, pool, 1)
    model.step_many([Reading(first, 0, 50, wants=False)])

    def failing(pieces):
        for _, state, _ in pieces:
            state["length"] += 3
        raise RuntimeError("no")

    monkeypatch.setattr(model.net, "together", failing)
    with pytest.raises(RuntimeError, match="no"):
        model.step_many([Reading(first, 50, 60), Reading(second, 0, 10)])
    for session, at in ((first, 50), (second, 0)):
        assert session.position == session.state["length"] == at


@pytest.mark.parametrize("stop", [130, 171])
def test_a_reading_that_fits_nowhere_is_refused(model, stop):
    session = entered(model, Pool(model, 200, 8), 0)
    with pytest.raises(InvalidInputError, match="cannot read positions 130"):
        model.step_many([Reading(session, 130, stop)])


def test_states_of_their_own_go_together_too():
    model = text_model(config(HYBRID))
    sessions = [model.session() for _ in range(3)]
    expected = []
    for number, session in enumerate(sessions):
        model.enter(session, Prompt(PROMPT[: 60 + number]))
        own = model.session()
        model.prefill(own, Prompt(PROMPT[: 60 + number]))
        expected.append(model.decode(own, 7).numpy())
    model.step_many([Reading(s, 0, len(s.prompt_ids)) for s in sessions])
    for session in sessions:
        model.say(session, 7)
    found = model.step_many([Reading(s, s.position, s.position + 1) for s in sessions])
    for step, alone in zip(found, expected, strict=True):
        np.testing.assert_allclose(step.numpy(), alone, atol=2e-4)


def test_cuts_leave_no_single_position():
    for count in range(1, 40):
        for size in range(3, 12):
            pieces = [run.stop - run.start for run in cuts(count, size)]
            assert sum(pieces) == count and max(pieces) <= size
            assert count == 1 or min(pieces) > 1, (count, size)
    assert torch.equal(torch.arange(9)[next(cuts(9, 4))], torch.arange(4))
