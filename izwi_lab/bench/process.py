"""WorkerProcess: the orchestrator's end of the pipe, with a deadline on every answer."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from izwi_lab.bench.contender import ContenderSpec, Measurement, Workload, plain

_PACKAGE_ROOT = str(Path(__file__).resolve().parents[2])


class CaseError(Exception):
    """A case that cannot go on. status: "missing", "failed" or "timeout"."""

    def __init__(self, status: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.reason = status, reason


class WorkerProcess:
    """One contender in a process of its own; it stays loaded and idle between runs until closed."""

    def __init__(self, spec: ContenderSpec, *, timeout_s: float) -> None:
        self.spec, self._timeout_s = spec, timeout_s
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed in close()
        search = [*spec.search_path, _PACKAGE_ROOT, os.environ.get("PYTHONPATH", "")]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "izwi_lab.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in search if p)},
            start_new_session=True,  # so that closing it ends its own children too, and Ctrl-C reaches us alone
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def load(self) -> dict[str, Any]:
        """Import, build and load the contender; seconds, facts and resident bytes."""
        return self._ask({"op": "load", "spec": {"target": self.spec.target, "options": plain(self.spec.options)}})

    def ready(self) -> dict[str, Any]:
        """Wait until nothing is prepared in the background any more; facts about it."""
        facts: dict[str, Any] = self._ask({"op": "ready"})["facts"]
        return facts

    def run(self, workload: Workload) -> Measurement:
        """One run."""
        return Measurement(**self._ask({"op": "run", "workload": plain(workload)})["measurement"])

    def memory(self) -> dict[str, Any]:
        """Peak resident bytes, device bytes, and the names of the packages that were imported."""
        return self._ask({"op": "memory"})

    def close(self) -> None:
        """End the process; twice is harmless."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._kill()
        self._reader.join(timeout=2)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # the pipe closed: the process is gone

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the reader sees the end of a process that died
            self._process.stdin.write(json.dumps(command) + "\n")
            self._process.stdin.flush()
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._kill()
            raise CaseError("timeout", f"{command['op']} took longer than {self._timeout_s:g} s") from None
        if not line:
            code = self._process.wait()
            raise CaseError(
                "failed", f"the process ended with code {code} during {command['op']}: {self._last_words()}"
            )
        answer: dict[str, Any] = json.loads(line)
        if not answer["ok"]:
            raise CaseError(answer["status"], answer["reason"])
        return answer

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:]) or "it said nothing"
