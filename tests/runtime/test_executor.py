"""Executors: where work runs, how errors and interrupts come back, and their end."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled
from izwi_lab.runtime.executor import DeviceThread, Executors
from izwi_lab.runtime.request_token import RequestToken

ROOT = Path(__file__).parents[2]


def backend(device: str = "gpu", bound: bool = True) -> SimpleNamespace:
    return SimpleNamespace(name="mlx" if bound else "torch", device=device, dtype="float32", thread_bound=bound)


def test_one_thread_per_bound_device_and_none_for_others():
    executors = Executors()
    try:
        token = CancelToken()
        here = threading.get_ident()
        first, again, other = (executors.of(backend(d)).run(threading.get_ident, token) for d in ("gpu", "gpu", "cpu"))
        assert first == again != other
        assert here not in (first, other)
        assert executors.of(backend(bound=False)).run(threading.get_ident, token) == here
    finally:
        executors.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("izwi-mlx")]


def test_values_errors_and_work_inside_work():
    thread, token = DeviceThread("izwi-test"), CancelToken()
    assert thread.run(lambda: thread.run(lambda: 7, token), token) == 7
    with pytest.raises(ZeroDivisionError):
        thread.run(lambda: 1 / 0, token)
    with pytest.raises(StopIteration):
        thread.run(lambda: next(iter(())), token)
    thread.close()
    with pytest.raises(Cancelled, match="ended"):
        thread.run(lambda: 7, token)


def test_an_interrupted_caller_waits_for_the_step_and_cancels_the_rest(monkeypatch):
    thread, token, started, done = DeviceThread("izwi-test"), CancelToken(), threading.Event(), []

    class Interrupted:
        """A future whose first wait is interrupted by Ctrl-C."""

        def __init__(self, future):
            self.future = future

        def result(self):
            started.wait(5)
            raise KeyboardInterrupt

        def cancel(self):
            return self.future.cancel()

        def exception(self):
            return self.future.exception(5)

    def work() -> None:
        started.set()
        while not token.cancelled:
            pass
        done.append(True)

    submit = thread._pool.submit
    monkeypatch.setattr(thread._pool, "submit", lambda work: Interrupted(submit(work)))
    with pytest.raises(KeyboardInterrupt):
        thread.run(work, token)
    assert done == [True]
    assert token.cancelled
    thread.close()


def test_a_request_token_joins_three_reasons_to_stop():
    outer = CancelToken()
    token = RequestToken(outer)
    token.check()
    outer.cancel()
    assert token.cancelled
    with pytest.raises(Cancelled, match="by its caller"):
        token.check()
    late = RequestToken(None, timeout_s=1e-9)
    with pytest.raises(Cancelled, match="deadline"):
        late.check()
    own = RequestToken(fresh := CancelToken())
    own.cancel()
    assert own.cancelled
    assert not fresh.cancelled


def test_an_open_stream_does_not_disturb_the_end_of_python(tmp_path):
    """The default engine closes at exit, after Python has stopped the device's thread."""
    code = f"""
import atexit, sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "tests" / "runtime")!r}]
import importlib
from types import SimpleNamespace
from runtime_fakes import FakeRouter, make_variant
from izwi_lab import families
families.__path__.append({str(ROOT / "tests" / "runtime" / "fake_families")!r})
from izwi_lab.runtime import load, model_router
from izwi_lab.runtime.service import InferenceEngine
model_router.BackendRouter = FakeRouter
load.backends.open_backend = lambda plan: SimpleNamespace(name="bound", device="cpu", dtype="x", thread_bound=True)
engine = InferenceEngine(load_format="dummy", backend="bound")
atexit.register(engine.close)
stream = engine.stream_speak("a b c", model=make_variant("voice"))
print(next(stream).text)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "a\n", "")


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs a list of this process's threads")
def test_a_closed_device_thread_has_ended_for_the_system_too() -> None:
    thread = DeviceThread("ending")
    native_id = thread.run(threading.get_native_id, CancelToken())
    assert (Path("/proc/self/task") / str(native_id)).exists()
    thread.close()
    assert not (Path("/proc/self/task") / str(native_id)).exists()
