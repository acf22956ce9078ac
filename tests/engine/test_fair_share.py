"""Turns on a device: seconds by weight, nobody starves, who has nothing to do costs and saves nothing."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.engine.fair import FairShare
from izwi_lab.errors import InvalidInputError

weights = st.lists(st.floats(0.05, 20.0), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(weights=weights, data=st.data())
def test_seconds_are_shared_by_weight_whatever_steps_cost(weights, data):
    turns, quantum_s, longest_s = FairShare(quantum_s=0.02), 0.02, 0.5
    names = [f"m{i}" for i in range(len(weights))]
    for name, weight in zip(names, weights, strict=True):
        turns.add(name, weight=weight)
    costs = data.draw(st.lists(st.floats(0.0, longest_s), min_size=200, max_size=200))
    for cost in costs:
        name = turns.choose(names)
        assert name in names
        turns.charge(name, cost)
        shares = [turns.used_s[n] / w for n, w in zip(names, weights, strict=True)]
        assert max(shares) - min(shares) <= 2 * quantum_s + longest_s / min(weights) + 1e-6


@settings(max_examples=40, deadline=None)
@given(seed_costs=st.lists(st.floats(0.001, 0.3), min_size=4, max_size=20), weight=st.floats(0.1, 10.0))
def test_who_always_has_work_runs_however_others_come_and_go(seed_costs, weight):
    turns = FairShare()
    for name in "abc":
        turns.add(name, weight=weight if name == "a" else 1.0)
    waited = 0.0
    for at in range(300):
        ready = {"a"} | {name for name in "bc" if (at * 7 + ord(name)) % 3}
        name = turns.choose(ready)
        assert name in ready
        cost = seed_costs[at % len(seed_costs)]
        turns.charge(name, cost)
        waited = 0.0 if name == "a" else waited + cost
        assert waited <= 2 * (0.02 + 0.3) + 2 * 0.3 / weight + 0.04 / weight, "a starves"


def test_an_idle_model_costs_nothing_and_saves_nothing_up():
    turns = FairShare(quantum_s=0.1)
    turns.add("busy")
    turns.add("idle")
    for _ in range(100):
        assert turns.choose({"busy"}) == "busy"
        turns.charge("busy", 0.05)
    taken = []
    for _ in range(20):
        taken.append(turns.choose({"busy", "idle"}))
        turns.charge(taken[-1], 0.05)
    assert 8 <= taken.count("idle") <= 12, "no arrears are paid to it"
    assert turns.choose(()) is None


def test_what_was_left_of_a_turn_is_lost_by_being_idle():
    turns = FairShare(quantum_s=0.1)
    turns.add("heavy", weight=10.0)
    turns.add("light")
    assert turns.choose({"heavy"}) == "heavy"
    turns.charge("heavy", 0.1)  # 0.9 of its turn are left
    assert turns.choose({"light"}) == "light"
    turns.charge("light", 0.1)
    taken = 0
    while turns.choose({"heavy", "light"}) == "heavy":
        turns.charge("heavy", 0.125)
        taken += 1
    assert taken == 8


def test_a_long_step_is_owed():
    turns = FairShare(quantum_s=0.1)
    turns.add("long")
    turns.add("short")
    assert turns.choose({"long", "short"}) == "long"
    turns.charge("long", 1.0)
    taken = []
    while turns.choose({"long", "short"}) == "short":
        taken.append("short")
        turns.charge("short", 0.1)
    assert 9 <= len(taken) <= 11


def test_a_debt_is_not_forgotten_by_being_idle_for_a_moment():
    turns = FairShare(quantum_s=0.1)
    turns.add("sly")
    turns.add("steady")
    seconds = {"sly": 0.0, "steady": 0.0}
    for at in range(200):
        name = turns.choose({"steady", "sly"} if at % 2 else {"steady"})
        seconds[name] += (cost := 0.5 if name == "sly" else 0.05)
        turns.charge(name, cost)
    assert seconds["sly"] <= seconds["steady"] + 0.7


def test_a_small_weight_beside_a_huge_debt_is_found_at_once():
    turns = FairShare(quantum_s=1e-3)
    turns.add("a", weight=1e-6)
    turns.choose({"a"})
    turns.charge("a", 1e6)
    assert turns.choose({"a"}) == "a"


def test_names_come_and_go():
    turns = FairShare()
    turns.add("a", weight=2)
    with pytest.raises(InvalidInputError, match="already"):
        turns.add("a")
    with pytest.raises(InvalidInputError, match="have no turns"):
        turns.choose({"a", "b"})
    assert turns.choose({"a"}) == "a"
    turns.remove("a")
    turns.remove("a")
    turns.charge("a", 1.0)  # its last step was under way
    turns.add("a")
    assert turns.choose({"a"}) == "a" and turns.used_s == {"a": 0.0}
    assert repr(turns) == "FairShare(a x1)"


@pytest.mark.parametrize("wrong", [0, -1, math.nan, math.inf])
def test_what_makes_no_sense_is_refused(wrong):
    with pytest.raises(InvalidInputError):
        FairShare(quantum_s=wrong)
    with pytest.raises(InvalidInputError):
        FairShare().add("a", weight=wrong)
    if wrong:
        with pytest.raises(InvalidInputError):
            FairShare().charge("a", wrong)
