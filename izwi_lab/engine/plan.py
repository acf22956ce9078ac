"""Plan: what one step computes, and Result: what came of it. Also Limits, which bound a step, and Policy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from izwi_lab.engine.request import FinishReason, Sequence
from izwi_lab.engine.tables import BlockCopy
from izwi_lab.errors import InvalidInputError


class Policy(StrEnum):
    """Whose turn it is. FCFS: who came first. PRIORITY: a level of priority is worth `Limits.ageing_s` of waiting."""

    FCFS = "fcfs"
    PRIORITY = "priority"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What bounds a step.

    max_tokens: computed in one step, of all sequences. max_sequences: running at the same time. min_prefill: tokens of
    a step that decodes leave to waiting prompts, so that they cannot starve them. max_prefill: of all prompts in one
    step, which bounds the time between two tokens, and how long a newcomer waits for its turn. ageing_s: waiting so
    long is worth one level of priority.

    Raises:
        InvalidInputError: numbers below 1, or max_tokens that does not hold one token of every sequence and
            min_prefill: a sequence that decodes takes part in every step.
    """

    max_tokens: int = 1024
    max_sequences: int = 64
    min_prefill: int = 64
    max_prefill: int = 256
    ageing_s: float = 10.0

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_sequences", "min_prefill", "max_prefill"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise InvalidInputError(f"Limits: {name} must be a whole number from 1, got {value!r:.80}.")
        if not 0 < self.ageing_s < math.inf:
            raise InvalidInputError(f"Limits: ageing_s must be above 0, got {self.ageing_s!r}.")
        if self.max_tokens < self.max_sequences + self.min_prefill:
            raise InvalidInputError(
                f"Limits: a step of {self.max_tokens} tokens does not hold {self.max_sequences} sequences and "
                f"{self.min_prefill} tokens of prompts.",
                hint=f"Expected max_tokens from {self.max_sequences + self.min_prefill}.",
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens start .. start + count of a sequence. wants_logits: the last of them is the last there is.

    decode: it is the one token that was chosen last; all else is prefill.
    """

    sequence: Sequence
    start: int
    count: int
    wants_logits: bool
    decode: bool = False

    @property
    def stop(self) -> int:
        """The position after the last."""
        return self.start + self.count

    @property
    def tokens(self) -> list[int]:
        """The ids to compute."""
        return self.sequence.tokens[self.start : self.stop]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one step computes: first the copies in their order, then all pieces as one batch. False if nothing.

    preempted: sequences that gave up their blocks since the last plan, to be computed again from the first token on
    (after a lack of memory maybe at once); finished: those that ended since then without a step (cancelled, late).
    Whatever else is kept of the states of either is to be dropped.
    """

    step: int
    pieces: tuple[Piece, ...] = ()
    preempted: tuple[Sequence, ...] = ()
    finished: tuple[Sequence, ...] = ()
    copies: tuple[BlockCopy, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.pieces)

    @property
    def tokens(self) -> int:
        """How many tokens it computes."""
        return sum(piece.count for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a piece that wants logits: the next token, the end, or both (an end token belongs to the answer).

    finish: STOP, mostly; an answer of max_new_tokens ends by itself. error: ends this sequence and no other.
    """

    token: int | None = None
    finish: FinishReason | None = None
    error: BaseException | None = None
