"""Script: how one request is answered: the course that the engine follows, and how its pieces become a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from izwi_lab.families.shared.course import Course, alone, once


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
