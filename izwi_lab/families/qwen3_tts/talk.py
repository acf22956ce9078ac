"""Text of any length to speech: the loop over the verbs of Qwen3-TTS, streamed or whole."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken, check_cancel
from izwi_lab.codecs.qwen3_tts_12hz.model import CodecStream
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts.asking import check_speed, check_whose
from izwi_lab.families.qwen3_tts.cloning import AudioSource, cloned
from izwi_lab.families.qwen3_tts.frames import layout_of
from izwi_lab.families.qwen3_tts.generation import check_predictor
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.piecewise import base_seed, marking_the_last, piece_seed
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Session
from izwi_lab.results import AudioChunk, Speech, Timing

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.model import Qwen3TTS

FIRST_FRAMES = 4  # of a stream's first chunk: 0.32 s
MOST_FRAMES = 25  # of any chunk: 2 s
GROWTH = 1.5  # a chunk is still being heard while the next, this much longer, is made


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeechOptions:
    """What `generate` and `stream` are told besides the text; see there."""

    voice: str | Voice | None = None
    language: str | None = None
    instruct: str | None = None
    text_mode: str | None = None
    speed: float = 1.0
    sampling: Sampling | None = None
    predictor: Sampling | None = None
    max_frames: int | None = None
    seed: int | None = None
    reference: AudioSource | None = None
    transcript: str | None = None

    def __post_init__(self) -> None:
        check_speed(self.speed)
        if self.sampling is not None and not isinstance(self.sampling, Sampling):
            raise InvalidInputError(f"sampling must be a Sampling or None, got {self.sampling!r:.80}.")
        check_predictor(self.predictor)
        check_whose(self.voice, self.reference, self.transcript)


@dataclass(slots=True)
class _Course:
    """What is known of a request besides its chunks."""

    prefill_s: float = 0.0
    prompt_tokens: int = 0
    frames: int = 0
    voice: str = ""
    language: str = ""
    seed: int = 0
    clips: list[Audio] = field(default_factory=list)


def speech(model: Qwen3TTS, text: str, options: SpeechOptions, cancel: CancelToken | None) -> Speech:
    """Say it all: the chunks of the stream, joined."""
    started_s, first_s, course = time.perf_counter(), 0.0, _Course()
    notes: list[str] = []
    for chunk in stream(model, text, options, cancel, course):
        first_s = first_s or time.perf_counter() - started_s
        course.clips.append(chunk.audio)
        notes += chunk.notes
    audio = Audio.concat(course.clips)
    total_s = time.perf_counter() - started_s
    timing = Timing(
        total_s=total_s,
        first_s=first_s,
        prefill_s=course.prefill_s,
        decode_s=total_s - course.prefill_s,
        audio_s=audio.duration_s,
        prompt_tokens=course.prompt_tokens,
        tokens=course.frames,
    )
    return Speech(
        audio,
        text,
        voice=course.voice,
        language=course.language,
        model=model.variant.id,
        backend=model.plan.backend,
        timing=timing,
        notes=tuple(dict.fromkeys(notes)),
        seed=course.seed,
    )


def stream(
    model: Qwen3TTS, text: str, options: SpeechOptions, cancel: CancelToken | None, course: _Course | None = None
) -> Iterator[AudioChunk]:
    """Say it chunk by chunk as frames arrive; what cannot be honoured raises at the call, not at the first chunk."""
    check_cancel(cancel)
    model.session(seed=options.seed, max_frames=options.max_frames)  # raises for what is neither
    voice: str | Voice | None = options.voice
    notes: tuple[str, ...] = ()
    if options.reference is not None:
        voice = cloned(model, options.reference, options.transcript, cancel=cancel)
        notes = voice.notes
    pieces = model.prompts(
        text, voice=voice, language=options.language, instruct=options.instruct, text_mode=options.text_mode
    )
    pieces = chain([next(pieces)], pieces)  # one that does not fit raises here
    return _chunks(model, pieces, notes, options, cancel, course or _Course())


def _chunks(
    model: Qwen3TTS,
    pieces: Iterator[Prompt],
    notes: tuple[str, ...],
    options: SpeechOptions,
    cancel: CancelToken | None,
    course: _Course,
) -> Iterator[AudioChunk]:
    base, sizes, index = base_seed(options.seed), _sizes(), 0
    course.seed = base
    opening: CodecStream | None = None  # it has heard the reference, which is that of every piece
    for number, (prompt, last) in enumerate(marking_the_last(pieces)):
        session = model.session(seed=piece_seed(base, number), max_frames=options.max_frames)
        course.voice, course.language, said = prompt.extras["voice"], prompt.extras["language"], prompt.text
        opening = opening or model.decoder(layout_of(prompt), cancel=cancel)
        for samples in _piece(model, session, prompt, options, opening.fork(), cancel, sizes, course):
            if session.finish_reason == "length":
                notes = (*notes, _cut(model, session))
            audio = Audio(samples, model.codec.rate_hz)
            frames = len(samples) // model.codec.frame_samples
            yield AudioChunk(audio, index, text=said, is_final=last and session.done, notes=notes, tokens=frames)
            said, notes, index = "", (), index + 1


def _piece(
    model: Qwen3TTS,
    session: Session,
    prompt: Prompt,
    options: SpeechOptions,
    decoder: CodecStream,
    cancel: CancelToken | None,
    sizes: Iterator[int],
    course: _Course,
) -> Iterator[np.ndarray]:
    """The samples of one prompt, float32 [frames * frame_samples] each; the session is done with the last of them."""
    step = model.prefill(session, prompt, cancel=cancel)
    course.prefill_s += step.seconds
    course.prompt_tokens += len(prompt)
    _check(cancel)
    sent, size = 0, next(sizes)
    token = model.sample(session, step, options.sampling)
    while not _ended(session):
        _check(cancel)
        step = model.decode(session, token, sampling=options.predictor)
        if not _ended(session):
            token = model.sample(session, step, options.sampling)
            if token == model.config.ids.codec_eos:  # known before the chunk is sent, so that the last one says so
                model.decode(session, token)
        said = session.codes.shape[1]
        if said - sent >= size or (_ended(session) and said > sent):
            _check(cancel)
            samples = decoder.push(session.codes[:, sent:said], cancel=cancel)
            course.frames += said - sent
            yield samples
            sent, size = said, next(sizes)


def _ended(session: Session) -> bool:
    return session.done


def _cut(model: Qwen3TTS, session: Session) -> str:
    frames = session.codes.shape[1]
    seconds = frames * model.codec.frame_samples / model.codec.rate_hz
    return (
        f"Stopped after {frames} frames ({seconds:.1f} s) without coming to an end: the text may not be heard whole. "
        "max_frames sets the limit."
    )


def _sizes() -> Iterator[int]:
    """Frames of each chunk of a stream."""
    size = float(FIRST_FRAMES)
    while True:
        yield int(size)
        size = min(size * GROWTH, MOST_FRAMES)


def _check(cancel: CancelToken | None) -> None:
    if cancel is not None:
        cancel.check()
