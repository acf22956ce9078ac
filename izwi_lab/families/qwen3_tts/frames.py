"""Frames: what one step of Qwen3-TTS gives, and what its session holds.

Shapes: V the talker's vocabulary, K codebooks, F frames, T positions, H talker width.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.generation import SPECIAL
from izwi_lab.families.qwen3_tts.prompt import Layout
from izwi_lab.families.shared import text_session
from izwi_lab.families.shared.sampling import Sampling, sample_token
from izwi_lab.families.shared.steps import Prompt, Session, Step

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

_NATIVE = ("hidden", "logits", "trailing")


@dataclass(frozen=True, slots=True, repr=False)
class FrameStep(Step):
    """What `prefill` or `decode` gave. logits: native [V] of the next code of codebook 0; hidden: native [H].

    codes: int32 [K] of the frame that was read; None after a prompt.
    """

    codes: np.ndarray | None = None


def layout_of(prompt: Prompt) -> Layout:
    """The layout of a prompt of this family. Raises InvalidInputError for one of another."""
    layout = prompt.extras.get("layout")
    if not isinstance(layout, Layout):
        raise InvalidInputError(
            f"{prompt!r} is no prompt of this family: it has no layout.", hint="Make it with model.tokenize(text)."
        )
    return layout


def embedded(net: Any, backend: Backend, layout: Layout) -> np.ndarray:
    """The sums that the talker reads for a layout, float32 [T, H]: the text side plus the side of the codes.

    Summed on the host: both sides are as the net rounds them, and so is their sum when it goes back.
    """
    with backend.inference():
        x = np.array(backend.numpy(net.text(backend.array(layout.text[None])))[0])
        given = layout.codec >= 0
        side = backend.numpy(net.codec(backend.array(np.maximum(layout.codec, 0)[None])))[0]
        x[given] += side[given]
        if layout.speaker is not None:
            x[layout.speaker_at] += backend.numpy(backend.array(layout.speaker))
        if layout.reference is not None:
            frames = backend.numpy(net.frames(backend.array(layout.reference[None])))[0]
            x[layout.reference_at : layout.reference_at + len(frames)] += frames
    return x


def following(net: Any, backend: Backend, layout: Layout, config: TTSConfig) -> Native:
    """The text side of the frames to come, native [1, n + 1, H]; the last, padding, is for all that follow."""
    ids = np.append(layout.trailing, config.ids.tts_pad).astype(np.int32)
    return net.text(backend.array(ids[None]))


def no_codes(codebooks: int) -> np.ndarray:
    """The codes of a session that has said nothing, int32 [K, 0]."""
    return np.empty((codebooks, 0), np.int32)


def check_token(session: Session, token: int, config: TTSConfig) -> None:
    """Raise InvalidInputError unless `token`, a sound or the end, can be said next in this session."""
    text_session.check_step(session)
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise InvalidInputError(f"A code was expected, got {token!r:.80}.", hint="It is what sample gives.")
    end, sounds = config.ids.codec_eos, config.talker.vocab_size - SPECIAL
    if not 0 <= token < sounds and token != end:
        raise InvalidInputError(f"Code {token} is no sound.", hint=f"Expected 0 to {sounds - 1}, or {end} to end.")
    if session.position == 0:
        raise InvalidInputError("This session is empty.", hint="Call prefill first.")
    if session.done:
        raise InvalidInputError(
            f"This session is done ({session.finish_reason}).", hint="Start another with model.session()."
        )


def predict(model: Qwen3TTS, session: Session, token: int, sampling: Sampling) -> np.ndarray:
    """The codes of a frame that begins with `token`, int32 [K], drawn by the session's random numbers."""

    def choose(logits: Native, index: int) -> int:
        return sample_token(logits[0], sampling, session.rng, (), model.backend)

    return np.asarray(model.net.predict(session.state["hidden"], token, choose), np.int32)


def talk(model: Qwen3TTS, session: Session, index: int, started_s: float) -> FrameStep:
    """The talker reads frame `index` of the session, with the text that comes with it."""
    state, codes, backend = session.state, session.codes[:, index], model.backend
    with backend.inference():
        at = min(index, state["trailing"].shape[1] - 1)
        x = model.net.frames(backend.array(codes[None, :, None])) + state["trailing"][:, at : at + 1]
        logits, hidden = model.net.talk(x, state["talker"])
        backend.evaluate(logits, hidden)
    return read(model, session, logits, hidden, started_s, codes)


def read(
    model: Qwen3TTS,
    session: Session,
    logits: Native,
    hidden: Native,
    started_s: float,
    codes: np.ndarray | None = None,
) -> FrameStep:
    """Note what the talker gave, logits [1, V] and hidden [1, H], as what the session stands at."""
    session.state["logits"], session.state["hidden"] = logits, hidden
    session.position = session.reach = int(session.state["talker"]["length"])
    seconds = time.perf_counter() - started_s
    step = FrameStep(logits[0], hidden[0], session.position - 1, seconds, model.backend, codes)
    session.last = step
    return step


def last(model: Qwen3TTS, session: Session) -> FrameStep:
    """The step that the session stands at; after a trim it is computed again."""
    if isinstance(session.last, FrameStep):
        return session.last
    if session.position == 0:
        raise InvalidInputError("This session is empty.", hint="Call prefill first.")
    started_s, kept, state = time.perf_counter(), session.position - len(session.prompt_ids), session.state
    if "logits" in state:
        return read(model, session, state["logits"], state["hidden"], started_s)
    if not kept:
        return read(model, session, state["opening"]["logits"], state["opening"]["hidden"], started_s)
    state["talker"]["length"] -= 1
    return talk(model, session, kept - 1, started_s)


def trim(session: Session, position: int) -> None:
    """`Session.trim`: forget the frames after a position. The prompt stays; what stood before is computed again."""
    first = len(session.prompt_ids)
    if position < first or not first:
        raise InvalidInputError(
            f"This session can go back to the end of its prompt at most, position {first}, not to {position}.",
            hint="Start another with model.session() and prefill.",
        )
    kept = position - first
    session.tokens, session.codes = session.tokens[:kept], session.codes[:, :kept]
    session.state["talker"]["length"] = session.position = position
    for name in ("logits", "hidden"):  # of the position now last
        session.state.pop(name, None)
    session.done, session.finish_reason, session.last = False, None, None


def adopter(config: TTSConfig, backend: Backend, kv_dtype: str | None) -> Callable[[Any], Any]:
    """What takes a session's state from a file; one that does not fit is refused."""
    talker = text_session.adopter(config.talker, backend, kv_dtype)
    width, vocabulary = config.talker.hidden_size, config.talker.vocab_size

    def adopt(state: Any) -> Any:
        if not isinstance(state, dict) or not {"talker", "reference"} <= set(state):
            raise CheckpointError("The session was saved by another model.")
        found = {name: tuple(state[name].shape) for name in _NATIVE if hasattr(state.get(name), "shape")}
        rows = found.get("trailing", (1, 1))[1:2]
        expected = {"hidden": (1, width), "logits": (1, vocabulary), "trailing": (1, *rows, width)}
        if any(expected[name] != shape for name, shape in found.items()):
            raise CheckpointError(f"The session was saved by another model: {found}, expected {expected}.")
        held = {n: _as(state[n], backend) for n in ("hidden", "trailing") if n in state}
        return {**state, **held, "talker": talker(state["talker"])}

    return adopt


def _as(values: Native, backend: Backend) -> Native:
    same = str(values.dtype).rpartition(".")[2] == backend.dtype
    return values if same else backend.array(backend.numpy(values))
