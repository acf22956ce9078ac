"""What `explain` shows: the steps, the map of blocks, the tree of prefixes."""

from __future__ import annotations

import threading

import pytest
from engine_fakes import PagedRunner, SlotRunner, limits, request, scheduler

from izwi_lab.engine.block_view import BlockMap, PrefixTree
from izwi_lab.engine.plan import Policy
from izwi_lab.engine.scheduler import Scheduler
from izwi_lab.engine.slots import SlotManager
from izwi_lab.engine.timeline import Explanation, StepRecord, Timeline
from izwi_lab.errors import InvalidInputError


def recorded(s, runner, timeline, steps, model="m"):
    for at in range(steps):
        plan = s.plan(float(at))
        ended = s.done(plan, runner.run(plan), now=at + 0.5)
        timeline.add(StepRecord.of(model, plan, ended, s.blocks.stats(), start_s=float(at), seconds=0.5))


def explained(steps=3) -> Explanation:
    s, timeline = scheduler(blocks=70), Timeline()
    beginning = tuple(range(8))
    for name in "ab":
        s.add(request((*beginning, ord(name), *range(20)), new=50, id=name, model="lm", tenant="ada"))
    s.add(request(range(40, 80), new=50, id="long", model="lm", extra_key=b"v"))
    recorded(s, PagedRunner(s.blocks), timeline, steps)
    return Explanation(timeline.steps(), BlockMap.of(s.blocks, s.running), PrefixTree.of(s.blocks))


def test_a_step_tells_what_ran_in_it():
    first, second, third = explained().steps
    assert [(p.sequence, p.start, p.count, p.decode) for p in first.pieces] == [
        ("a", 0, 29, False),
        ("long", 0, 35, False),
    ]
    assert [(p.sequence, p.start, p.count, p.decode) for p in second.pieces] == [
        ("a", 29, 1, True),
        ("long", 35, 5, False),
        ("b", 8, 21, False),
    ]
    assert (second.prefill_tokens, second.decode_tokens) == (26, 1)
    assert (third.step, third.model, third.start_s, third.seconds) == (2, "m", 2.0, 0.5)
    assert repr(second).startswith("Step(1 m, 500.0 ms: prefill long[35:40] b[8:29]; decode a; blocks ")
    assert repr(second).endswith(" of 70)")


def test_ended_and_preempted_ones_are_named():
    s, timeline = scheduler(blocks=4, block_size=2), Timeline()
    for name in "ab":
        s.add(request((ord(name), 1), new=6, id=name))
    runner = PagedRunner(s.blocks)
    while not timeline.steps() or not timeline.steps()[-1].preempted:
        recorded(s, runner, timeline, 1)
    s.cancel("a")
    recorded(s, runner, timeline, 1)
    gave_way, last = timeline.steps()[-2:]
    assert gave_way.preempted == ("b",) and "preempted b" in repr(gave_way)
    assert "a" in last.finished and "ended a" in repr(last)


def test_rows_are_for_tables():
    explanation = explained()
    rows = explanation.rows()
    assert len(rows) == sum(len(step.pieces) for step in explanation.steps)
    assert rows[0] == {
        "step": 0,
        "model": "m",
        "start_s": 0.0,
        "seconds": 0.5,
        "sequence": "a",
        "kind": "prefill",
        "first": 0,
        "tokens": 29,
        "blocks_used": explanation.steps[0].blocks_used,
        "blocks_cached": 0,
    }
    shown = repr(explanation)
    assert "Step(2 m" in shown and "BlockMap(70 blocks" in shown and "PrefixTree(" in shown


def test_the_map_tells_whose_blocks_are_whose():
    blocks = explained().blocks
    shared = [b for b in blocks.blocks if b.state == "shared"]
    assert {b.sequences for b in shared} == {("a", "b")} and len(shared) == 2
    assert all(b.published and b.refs == 2 for b in shared)
    rows = blocks.rows()
    assert len(rows) == 70 and sum(row["state"] == "free" for row in rows) == 45
    head, first, left = repr(blocks).splitlines()
    assert head.startswith("BlockMap(70 blocks of 4:") and "█ 2 shared" in head
    assert len(first) == 64 and first.count("█") == 2 and left == "… 6 free"


def test_cached_blocks_are_nobodys():
    s = scheduler(blocks=8)
    s.add(request(range(9), new=1, id="a"))
    recorded(s, PagedRunner(s.blocks), Timeline(), 1)
    blocks = BlockMap.of(s.blocks, s.running)
    assert [b.state for b in blocks.blocks].count("cached") == 2
    assert PrefixTree.of(s.blocks).show().splitlines() == ["model, tenant -", "  2 blocks, 8 tokens: 0 1 2 3 4 5 …"]


def test_the_tree_tells_what_prompts_share():
    tree = explained().prefixes
    scopes = [scope for scope, _ in tree.roots]
    assert {(scope.tenant, scope.extra_key) for scope in scopes} == {("ada", b""), ("", b"v")}
    lines = tree.show().splitlines()
    at = lines.index("lm, tenant ada")
    assert lines[at + 1] == "  2 blocks, 8 tokens, held by 2: 0 1 2 3 4 5 …"
    assert [line.startswith("    ") for line in lines[at + 2 : at + 4]] == [True, True]
    assert "lm, tenant -, key 76" in lines
    said = tree.show(lambda ids: f"{len(ids)} words")
    assert "'8 words'" in said
    rows = tree.rows()
    assert {row["depth"] for row in rows if row["tenant"] == "ada"} >= {0, 1, 2}
    parents = {row["block"] for row in rows} | {None}
    assert all(row["parent"] in parents and len(row["tokens"]) == 4 for row in rows)


def test_a_chain_longer_than_the_stack_is_shown():
    s = scheduler(blocks=3000, block_size=1, max_tokens=4000, max_prefill=4000)
    s.add(request(range(2500), new=1))
    recorded(s, PagedRunner(s.blocks), Timeline(), 1)
    tree = PrefixTree.of(s.blocks)
    assert len(tree.rows()) == 2500 and tree.rows()[-1]["depth"] == 2499
    assert repr(tree).splitlines()[0] == "PrefixTree(2500 blocks)"
    assert repr(tree.roots[0][1][0]) == "PrefixNode(block 0, 1 tokens, 1 children)"


def test_slots_have_a_map_and_no_tree():
    s = Scheduler(Policy.FCFS, limits(), SlotManager(3, 1))
    s.add(request(new=9, id="a"))
    recorded(s, SlotRunner(s.blocks), Timeline(), 1)
    assert [b.sequences for b in BlockMap.of(s.blocks, s.running).blocks] == [("a",), (), ()]
    assert PrefixTree.of(s.blocks).rows() == []


def test_the_ring_keeps_the_last_steps():
    s, timeline = scheduler(), Timeline(capacity=5)
    s.add(request(new=50, id="a", prompt=(1,)))
    runner = PagedRunner(s.blocks)
    recorded(s, runner, timeline, 3, model="x")
    recorded(s, runner, timeline, 4, model="y")
    assert len(timeline) == 5
    assert [step.step for step in timeline.steps()] == [2, 3, 4, 5, 6]
    assert [step.step for step in timeline.steps(last=2)] == [5, 6]
    assert [step.step for step in timeline.steps(last=9, model="x")] == [2]
    assert timeline.steps(last=0) == ()
    timeline.clear()
    assert timeline.steps() == ()
    with pytest.raises(InvalidInputError, match="capacity"):
        Timeline(0)


def test_readers_may_look_while_steps_are_added():
    timeline = Timeline(capacity=50)
    record = explained().steps[0]
    writer = threading.Thread(target=lambda: [timeline.add(record) for _ in range(20_000)])
    writer.start()
    while writer.is_alive():
        assert len(timeline.steps()) <= 50
    writer.join()
