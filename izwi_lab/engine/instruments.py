"""Counter, Gauge and Histogram, and their text in Prometheus' exposition format 0.0.4.

https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import math
import re
import threading
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import ClassVar, Generic, TypeVar

from izwi_lab.errors import InvalidInputError

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

T = TypeVar("T")
Labels = tuple[str, ...]


class Instrument(Generic[T]):
    """One metric: a series for each combination of values of its labels. Safe to use from many threads."""

    kind: ClassVar[str]

    def __init__(self, name: str, about: str, labels: Sequence[str] = ()) -> None:
        if not _NAME.fullmatch(name) or not all(_LABEL.fullmatch(label) and label != "le" for label in labels):
            raise InvalidInputError(f"{name!r} with the labels {tuple(labels)} is no name of a metric.")
        self.name, self.about, self.labels = name, about, tuple(labels)
        self._lock = threading.Lock()
        self._series: dict[Labels, T] = {}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name}, {len(self._series)} series)"

    def forget(self, *labels: str) -> None:
        """Drop the series whose labels begin with these."""
        with self._lock:
            self._series = {key: value for key, value in self._series.items() if key[: len(labels)] != labels}

    def series(self) -> tuple[Labels, ...]:
        """The values of labels there are."""
        with self._lock:
            return tuple(sorted(self._series))

    def text(self) -> str:
        """HELP, TYPE and all series, as lines."""
        about = self.about.replace("\\", r"\\").replace("\n", r"\n")
        with self._lock:
            lines = [line for key in sorted(self._series) for line in self._lines(key, self._series[key])]
        return "\n".join([f"# HELP {self.name} {about}", f"# TYPE {self.name} {self.kind}", *lines, ""])

    def _lines(self, key: Labels, value: T) -> Iterable[str]:
        raise AssertionError("each kind of metric has its own lines")

    def _key(self, labels: Labels) -> Labels:
        if len(labels) != len(self.labels):
            raise InvalidInputError(f"{self.name} has the labels {self.labels}, got the values {labels}.")
        return labels

    def _line(self, suffix: str, key: Labels, value: float, le: str = "") -> str:
        pairs = [f'{label}="{_escaped(text)}"' for label, text in zip(self.labels, key, strict=True)]
        pairs += [f'le="{le}"'] if le else []
        return f"{self.name}{suffix}{'{' + ','.join(pairs) + '}' if pairs else ''} {_number(value)}"


class Counter(Instrument[float]):
    """What only grows. Its name ends in _total."""

    kind = "counter"

    def add(self, amount: float, *labels: str) -> None:
        """Count more. Raises InvalidInputError for less than nothing."""
        if not 0 <= amount < math.inf:
            raise InvalidInputError(f"{self.name} only grows, got {amount!r}.")
        with self._lock:
            self._series[self._key(labels)] = self._series.get(labels, 0.0) + amount

    def value(self, *labels: str) -> float:
        """The count so far."""
        with self._lock:
            return self._series.get(self._key(labels), 0.0)

    def _lines(self, key: Labels, value: float) -> Iterable[str]:
        yield self._line("", key, value)


class Gauge(Instrument[float]):
    """What goes up and down."""

    kind = "gauge"

    def set(self, value: float, *labels: str) -> None:
        """How it stands now."""
        with self._lock:
            self._series[self._key(labels)] = float(value)

    def value(self, *labels: str) -> float:
        """How it stood when it was set last; nan if never."""
        with self._lock:
            return self._series.get(self._key(labels), math.nan)

    def _lines(self, key: Labels, value: float) -> Iterable[str]:
        yield self._line("", key, value)


@dataclass(slots=True)
class _Seen:
    """What a histogram knows of a series. counts: of each bucket, the last one without a bound."""

    counts: list[int]
    total: float = 0.0
    least: float = field(default=math.inf)
    most: float = field(default=-math.inf)


class Histogram(Instrument[_Seen]):
    """How values are spread. bounds: upper bounds of the buckets, rising; a last one without bound is added."""

    kind = "histogram"

    def __init__(self, name: str, about: str, bounds: Sequence[float], labels: Sequence[str] = ()) -> None:
        super().__init__(name, about, labels)
        rising = all(a < b for a, b in pairwise(bounds))
        if not bounds or not rising or not all(math.isfinite(bound) for bound in bounds):
            raise InvalidInputError(f"{name}: the bounds of buckets must be finite and rise, got {tuple(bounds)}.")
        self.bounds = tuple(float(bound) for bound in bounds)

    def observe(self, value: float, *labels: str) -> None:
        """One more value. Raises InvalidInputError for one that is not finite."""
        if not math.isfinite(value):
            raise InvalidInputError(f"{self.name} takes finite values, got {value!r}.")
        with self._lock:
            seen = self._series.setdefault(self._key(labels), _Seen([0] * (len(self.bounds) + 1)))
            seen.counts[bisect_left(self.bounds, value)] += 1
            seen.total += value
            seen.least, seen.most = min(seen.least, value), max(seen.most, value)

    def count(self, *labels: str) -> int:
        """How many values there were."""
        with self._lock:
            seen = self._series.get(self._key(labels))
            return sum(seen.counts) if seen else 0

    def mean(self, *labels: str) -> float:
        """Their mean; nan without any."""
        with self._lock:
            seen = self._series.get(self._key(labels))
            return seen.total / sum(seen.counts) if seen else math.nan

    def quantile(self, share: float, *labels: str) -> float:
        """The value that `share` (0..1) of all are not above, as far as buckets tell; nan without any.

        Within a bucket values are taken as evenly spread, as Prometheus does; never beyond the least and the most.
        """
        if not 0 <= share <= 1:
            raise InvalidInputError(f"A share from 0 to 1 was expected, got {share!r}.")
        with self._lock:
            seen = self._series.get(self._key(labels))
            if seen is None:
                return math.nan
            wanted = share * sum(seen.counts)
            reached = list(accumulate(seen.counts))
            bucket = next(i for i, count in enumerate(seen.counts) if count and reached[i] >= wanted)
            count = seen.counts[bucket]
            before = reached[bucket] - count
            low = max(seen.least, self.bounds[bucket - 1] if bucket else -math.inf)
            high = min(seen.most, self.bounds[bucket] if bucket < len(self.bounds) else math.inf)
            return low + (high - low) * (wanted - before) / count

    def _lines(self, key: Labels, value: _Seen) -> Iterable[str]:
        so_far = 0
        for bound, count in zip((*self.bounds, math.inf), value.counts, strict=True):
            so_far += count
            yield self._line("_bucket", key, so_far, le=_number(bound))
        yield self._line("_sum", key, value.total)
        yield self._line("_count", key, so_far)


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(float(value))
