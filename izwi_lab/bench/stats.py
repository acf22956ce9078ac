"""Median and spread of a few runs, and ratios formed run by run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from izwi_lab.bench.contender import METRICS, CaseResult, Metric


@dataclass(frozen=True, slots=True)
class Spread:
    """The middle of some runs and how far they lie apart."""

    median: float
    low: float
    high: float
    count: int


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours divided by a peer's, run by run. better: "higher" or "lower" is better for us."""

    metric: str
    ours: str
    peer: str
    better: str
    spread: Spread


LIMIT = "limit"
_READ = next(m for m in METRICS if m.name == "read_gbps")


def spread(values: Sequence[float]) -> Spread | None:
    """Median, minimum and maximum; None without values."""
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0..1) of them are not above, between two of them in proportion. Needs at least one."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def values_of(case: CaseResult, metric: Metric) -> list[float]:
    """The metric of every run that has it."""
    return [value for run in case.runs if (value := metric.of(run)) is not None]


def ratio(ours: CaseResult, peer: CaseResult, metric: Metric) -> Ratio | None:
    """Run i of ours over run i of the peer: neighbours in time. None where either lacks the figure."""
    pairs = [(metric.of(a), metric.of(b)) for a, b in zip(ours.runs, peer.runs, strict=False)]
    found = spread([a / b for a, b in pairs if a is not None and b])
    return Ratio(metric.name, ours.contender, peer.contender, metric.better, found) if found else None


def ratios(cases: Sequence[CaseResult], *, reference: CaseResult | None = None) -> list[Ratio]:
    """Every metric of every case of ours against every peer, peak memory and load time included.

    Against a limit of the machine only what was read per second. reference: compare all other cases with this one
    instead of ours with the peers.
    """
    if reference is None:
        couples = [(a, b) for a in cases for b in cases if a.role == "ours" and b.role == "peer"]
    else:
        couples = [(a, reference) for a in cases if a is not reference and a.role != LIMIT]
    found: list[Ratio] = []
    for a, b in couples:
        if not (a.runs and b.runs):
            continue
        found += [r for metric in METRICS if (r := ratio(a, b, metric)) is not None]
        found += _of_process(a, b)
    return [*found, *(share for a in cases if (share := share_of_limit(a, cases)) is not None)]


def share_of_limit(case: CaseResult, cases: Sequence[CaseResult]) -> Ratio | None:
    """What a case read per second over what the machine can read, run by run; None without a limit among `cases`."""
    limit = next((c for c in cases if c.role == LIMIT), None)
    return ratio(case, limit, _READ) if limit is not None and case.role != LIMIT else None


def _of_process(a: CaseResult, b: CaseResult) -> list[Ratio]:
    loads = [x / y for x, y in zip(a.load_s, b.load_s, strict=False) if y]
    peaks = [a.peak_bytes / b.peak_bytes] if a.peak_bytes and b.peak_bytes else []
    return [
        Ratio(name, a.contender, b.contender, "lower", found)
        for name, found in (("load_s", spread(loads)), ("peak_bytes", spread(peaks)))
        if found
    ]


def same_input(cases: Sequence[CaseResult]) -> bool:
    """True when every run of every case read the same ids or samples."""
    return len({run.input for case in cases for run in case.runs if run.input}) <= 1
