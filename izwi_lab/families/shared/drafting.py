"""Guesses of what a text says next: looked up in the text so far, or drawn by a smaller model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.backends.base import Native
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared.chooser import Chooser
from izwi_lab.families.shared.sampling import Sampling, check_top, rules_of, share
from izwi_lab.families.shared.steps import Session, Step
from izwi_lab.families.shared.tally import Tally

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

_COMPARED_IDS = 64
_WORTH = 0.35  # of one step: about what one more token costs in a pass on a CPU; a guess must be likelier to be kept
_LEARNING = 0.25


@dataclass(frozen=True, slots=True)
class Guess:
    """A token that may come. weights: what it was drawn by (see `Chooser.weights`); None for a certain guess."""

    token: int
    weights: Native | None = None


class Lookup:
    """What followed the last few tokens where they stood before. Each id is looked at once.

    How many to guess is learnt from the answer: for each length of match, how likely one more token was right.
    """

    def __init__(self, ngram: int, tokens: int) -> None:
        self._followers: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in range(ngram))
        self._ids: list[int] = []
        self._most = tokens
        self._rates = [1 - 0.7 / size for size in range(1, ngram + 1)]  # of one token to be right, by length of match
        self._size = 1

    def guess(self, session: Session, sampling: Sampling, most: int) -> list[Guess]:
        """See `Guesser`. The longest match first, of several the last."""
        self._read(session)
        ids = self._ids
        for size in range(min(len(self._followers), len(ids)), 0, -1):
            at = self._followers[size - 1].get(tuple(ids[-size:]))
            if at is not None:
                self._size = size
                count = min(most, self._most, self._worthwhile(size))
                guessed: list[int] = []
                for place in range(at, at + count):  # may run into what was just guessed
                    guessed.append(ids[place] if place < len(ids) else guessed[place - len(ids)])
                return [Guess(token) for token in guessed]
        return []

    def judge(self, guessed: int, kept: int) -> None:
        """See `Guesser`."""
        rate = self._rates[self._size - 1]
        for right in [True] * kept + [False] * (kept < guessed):  # what came after a miss says nothing
            rate += _LEARNING * (right - rate)
        self._rates[self._size - 1] = min(0.99, rate)

    def _worthwhile(self, size: int) -> int:
        """How many tokens are likely enough to be right; where none is, it is tried again after a while."""
        rate = self._rates[size - 1]
        if rate < _WORTH:
            self._rates[size - 1] += 0.01
            return 0
        return int(math.log(_WORTH) / math.log(rate))

    def _read(self, session: Session) -> None:
        """Note for every run of ids up to `ngram` long where its follower is; that of the end is not known yet."""
        known, prompt = len(self._ids), len(session.prompt_ids)
        new = [*session.prompt_ids[known:], *session.tokens[max(0, known - prompt) :]]
        for token in new:
            here = len(self._ids)
            for size, followers in enumerate(self._followers, start=1):
                if size <= here:
                    followers[tuple(self._ids[here - size :])] = here
            self._ids.append(token)


class Draft:
    """Draws from a smaller model, which reads the answer along in a session of its own."""

    def __init__(self, model: TextModel, tokens: int, rng: np.random.Generator) -> None:
        self._model, self._tokens, self._rng = model, tokens, rng
        self._session = model.session(seed=0)
        self._agreed = 0  # ids that both sessions have, as far as was looked

    def guess(self, session: Session, sampling: Sampling, most: int) -> list[Guess]:
        """See `Guesser`."""
        room = self._model.config.max_positions - len(session.prompt_ids) - len(session.tokens)
        count = min(most, room, self._tokens)
        if count < 1:
            return []
        step = self._caught_up(session)
        guesses = [self._drawn(step, sampling)]
        while len(guesses) < count:
            self._session.tokens.append(guesses[-1].token)
            step = self._model.advance(self._session)
            guesses.append(self._drawn(step, sampling))
        return guesses

    def judge(self, guessed: int, kept: int) -> None:
        """See `Guesser`."""

    def _caught_up(self, session: Session) -> Step:
        """Read what was said and take back what was guessed wrong."""
        mine, ids = self._session, [*session.prompt_ids, *session.tokens]
        held = [*mine.prompt_ids, *mine.tokens]
        same, most = self._agreed, min(mine.position, len(ids) - 1)
        while same < most and held[same] == ids[same]:
            same += 1
        if same < mine.position and not self._model.config.rewindable(max(mine.reach, mine.position), same):
            same, mine.reach = 0, 0
        if same < mine.position:
            mine.trim(same)
        mine.prompt_ids, mine.tokens, self._agreed = list(session.prompt_ids), list(session.tokens), same
        return self._model.advance(mine)

    def _drawn(self, step: Step, sampling: Sampling) -> Guess:
        mine, backend = self._session, self._model.backend
        if sampling.greedy:
            return Guess(self._model.sample(mine, step, sampling))
        if mine.tally is None:
            mine.tally = Tally(self._model.config.vocab_size, backend)
        rules = rules_of(sampling, step.logits, mine.tokens, backend, prompt=mine.prompt_ids, tally=mine.tally)
        chooser = Chooser(backend)
        weights, top = chooser.weights(step.logits, rules)
        check_top(top)
        return Guess(chooser.drawn(weights, share(self._rng)), weights)


def check_vocabulary(model: TextModel, draft: TextModel) -> None:
    """Raise InvalidInputError unless the guesses of `draft` mean the same to `model` and lie where it can read them."""
    mine, theirs = model.config.vocab_size, draft.config.vocab_size
    if mine != theirs:
        raise InvalidInputError(
            f"The draft model {draft.variant.id} has {theirs} tokens, {model.variant.id} has {mine}.",
            hint="Take one of the same vocabulary, of the same family.",
        )
    here, there = model.backend, draft.backend
    if (here.name, here.device) != (there.name, there.device):
        raise InvalidInputError(
            f"The draft model runs on {there.name} {there.device}, {model.variant.id} on {here.name} {here.device}.",
            hint="Load both on the same backend and device.",
        )
    if model.processor is None or draft.processor is None:
        return
    for token in range(0, mine, max(1, mine // _COMPARED_IDS)):
        one, other = (m.processor.tokenizer.id_to_token(token) for m in (model, draft) if m.processor)
        if one != other:
            raise InvalidInputError(
                f"Token {token} is {other!r} to the draft model {draft.variant.id}, {one!r} to {model.variant.id}.",
                hint="Take one of the same vocabulary, of the same family.",
            )
