"""Several sessions of a Whisper in one pass over its weights: what `prefill_many` and `decode_many` do."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.families.shared.steps import Prompt, Session, Step

if TYPE_CHECKING:
    from izwi_lab.families.whisper.model import WhisperModel


def prefill(model: WhisperModel, sessions: Sequence[Session], prompts: Sequence[Prompt]) -> list[Step]:
    """See WhisperModel.prefill_many."""
    steps: dict[int, Step] = {}
    for length in sorted({len(p) for p in prompts}):
        chosen = [n for n, p in enumerate(prompts) if len(p) == length]
        rows = [int(prompts[n].extras["start"]) for n in chosen]
        wanted = sorted({*rows, length - 1})
        ids = np.stack([prompts[n].ids for n in chosen])
        group = [sessions[n] for n in chosen]
        for n, row, session, found in zip(chosen, rows, group, step(model, group, ids, wanted), strict=True):
            session.prompt_ids = prompts[n].ids.tolist()
            session.state["timestamps"] = bool(prompts[n].extras["timestamps"])
            chances = softmax(found[wanted.index(row)].numpy())
            session.state["no_speech_prob"] = float(chances[model.processor.tokens.no_speech])
            steps[n] = found[-1]
    return [steps[n] for n in range(len(prompts))]


def decode(model: WhisperModel, sessions: Sequence[Session], tokens: Sequence[int]) -> list[Step]:
    """See WhisperModel.decode_many."""
    reasons = [_end(model, session, token) for session, token in zip(sessions, tokens, strict=True)]
    going = [n for n, reason in enumerate(reasons) if reason is None]
    fresh: dict[int, Step] = {}
    if going:  # before anything is noted: where this fails, nothing has changed
        ids = np.array([[tokens[n]] for n in going], np.int32)
        for n, (found,) in zip(going, step(model, [sessions[n] for n in going], ids, [0]), strict=True):
            fresh[n] = found
    for session, token, reason in zip(sessions, tokens, reasons, strict=True):
        if not session.done and token != model.processor.tokens.end:
            session.tokens.append(int(token))
        if reason is not None:
            session.done, session.finish_reason = True, reason
    return [fresh.get(n) or _last(model, session) for n, session in enumerate(sessions)]


def _end(model: WhisperModel, session: Session, token: int) -> str | None:
    """Why a session is done with this token, None where it goes on."""
    if session.done:
        return session.finish_reason
    if token == model.processor.tokens.end:
        return "stop"
    full = session.position >= model.config.max_target_positions
    return "length" if full or len(session.tokens) + 1 >= session.state["limit"] else None


def _last(model: WhisperModel, session: Session) -> Step:
    """The step a finished session ended on."""
    kept = session.state["last"]
    return Step(kept["logits"], kept["hidden"], session.position - 1, 0.0, model.backend)


def step(
    model: WhisperModel, sessions: Sequence[Session], ids: np.ndarray, rows: Sequence[int]
) -> list[tuple[Step, ...]]:
    """Run ids [B, T]; for each session the Steps at the wanted rows, the last of which it keeps."""
    began = time.perf_counter()
    backend = model.backend
    with backend.inference():
        logits, hidden = model.net.step(backend.array(ids), [s.state["net"] for s in sessions], list(rows))
        backend.evaluate(logits, hidden)
    seconds = time.perf_counter() - began
    out = []
    for b, session in enumerate(sessions):
        session.position += ids.shape[1]
        steps = tuple(
            Step(logits[b, r], hidden[b, r], session.position - 1, seconds, backend) for r in range(len(rows))
        )
        session.state["last"] = {"logits": steps[-1].logits, "hidden": steps[-1].hidden}
        out.append(steps)
    return out


def softmax(logits: np.ndarray) -> np.ndarray:
    """Logits [V] -> probabilities, float64."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    return np.asarray(weights / weights.sum())
