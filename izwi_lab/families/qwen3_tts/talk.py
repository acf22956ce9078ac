"""Text of any length to speech: the loop over the verbs of Qwen3-TTS as a course, streamed or gathered into a whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

from izwi_lab.audio import Audio
from izwi_lab.cancel import CancelToken, check_cancel
from izwi_lab.codecs.qwen3_tts_12hz.model import CodecStream
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts.asking import check_speed, check_whose
from izwi_lab.families.qwen3_tts.cloning import AudioSource, cloned
from izwi_lab.families.qwen3_tts.frames import layout_of
from izwi_lab.families.qwen3_tts.generation import check_predictor
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.course import Course, Decode, Prefill, followed
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
class Telling:
    """What is known of a speech besides its chunks. prefill_s: seconds of reading the prompts."""

    prefill_s: float = 0.0
    prompt_tokens: int = 0
    voice: str = ""
    language: str = ""
    seed: int = 0


def speech(model: Qwen3TTS, text: str, options: SpeechOptions, cancel: CancelToken | None) -> Speech:
    """Say it all: the chunks of the stream, joined."""
    started_s, telling = time.perf_counter(), Telling()
    return gathered(model, text, stream(model, text, options, cancel, telling), telling, started_s)


def stream(
    model: Qwen3TTS,
    text: str,
    options: SpeechOptions,
    cancel: CancelToken | None,
    telling: Telling | None = None,
) -> Iterator[AudioChunk]:
    """Say it chunk by chunk as frames arrive; what cannot be honoured raises at the call, not at the first chunk."""
    return followed(model, course(model, text, options, cancel=cancel, telling=telling), cancel)


def gathered(model: Qwen3TTS, text: str, said: Iterable[AudioChunk], telling: Telling, started_s: float) -> Speech:
    """The whole of a speech's chunks. started_s: when it was asked for, by time.perf_counter()."""
    first_s, chunks = 0.0, []
    for chunk in said:
        first_s = first_s or time.perf_counter() - started_s
        chunks.append(chunk)
    audio = Audio.concat([chunk.audio for chunk in chunks])
    total_s = time.perf_counter() - started_s
    timing = Timing(
        total_s=total_s,
        first_s=first_s,
        prefill_s=telling.prefill_s,
        decode_s=total_s - telling.prefill_s,
        audio_s=audio.duration_s,
        prompt_tokens=telling.prompt_tokens,
        tokens=sum(chunk.tokens for chunk in chunks),
    )
    return Speech(
        audio,
        text,
        voice=telling.voice,
        language=telling.language,
        model=model.variant.id,
        backend=model.plan.backend,
        timing=timing,
        notes=tuple(dict.fromkeys(note for chunk in chunks for note in chunk.notes)),
        seed=telling.seed,
    )


def course(
    model: Qwen3TTS,
    text: str,
    options: SpeechOptions,
    *,
    cancel: CancelToken | None = None,
    telling: Telling | None = None,
) -> Course:
    """The course of a speech, whose pieces are the chunks of `stream`. What cannot be honoured raises at this call."""
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
    return _said(model, pieces, options, cancel, telling or Telling(), _Chunks(model, notes))


def _said(
    model: Qwen3TTS,
    pieces: Iterator[Prompt],
    options: SpeechOptions,
    cancel: CancelToken | None,
    telling: Telling,
    chunks: _Chunks,
) -> Course:
    telling.seed = base_seed(options.seed)
    opening: CodecStream | None = None  # it has heard the reference, which is that of every piece
    for number, (prompt, last) in enumerate(marking_the_last(pieces)):
        session = model.session(seed=piece_seed(telling.seed, number), max_frames=options.max_frames)
        telling.voice, telling.language = prompt.extras["voice"], prompt.extras["language"]
        opening = opening or model.decoder(layout_of(prompt), cancel=cancel)
        chunks.begin(prompt.text, opening.fork(), last=last)
        yield from _piece(model, session, prompt, options, cancel, telling, chunks)


def _piece(
    model: Qwen3TTS,
    session: Session,
    prompt: Prompt,
    options: SpeechOptions,
    cancel: CancelToken | None,
    telling: Telling,
    chunks: _Chunks,
) -> Course:
    """One prompt; the session is done with the last of its chunks."""
    room = model.config.talker.max_positions - len(prompt) + 1  # the last frame is not read
    # Another's caches were read in other pieces, which rounds otherwise: the seed of a speech would not be its audio.
    step = yield Prefill(session, prompt, min(room, session.max_tokens or room), repeatable=True)
    telling.prefill_s += step.seconds
    telling.prompt_tokens += len(prompt)
    _check(cancel)
    model.say(session, model.sample(session, step, options.sampling))
    while not _ended(session):
        _check(cancel)
        step = yield Decode(session, options.predictor)
        if not _ended(session):  # an end is known before the chunk is sent, so that the last one says so
            model.say(session, model.sample(session, step, options.sampling))
        if chunks.due(session):
            _check(cancel)
            yield chunks.take(session, cancel)


class _Chunks:
    """Chunks of a speech, longer and longer, cut from what its sessions say."""

    def __init__(self, model: Qwen3TTS, notes: tuple[str, ...]) -> None:
        self._model, self._notes, self._sizes, self._index = model, notes, _sizes(), 0
        self._decoder: CodecStream
        self._text, self._last, self._sent, self._size = "", False, 0, 0

    def begin(self, text: str, decoder: CodecStream, *, last: bool) -> None:
        """Another piece of the text comes, with a codec stream of its own."""
        self._text, self._decoder, self._last, self._sent, self._size = text, decoder, last, 0, next(self._sizes)

    def due(self, session: Session) -> bool:
        """Whether enough is said for a chunk."""
        waiting = session.codes.shape[1] - self._sent
        return waiting >= self._size or (session.done and waiting > 0)

    def take(self, session: Session, cancel: CancelToken | None) -> AudioChunk:
        """What is said and was not sent."""
        model, said = self._model, session.codes.shape[1]
        samples = self._decoder.push(session.codes[:, self._sent : said], cancel=cancel)
        if session.finish_reason == "length":
            self._notes = (*self._notes, _cut(model, session))
        audio = Audio(samples, model.codec.rate_hz)
        chunk = AudioChunk(
            audio,
            self._index,
            text=self._text,
            is_final=self._last and session.done,
            notes=self._notes,
            tokens=said - self._sent,
        )
        self._text, self._notes, self._index = "", (), self._index + 1
        self._sent, self._size = said, next(self._sizes)
        return chunk


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
