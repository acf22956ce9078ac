"""What goes wrong in one request stays there: cancels, errors, lack of memory; and what is shared is the tenant's."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from lanes import KINDS, ask, lane, pieces, run, talker, tokens

from izwi_lab.backends.mlx_backend import MLXBackend
from izwi_lab.backends.torch_backend import TorchBackend
from izwi_lab.engine.request import Priority
from izwi_lab.errors import Cancelled, InvalidInputError, IzwiError, MemoryBudgetError
from izwi_lab.families.shared.chat_options import ChatOptions
from izwi_lab.families.shared.course import Ask
from izwi_lab.families.shared.steps import Prompt, Reading


def prompt(size=20, first=3):
    return Prompt(np.arange(first, first + size, dtype=np.int32))


@pytest.fixture(scope="module")
def model():
    return talker()


@pytest.fixture(scope="module")
def slotted():
    return talker("slots")


def steps(made, count):
    for _ in range(count):
        made.stop_cancelled()
        made.settle()
        if made.ready:
            made.step()
            made.settle()


def test_a_cancel_frees_blocks_within_one_step(model):
    made = lane(model)
    job = ask(model, prompt(40), ChatOptions(max_tokens=100))
    made.add(job)
    steps(made, 10)
    assert made.scheduler.blocks.stats().used >= 5
    job.token.cancel()
    steps(made, 1)
    assert (made.scheduler.blocks.stats().used, len(made)) == (0, 0)
    assert pieces(job)[-1].finish_reason == "cancelled"
    steps(made, 1)
    assert made.metrics.ended.value("tiny", "cancelled") == 1


def test_a_cancel_that_comes_while_its_course_asks_for_more(model):
    """Its course has looked at the token already, and is told with the next step, not as a fault of its own."""
    made = lane(model)
    job = ask(model, prompt(20), ChatOptions(max_tokens=50))
    job.course = CancelledWhenItAsks(job.course, job.token, times=3)
    made.add(job)
    run(made)
    said = pieces(job)
    assert said[-1].finish_reason == "cancelled" and len(tokens(said)) == 3
    assert made.metrics.ended.value("tiny", "cancelled") == 1
    assert made.scheduler.blocks.stats().used == 0


class CancelledWhenItAsks:
    """A course, and a caller who cancels just as it asks for something the so many-th time."""

    def __init__(self, course, token, times):
        self.course, self.token, self.left = course, token, times

    def send(self, met):
        return self.counted(self.course.send(met))

    def __next__(self):
        return self.counted(next(self.course))

    def counted(self, item):
        self.left -= isinstance(item, Ask)
        if not self.left:
            self.token.cancel()
        return item

    def __getattr__(self, name):
        return getattr(self.course, name)


def test_a_late_request_in_the_queue_ends_too(model):
    made = lane(model, sequences=1)
    first, second = (ask(model, prompt(30), ChatOptions(max_tokens=60)) for _ in range(2))
    made.add(first)
    made.add(second)
    steps(made, 3)
    second.token.cancel()
    steps(made, 1)
    assert pieces(second)[-1].finish_reason == "cancelled"
    run(made)
    assert len(tokens(pieces(first))) > 0


@pytest.mark.parametrize("kind", ["paged", "slots"])
def test_an_error_in_a_pass_ends_the_one_that_has_it(kind, monkeypatch):
    model = talker(kind)
    made, jobs = lane(model), [ask(model, prompt(20 + i), ChatOptions(max_tokens=12)) for i in range(5)]
    expected = [model.generate(prompt(20 + i), max_tokens=12).tokens for i in range(5)]
    for job in jobs:
        made.add(job)
    together, bad = model.net.together, jobs[2].ask.session

    def failing(pieces):
        if any(state is bad.state for _, state, _ in pieces):
            for _, state, _ in pieces:
                state["length"] += 1  # as far as it came
            raise RuntimeError("a device-side assertion")
        return together(pieces)

    steps(made, 2)
    monkeypatch.setattr(model.net, "together", failing)
    run(made)
    for number, job in enumerate(jobs):
        if number == 2:
            with pytest.raises(RuntimeError, match="device-side"):
                pieces(job)
        else:
            assert tokens(pieces(job)) == expected[number]
    assert made.scheduler.blocks.stats().used == 0
    assert made.metrics.ended.value("tiny", "error") == 1


def test_an_error_in_a_choice_ends_the_one_that_has_it(model, monkeypatch):
    made, jobs = lane(model), [ask(model, prompt(20 + i), ChatOptions(max_tokens=12)) for i in range(3)]
    for job in jobs:
        made.add(job)
    sample, bad = model.sample, jobs[1].ask.session

    def failing(session, step, sampling=None, *, allowed=None):
        if session is bad and len(session.tokens) == 4:
            raise InvalidInputError("The logits hold NaN.")
        return sample(session, step, sampling, allowed=allowed)

    monkeypatch.setattr(model, "sample", failing)
    run(made)
    with pytest.raises(InvalidInputError, match="NaN"):
        pieces(jobs[1])
    assert [len(tokens(pieces(jobs[i]))) for i in (0, 2)] == [12, 12]
    assert made.scheduler.blocks.stats().used == 0


@pytest.mark.parametrize("kind", ["paged", "slots"])
def test_out_of_memory_preempts_and_goes_on(kind, monkeypatch):
    model = talker(kind)
    expected = [model.generate(prompt(30 + i), max_tokens=20).tokens for i in range(6)]
    made, jobs = lane(model), [ask(model, prompt(30 + i), ChatOptions(max_tokens=20)) for i in range(6)]
    for job in jobs:
        made.add(job)
    together, failed = model.net.together, []

    def scarce(pieces):
        if sum(len(ids) for ids, _, _ in pieces) > 4 and len(failed) < 5:
            failed.append(len(pieces))
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
        return together(pieces)

    steps(made, 6)
    monkeypatch.setattr(model.net, "together", scarce)
    run(made)
    assert [tokens(pieces(job)) for job in jobs] == expected
    assert len(failed) > 0
    assert made.metrics.preemptions.value("tiny") > 0


def test_what_never_fits_ends_with_what_to_do(model, monkeypatch):
    made, job = lane(model), ask(model, prompt(), ChatOptions(max_tokens=5))
    made.add(job)

    def none(pieces):
        raise MemoryError

    monkeypatch.setattr(model.net, "together", none)
    run(made)
    with pytest.raises(MemoryBudgetError, match="single token"):
        pieces(job)
    assert made.scheduler.blocks.stats().used == 0


def test_a_beginning_that_was_read_is_not_read_again(model):
    made = lane(model, blocks=64)
    for tenant, cached in (("ada", 0), ("ada", 32), ("bob", 0)):
        job = ask(model, prompt(40), ChatOptions(max_tokens=4), tenant=tenant)
        made.add(job)
        run(made)
        deltas = pieces(job)
        assert deltas[-1].usage.cached_tokens == cached
        assert tokens(deltas) == model.generate(prompt(40), max_tokens=4).tokens


def test_the_next_turn_finds_the_answer_of_the_last(model):
    made, asked = lane(model, blocks=64), prompt(30)
    made.add(first := ask(model, asked, ChatOptions(max_tokens=30)))
    run(made)
    longer = Prompt(np.concatenate((asked.ids, np.asarray(tokens(pieces(first)), np.int32), [9, 9, 9])))
    made.add(second := ask(model, longer, ChatOptions(max_tokens=4)))
    run(made)
    deltas = pieces(second)
    assert deltas[-1].usage.cached_tokens >= 48
    assert tokens(deltas) == model.generate(longer, max_tokens=4).tokens


def as_on_a_gpu():
    made = TorchBackend()
    made.late_pools = False
    return made


@pytest.mark.parametrize("backend", [TorchBackend, as_on_a_gpu, partial(MLXBackend, "cpu")])
def test_the_pool_grows_under_those_who_use_it(backend):
    model = talker(backend=backend())
    made = lane(model, blocks=400, block=2)
    jobs = [ask(model, prompt(60 + i), ChatOptions(max_tokens=20)) for i in range(4)]
    for job in jobs:
        made.add(job)
        steps(made, 4)
    run(made)
    assert made.nbytes > 64 * 2 * model.position_bytes
    for i, job in enumerate(jobs):
        assert tokens(pieces(job)) == model.generate(prompt(60 + i), max_tokens=20).tokens


def test_a_device_that_has_no_more_blocks_serves_with_those_it_has(monkeypatch):
    model = talker()
    made, pool = lane(model, blocks=400, block=2), model.pool

    def small(blocks, block):
        if blocks > 64:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2 GiB.")
        return pool(blocks, block)

    monkeypatch.setattr(model, "pool", small)
    for start in range(6):
        jobs = [ask(model, prompt(40, first=3 + start + i), ChatOptions(max_tokens=12)) for i in range(3)]
        for job in jobs:
            made.add(job)
        run(made)
        for i, job in enumerate(jobs):
            assert tokens(pieces(job)) == model.generate(prompt(40, first=3 + start + i), max_tokens=12).tokens
        made.scheduler.blocks.check([])
    assert made.scheduler.blocks.stats().total == 64


def test_a_failed_pass_does_not_leave_a_wrong_session_behind(slotted, monkeypatch):
    """A ring that was half written is read again, or thrown away."""
    session = slotted.session()
    slotted.enter(session, prompt(150))
    slotted.step_many([Reading(session, 0, 20)])

    def failing(pieces):
        raise MemoryError

    monkeypatch.setattr(slotted.net, "together", failing)
    with pytest.raises(MemoryError):
        slotted.step_many([Reading(session, 20, 150)])
    assert (session.position, session.reach) == (20, 150)
    assert not slotted.config.rewindable(session.reach, 20)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1, 2, 500])
def test_a_chat_goes_to_the_end_of_its_context(kind, most):
    model = talker(kind, context=48)
    made = lane(model)
    made.add(job := ask(model, prompt(40), ChatOptions(max_tokens=most)))
    run(made)
    assert tokens(pieces(job)) == model.generate(prompt(40), max_tokens=most).tokens


def test_a_course_that_goes_on_after_its_sequence_is_told(model, monkeypatch):
    """It would wait for ever."""
    made = lane(model)
    made.add(job := ask(model, prompt(20), ChatOptions(max_tokens=9)))
    for sequence in (*made.scheduler.waiting, *made.scheduler.running):
        monkeypatch.setattr(type(sequence), "said", property(lambda self: 99 if self.computed else 0))
    run(made)
    with pytest.raises(IzwiError, match="after the end of its sequence"):
        pieces(job)


def test_what_is_counted(model):
    made = lane(model)
    for count in (1, 3):
        made.add(ask(model, prompt(20), ChatOptions(max_tokens=count)))
        run(made)
    stopped = ask(model, prompt(20), ChatOptions(max_tokens=50))
    made.add(stopped)
    steps(made, 4)
    stopped.token.cancel()
    run(made)
    metrics = made.metrics
    assert metrics.ended.value("tiny", "length") == 2 and metrics.ended.value("tiny", "cancelled") == 1
    assert metrics.first_token_s.count("tiny") == 3
    assert metrics.generation_tokens.value("tiny") == 4 + len(tokens(pieces(stopped)))
    assert metrics.whole_s.count("tiny") == 3


def test_a_stream_that_nobody_reads_keeps_its_room_and_waits(model):
    made = lane(model)
    slow, other = (ask(model, prompt(20 + i), ChatOptions(max_tokens=40)) for i in range(2))
    slow.outbox._room = 3
    made.add(slow)
    made.add(other)
    steps(made, 60)
    assert other.outbox.ended and not slow.outbox.ended
    assert len(slow.outbox) == 3 and not made.ready
    found = []
    while not slow.outbox.ended or len(slow.outbox):
        while len(slow.outbox):
            found.append(slow.outbox.take())
        made._idle_until_s = 0.0
        steps(made, 1)
    assert len(tokens(found)) == 40


def test_urgent_requests_come_first(model):
    made = lane(model, sequences=1)
    jobs = {p: ask(model, prompt(), ChatOptions(max_tokens=8), priority=p) for p in (Priority.LOW, Priority.HIGH)}
    made.add(ask(model, prompt(), ChatOptions(max_tokens=8)))
    steps(made, 1)
    for job in jobs.values():
        made.add(job)
    while not jobs[Priority.HIGH].outbox.ended:
        steps(made, 1)
    assert not jobs[Priority.LOW].outbox.ended
    run(made)


def test_what_is_left_ends_with_the_lane(model):
    made, job = lane(model), ask(model, prompt(), ChatOptions(max_tokens=90))
    made.add(job)
    steps(made, 3)
    made.close(lambda: Cancelled("The model was unloaded."))
    made.settle()
    assert pieces(job)[-1].finish_reason == "cancelled"
    assert len(made) == 0


def test_a_course_that_asks_for_nonsense_is_told_so(model):
    made = lane(model)

    def odd():
        from izwi_lab.families.shared.course import Decode

        yield Decode(model.session())

    course = odd()
    job = ask(model, prompt(), ChatOptions(max_tokens=2))
    job.course, job.ask = course, next(course)
    made.add(job)
    made.settle()
    with pytest.raises(Exception, match="nobody prefilled"):
        pieces(job)
