"""Whose turn it is: policies, ageing, and who gives way when blocks or seats run out."""

from __future__ import annotations

import random

import pytest
from engine_fakes import PagedRunner, SlotRunner, alone, finish, limits, request, scheduler, step
from hypothesis import given, settings
from hypothesis import strategies as st

from izwi_lab.engine.plan import Policy
from izwi_lab.engine.request import Priority, State
from izwi_lab.engine.scheduler import Scheduler
from izwi_lab.engine.slots import SlotManager

LOW, HIGH, CRITICAL = Priority.LOW, Priority.HIGH, Priority.CRITICAL


def ids(sequences):
    return [sequence.id for sequence in sequences]


def test_first_come_first_served_knows_no_priority():
    s = scheduler(max_sequences=1)
    s.add(request(id="second", at=1.0, priority=CRITICAL))
    s.add(request(id="first", at=0.5, priority=LOW))
    s.add(request(id="third", at=1.0))
    assert ids(s.waiting) == ["first", "second", "third"]


def test_a_level_of_priority_is_worth_some_waiting():
    s = scheduler(policy=Policy.PRIORITY, ageing_s=10.0)
    for name, at, priority in (("old", 0.0, LOW), ("new", 5.0, LOW), ("urgent", 19.0, HIGH), ("late", 21.0, HIGH)):
        s.add(request(id=name, at=at, priority=priority))
    assert ids(s.waiting) == ["urgent", "old", "late", "new"]


def test_the_last_comer_gives_way_when_blocks_run_out_and_loses_nothing():
    s = scheduler(blocks=7, block_size=4)
    runner = PagedRunner(s.blocks)
    for at, name in enumerate("abc"):
        s.add(request((ord(name), 1, 2, 3), new=9, id=name, at=float(at)))
    now, preempted = 3.0, []
    while len(s):
        plan = s.plan(now)
        for sequence in plan.preempted:
            preempted.append((sequence.id, sequence.said))
            assert sequence.computed == 0 and not sequence.table.ids
        assert all(p.sequence.id != "a" for p in plan.pieces if p.sequence.preemptions), "the first is never preempted"
        for e in s.done(plan, runner.run(plan), now=now):
            assert e.output == alone(e.request)
        now += 0.1
    assert preempted and preempted[0][0] == "c" and preempted[0][1] > 0


def test_the_lowest_priority_gives_way_before_the_last_comer():
    s = scheduler(blocks=7, block_size=4, policy=Policy.PRIORITY)
    runner = PagedRunner(s.blocks)
    for at, (name, priority) in enumerate((("low", LOW), ("high", HIGH), ("late", HIGH))):
        s.add(request((at, 1, 2, 3), new=9, id=name, at=float(at), priority=priority))
    while not (plan := s.plan(3.0)).preempted:
        s.done(plan, runner.run(plan), now=3.0)
    assert ids(plan.preempted) == ["low"]


def test_a_preempted_sequence_does_not_take_its_room_back_in_the_same_step():
    s = scheduler(blocks=4, block_size=2)
    runner = PagedRunner(s.blocks)
    for name in "ab":
        s.add(request((ord(name), 1), new=6, id=name))
    while not (plan := s.plan(0.0)).preempted:
        s.done(plan, runner.run(plan), now=0.0)
    assert ids(p.sequence for p in plan.pieces) == ["a"] and ids(s.waiting) == ["b"]


@pytest.mark.parametrize("slots", [False, True], ids=["blocks", "slots"])
def test_an_urgent_request_takes_the_seat_of_a_lesser_one_which_cannot_take_it_back(slots):
    s = scheduler(policy=Policy.PRIORITY, max_sequences=2)
    if slots:
        s = Scheduler(Policy.PRIORITY, limits(), SlotManager(2, 1))
    runner = SlotRunner(s.blocks) if slots else PagedRunner(s.blocks)
    for name in "ab":
        s.add(request((ord(name), 1), new=30, id=name, priority=LOW))
    step(s, runner)
    s.add(request((9, 9), new=3, id="urgent", at=0.1, priority=HIGH))
    s.add(request((8, 8), new=3, id="equal", at=0.1, priority=LOW))
    plan = s.plan(0.1)
    assert ids(plan.preempted) == ["b"] and ids(s.running) == ["urgent", "a"] and ids(s.waiting) == ["b", "equal"]
    s.done(plan, runner.run(plan), now=0.2)
    ended, _ = finish(s, runner, 0.2)
    assert {e.id: e.output for e in ended} == {e.id: alone(e.request) for e in ended}
    assert {e.id: e.preemptions for e in ended} == {"urgent": 0, "a": 0, "b": 1, "equal": 0}


def test_nobody_gives_up_a_seat_to_its_equal():
    s = scheduler(policy=Policy.PRIORITY, max_sequences=1)
    runner = PagedRunner(s.blocks)
    s.add(request((1, 2), new=30, id="young", at=5.0))
    step(s, runner, 5.0)
    s.add(request((3, 4), new=3, id="old", at=1.0))
    step(s, runner, 5.1)
    assert ids(s.running) == ["young"] and ids(s.waiting) == ["old"]


def test_nobody_is_preempted_for_a_request_that_still_would_not_fit():
    s = scheduler(blocks=8, block_size=4, policy=Policy.PRIORITY)
    runner = PagedRunner(s.blocks)
    s.add(request(range(17), new=4, id="big", priority=CRITICAL))
    s.add(request(range(20, 24), new=4, id="small", priority=LOW))
    step(s, runner)
    s.add(request(range(50, 66), new=4, id="urgent", at=0.1, priority=CRITICAL))
    step(s, runner, 0.1)
    assert ids(s.running) == ["big", "small"], "the room of the small one is not enough for it"
    s.cancel("urgent")
    s.add(request(range(50, 54), new=4, id="modest", at=0.1, priority=CRITICAL))
    plan = s.plan(0.2)
    assert ids(plan.preempted) == ["small"] and ids(s.running) == ["big", "modest"]


@pytest.mark.parametrize("policy", Policy)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), blocks=st.sampled_from([26, 40, 200]), ageing_s=st.sampled_from([0.5, 2.0]))
def test_an_endless_stream_starves_nobody(policy, seed, blocks, ageing_s):
    """More arrives than can be served. What is low and long ends soon after those who rank before it."""
    rng = random.Random(seed)
    s = scheduler(blocks=blocks, policy=policy, ageing_s=ageing_s, max_tokens=32, max_sequences=4)
    runner, now, taken, everyone = PagedRunner(s.blocks), 0.0, 0, []
    low = s.add(request(range(100, 180), new=12, at=now, priority=LOW))
    while low.state is not State.FINISHED:
        prompt = [rng.randrange(90) for _ in range(rng.randrange(1, 14))]
        everyone.append(s.add(request(prompt, new=rng.randrange(6, 10), at=now, priority=rng.choice((HIGH, CRITICAL)))))
        step(s, runner, now)
        now, taken = now + 0.1, taken + 1
        ahead = sum(other.rank < low.rank for other in everyone)
        assert taken < 25 * (ahead + 4) + 100, f"starved behind {ahead}: {s}"
    assert len(s) > 5, "the stream was no load"


def test_who_cannot_have_room_yet_is_not_passed_by():
    s = scheduler(blocks=8, block_size=4)
    runner = PagedRunner(s.blocks)
    s.add(request(range(16), new=4, id="running"))
    step(s, runner)
    s.add(request(range(100, 124), new=4, id="big", at=1.0))
    for at in range(5):
        s.add(request((at, 1), new=4, at=2.0, id=f"small{at}"))
    step(s, runner, 2.0)
    assert ids(s.running) == ["running"], "the small ones wait: they would keep the big one out for good"
    assert ids(finish(s, runner, 3.0)[0])[:2] == ["running", "big"]
