"""Steps of one session of Qwen3-TTS alone: its prompt, a code that is drawn and said, the frame that follows."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.cancel import CancelToken
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts import frames
from izwi_lab.families.qwen3_tts.frames import FrameStep
from izwi_lab.families.qwen3_tts.generation import check_predictor
from izwi_lab.families.qwen3_tts.prompt import Layout
from izwi_lab.families.shared import text_session
from izwi_lab.families.shared.sampling import Sampling, sample_token
from izwi_lab.families.shared.steps import Prompt, Session
from izwi_lab.families.shared.tally import Tally

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

PREFILL_CHUNK = 512  # positions read at once: bounds memory, and how long a cancel waits


def check_prompt(model: Qwen3TTS, session: Session, prompt: Prompt, cancel: CancelToken | None = None) -> Layout:
    """The layout of what a fresh session is to read. Raises as `Qwen3TTS.prefill` does."""
    text_session.check_step(session, prompt, cancel, reads=True)
    frames.check_session(model, session)
    if session.position or "opening" in session.state:
        raise InvalidInputError("This session has read its prompt already.", hint="Start one with session().")
    layout, talker = frames.check_prompt(prompt, model.config), model.config.talker
    if len(prompt) >= talker.max_positions:
        raise InvalidInputError(
            f"The prompt has {len(prompt)} positions; the context of {model.variant.id} has {talker.max_positions}.",
            hint="Shorten the text, the instruction or the reference clip.",
        )
    return layout


def prefill(model: Qwen3TTS, session: Session, prompt: Prompt, cancel: CancelToken | None) -> FrameStep:
    """See `Qwen3TTS.prefill`."""
    layout = check_prompt(model, session, prompt, cancel)
    started_s, backend, state = time.perf_counter(), model.backend, session.state
    x = frames.embedded(model.net, backend, layout)
    with frames.unmoved(session), backend.inference():
        for run in text_session.cuts(len(x), PREFILL_CHUNK):
            if cancel is not None:
                cancel.check()
            piece = backend.array(x[None, run])
            logits, hidden = model.net.talk(piece, state["talker"])
            backend.evaluate(logits, hidden)
        trailing = frames.following(model.net, backend, layout, model.config)
        backend.evaluate(trailing)
    state["trailing"] = trailing
    if layout.reference is not None:
        state["reference"] = layout.reference
    state["opening"] = {"logits": logits, "hidden": hidden}  # to come back to
    session.prompt_ids = [int(i) for i in prompt.ids]
    return frames.read(model, session, logits, hidden, started_s)


def sample(model: Qwen3TTS, session: Session, step: FrameStep, sampling: Sampling | None, allowed: np.ndarray) -> int:
    """See `Qwen3TTS.sample`. allowed: as `sample_token` has it."""
    frames.check_going_on(session)
    text_session.check_choice(step, sampling)
    if session.tally is None:
        session.tally = Tally(model.config.talker.vocab_size, model.backend)
    return sample_token(
        step.logits,
        sampling or model.generation.talker,
        session.rng,
        session.tokens,
        model.backend,
        allowed=allowed,
        tally=session.tally,
    )


def say(model: Qwen3TTS, session: Session, token: int) -> None:
    """See `Qwen3TTS.say`."""
    frames.check_session(model, session)
    frames.check_token(session, token, model.config)
    session.tokens.append(int(token))
    if token == model.config.ids.codec_eos:
        session.done, session.finish_reason = True, "stop"


def advance(model: Qwen3TTS, session: Session, sampling: Sampling | None) -> FrameStep:
    """See `Qwen3TTS.advance`."""
    frames.check_session(model, session)
    check_predictor(sampling)
    frames.check_going_on(session)
    token = frames.due(session)
    if token is None:
        raise InvalidInputError("Nothing was said since the last step.", hint="Call decode with a code.")
    started_s, index = time.perf_counter(), session.codes.shape[1]
    frames.last(model, session)
    ends = frames.ends(session, model.config)
    with frames.unmoved(session), model.backend.inference():
        codes, found = frames.predict(model, session, token, sampling or model.generation.predictor, ends=ends)
        if found is None and not ends:
            found = frames.talk(model, session, codes, index)
        said = np.concatenate((session.codes, codes[:, None]), axis=1)
    session.codes = said
    if found is not None:
        return frames.read(model, session, *found, started_s, codes)
    session.done, session.finish_reason = True, "length"
    return replace(frames.last(model, session), codes=codes)


def decode(model: Qwen3TTS, session: Session, token: int, sampling: Sampling | None) -> FrameStep:
    """See `Qwen3TTS.decode`."""
    check_predictor(sampling)
    say(model, session, token)
    if session.done:
        return frames.last(model, session)
    try:
        return advance(model, session, sampling)
    except BaseException:
        if frames.due(session) is not None:
            session.tokens.pop()
        raise
