"""Course: one request on its way through a model, as a generator that asks for steps and gives pieces of its answer.

A course never computes: it yields an `Ask` and is sent what was asked for, or yields a piece of the answer and is sent
None. Who drives it decides how the asking is met: `followed` takes the verbs of the step API one by one, the engine
meets the asks of many courses in one batch. So an answer is the same loop, alone and under load.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from izwi_lab.cancel import CancelToken
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Session

T = TypeVar("T")


@dataclass(slots=True)
class Prefill:
    """Read a prompt into a fresh session; the answer is the Step after it.

    most: tokens that the course says afterwards, at most. repeatable: the same call must draw the same again, so that
    nothing may be taken from the caches of others. Whoever meets it notes in `cached` how many ids needed no reading.
    """

    session: Session
    prompt: Prompt
    most: int
    repeatable: bool = False
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Decode:
    """Compute what follows the token said last, which the session holds; the answer is the Step after it.

    sampling: of what the model chooses by itself inside a step (the code predictor of Qwen3-TTS).
    """

    session: Session
    sampling: Sampling | None = None


@dataclass(frozen=True, slots=True)
class Shared:
    """Do what others ask for, too; the answer is this item's part of what `model.share(kind, items)` gives for all.

    kind: what may be done together; weight: how much of a pass it takes, in the model's own measure.
    """

    kind: str
    item: Any
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Alone:
    """Do something that cannot be batched; the answer is what it returns."""

    work: Callable[[], Any]


Ask = Prefill | Decode | Shared | Alone
Course = Generator[Any, Any, None]


def alone(pieces: Iterator[Any]) -> Course:
    """A course whose every piece is made alone, by an iterator that computes."""
    try:
        while (piece := (yield Alone(lambda: next(pieces, None)))) is not None:
            yield piece
    finally:
        if (close := getattr(pieces, "close", None)) is not None:
            close()


def once(work: Callable[[], Any]) -> Course:
    """A course of one piece."""
    yield (yield Alone(work))


def followed(model: Any, course: Course, cancel: CancelToken | None = None) -> Iterator[Any]:
    """The pieces that a course gives, each ask met by a verb of the model: prefill, advance or share, when it comes.

    Closing the iterator ends the course.
    """
    try:
        item = next(course, None)
        while item is not None:
            if not isinstance(item, Ask):
                yield item
                item = _sent(course, None)
                continue
            try:
                met = _met(model, item, cancel)
            except Exception as error:
                item = course.throw(error)
            else:
                item = _sent(course, met)
    except StopIteration:
        return
    finally:
        course.close()


def _met(model: Any, ask: Ask, cancel: CancelToken | None) -> Any:
    if isinstance(ask, Prefill):
        return model.prefill(ask.session, ask.prompt, cancel=cancel)
    if isinstance(ask, Decode):
        return model.advance(ask.session, sampling=ask.sampling)
    if isinstance(ask, Shared):
        (met,) = model.share(ask.kind, [ask.item])
        if isinstance(met, Exception):
            raise met
        return met
    return ask.work()


def _sent(course: Course, value: Any) -> Any:
    """What comes next, None at the end."""
    try:
        return course.send(value)
    except StopIteration:
        return None
