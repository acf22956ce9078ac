"""Cutting long audio into windows at its silences: pure arithmetic on seconds, no audio and no model.

A span is a stretch of speech (start_s, end_s). Windows never overlap, hold every span whole where it fits, and are
never longer than the limit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Span = tuple[float, float]
Quietest = Callable[[float, float], float]

_EDGE = 0.5  # a span that must be split is cut in the second half of what fits


def plan_windows(
    spans: Sequence[Span],
    duration_s: float,
    *,
    limit_s: float = 30.0,
    pad_s: float = 0.2,
    max_gap_s: float = 8.0,
    quietest: Quietest | None = None,
) -> list[Span]:
    """Windows over the spans, in order, each at most limit_s long.

    pad_s: silence kept around speech. max_gap_s: a longer silence always ends a window. quietest(start_s, end_s):
    where to cut speech that never pauses; default: as late as it may be. Audio that fits one window is one window,
    uncut, as long as it holds any speech.
    """
    spans = [(max(0.0, a), min(duration_s, b)) for a, b in sorted(spans)]
    spans = [(a, b) for a, b in spans if b > a]
    if not spans:
        return []
    if duration_s <= limit_s:
        return [(0.0, duration_s)]
    pieces = [p for s in _merged(spans) for p in _split(s, limit_s - 2 * pad_s, quietest)]
    groups: list[list[Span]] = []
    rest = pieces
    while rest:
        count = _fitting(rest, limit_s - 2 * pad_s, max_gap_s)
        groups.append(list(rest[:count]))
        rest = rest[count:]
    return _padded(groups, duration_s, pad_s)


def _merged(spans: Sequence[Span]) -> list[Span]:
    out: list[Span] = []
    for start, end in spans:
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _split(span: Span, limit_s: float, quietest: Quietest | None) -> list[Span]:
    """A span in pieces of at most limit_s, touching each other."""
    start, end = span
    out: list[Span] = []
    while end - start > limit_s:
        low, high = start + _EDGE * limit_s, start + limit_s
        cut = high if quietest is None else min(max(quietest(low, high), low), high)
        out.append((start, cut))
        start = cut
    return [*out, (start, end)]


def _fitting(pieces: Sequence[Span], limit_s: float, max_gap_s: float) -> int:
    """How many of the first pieces make the next window: cut at the longest silence of its second half."""
    count = 1
    while count < len(pieces):
        if pieces[count][0] - pieces[count - 1][1] > max_gap_s:
            return count
        if pieces[count][1] - pieces[0][0] > limit_s:
            break
        count += 1
    if count == len(pieces):
        return count
    late = [n for n in range(1, count + 1) if pieces[n - 1][1] - pieces[0][0] >= _EDGE * limit_s]
    return max(late, key=lambda n: (pieces[n][0] - pieces[n - 1][1], n)) if late else count


def _padded(groups: Sequence[Sequence[Span]], duration_s: float, pad_s: float) -> list[Span]:
    """Windows around groups of pieces; neighbours share the silence between them, at most pad_s each."""
    out: list[Span] = []
    for n, group in enumerate(groups):
        before = group[0][0] - (groups[n - 1][-1][1] if n else 0.0)
        after = (groups[n + 1][0][0] if n + 1 < len(groups) else duration_s) - group[-1][1]
        start = group[0][0] - min(pad_s, before / 2 if n else before)
        end = group[-1][1] + min(pad_s, after / 2 if n + 1 < len(groups) else after)
        out.append((max(0.0, start), min(duration_s, end)))
    return out


def speech_within(spans: Sequence[Span], start_s: float, end_s: float) -> float:
    """Seconds of the spans that lie between start_s and end_s."""
    return sum(max(0.0, min(b, end_s) - max(a, start_s)) for a, b in spans)
