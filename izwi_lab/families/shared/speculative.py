"""Speculative decoding: cheap guesses, checked many at a time; the answer keeps the model's own distribution.

Guesses of a text lookup are certain ones: the next token is drawn as always and is either the guess or not, so the
answer is the one that plain decoding gives for the same seed. Guesses that a draft model drew with probabilities q
are kept with min(1, p / q), else replaced by a draw from max(0, p - q): Leviathan et al. 2023 (arXiv:2211.17192).
Temperature, top-k, top-p, min-p, penalties and bias belong to p and q alike; penalties see what is said up to there.
The two ways differ from plain decoding only by rounding: a pass over several tokens sums in another order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from izwi_lab.errors import InvalidInputError
from izwi_lab.families.shared import drafting
from izwi_lab.families.shared.chooser import Chooser
from izwi_lab.families.shared.sampling import GREEDY, Sampling, check_top, rules_of, share
from izwi_lab.families.shared.steps import Session, Step
from izwi_lab.families.shared.tally import Tally

if TYPE_CHECKING:
    from izwi_lab.families.shared.text_model import TextModel

MOST = 32  # drafts in one pass: rings of sliding-window and convolution layers can go back this far


@dataclass(frozen=True, slots=True)
class PromptLookup:
    """Guesses that what followed the last `ngram` tokens before follows again, `tokens` at a time.

    Where the last `ngram` tokens are new, fewer are looked for, down to one. Good for text that repeats its input:
    summaries, code, corrections (github.com/apoorvumang/prompt-lookup-decoding).
    """

    ngram: int = 3
    tokens: int = 8

    def __post_init__(self) -> None:
        _check("PromptLookup", "ngram", self.ngram, 16)
        _check("PromptLookup", "tokens", self.tokens, MOST)


@dataclass(frozen=True, slots=True)
class DraftModel:
    """Guesses by a smaller model of the same vocabulary on the same device, `tokens` at a time."""

    model: TextModel
    tokens: int = 4

    def __post_init__(self) -> None:
        from izwi_lab.families.shared.text_model import TextModel

        if not isinstance(self.model, TextModel):
            raise InvalidInputError(
                f"DraftModel takes a text model, got {self.model!r:.80}.", hint="Load it: DraftModel(izwi.load(...))."
            )
        _check("DraftModel", "tokens", self.tokens, MOST)


Drafts: TypeAlias = PromptLookup | DraftModel


class Guesser(Protocol):
    """What makes guesses for one answer."""

    def guess(self, session: Session, sampling: Sampling, most: int) -> list[drafting.Guess]:
        """At most `most` tokens that may follow what the session said."""

    def judge(self, guessed: int, kept: int) -> None:
        """Told after each pass how many of its guesses were kept."""


def drawn(
    model: TextModel, session: Session, step: Step, sampling: Sampling | None, drafts: Drafts
) -> Iterator[tuple[int, Step]]:
    """Each token of the answer with the step it was drawn from, until the session is done.

    `step` is that of the session's last prefill or decode. A token counts as said when it is given: it is in
    session.tokens, and session.done is set if it ends the answer; it is computed when the next one is asked for. The
    caller may stop at any token, or end the answer by setting session.done; the session then goes on as any other.

    Raises:
        InvalidInputError: the draft model has another vocabulary or device, or the session was stepped in between.
    """
    chosen, guesser = sampling or GREEDY, _guesser(model, session, drafts)
    ahead: list[tuple[drafting.Guess, Step]] = []  # guesses not judged yet, each with the step that follows it
    guessed = 0
    while not _ended(session):
        token = _next(model, session, step, chosen, ahead[0][0] if ahead else None)
        model.say(session, token)
        said = len(session.tokens)
        yield token, step
        if _ended(session):
            return
        if len(session.tokens) != said or session.position != len(session.prompt_ids) + said - 1:
            raise InvalidInputError("The session was stepped while `drawn` was running.", hint="Fork it for that.")
        if ahead and ahead[0][0].token == token:
            step = model.follow(session, ahead.pop(0)[1])
            if not ahead:  # all were kept
                guesser.judge(guessed, guessed)
                guessed = 0
            continue
        if guessed:
            guesser.judge(guessed, guessed - len(ahead))
        guesses = guesser.guess(session, chosen, _room(model, session))
        guessed = len(guesses)
        if not guesses:
            step, ahead = model.advance(session), []
            continue
        step, *rest = model.verify(session, [g.token for g in guesses])
        ahead = list(zip(guesses, rest, strict=True))


def _next(model: TextModel, session: Session, step: Step, sampling: Sampling, guess: drafting.Guess | None) -> int:
    if guess is None or guess.weights is None:
        return model.sample(session, step, sampling)
    chooser = Chooser(model.backend)
    if session.tally is None:
        session.tally = Tally(model.config.vocab_size, model.backend)
    rules = rules_of(
        sampling, step.logits, session.tokens, model.backend, prompt=session.prompt_ids, tally=session.tally
    )
    weights, top = chooser.weights(step.logits, rules)
    check_top(top)
    kept, other = chooser.judged(weights, guess.weights, guess.token, session.rng.random(), share(session.rng))
    return guess.token if kept else other


def _ended(session: Session) -> bool:
    return session.done  # whoever takes the tokens may set it, too


def _room(model: TextModel, session: Session) -> int:
    """Guesses that could still be said after the last token and before the answer ends."""
    said = len(session.tokens)
    context = model.config.max_positions - len(session.prompt_ids) - said
    return context if session.max_tokens is None else min(context, session.max_tokens - said - 1)


def _guesser(model: TextModel, session: Session, drafts: Drafts) -> Guesser:
    if isinstance(drafts, PromptLookup):
        return drafting.Lookup(drafts.ngram, drafts.tokens)
    drafting.check_vocabulary(model, drafts.model)
    return drafting.Draft(drafts.model, drafts.tokens, session.rng)


def _check(owner: str, name: str, value: int, most: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise InvalidInputError(f"{owner}: {name} must be a whole number from 1 to {most}, got {value!r}.")
