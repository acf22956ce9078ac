"""The registry: loaded once, never dropped while in use, dropped when idle or in the way, errors forgotten."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from runtime_fakes import make_variant

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled, InvalidInputError, IzwiError, MemoryBudgetError
from izwi_lab.runtime.entry import ModelKey
from izwi_lab.runtime.registry import ModelRegistry


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Thing:
    """A model of some bytes that knows whether it was closed."""

    resident = 0
    peak = 0

    def __init__(self, nbytes: int) -> None:
        self.nbytes, self.closed = nbytes, False
        Thing.resident += nbytes
        Thing.peak = max(Thing.peak, Thing.resident)

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        Thing.resident -= self.nbytes


@pytest.fixture(autouse=True)
def no_things() -> None:
    Thing.resident = Thing.peak = 0


def key(name: str) -> ModelKey:
    return ModelKey(name, "torch", "cpu", "float32")


def take(registry: ModelRegistry, name: str, nbytes: int = 100, build=None, **options):
    return registry.acquire(
        key(name), make_variant(name), build or (lambda: Thing(nbytes)), estimate_bytes=nbytes, **options
    )


def in_thread(work):
    """Run `work` in a thread; `.result()` gives its value or raises its error."""
    from concurrent.futures import Future

    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def names(registry: ModelRegistry) -> list[str]:
    return [m.id for m in registry.loaded()]


def test_many_threads_load_once():
    registry, built, gate = ModelRegistry(), [], threading.Event()

    def build() -> Thing:
        built.append(threading.get_ident())
        gate.wait(5)
        return Thing(1)

    futures = [in_thread(lambda: take(registry, "a", build=build)) for _ in range(8)]
    time.sleep(0.05)
    gate.set()
    leases = [f.result(5) for f in futures]
    assert len(built) == 1
    assert len({id(lease.model) for lease in leases}) == 1
    assert registry.loaded()[0].in_use == 8
    for lease in leases:
        lease.release()
    assert registry.loaded()[0].in_use == 0
    registry.close()


def test_a_failed_load_reaches_all_who_waited_and_is_forgotten():
    registry, gate, calls = ModelRegistry(), threading.Event(), []

    def failing() -> Thing:
        calls.append(1)
        gate.wait(5)
        raise OSError("disk on fire")

    futures = [in_thread(lambda: take(registry, "a", build=failing)) for _ in range(3)]
    time.sleep(0.15)
    gate.set()
    for future in futures:
        with pytest.raises(OSError, match="on fire"):
            future.result(5)
    assert len(calls) == 1
    with take(registry, "a") as lease:
        assert lease.model.nbytes == 100


def test_when_the_loading_caller_gives_up_another_takes_over():
    registry, token, started = ModelRegistry(), CancelToken(), threading.Event()

    def cancelled() -> Thing:
        started.set()
        while True:
            token.check()
            time.sleep(0.01)

    first = in_thread(lambda: take(registry, "a", build=cancelled, token=token))
    started.wait(5)
    second = in_thread(lambda: take(registry, "a"))
    time.sleep(0.05)
    token.cancel()
    with pytest.raises(Cancelled):
        first.result(5)
    assert second.result(5).model.nbytes == 100


def test_a_waiting_caller_can_give_up_alone():
    registry, gate, token = ModelRegistry(), threading.Event(), CancelToken()

    def slow() -> Thing:
        gate.wait(5)
        return Thing(1)

    first = in_thread(lambda: take(registry, "a", build=slow))
    time.sleep(0.05)
    second = in_thread(lambda: take(registry, "a", token=token))
    token.cancel()
    with pytest.raises(Cancelled):
        second.result(5)
    gate.set()
    assert first.result(5).model.nbytes == 1


def test_idle_models_expire_and_use_refreshes_them():
    clock = Clock()
    registry = ModelRegistry(idle_ttl_s=60.0, clock=clock)
    take(registry, "a").release()
    clock.now_s += 50
    take(registry, "a").release()
    clock.now_s += 50
    registry.sweep()
    assert names(registry) == ["a"]
    clock.now_s += 11
    registry.sweep()
    assert names(registry) == []
    registry.close()


def test_a_model_in_use_never_expires():
    clock = Clock()
    registry = ModelRegistry(idle_ttl_s=1.0, clock=clock)
    lease = take(registry, "a")
    clock.now_s += 1e6
    registry.sweep()
    assert not lease.model.closed
    lease.release()
    clock.now_s += 2
    registry.sweep()
    assert names(registry) == []
    registry.close()


def test_ttl_zero_drops_at_once_and_none_never():
    registry = ModelRegistry(idle_ttl_s=0)
    with take(registry, "a") as lease:
        model = lease.model
    assert model.closed
    assert names(registry) == []
    clock = Clock()
    forever = ModelRegistry(idle_ttl_s=None, clock=clock)
    take(forever, "a").release()
    clock.now_s += 1e9
    forever.sweep()
    assert names(forever) == ["a"]


def test_the_timer_drops_idle_models_and_its_thread_ends():
    registry = ModelRegistry(idle_ttl_s=0.05)
    with take(registry, "a") as lease:
        model = lease.model
    ends = time.monotonic() + 5
    while not model.closed and time.monotonic() < ends:
        time.sleep(0.01)
    assert model.closed
    while any(t.name == "izwi-idle-models" for t in threading.enumerate()) and time.monotonic() < ends:
        time.sleep(0.01)
    assert not any(t.name == "izwi-idle-models" for t in threading.enumerate())


def test_close_stops_the_timer_and_drops_all():
    registry = ModelRegistry(idle_ttl_s=1000.0)
    lease = take(registry, "a")
    model = lease.model
    lease.release()
    assert any(t.name == "izwi-idle-models" for t in threading.enumerate())
    registry.close()
    assert model.closed
    assert not any(t.name == "izwi-idle-models" for t in threading.enumerate())
    with pytest.raises(IzwiError, match="closed"):
        take(registry, "a")


def test_the_budget_drops_the_least_recently_used_idle_model_before_loading():
    clock = Clock()
    registry = ModelRegistry(budget_bytes=250, clock=clock)
    for name in "ab":
        take(registry, name).release()
        clock.now_s += 1
    take(registry, "a").release()
    clock.now_s += 1
    take(registry, "c").release()
    assert names(registry) == ["c", "a"]
    assert Thing.peak == 200, "the old model must be gone before the new one is loaded"


def test_what_is_in_use_is_never_dropped_for_room_and_the_error_names_it():
    registry = ModelRegistry(budget_bytes=250)
    held, other = take(registry, "a"), take(registry, "b")
    with pytest.raises(MemoryBudgetError, match=r"c needs .* in use now: a \(.*in use\), b \(.*in use\)"):
        take(registry, "c")
    assert not held.model.closed
    other.release()
    with take(registry, "c") as lease:
        assert lease.model.nbytes == 100
    assert names(registry) == ["c", "a"] or names(registry) == ["a", "c"]


def test_a_model_larger_than_the_budget_is_refused_before_loading_and_drops_nothing():
    registry = ModelRegistry(budget_bytes=250)
    take(registry, "a").release()
    with pytest.raises(MemoryBudgetError, match="big needs"):
        take(registry, "big", 300)
    assert names(registry) == ["a"]
    assert Thing.peak == 100


def test_a_model_that_turns_out_larger_makes_room_or_is_dropped_and_is_known_next_time():
    registry = ModelRegistry(budget_bytes=250)
    take(registry, "a").release()
    with take(registry, "b", build=lambda: Thing(200)):
        assert names(registry) == ["b"]
    registry.unload("b")
    held = take(registry, "a")
    with pytest.raises(MemoryBudgetError, match="b needs"):
        take(registry, "b", build=lambda: pytest.fail("its real size is known by now"))
    with pytest.raises(MemoryBudgetError):
        take(registry, "d", build=lambda: Thing(500))
    assert Thing.resident == held.model.nbytes


def test_unload_drops_idle_now_and_waits_for_use():
    registry = ModelRegistry()
    take(registry, "a").release()
    assert registry.unload("a")
    assert names(registry) == []
    assert registry.unload("never loaded")
    lease = take(registry, "a")
    model = lease.model
    assert registry.unload("a", wait=False) is False
    assert registry.loaded()[0].leaving
    assert registry.unload("a", timeout_s=0.05) is False
    waiting = in_thread(lambda: registry.unload("a"))
    time.sleep(0.05)
    assert not model.closed
    lease.release()
    assert waiting.result(5) is True
    assert model.closed


def test_a_lost_lease_is_counted_as_released():
    registry = ModelRegistry()
    lease = take(registry, "a")
    model = lease.model
    del lease
    gc.collect()
    assert registry.loaded()[0].in_use == 0
    assert registry.unload("a")
    assert model.closed


def test_a_released_lease_hands_out_nothing():
    registry = ModelRegistry()
    lease = take(registry, "a")
    lease.release()
    lease.release()
    with pytest.raises(IzwiError, match="released"):
        _ = lease.model
    assert registry.loaded()[0].in_use == 0


def test_a_model_that_fails_to_close_still_leaves(caplog):
    class Stubborn(Thing):
        def close(self) -> None:
            raise RuntimeError("no")

    registry = ModelRegistry()
    take(registry, "a", build=lambda: Stubborn(1)).release()
    assert registry.unload("a")
    assert "closing a failed" in caplog.text
    assert names(registry) == []


def test_hammering_two_models_in_a_budget_for_one():
    """Threads that take and give back two models of which one fits: always the right one, never two, never dropped."""
    registry = ModelRegistry(budget_bytes=150, idle_ttl_s=0.001)
    wrong: list[str] = []

    def worker(name: str) -> int:
        done = 0
        ends = time.monotonic() + 20
        while done < 40 and time.monotonic() < ends:
            try:
                with registry.acquire(key(name), make_variant(name), lambda: Thing(100), estimate_bytes=100) as lease:
                    if lease.variant.id != name or lease.model.closed or Thing.resident > 100:
                        wrong.append(name)
                    done += 1
            except MemoryBudgetError:
                time.sleep(0.0005)
        return done

    futures = [in_thread(lambda n=n: worker(n)) for n in "abab"]
    assert [f.result(30) for f in futures] == [40] * 4
    assert not wrong
    registry.close()
    assert Thing.resident == 0


@pytest.mark.parametrize("options", [{"budget_bytes": 0}, {"idle_ttl_s": -1.0}, {"idle_ttl_s": float("nan")}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(InvalidInputError):
        ModelRegistry(**options)
