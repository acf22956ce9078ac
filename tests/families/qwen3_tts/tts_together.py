"""A small engine for tests: sessions of Qwen3-TTS stepped together, prompts in pieces, caches own or in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Reading, Session

BLOCK = 16
HOT = Sampling(temperature=1.1, top_p=0.9)


@dataclass(frozen=True, eq=False)
class Told:
    """What one speaker says. piece: positions of its prompt that are read at once; joins: the step it comes in."""

    text: str
    voice: str
    seed: int
    frames: int
    piece: int
    joins: int = 0
    text_mode: str = "whole"
    sampling: Sampling | None = None
    predictor: Sampling | None = None

    def prompt(self, model) -> Prompt:
        """What is read."""
        return model.tokenize(self.text, voice=self.voice, text_mode=self.text_mode)


TOLD = (
    Told("Hello there, how are you?", "ryan", 1, 9, 7),
    Told("hi", "vivian", 2, 14, 64, text_mode="streaming"),
    Told("A longer text, said by another voice. " * 3, "serena", 3, 5, 20, sampling=HOT, predictor=HOT),
    Told("Greedy.", "eric", 4, 12, 3, joins=4, sampling=Sampling(repetition_penalty=1.05), predictor=Sampling()),
    Told("Half greedy.", "dylan", 5, 8, 30, joins=6, text_mode="streaming", predictor=Sampling(temperature=0.5)),
)


class Pool:
    """Blocks that sessions share, handed out in no order."""

    def __init__(self, model, blocks: int = 80) -> None:
        self._model, self._arrays = model, model.pool(blocks, BLOCK)
        self._free = np.random.default_rng(0).permutation(blocks).tolist()

    def take_back(self, session: Session) -> None:
        """Blocks of a session that is lost; they are the next to be lent."""
        self._free = self._model.caches(session)["blocks"].tolist() + self._free

    def lend(self, session: Session, positions: int) -> None:
        """Other blocks for a session, which has none of its positions in them."""
        count = -(-positions // BLOCK)
        mine, self._free = self._free[:count], self._free[count:]
        state = self._model.caches(session)
        held = self._model.backend.array(np.asarray(mine, np.int32))
        state.update(self._arrays, block=BLOCK, blocks=held)


def entered(model, told: Told, pool: Pool | None = None) -> Session:
    """A session that is to read a prompt."""
    session, prompt = model.session(seed=told.seed, max_frames=told.frames), told.prompt(model)
    model.enter(session, prompt)
    if pool is not None:
        pool.lend(session, len(prompt) + told.frames)
    return session


def next_reading(model, told: Told, session: Session) -> Reading:
    """A piece of what a session knows and has not read."""
    at = model.caches(session)["length"]
    known = len(session.prompt_ids) + len(session.tokens)
    stop = min(known, at + told.piece)
    return Reading(session, at, stop, wants=stop == known, sampling=told.predictor)


def say(model, told: Told, session: Session, step) -> None:
    """Draw the next code and take it as said, unless the session is done."""
    if not session.done:
        model.say(session, model.sample(session, step, told.sampling))


def together(model, telling=TOLD, *, paged: bool = False, between=None) -> list[Session]:
    """All sessions, stepped side by side until the last is done. between: called with them after each step."""
    pool, number = Pool(model) if paged else None, 0
    sessions: list[Session | None] = [None] * len(telling)
    while not all(session is not None and session.done for session in sessions):
        for i, told in enumerate(telling):
            if told.joins == number:
                sessions[i] = entered(model, told, pool)
        going = [i for i, s in enumerate(sessions) if s is not None and not s.done]
        readings = [next_reading(model, telling[i], sessions[i]) for i in going]
        for i, reading, step in zip(going, readings, model.step_many(readings), strict=True):
            if isinstance(step, Exception):
                raise step
            assert (step is not None) == reading.wants
            if step is not None:
                say(model, telling[i], sessions[i], step)
        number += 1
        if between is not None:
            between(number, sessions, pool)
    return sessions
