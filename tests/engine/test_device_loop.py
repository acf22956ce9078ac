"""DeviceLoop: where work runs, how errors and interrupts come back, turns between models, and its end."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from izwi_lab.cancel import CancelToken
from izwi_lab.engine import device
from izwi_lab.engine.device import DeviceLoop
from izwi_lab.errors import Cancelled


def test_all_work_runs_on_one_thread_of_its_own():
    loop, other, token = DeviceLoop("izwi-one"), DeviceLoop("izwi-two"), CancelToken()
    first, again, elsewhere = (made.call(threading.get_ident, token) for made in (loop, loop, other))
    assert first == again != elsewhere
    assert threading.get_ident() not in (first, elsewhere)
    loop.close()
    other.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("izwi-one")]


def test_values_errors_and_work_inside_work():
    loop, token = DeviceLoop("izwi-test"), CancelToken()
    assert loop.call(lambda: loop.call(lambda: 7, token), token) == 7
    with pytest.raises(ZeroDivisionError):
        loop.call(lambda: 1 / 0, token)
    with pytest.raises(StopIteration):
        loop.call(lambda: next(iter(())), token)
    loop.close()
    with pytest.raises(Cancelled, match="ended"):
        loop.call(lambda: 7, token)


def test_an_interrupted_caller_waits_for_the_work_and_cancels_the_rest(monkeypatch):
    loop, token, started, done = DeviceLoop("izwi-test"), CancelToken(), threading.Event(), []

    class Interrupted(device.Future):
        """A future whose wait is interrupted by Ctrl-C."""

        def result(self, timeout=None):
            started.wait(5)
            raise KeyboardInterrupt

    def work() -> None:
        started.set()
        while not token.cancelled:
            pass
        done.append(True)

    monkeypatch.setattr(device, "Future", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        loop.call(work, token)
    assert done == [True]
    assert token.cancelled
    loop.close()


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a list of this process's threads")
def test_a_closed_loop_has_ended_for_the_system_too() -> None:
    loop = DeviceLoop("ending")
    native_id = loop.call(threading.get_native_id, CancelToken())
    assert (Path("/proc/self/task") / str(native_id)).exists()
    loop.close()
    assert not (Path("/proc/self/task") / str(native_id)).exists()
