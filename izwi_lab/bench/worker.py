"""The process one case runs in: builds a contender, then loads and runs it when told to over a pipe.

Run as `python -m izwi_lab.bench.worker`. One JSON object a line each way: {"op": "load" | "ready" | "run" | "memory"}
in, {"ok": ...} out. Answers go to the original standard output; whatever a library prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import json
import os
import queue
import resource
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, NoReturn

from izwi_lab.bench.contender import Contender, Workload, plain
from izwi_lab.errors import BackendUnavailableError, NotDownloadedError

# An absent package, device or checkpoint is a fact about the machine, not a fault of the contender.
_ABSENT = (ImportError, BackendUnavailableError, NotDownloadedError)


def peak_bytes() -> int:
    """The highest resident memory of this process so far.

    On Linux from VmHWM: ru_maxrss there starts at the parent's value, since it outlives exec.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process now; 0 where the system does not tell."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0


def _forget_peak() -> None:
    """Let `peak_bytes` begin anew (Linux; elsewhere it keeps counting from the start)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _processor_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Worker:
    """Holds one contender and answers one command at a time."""

    def __init__(self) -> None:
        self._spec: dict[str, Any] = {}
        self._contender: Contender | None = None
        self._loading_peak_bytes = 0

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        """Do one command; every fault becomes an answer that says what happened."""
        try:
            return {"ok": True, **getattr(self, "_" + command["op"])(command)}
        except Exception as error:
            traceback.print_exc()
            ours = isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("izwi_lab")
            status = "missing" if isinstance(error, _ABSENT) and not ours else "failed"
            return {"ok": False, "status": status, "reason": f"{type(error).__name__}: {error}"}

    def _load(self, command: dict[str, Any]) -> dict[str, Any]:
        """Import, build and load: all that a user waits for except the interpreter's own start."""
        spec = command["spec"]
        start_s = time.perf_counter()
        module, _, cls = spec["target"].partition(":")
        contender: Contender = getattr(importlib.import_module(module), cls)(**spec["options"])
        facts = contender.load()
        load_s = time.perf_counter() - start_s
        self._contender = contender
        return {"load_s": load_s, "facts": plain(facts), "loaded_bytes": peak_bytes()}

    def _run(self, command: dict[str, Any]) -> dict[str, Any]:
        if self._contender is None:
            raise RuntimeError("run came before load")
        before_s = _processor_s()
        measurement = self._contender.run(Workload(**command["workload"]))
        measurement = dataclasses.replace(measurement, cpu_s=_processor_s() - before_s)
        return {"measurement": plain(measurement)}

    def _ready(self, command: dict[str, Any]) -> dict[str, Any]:
        """Wait for what the contender still prepares behind its first load, such as compiling kernels."""
        ready = getattr(self._contender, "ready", None)
        facts = plain(ready()) if ready is not None else {}
        self._loading_peak_bytes = peak_bytes()
        _forget_peak()
        return {"facts": facts}

    def _memory(self, command: dict[str, Any]) -> dict[str, Any]:
        working = peak_bytes()
        told = {name: getattr(self._contender, name, None) for name in ("device_bytes", "base_bytes", "needed_bytes")}
        return {
            "peak_bytes": max(working, self._loading_peak_bytes),
            "working_bytes": working,
            **{name: int(tell()) if tell is not None else 0 for name, tell in told.items()},
            "packages": sorted({name.partition(".")[0] for name in sys.modules}),
        }


def main() -> NoReturn:
    """Answer commands until the pipe closes; when it closes during one, the orchestrator is gone and so are we."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    commands: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(commands,), daemon=True).start()
    worker = Worker()
    while True:
        print(json.dumps(worker.answer(json.loads(commands.get()))), file=answers, flush=True)


def _read(commands: queue.SimpleQueue[str]) -> None:
    for line in sys.stdin:
        commands.put(line)
    os._exit(0)


if __name__ == "__main__":
    main()
