"""When each of several requests began, and when each piece of its answer came: what they add up to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from izwi_lab.bench.contender import Measurement
from izwi_lab.bench.stats import quantile


@dataclass(slots=True)
class Served:
    """One request. Times by time.perf_counter(): start_s, and came_s of every piece, as its reader saw them.

    tokens: ids of the answer; audio_s: seconds of speech.
    """

    start_s: float
    came_s: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    prompt_tokens: int = 0
    audio_s: float = 0.0

    @property
    def first_s(self) -> float:
        """Seconds to the first piece."""
        return self.came_s[0] - self.start_s

    @property
    def gaps_s(self) -> list[float]:
        """Seconds between a piece and the one before it."""
        return [after - before for before, after in zip(self.came_s, self.came_s[1:], strict=False)]


def reading_s(all_of_them: Sequence[Served]) -> tuple[float, int]:
    """Seconds in which some request waited for its first piece, and how many later pieces came in them."""
    spans: list[tuple[float, float]] = []
    for begin, end in sorted((each.start_s, each.came_s[0]) for each in all_of_them):
        if spans and begin <= spans[-1][1]:
            spans[-1] = spans[-1][0], max(spans[-1][1], end)
        else:
            spans.append((begin, end))
    later = [time for each in all_of_them for time in each.came_s[1:]]
    return sum(end - begin for begin, end in spans), sum(any(a < t <= b for a, b in spans) for t in later)


def measured(all_of_them: Sequence[Served], *, input: str = "", output: str = "") -> Measurement:
    """One run of several requests. Decoding is the time in which nobody waits for a first piece.

    Raises RuntimeError where a request was not answered at all.
    """
    if not all_of_them or not all(each.came_s for each in all_of_them):
        raise RuntimeError("a request came to its end without a piece of an answer")
    total_s = max(each.came_s[-1] for each in all_of_them) - min(each.start_s for each in all_of_them)
    prefill_s, beside = reading_s(all_of_them)
    later = sum(len(each.came_s) - 1 for each in all_of_them) - beside
    audio_s = sum(each.audio_s for each in all_of_them)
    firsts, gaps = [each.first_s for each in all_of_them], [gap for each in all_of_them for gap in each.gaps_s]
    latency = {"first_p95": quantile(firsts, 0.95)} if len(firsts) > 1 else {}
    if gaps and not audio_s:
        latency |= {"gap_p50": quantile(gaps, 0.5), "gap_p95": quantile(gaps, 0.95)}
    return Measurement(
        total_s=total_s,
        first_s=quantile(firsts, 0.5),
        decode_s=None if audio_s else total_s - prefill_s,
        audio_s=audio_s or None,
        prompt_tokens=sum(each.prompt_tokens for each in all_of_them),
        tokens=0 if audio_s else later,
        served=0 if audio_s else sum(len(each.came_s) for each in all_of_them),
        latency=latency,
        input=input,
        output=output,
    )
