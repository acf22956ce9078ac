"""Steps of several sessions of Qwen3-TTS in one pass over its weights, for the engine.

A session's positions are those of its prompt's layout, then one for each frame. Who reads the frame of the code said
last first has its other codes made. Shapes: K codebooks, F frames, N sessions, T positions, H talker width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.backends.base import Native
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts import alone, frames
from izwi_lab.families.qwen3_tts.choices import choices
from izwi_lab.families.qwen3_tts.frames import FrameStep
from izwi_lab.families.qwen3_tts.generation import check_predictor
from izwi_lab.families.qwen3_tts.prompt import Layout
from izwi_lab.families.shared import text_batch
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Reading, Session, Step

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

_LAYOUT = ("text", "codec", "trailing", "speaker_at", "speaker", "reference_at", "reference")


def pageable(model: Qwen3TTS) -> bool:
    """See `Qwen3TTS.pageable`."""
    return text_batch.pageable(model.config.talker)


def position_bytes(model: Qwen3TTS) -> int:
    """See `Qwen3TTS.position_bytes`."""
    return text_batch.position_bytes(model.config.talker, model.backend.dtype)


def pool(model: Qwen3TTS, blocks: int, block: int) -> dict[str, list[Any]]:
    """See `Qwen3TTS.pool`."""
    with model.backend.inference():
        made: dict[str, list[Any]] = model.net.pool(blocks, block)
    return made


def caches(session: Session) -> dict[str, Any]:
    """See `Qwen3TTS.caches`."""
    state: dict[str, Any] = session.state["talker"]
    return state


def stand(session: Session, position: int) -> None:
    """See `Qwen3TTS.stand`."""
    caches(session)["length"] = session.position = session.reach = position


def enter(model: Qwen3TTS, session: Session, prompt: Prompt) -> None:
    """See `Qwen3TTS.enter`. The layout is kept for as long as the session lives: it may have to be read again."""
    layout = alone.check_prompt(model, session, prompt)
    session.state["layout"] = {name: getattr(layout, name) for name in _LAYOUT}
    if layout.reference is not None:
        session.state["reference"] = layout.reference
    session.prompt_ids = [int(i) for i in prompt.ids]


@dataclass(slots=True)
class _Part:
    """One session's part of a step. codes: int32 [K, F] of all its frames, in the end with the one made in this step.

    token: the first code of the frame to be made, if one is. ends: with that the session is done; it is not read.
    """

    reading: Reading
    session: Session
    sampling: Sampling
    codes: np.ndarray
    token: int | None = None
    ends: bool = False
    error: Exception | None = None

    @property
    def first(self) -> int:
        """The position of the first frame."""
        return len(self.session.prompt_ids)

    @property
    def stop(self) -> int:
        """Where the talker's reading ends."""
        return self.reading.stop - self.ends

    @property
    def reads(self) -> bool:
        """Whether the talker reads something."""
        return self.error is None and self.reading.start < self.stop


def step_many(model: Qwen3TTS, readings: Sequence[Reading]) -> list[Step | Exception | None]:
    """See `Qwen3TTS.step_many`."""
    started_s, found = time.perf_counter(), dict[int, tuple[Native, Native]]()
    parts = [_part(model, reading) for reading in readings]
    with _unmoved(parts), model.backend.inference():
        _make_frames(model, [part for part in parts if part.error is None and part.token is not None])
        if going := [part for part in parts if part.reads]:
            rows = _rows(model, going)
            logits, hidden = model.net.talk_together([(x, caches(p.session)) for x, p in zip(rows, going, strict=True)])
            found = {id(part): (logits[i : i + 1], hidden[i : i + 1]) for i, part in enumerate(going)}
            model.backend.evaluate(list(found.values()))
    return [_noted(model, part, found.get(id(part)), started_s) for part in parts]


def _part(model: Qwen3TTS, reading: Reading) -> _Part:
    session, sampling = reading.session, reading.sampling or model.generation.predictor
    part = _Part(reading, session, sampling, session.codes)
    try:
        frames.check_session(model, session)
        check_predictor(reading.sampling)
        token = frames.due(session)
        known = part.first + session.codes.shape[1] + (token is not None)
        if session.done or caches(session)["length"] != reading.start or not reading.start < reading.stop <= known:
            raise InvalidInputError(
                f"{session!r} knows {known} positions and has read {caches(session)['length']}: it cannot read "
                f"{reading.start} to {reading.stop}."
            )
    except InvalidInputError as error:
        part.error = error
    else:
        if token is not None and reading.stop == known:
            part.token, part.ends = token, frames.ends(session, model.config)
    return part


@contextmanager
def _unmoved(parts: Sequence[_Part]) -> Iterator[None]:
    """If what is inside fails or is stopped, caches count as many positions as before, and the same numbers come."""
    parts = [part for part in parts if part.error is None]
    numbers = [part.session.rng.bit_generator.state for part in parts]
    lengths = [caches(part.session)["length"] for part in parts]
    try:
        yield
    except BaseException:
        for part, state, length in zip(parts, numbers, lengths, strict=True):
            part.session.rng.bit_generator.state = state
            caches(part.session)["length"] = length
        raise


def _make_frames(model: Qwen3TTS, parts: Sequence[_Part]) -> None:
    """The codes of the frames that are due, each drawn by its session's random numbers. Bad logits are one's own."""
    if not parts:
        return
    drawing = choices(model.net, model.backend, model.config, [(part.sampling, part.session.rng) for part in parts])
    hidden = [part.session.state["hidden"] for part in parts]
    made = model.net.predict_together(hidden, [part.token for part in parts], drawing.choose)
    for part, frame, error in zip(parts, made, drawing.errors(), strict=True):
        part.codes = np.concatenate((part.codes, np.asarray(frame, np.int32)[:, None]), axis=1)
        part.error = error


def _rows(model: Qwen3TTS, parts: Sequence[_Part]) -> list[Native]:
    """What the talker reads of each session, [T, H]. All that read one frame are embedded together."""
    net, backend = model.net, model.backend
    single = [p for p in parts if p.reading.start >= p.first and p.stop - p.reading.start == 1]
    rows: dict[int, Native] = {}
    if single:
        at = [part.reading.start - part.first for part in single]
        codes = np.stack([part.codes[:, i : i + 1] for part, i in zip(single, at, strict=True)])
        sums = net.frames(backend.array(codes))
        for n, (part, i) in enumerate(zip(single, at, strict=True)):
            rows[id(part)] = sums[n] + frames.text_at(part.session, i)[0]
    return [rows[id(part)] if id(part) in rows else _read_again(model, part) for part in parts]


def _read_again(model: Qwen3TTS, part: _Part) -> Native:
    """A piece of the prompt or several frames, [T, H], put together on the host."""
    session, backend, first = part.session, model.backend, part.first
    start, stop = part.reading.start, part.stop
    pieces = [_embedded(model, session)[start:stop]] if start < first else []
    if stop > first:
        a, b = max(start, first) - first, stop - first
        sums = backend.numpy(model.net.frames(backend.array(part.codes[None, :, a:b])))[0]
        text = backend.numpy(session.state["trailing"])[0]
        pieces.append(sums + text[np.minimum(np.arange(a, b), len(text) - 1)])
    return backend.array(np.concatenate(pieces))


def _embedded(model: Qwen3TTS, session: Session) -> np.ndarray:
    """What the talker reads of the prompt, float32 [T, H]; kept until it has read it all."""
    state = session.state
    if "embedded" not in state:
        layout = Layout(**state["layout"])
        if "trailing" not in state:
            trailing = frames.following(model.net, model.backend, layout, model.config)
            model.backend.evaluate(trailing)
            state["trailing"] = trailing
        state["embedded"] = frames.embedded(model.net, model.backend, layout)
    embedded: np.ndarray = state["embedded"]
    return embedded


def _noted(
    model: Qwen3TTS, part: _Part, found: tuple[Native, Native] | None, started_s: float
) -> Step | Exception | None:
    """Note in a session what its part of the step gave; what the engine is given for it."""
    if part.error is not None:
        return part.error
    session = part.session
    session.codes = part.codes
    step = None if found is None else _moved(model, part, found, started_s)
    if part.ends:
        session.done, session.finish_reason = True, "length"
        step = replace(frames.last(model, session), codes=part.codes[:, -1])
    return step if part.reading.wants else None


def _moved(model: Qwen3TTS, part: _Part, found: tuple[Native, Native], started_s: float) -> FrameStep:
    """Note where a session stands, which read something; found: logits [1, V] and hidden [1, H] of its last position.

    Who reads again what it knew goes on from what that gave at first.
    """
    session, state, frame = part.session, part.session.state, part.stop - part.first - 1
    session.position = session.reach = part.stop
    if frame >= -1:
        state.pop("embedded", None)
    if frame == -1:
        state.setdefault("opening", {"logits": found[0], "hidden": found[1]})
    codes = part.codes[:, frame] if frame >= 0 else None
    if frame + 1 < part.codes.shape[1] - part.ends:
        seconds = time.perf_counter() - started_s
        return FrameStep(found[0][0], found[1][0], part.stop - 1, seconds, model.backend, codes)
    again = "hidden" in state and (part.token is None or part.ends)
    return frames.read(model, session, *((state["logits"], state["hidden"]) if again else found), started_s, codes)
