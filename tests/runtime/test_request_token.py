"""RequestToken, and what is left of a request when Python ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import Cancelled
from izwi_lab.runtime.request_token import RequestToken

ROOT = Path(__file__).parents[2]


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
    """The device's thread ends before Python does, in the middle of an answer."""
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
