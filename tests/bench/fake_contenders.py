"""Contenders that take no time and write down when their turn came; built inside worker processes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from izwi_lab.bench.contender import Measurement, Workload
from izwi_lab.errors import BackendUnavailableError


class Fake:
    """Run i takes `seconds[i]` by its own account. log: every load and run appends a line."""

    def __init__(self, *, name: str, log: str, seconds: list[float], megabytes: int = 0) -> None:
        self.name, self.log, self.seconds = name, Path(log), iter(seconds)
        self.megabytes = megabytes

    def load(self) -> Mapping[str, Any]:
        print("a library that prints to standard output")
        self._write("load")
        self.ballast = b"x" * (self.megabytes << 20)
        return {"threads": 1}

    def run(self, workload: Workload) -> Measurement:
        self._write("run")
        return Measurement(
            total_s=next(self.seconds),
            first_s=0.25,
            prefill_s=0.5,
            decode_s=2.0,
            audio_s=6.0,
            prompt_tokens=241,
            tokens=128,
            input=workload.data["input"],
            output=self.name,
        )

    def device_bytes(self) -> int:
        return 1234

    def _write(self, what: str) -> None:
        with self.log.open("a") as file:
            file.write(f"{what} {self.name} {os.getpid()}\n")


class Broken:
    """Fails, hangs, dies or is absent at the step it is told to."""

    def __init__(self, *, at: str, how: str) -> None:
        self.at, self.how = at, how

    def load(self) -> Mapping[str, Any]:
        return self._maybe("load") or {}

    def run(self, workload: Workload) -> Measurement:
        self._maybe("run")
        return Measurement(total_s=1.0)

    def _maybe(self, step: str) -> None:
        if step != self.at:
            return
        if self.how == "raise":
            raise ValueError("no such luck")
        if self.how == "absent":
            import a_package_that_nobody_has  # noqa: F401
        if self.how == "no device":
            raise BackendUnavailableError("There is no CUDA device here.")
        if self.how == "hang":
            time.sleep(60)
        if self.how == "die":
            print("the last words", file=sys.stderr)
            sys.stderr.flush()
            os._exit(7)
