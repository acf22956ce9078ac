"""What goes into a step, and what becomes of it."""

from __future__ import annotations

import pytest
from engine_fakes import PagedRunner, alone, finish, limits, request, scheduler, step

from izwi_lab.engine.plan import Limits, Policy, Result
from izwi_lab.engine.request import FinishReason, Sharing, State
from izwi_lab.engine.scheduler import Scheduler
from izwi_lab.engine.slots import SlotManager
from izwi_lab.errors import InvalidInputError, IzwiError, MemoryBudgetError


def shown(plan):
    return [(p.sequence.id, p.start, p.count, p.wants_logits) for p in plan.pieces]


def answering(ids="ab", **options):
    """A scheduler whose sequences have all read their prompts, and its runner."""
    s = scheduler(**options)
    runner = PagedRunner(s.blocks)
    for name in ids:
        s.add(request((ord(name), 2, 3), new=100, id=name))
    step(s, runner)
    return s, runner


def test_a_long_prompt_is_read_to_its_end_and_answered():
    s = scheduler(blocks=300)
    asked = request(range(1000), new=5)
    s.add(asked)
    (ended,), _ = finish(s)
    assert ended.output == alone(asked)
    assert ended.finish in (FinishReason.LENGTH, FinishReason.STOP)


def test_decodes_come_first_and_prompts_get_the_rest_in_pieces():
    s, runner = answering("ab")
    s.add(request(range(100, 200), id="long"))
    plan = s.plan(0.0)
    assert shown(plan) == [("a", 3, 1, True), ("b", 3, 1, True), ("long", 0, 62, False)]
    assert [p.decode for p in plan.pieces] == [True, True, False]
    s.done(plan, runner.run(plan), now=0.1)
    assert s.plan(0.1).pieces[-1].start == 62


@pytest.mark.parametrize("others", ["", "ab"])
def test_prompts_together_get_no_more_of_a_step_than_they_may(others):
    s = answering(others)[0] if others else scheduler()
    s.limits = limits(max_prefill=16)
    s.add(request(range(100, 200), id="long"))
    s.add(request(range(200, 210), id="short"))
    read = [piece for piece in shown(s.plan(0.0)) if piece[0] not in others]
    assert read == [("short", 0, 10, True), ("long", 0, 6, False)]


def test_without_decodes_a_prompt_takes_the_whole_budget():
    s = scheduler()
    s.add(request(range(100), id="long"))
    assert shown(s.plan(0.0)) == [("long", 0, 64, False)]


def test_short_prompts_do_not_wait_behind_a_long_one():
    s = scheduler()
    s.add(request(range(120), id="long"))
    s.add(request(range(200, 210), id="short"))
    assert shown(s.plan(0.0)) == [("short", 0, 10, True), ("long", 0, 54, False)]


def test_who_waited_long_is_read_before_shorter_ones():
    s = scheduler(ageing_s=1.0)
    s.add(request(range(120), id="long", at=0.0))
    s.add(request(range(200, 210), id="short", at=1.5))
    assert shown(s.plan(1.6)) == [("long", 0, 64, False)]


def test_decodes_leave_room_for_prompts():
    s, runner = answering("abcdefgh", blocks=200, max_tokens=12, max_sequences=8)
    for _ in range(3):
        step(s, runner)
    s.limits = limits(max_tokens=13, max_sequences=9)
    s.add(request(range(100, 200), id="long"))
    plan = s.plan(0.0)
    assert sum(p.count for p in plan.pieces if not p.decode) >= s.limits.min_prefill
    assert plan.tokens <= 13


def test_an_answer_ends_by_stop_length_error_or_cancel_and_no_other_is_touched():
    s, _ = answering("abcd")
    failure = RuntimeError("grammar")
    plan = s.plan(0.2)
    assert s.cancel("d") is True
    given = {
        "a": Result(token=9, finish=FinishReason.STOP),
        "b": Result(error=failure),
        "c": Result(token=5),
        "d": Result(token=5),
    }
    used = s.blocks.stats().used
    ended = {e.id: e for e in s.done(plan, given, now=0.3)}
    assert {name: e.finish.value for name, e in ended.items()} == {"a": "stop", "b": "error", "d": "cancelled"}
    assert ended["a"].output[-1] == 9 and ended["b"].error is failure and ended["d"].said == 1
    assert all(e.state is State.FINISHED and e.ended_s == 0.3 for e in ended.values())
    assert [e.id for e in s.running] == ["c"]
    assert s.blocks.stats().used == used - 3
    assert shown(s.plan(0.3)) == [("c", 4, 1, True)]


def test_an_end_without_a_token_keeps_what_was_said():
    s, _ = answering("a")
    (ended,) = s.done(s.plan(0.0), {"a": Result(finish=FinishReason.STOP)}, now=0.1)
    assert ended.said == 1 and ended.finish is FinishReason.STOP


def test_cancel_reaches_those_who_wait_and_those_who_run_once():
    s, runner = answering("ab", max_sequences=2)
    s.add(request(id="c"))
    assert s.cancel("c") is True and s.cancel("c") is False and s.cancel("nobody") is False
    assert s.cancel("a") is True
    assert s.blocks.stats().used == 1, "at once: no step is under way"
    plan = s.plan(0.5)
    assert [(e.id, e.finish, e.ended_s) for e in plan.finished] == [
        ("c", FinishReason.CANCELLED, 0.5),
        ("a", FinishReason.CANCELLED, 0.5),
    ]
    s.done(plan, runner.run(plan), now=0.6)
    assert not s.plan(0.6).finished


def test_a_cancelled_sequence_of_the_step_under_way_needs_no_result():
    s, _ = answering("ab")
    plan = s.plan(0.0)
    s.cancel("a")
    assert s.blocks.stats().used == 2, "its block is being written"
    assert [e.id for e in s.done(plan, {"b": Result(token=4)}, now=0.1)] == ["a"]
    assert s.blocks.stats().used == 1 and s.blocks.stats().cached == 0, "nobody knows whether it was computed"


def test_deadlines_count_while_waiting_and_while_running():
    s, runner = answering("a", max_sequences=2)
    s.add(request(id="late", deadline_s=2.0, new=100))
    s.add(request(id="later", deadline_s=1.0))
    step(s, runner, now=0.5)
    assert {e.id for e in s.running} == {"a", "late"} and [e.id for e in s.waiting] == ["later"]
    ended = step(s, runner, now=1.0) + step(s, runner, now=1.9) + step(s, runner, now=2.0)
    assert [(e.id, e.finish) for e in ended] == [("later", FinishReason.TIMEOUT), ("late", FinishReason.TIMEOUT)]


def test_a_request_that_can_never_fit_is_refused():
    s = scheduler(blocks=4, block_size=4)
    s.add(request(range(10), new=7))
    with pytest.raises(InvalidInputError, match=r"needs 17 positions \(10 of its prompt, up to 8"):
        s.add(request(range(10), new=8))
    with pytest.raises(InvalidInputError, match="'x' is under way"):
        s.add(request(id="x"))
        s.add(request(id="x"))


def test_a_shared_prompt_is_computed_once_even_when_all_come_together():
    s = scheduler(blocks=100, max_prefill=64)
    prompt = tuple(range(41))
    for name in "abcd":
        s.add(request((*prompt, ord(name)), id=name))
    runner = PagedRunner(s.blocks)
    ended, _ = finish(s, runner)
    assert len(ended) == 4
    read = sum(stop - start for pieces in runner.computed.values() for _, start, stop in pieces)
    said = sum(e.said - 1 for e in ended)
    assert read - said == 42 + 3 * 2
    assert sorted(e.cached for e in ended) == [0, 40, 40, 40]


def test_what_must_not_be_shared_is_computed_by_each():
    s = scheduler(blocks=100)
    for name in "ab":
        s.add(request(range(20), id=name, sharing=Sharing.NOTHING))
    assert [e.cached for e in finish(s)[0]] == [0, 0]


def test_a_fork_goes_on_from_what_was_said():
    s, runner = answering("a")
    step(s, runner)
    s.fork("a", "b")
    plan = s.plan(0.0)
    assert shown(plan) == [("a", 4, 1, True), ("b", 4, 1, True)] and not plan.copies, "the first block was full"
    given = {"a": Result(token=1), "b": Result(token=2)}
    s.done(plan, given, now=0.1)
    fork = s.fork("b", "c")
    step(s, PagedRunnerAfter(runner, plan, given), now=0.1)
    assert fork.tokens[:6] == [*s.running[1].tokens[:6]] and fork.said == 4
    with pytest.raises(InvalidInputError, match="No sequence 'z'"):
        s.fork("z", "y")


class PagedRunnerAfter(PagedRunner):
    """A runner that goes on where results were made up by hand: its content is what the plan said."""

    def __init__(self, before, plan, given):
        super().__init__(before.manager)
        self.content = before.content
        for piece in plan.pieces:
            block = piece.sequence.table.ids[piece.start // self.size]
            self.content[block][piece.start % self.size] = self.key(piece.sequence, piece.start)

    def run(self, plan):
        assert len(plan.copies) == 1
        return super().run(plan)


def test_a_fork_without_a_seat_waits_and_reads_again():
    s, runner = answering("ab", max_sequences=2)
    fork = s.fork("a", "c")
    assert fork.state is State.WAITING and fork.tokens == s.running[0].tokens
    s.cancel("b")
    step(s, runner)
    assert fork.state is State.RUNNING and fork.said == 2


def test_out_of_memory_preempts_half_and_goes_on_with_smaller_steps():
    s, runner = answering("abcd")
    step(s, runner)
    plan = s.plan(1.0)
    assert plan.tokens == 4
    assert s.out_of_memory(plan, now=1.1) == ()
    assert [e.id for e in s.running] == ["a", "b"] and [e.id for e in s.waiting] == ["c", "d"]
    sizes, now = [], 1.1
    for _ in range(12):
        plan = s.plan(now)
        sizes.append(plan.tokens)
        s.done(plan, runner.run(plan), now=now)
        now += 0.1
    assert sizes[0] == 2 < max(sizes), sizes
    ended, _ = finish(s, runner, now)
    assert {e.id: e.output for e in ended} == {e.id: alone(e.request) for e in ended}


def test_a_prompt_that_runs_out_of_memory_is_read_in_smaller_pieces():
    s = scheduler()
    s.add(request(range(100), id="long"))
    sizes = []
    for _ in range(3):
        plan = s.plan(0.0)
        sizes.append(plan.tokens)
        assert s.out_of_memory(plan, now=0.0) == ()
    assert sizes == [64, 32, 16] and [e.id for e in s.running] == ["long"]


def test_out_of_memory_tells_who_was_preempted_and_ends_what_is_hopeless():
    s, _ = answering("ab")
    s.out_of_memory(s.plan(0.0), now=0.1)
    plan = s.plan(0.1)
    assert [e.id for e in plan.preempted] == ["b"] and plan.tokens == 1
    (ended,) = s.out_of_memory(plan, now=0.2)
    assert ended.finish is FinishReason.ERROR and isinstance(ended.error, MemoryBudgetError) and ended.ended_s == 0.2
    s.cancel("a")
    assert len(s) == 1


def test_out_of_memory_of_states_that_only_go_forward_preempts_all():
    s = Scheduler(Policy.FCFS, limits(), SlotManager(4, 1))
    for name in "ab":
        s.add(request(id=name))
    s.out_of_memory(s.plan(0.0), now=0.1)
    assert not s.running and [e.id for e in s.waiting] == ["a", "b"]


def test_a_step_must_end_before_the_next_and_only_once():
    s, runner = answering("a")
    plan = s.plan(0.0)
    with pytest.raises(IzwiError, match="is under way"):
        s.plan(0.0)
    with pytest.raises(IzwiError, match="is under way"):
        s.fork("a", "b")
    s.done(plan, runner.run(plan), now=0.1)
    with pytest.raises(IzwiError, match="not under way"):
        s.done(plan, {}, now=0.1)
    with pytest.raises(IzwiError, match="not under way"):
        s.out_of_memory(plan, now=0.1)


def test_results_that_do_not_belong_to_the_step_are_refused():
    s, runner = answering("a")
    s.add(request(range(50, 150), id="long"))
    plan = s.plan(0.0)
    for given, told in (
        ({}, "no token for sequence 'a'"),
        ({"a": Result()}, "no token for sequence 'a'"),
        ({"a": Result(token=1), "long": Result(token=2)}, "'long', whose prompt is not read"),
    ):
        with pytest.raises(InvalidInputError, match=told):
            s.done(plan, given, now=0.1)
    s.done(plan, runner.run(plan), now=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"max_tokens": 0},
        {"max_sequences": 1.5},
        {"min_prefill": 0},
        {"max_prefill": True},
        {"ageing_s": 0.0},
        {"max_tokens": 64, "max_sequences": 60, "min_prefill": 5},
    ],
)
def test_limits_that_cannot_hold_are_refused(options):
    with pytest.raises(InvalidInputError, match="Limits"):
        Limits(**options)


def test_who_has_all_in_the_caches_goes_on_in_the_step_that_lets_it_in():
    s = scheduler()
    runner = PagedRunner(s.blocks)
    for name in "ab":
        s.add(request((ord(name), 1, 2, 3), new=50, id=name))
    step(s, runner)
    s.out_of_memory(s.plan(0.0), now=0.1)
    s.cancel("a")
    for _ in range(100):
        s._pressure.relax(s.limits)  # as after many good steps
    s.add(request(range(100, 200), id="long"))
    assert shown(s.plan(0.1)) == [("b", 4, 1, True), ("long", 0, 63, False)], "one seat of the step is taken"


def test_copies_are_made_again_when_their_step_ran_out_of_memory():
    s, _ = answering("a")
    s.fork("a", "b")
    plan = s.plan(0.0)
    assert len(plan.copies) == 1
    s.out_of_memory(plan, now=0.1)
    again = s.plan(0.1)
    assert again.copies == plan.copies
    s.done(again, {p.sequence.id: Result(token=1) for p in again.pieces}, now=0.2)
    assert not s.plan(0.2).copies


def test_under_pressure_those_who_answer_take_turns():
    s, _ = answering("abcd", max_tokens=64)
    s.limits = limits(max_tokens=3, max_sequences=2, min_prefill=1)
    taken = []
    for now in range(6):
        plan = s.plan(float(now))
        taken += [p.sequence.id for p in plan.pieces]
        assert plan.tokens <= 3
        s.done(plan, {p.sequence.id: Result(token=1) for p in plan.pieces}, now=float(now))
    assert min(taken.count(name) for name in "abcd") >= 3
