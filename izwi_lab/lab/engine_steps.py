"""Timeline: who ran in which step of an engine, and how long the steps took."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from izwi_lab.engine.timeline import Explanation, StepRecord
from izwi_lab.errors import InvalidInputError
from izwi_lab.lab import engine_ink as ink

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS = 48  # at most
_BOUNDS = 300  # steps that are still told apart by lines
_WIDE = 0.03  # of the whole time: a bar has room for a number
_HEIGHTS = {"prefill": 0.8, "decode": 0.45}  # other work: as high as prefill
_COLOURS = {"prefill": ink.BLUE, "decode": ink.ORANGE}
_OTHERS = (ink.GREEN, ink.SKY, ink.PURPLE, ink.YELLOW)

Row = tuple[str, str]  # model and request


@dataclass(frozen=True, slots=True)
class Bar:
    """Work of one request in one step: seconds from the first step shown, and tokens."""

    kind: str
    start_s: float
    seconds: float
    tokens: int


@dataclass(slots=True)
class Life:
    """What became of one request: its bars, when it was preempted, when it ended."""

    bars: list[Bar] = field(default_factory=list)
    preempted_s: list[float] = field(default_factory=list)
    ended_s: list[float] = field(default_factory=list)


def lives(steps: Iterable[StepRecord], *, requests: Collection[str] | None = None) -> dict[Row, Life]:
    """By model and request, in order of appearance. requests: ids of those wanted, in their order; None for all.

    Raises:
        InvalidInputError: none of them ran.
    """
    kept = [(step, _who(step)) for step in sorted(steps, key=lambda step: step.start_s)]
    if requests is not None:
        kept = [(step, who & set(requests)) for step, who in kept]
    kept = [(step, who) for step, who in kept if who]
    if not kept:
        which = "" if requests is None else f" with any of the requests {', '.join(requests)!s:.200}"
        raise InvalidInputError(
            f"There is no step{which}.", hint="Ask the engine something; it remembers its last steps only."
        )
    first_s = kept[0][0].start_s
    found: dict[Row, Life] = {}
    for step, who in kept:
        _add(found, step, who, step.start_s - first_s)
    if requests is None:
        return found
    order = list(requests)
    return dict(sorted(found.items(), key=lambda item: order.index(item[0][1])))


def _who(step: StepRecord) -> set[str]:
    names = (*(piece.sequence for piece in step.pieces), *step.preempted, *step.finished)
    return {_request(step, name) for name in names}


def _request(step: StepRecord, name: str) -> str:
    return ink.request_of(name) if step.kind == "pass" else name


def _add(found: dict[Row, Life], step: StepRecord, who: set[str], start_s: float) -> None:
    def life(name: str) -> Life | None:
        request = _request(step, name)
        return found.setdefault((step.model, request), Life()) if request in who else None

    ran = {piece.sequence for piece in step.pieces}
    for piece in step.pieces:
        kind = step.kind if step.kind != "pass" else "decode" if piece.decode else "prefill"
        if (one := life(piece.sequence)) is not None:
            one.bars.append(Bar(kind, start_s, step.seconds, piece.count))
    for name in step.preempted:
        if (one := life(name)) is not None:
            one.preempted_s.append(start_s)
    for name in step.finished:
        if (one := life(name)) is not None:
            one.ended_s.append(start_s + (step.seconds if name in ran else 0.0))


def timeline(*explanations: Explanation, requests: Collection[str] | None = None) -> Figure:
    """A row for each request over time: pieces of its prompt, decodes, preemptions and its end.

    A bar is as wide as its step took, thin lines are where steps begin, and numbers are tokens of prompts. Several
    explanations (of the models of one engine) share the clock. requests: ids of those to show, in this order; None: the
    last 48.

    Raises:
        InvalidInputError: none of them ran.
        MissingExtraError: without matplotlib.

    >>> izwi.lab.timeline(engine.explain("SmolLM2-135M-Instruct"))      # doctest: +SKIP
    """
    steps = [step for explanation in explanations for step in explanation.steps]
    found = lives(steps, requests=requests)
    if len(found) > _ROWS:
        found = lives(steps, requests=[request for _, request in list(found)[-_ROWS:]])
    bars = [bar for life in found.values() for bar in life.bars]
    total_s = max((bar.start_s + bar.seconds for bar in bars), default=0.0)
    made, axis = ink.sheet(11.0, 0.95 + 0.27 * len(found))
    colours = _colours(bars)
    for row, life in enumerate(found.values()):
        _draw(axis, row, life, colours, total_s)
    _bounds(axis, {bar.start_s for bar in bars}, rows=len(found))
    several = len({model for model, _ in found}) > 1
    names = [ink.short(request) + (f" ({model})" if several else "") for model, request in found]
    axis.set_yticks(range(len(found)), names)
    axis.set(ylim=(len(found) - 0.4, -0.6), xlim=(-0.005 * total_s * 1000, 1005 * total_s or 1))
    axis.set_xlabel("milliseconds", color=ink.INK, fontsize=8)
    _legend(axis, colours, found.values())
    return made


def _colours(bars: Iterable[Bar]) -> dict[str, str]:
    """A colour for each kind of work there is."""
    kinds = {bar.kind for bar in bars}
    others = sorted(kinds - set(_COLOURS))
    known = {kind: colour for kind, colour in _COLOURS.items() if kind in kinds}
    return known | {kind: _OTHERS[at % len(_OTHERS)] for at, kind in enumerate(others)}


def _draw(axis: Axes, row: int, life: Life, colours: dict[str, str], total_s: float) -> None:
    for kind, colour in colours.items():
        spans = [(1000 * bar.start_s, 1000 * bar.seconds) for bar in life.bars if bar.kind == kind]
        height = _HEIGHTS.get(kind, _HEIGHTS["prefill"])
        if spans:
            axis.broken_barh(
                spans, (row - height / 2, height), facecolor=colour, edgecolor=ink.INK, linewidth=0.4, zorder=2
            )
    for bar in life.bars:
        if bar.kind == "prefill" and bar.seconds > _WIDE * total_s:
            middle = 1000 * (bar.start_s + bar.seconds / 2)
            axis.text(middle, row, str(bar.tokens), ha="center", va="center", color="white", fontsize=7, zorder=3)
    for moments, marker, colour, size in ((life.ended_s, "o", ink.INK, 6), (life.preempted_s, "X", ink.RED, 9)):
        if moments:
            places = [1000 * at for at in moments], [row] * len(moments)
            axis.plot(*places, marker, color=colour, markersize=size, zorder=4, clip_on=False)


def _bounds(axis: Axes, starts: set[float], *, rows: int) -> None:
    if len(starts) <= _BOUNDS:
        axis.vlines([1000 * at for at in sorted(starts)], -0.5, rows - 0.5, color=ink.INK, alpha=0.3, linewidth=0.5)


def _legend(axis: Axes, colours: dict[str, str], found: Iterable[Life]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    told = {"prefill": "reads its prompt", "decode": "says a token"}
    handles: list[object] = [Patch(color=colour, label=told.get(kind, kind)) for kind, colour in colours.items()]
    if any(life.preempted_s for life in found):
        handles.append(Line2D([], [], marker="X", linestyle="", color=ink.RED, label="gives its blocks up"))
    handles.append(Line2D([], [], marker="o", linestyle="", color=ink.INK, label="ends"))
    ink.legend(axis, handles, columns=len(handles))
