"""Script: how one request is answered: the course that the engine follows, and how its pieces become a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from izwi_lab.families.shared.course import Course, alone, once
from izwi_lab.results import ChatReply

if TYPE_CHECKING:
    from izwi_lab.engine.outbox import Outbox
    from izwi_lab.families.protocols import Model
    from izwi_lab.runtime.types import GenerationResult


@dataclass(frozen=True, slots=True)
class Script:
    """course: makes it, where the model's arrays may be touched; what cannot be honoured raises there.

    gather: the result of all pieces, given when the work began, by time.perf_counter(). audio_s: seconds of audio that
    the request brings.
    """

    course: Callable[[], Course]
    gather: Callable[[Iterator[Any], float], Any]
    audio_s: float = 0.0


def by_itself(
    whole: bool, generate: Callable[[], Any], stream: Callable[[], Iterator[Any]], *, audio_s: float = 0.0
) -> Script:
    """The script of a model whose steps are not batched: its own verbs, in turns with what else runs."""
    if whole:
        return Script(lambda: once(generate), lambda pieces, _: next(pieces), audio_s)
    return Script(lambda: alone(iter(stream())), lambda pieces, _: tuple(pieces), audio_s)


def stamped(result: GenerationResult, model: Model, outbox: Outbox) -> GenerationResult:
    """The result with who made it and how long it took, loading not counted: the outbox knows, not who read it."""
    seconds = outbox.last_s - outbox.started_s
    first_s = seconds if outbox.first_s is None else outbox.first_s - outbox.started_s
    timing = replace(result.timing, total_s=seconds)
    if isinstance(result, ChatReply):
        timing = replace(timing, first_s=first_s, decode_s=seconds - first_s)
    elif not timing.first_s or first_s < timing.first_s:
        timing = replace(timing, first_s=first_s)
    return replace(result, model=model.variant.id, backend=model.plan.backend, timing=timing)
