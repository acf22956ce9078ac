"""The door: how many may wait, what a full queue says, and how long it is to last."""

from __future__ import annotations

import threading

import pytest

from izwi_lab.engine.admission import Admission, QueueLimits
from izwi_lab.errors import InvalidInputError, QueueFullError


def test_the_queue_is_bounded_by_count_and_by_tokens():
    door = Admission(QueueLimits(requests=3, prompt_tokens=100))
    tickets = [door.admit("ada", 40, now=0.0), door.admit("bob", 40, now=0.0)]
    with pytest.raises(QueueFullError, match="80 of 100 tokens of prompts wait") as full:
        door.admit("bob", 21, now=0.0)
    assert full.value.retry_after_s == 1.0 and "Try again" in full.value.hint
    tickets.append(door.admit("bob", 20, now=0.0))
    with pytest.raises(QueueFullError, match="3 of 3 requests wait"):
        door.admit("bob", 0, now=0.0)
    assert len(door) == 3 and door.prompt_tokens == 100 and door.tenants == {"ada": 1, "bob": 2}
    for ticket in tickets * 2:
        door.leave(ticket, now=1.0)
    assert len(door) == 0 and door.prompt_tokens == 0 and door.tenants == {}


def test_a_tenant_has_a_part_of_the_queue():
    door = Admission(QueueLimits(requests=4, prompt_tokens=100, tenant_requests=2, tenant_prompt_tokens=30))
    door.admit("ada", 10, now=0.0)
    door.admit("ada", 10, now=0.0)
    with pytest.raises(QueueFullError, match="Your part of the queue is full: 2 of 2"):
        door.admit("ada", 1, now=0.0)
    door.admit("bob", 25, now=0.0)
    with pytest.raises(QueueFullError, match="25 of 30 tokens"):
        door.admit("bob", 6, now=0.0)
    with pytest.raises(InvalidInputError, match="A prompt of 31 tokens is longer than your part of the queue, of 30"):
        door.admit("eve", 31, now=0.0)


def test_a_prompt_that_never_fits_is_no_matter_of_waiting():
    with pytest.raises(InvalidInputError, match="longer than the queue, of 100"):
        Admission(QueueLimits(prompt_tokens=100)).admit("ada", 101, now=0.0)


def test_the_wait_is_what_the_queue_took_lately():
    door = Admission(QueueLimits(requests=10, prompt_tokens=1000))
    tickets = [door.admit("ada", 100, now=0.0) for _ in range(10)]
    for at in range(5):  # one each two seconds
        door.leave(tickets.pop(), now=2.0 * (at + 1))
        tickets.append(door.admit("ada", 100, now=2.0 * (at + 1)))
    with pytest.raises(QueueFullError) as full:
        door.admit("ada", 100, now=10.0)
    assert full.value.retry_after_s == pytest.approx(2.0)
    with pytest.raises(QueueFullError) as large:
        door.admit("ada", 400, now=10.0)
    assert large.value.retry_after_s == pytest.approx(8.0), "four places of tokens"
    with pytest.raises(QueueFullError) as stalled:
        door.admit("ada", 100, now=30.0)
    assert stalled.value.retry_after_s == pytest.approx(6.0), "nothing has left for a while"


def test_a_tenants_wait_counts_its_share():
    door = Admission(QueueLimits(requests=100, tenant_requests=1))
    gone = [door.admit(f"t{i}", 10, now=0.0) for i in range(4)]
    for at, ticket in enumerate(gone[:2]):
        door.leave(ticket, now=at + 1.0)
    with pytest.raises(QueueFullError) as full:
        door.admit("t3", 10, now=2.0)
    assert full.value.retry_after_s == pytest.approx(2.0), "one leaves each second, and half of the queue is not its"


def test_idle_time_and_those_who_give_up_are_no_throughput():
    door = Admission(QueueLimits(requests=1))
    door.leave(door.admit("ada", 10, now=0.0), now=0.5)
    door.leave(door.admit("ada", 10, now=1000.0), now=1000.5)
    door.leave(door.admit("ada", 10, now=1001.0), now=1030.0, started=False)
    door.admit("ada", 10, now=1031.0)
    with pytest.raises(QueueFullError) as full:
        door.admit("ada", 10, now=1031.0)
    assert full.value.retry_after_s == pytest.approx(0.5)


def test_the_wait_stays_within_reason():
    door = Admission(QueueLimits(requests=1))
    door.leave(door.admit("ada", 0, now=0.0), now=0.0)
    door.admit("ada", 0, now=0.0)
    for now, wait in ((0.0, 0.1), (1e6, 60.0)):
        with pytest.raises(QueueFullError) as full:
            door.admit("ada", 0, now=now)
        assert full.value.retry_after_s == wait


def test_many_threads_never_pass_more_than_allowed():
    door, inside, most, lock = Admission(QueueLimits(requests=5)), [0], [0], threading.Lock()

    def come() -> None:
        for _ in range(300):
            try:
                ticket = door.admit("ada", 1, now=0.0)
            except QueueFullError:
                continue
            with lock:
                inside[0] += 1
                most[0] = max(most[0], inside[0])
            with lock:
                inside[0] -= 1
            door.leave(ticket, now=0.0)

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= most[0] <= 5 and len(door) == 0 and door.prompt_tokens == 0


@pytest.mark.parametrize("wrong", [{"requests": 0}, {"prompt_tokens": None}, {"tenant_requests": 1.5}])
def test_limits_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InvalidInputError, match="QueueLimits"):
        QueueLimits(**wrong)
    with pytest.raises(InvalidInputError):
        Admission().admit("ada", -1, now=0.0)
