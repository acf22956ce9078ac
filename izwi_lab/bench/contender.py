"""What is timed: a Workload, the Contender that does it, and the Measurement it hands back.

A contender is named by a `ContenderSpec`, which travels to a worker process as JSON and is built there, so that the
orchestrating process never imports a framework.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class Workload:
    """One piece of work that every contender does alike. `data` is plain JSON; `title` says it to a reader."""

    name: str
    task: str
    title: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run. Seconds are wall time; what a contender cannot tell is None.

    first_s: to the first token or first audio. prefill_s ends when the first token is known, decode_s spans the
    `tokens` after it. audio_s: seconds of audio made or heard. cpu_s: processor seconds, filled in by the worker.
    quality: word error rate. input, output: digests of what was read and what came out, to see that contenders agree.
    read_bytes: weights and caches that must cross the memory bus during decode_s, each counted once for each token.
    others: share of the machine's processors that other programs used meanwhile, filled in by the harness.
    served: tokens that several requests were answered with in all of total_s, prompts and waiting included. latency:
    seconds by name, of what these requests waited for (`LATENCIES`), such as "gap_p95", 95 of 100 gaps between tokens.
    """

    total_s: float
    first_s: float | None = None
    prefill_s: float | None = None
    decode_s: float | None = None
    audio_s: float | None = None
    prompt_tokens: int = 0
    tokens: int = 0
    cpu_s: float | None = None
    quality: float | None = None
    read_bytes: int = 0
    input: str = ""
    output: str = ""
    others: float | None = None
    served: int = 0
    latency: Mapping[str, float] = field(default_factory=dict)

    @property
    def real_time(self) -> float | None:
        """Seconds of audio per second of work: 2.0 is twice as fast as listening."""
        return self.audio_s / self.total_s if self.audio_s and self.total_s else None

    @property
    def prefill_tps(self) -> float | None:
        """Prompt tokens read per second."""
        return self.prompt_tokens / self.prefill_s if self.prefill_s and self.prompt_tokens else None

    @property
    def decode_tps(self) -> float | None:
        """Tokens generated per second after the first."""
        return self.tokens / self.decode_s if self.decode_s and self.tokens else None

    @property
    def served_tps(self) -> float | None:
        """Tokens that all requests together were answered with, per second from the first to the last of them."""
        return self.served / self.total_s if self.total_s and self.served else None

    @property
    def read_gbps(self) -> float | None:
        """Gigabytes that had to be read per second of decoding."""
        return self.read_bytes / self.decode_s / 1e9 if self.decode_s and self.read_bytes else None


@dataclass(frozen=True, slots=True)
class Metric:
    """A figure of a run. better: "higher" or "lower"."""

    name: str
    label: str
    better: str
    of: Callable[[Measurement], float | None]
    digits: int = 2


def _waited(name: str) -> Callable[[Measurement], float | None]:
    return lambda measurement: measurement.latency.get(name)


LATENCIES: tuple[Metric, ...] = (
    Metric("first_p95", "first output p95 s", "lower", _waited("first_p95"), 3),
    Metric("queue_p50", "queue p50 s", "lower", _waited("queue_p50"), 3),
    Metric("queue_p95", "queue p95 s", "lower", _waited("queue_p95"), 3),
    Metric("gap_p50", "between tokens p50 s", "lower", _waited("gap_p50"), 4),
    Metric("gap_p95", "between tokens p95 s", "lower", _waited("gap_p95"), 4),
)

METRICS: tuple[Metric, ...] = (
    Metric("real_time", "x real time", "higher", lambda m: m.real_time),
    Metric("served_tps", "tokens/s of all", "higher", lambda m: m.served_tps, 1),
    Metric("prefill_tps", "prefill tokens/s", "higher", lambda m: m.prefill_tps, 0),
    Metric("decode_tps", "decode tokens/s", "higher", lambda m: m.decode_tps, 1),
    Metric("read_gbps", "GB/s read", "higher", lambda m: m.read_gbps, 1),
    Metric("first_s", "first output s", "lower", lambda m: m.first_s, 3),
    *LATENCIES,
    Metric("total_s", "total s", "lower", lambda m: m.total_s),
    Metric("cpu_s", "processor s", "lower", lambda m: m.cpu_s),
    Metric("quality", "word error", "lower", lambda m: m.quality, 3),
)


class Contender(Protocol):
    """Something that can do a workload. Built in its own process from a ContenderSpec's options."""

    def load(self) -> Mapping[str, Any]:
        """Get ready; timed as the load time. Returns facts worth recording (plan, threads, dtype), plain JSON."""

    def run(self, workload: Workload) -> Measurement:
        """Do the work once, from a clean state."""


@dataclass(frozen=True, slots=True)
class ContenderSpec:
    """How to build a contender: `target` is "module:Class", called with `options` as keywords.

    role: "ours", "peer", or "limit" (the machine itself, which no program can beat). unavailable: a reason known
    beforehand; such a contender is recorded and never started.
    search_path: folders put on the worker's import path. Options may hold paths; the record keeps only `settings`.
    """

    name: str
    target: str
    role: str = "peer"
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    search_path: tuple[str, ...] = ()
    unavailable: str = ""


@dataclass(frozen=True, slots=True)
class CaseResult:
    """All that was learnt about one contender on one workload.

    status: "ok", "missing" (not installed, no such device), "failed" or "timeout"; `reason` says more.
    prepare_s: the first load, which may convert a checkpoint; load_s: the loads after it, each in a fresh process.
    peak_bytes: the process's highest resident memory; device_bytes: the framework's memory on an accelerator.
    base_bytes: resident before the model was loaded (interpreter, framework); working_bytes: the highest after it was;
    needed_bytes: weights and caches, where the contender can tell.
    discarded: runs not kept because other programs disturbed the round they belong to.
    """

    contender: str
    role: str
    status: str
    reason: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    prepare_s: float | None = None
    load_s: tuple[float, ...] = ()
    loaded_bytes: int = 0
    peak_bytes: int = 0
    device_bytes: int = 0
    base_bytes: int = 0
    working_bytes: int = 0
    needed_bytes: int = 0
    runs: tuple[Measurement, ...] = ()
    discarded: int = 0
    packages: tuple[str, ...] = ()

    @property
    def memory_ratio(self) -> float | None:
        """Memory at work over weights and caches; the interpreter and the framework's code are not counted.

        On an accelerator the framework's own figure, elsewhere the process's resident memory above base_bytes.
        """
        at_work = self.device_bytes or self.working_bytes - self.base_bytes
        return at_work / self.needed_bytes if self.needed_bytes and at_work > 0 else None


def plain(value: Any) -> Any:
    """A dataclass or mapping as plain JSON containers."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return value
