"""Frames: what one step of Qwen3-TTS gives, and what its session holds.

Shapes: V the talker's vocabulary, K codebooks, F frames, T positions, H talker width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from izwi_lab.backends.base import Backend, Native
from izwi_lab.errors import CheckpointError, InvalidInputError
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.generation import SPECIAL
from izwi_lab.families.qwen3_tts.prompt import Layout
from izwi_lab.families.shared import text_session
from izwi_lab.families.shared.sampling import Sampling, check_top, plain_rules, sample_token, share
from izwi_lab.families.shared.steps import Prompt, Session, Step

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

_NATIVE = ("hidden", "logits", "trailing")
ENTERED = ("layout", "embedded")  # in the state of a session that steps with others; see batch.py


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


def new_session(model: Qwen3TTS, *, seed: int | None, max_frames: int | None, kv_dtype: str | None) -> Session:
    """See `Qwen3TTS.session`."""
    most = model.generation.max_frames if max_frames is None else max_frames
    if isinstance(most, bool) or not isinstance(most, (int, np.integer)) or most < 1:
        raise InvalidInputError(f"max_frames must be a whole number from 1, or None, got {max_frames!r:.80}.")
    session = Session(
        model.backend,
        {"talker": model.net.state(kv_dtype), "reference": no_codes(model.config.codebooks)},
        seed=seed,
        trim=trim,
        max_tokens=most,
        adopt=adopter(model.config, model.backend, kv_dtype),
        model=model.variant.id,
    )
    session.codes = no_codes(model.config.codebooks)
    return session


def check_session(model: Qwen3TTS, session: Session) -> None:
    """Raise InvalidInputError for what is no session of this model."""
    text_session.check_step(session)
    if session.model != model.variant.id:
        raise InvalidInputError(
            f"This session is one of {session.model or 'another model'}, not of {model.variant.id}.",
            hint="Make it with this model's session().",
        )


def check_prompt(prompt: Prompt, config: TTSConfig) -> Layout:
    """The layout of a prompt. Raises InvalidInputError where its parts do not fit together, or a net of this config."""
    layout = layout_of(prompt)
    try:
        fits = _fits(layout, config) and len(prompt) == len(layout.text)
    except (TypeError, ValueError, IndexError, AttributeError):  # parts that are no arrays
        fits = False
    if not fits:
        raise InvalidInputError(
            "This prompt was made for another model, or its layout does not fit together.",
            hint="Make it with model.tokenize(text).",
        )
    return layout


def _fits(layout: Layout, config: TTSConfig) -> bool:
    talker, count, heard, speaker = config.talker, len(layout.text), layout.reference, layout.speaker
    text = np.concatenate((layout.text, layout.trailing))
    frames = 0 if heard is None else heard.shape[1]
    return bool(
        layout.text.shape == layout.codec.shape == (count,)
        and 0 <= text.min() <= text.max() < config.text_vocab
        and -1 <= layout.codec.min() <= layout.codec.max() < talker.vocab_size
        and (speaker is None or (speaker.shape == (talker.hidden_size,) and 0 <= layout.speaker_at < count))
        and (heard is None or heard.shape == (config.codebooks, frames))
        and (not frames or 0 <= heard.min() <= heard.max() < config.predictor_vocab)  # type: ignore[union-attr]
        and (not frames or 0 <= layout.reference_at <= count - frames)
    )


def due(session: Session) -> int | None:
    """The code said last, if its frame is not made yet."""
    return session.tokens[-1] if not session.done and len(session.tokens) > session.codes.shape[1] else None


def ends(session: Session, config: TTSConfig) -> bool:
    """Whether the next frame is the last: no more are wanted, or the context has no position to read it at."""
    said: int = session.codes.shape[1]
    full = len(session.prompt_ids) + said >= config.talker.max_positions
    return full or said + 1 >= (session.max_tokens or math.inf)


def check_going_on(session: Session) -> None:
    """Raise InvalidInputError for a session that has not read its prompt or has come to its end."""
    if "opening" not in session.state:
        raise InvalidInputError("This session is empty.", hint="Call prefill first.")
    if session.done:
        raise InvalidInputError(
            f"This session is done ({session.finish_reason}).", hint="Start another with model.session()."
        )


def check_token(session: Session, token: int, config: TTSConfig) -> None:
    """Raise InvalidInputError unless `token`, a sound or the end, can be said next in this session."""
    if isinstance(token, bool) or not isinstance(token, (int, np.integer)):
        raise InvalidInputError(f"A code was expected, got {token!r:.80}.", hint="It is what sample gives.")
    end, sounds = config.ids.codec_eos, config.talker.vocab_size - SPECIAL
    if not 0 <= token < sounds and token != end:
        raise InvalidInputError(f"Code {token} is no sound.", hint=f"Expected 0 to {sounds - 1}, or {end} to end.")
    check_going_on(session)
    if due(session) is not None:
        raise InvalidInputError("The code said last has no frame yet.", hint="Call advance first.")


@contextmanager
def unmoved(session: Session) -> Iterator[None]:
    """If what is inside fails or is stopped, the talker's caches count as many positions as before."""
    talker = session.state["talker"]
    length = talker["length"]
    try:
        yield
    except BaseException:
        talker["length"] = length
        raise


def predict(
    model: Qwen3TTS, session: Session, token: int, sampling: Sampling, *, ends: bool
) -> tuple[np.ndarray, tuple[Native, Native] | None]:
    """The codes of a frame that begins with `token`, int32 [K], drawn by the session's random numbers.

    Where the net makes frames in one go, the talker has read this one unless it `ends` the session: its logits [1, V]
    and hidden [1, H] come second, else None.
    """

    def choose(logits: Native, index: int) -> int:
        return sample_token(logits[0], sampling, session.rng, (), model.backend)

    made = _in_one_go(model, session, token, sampling, ends)
    if made is not None:
        return made
    return np.asarray(model.net.predict(session.state["hidden"], token, choose), np.int32), None


def _in_one_go(
    model: Qwen3TTS, session: Session, token: int, sampling: Sampling, ends: bool
) -> tuple[np.ndarray, tuple[Native, Native] | None] | None:
    """As `predict`; None where the net would rather be asked code by code."""

    def shares() -> list[int]:
        return [0 if sampling.greedy else share(session.rng) for _ in range(model.config.codebooks - 1)]

    rules, talker = plain_rules(sampling, model.config.predictor_vocab), session.state["talker"]
    row = None if ends else text_at(session, session.codes.shape[1])
    made = model.net.frame(session.state["hidden"], token, row, talker, rules, shares)
    if made is None:
        return None
    codes, tops, read = made
    for top in tops:
        check_top(top)
    return np.asarray(codes, np.int32), read


def text_at(session: Session, index: int) -> Native:
    """The text that comes with frame `index`, [1, 1, H]."""
    trailing = session.state["trailing"]
    at = min(index, trailing.shape[1] - 1)
    return trailing[:, at : at + 1]


def talk(model: Qwen3TTS, session: Session, codes: np.ndarray, index: int) -> tuple[Native, Native]:
    """The talker reads `codes` [K] as frame `index`, with the text that comes with it: logits [1, V], hidden [1, H]."""
    x = model.net.frames(model.backend.array(codes[None, :, None])) + text_at(session, index)
    logits, hidden = model.net.talk(x, session.state["talker"])
    model.backend.evaluate(logits, hidden)
    return logits, hidden


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
    codes = session.codes[:, kept - 1]
    with unmoved(session), model.backend.inference():
        state["talker"]["length"] -= 1
        found = talk(model, session, codes, kept - 1)
    return read(model, session, *found, started_s, codes)


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
        # What the talker gave stays as it was computed: the compiled step gives float32 whatever the dtype.
        held = {"trailing": _as(state["trailing"], backend)} if "trailing" in state else {}
        kept = {name: value for name, value in state.items() if name not in ENTERED}  # it goes on alone
        return {**kept, **held, "talker": talker(state["talker"])}

    return adopt


def _as(values: Native, backend: Backend) -> Native:
    same = str(values.dtype).rpartition(".")[2] == backend.dtype
    return values if same else backend.array(backend.numpy(values))
