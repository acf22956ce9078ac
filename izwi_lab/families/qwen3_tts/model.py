"""Qwen3-TTS at 12.5 frames a second: text to codes to speech, in preset, cloned or described voices.

| verb                       | takes                             | gives                                          |
|----------------------------|-----------------------------------|------------------------------------------------|
| `tokenize(text, voice=)`   | text, voice, language, instruct   | `SpeechPrompt`: ids [T]; `streams()`, its layout |
| `prompts(text, voice=)`    | text of any length                | an iterator of Prompts, one per piece          |
| `session(seed=)`           | seed, max_frames, kv_dtype        | `Session`: caches, random numbers, codes [K, F] |
| `prefill(session, prompt)` | ids, codes, a speaker's vector    | `FrameStep`: logits [V], hidden [H]            |
| `sample(session, step)`    | logits [V]                        | the next code of codebook 0, or the end        |
| `decode(session, code)`    | one code                          | `FrameStep`; its 16 codes join `session.codes` |
| `say`, `advance`           | as `decode`                       | the same in two: the code, then the frame of it |
| `audio(session)`           | what it has said, codes [K, F]    | `Audio` [1920 F] at 24 kHz                     |
| `codec.decode(codes)`      | codes [K, F] of a first frame on  | `Audio` [1920 F] at 24 kHz                     |
| `voice(audio, transcript)` | a reference clip (base models)    | `Voice`, to be spoken in, saved and loaded     |
| `tap(patterns)`            | "talker.layers.*", "predictor.*"  | intermediates by name                          |

K = 16 codebooks. The talker draws codebook 0, the code predictor the other 15 from the talker's hidden state; the sum
of a frame's embeddings and the next piece of text is what the talker reads next. `generate` and `stream` are loops
over exactly these verbs. Checked against qwen-tts 0.1.1 (Qwen3-TTS technical report, 2026).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from izwi_lab.audio import Audio
from izwi_lab.backends.base import Backend, BackendPlan, Native
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.codecs.qwen3_tts_12hz.model import Codec12Hz, CodecStream
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.qwen3_tts import alone, asking, batch, frames, talk
from izwi_lab.families.qwen3_tts.cloning import AudioSource, cloned
from izwi_lab.families.qwen3_tts.config import TTSConfig
from izwi_lab.families.qwen3_tts.frames import FrameStep
from izwi_lab.families.qwen3_tts.generation import MIN_FRAMES, Generation, allowed
from izwi_lab.families.qwen3_tts.loader import load
from izwi_lab.families.qwen3_tts.processor import Processor
from izwi_lab.families.qwen3_tts.prompt import Layout, SpeechPrompt
from izwi_lab.families.qwen3_tts.voice import Voice
from izwi_lab.families.shared.closed import ClosedNet
from izwi_lab.families.shared.course import Course
from izwi_lab.families.shared.describe import describe
from izwi_lab.families.shared.sampling import Sampling
from izwi_lab.families.shared.steps import Prompt, Reading, Session, Step
from izwi_lab.families.shared.taps import Replace, Taps, tapping
from izwi_lab.results import AudioChunk, Speech

__all__ = ["Qwen3TTS", "load"]


class Qwen3TTS:
    """A loaded Qwen3-TTS. Immutable; threads may share it. A session belongs to one thread at a time, on MLX to one.

    processor: None for load_format="dummy", which has no tokenizer. speaker: the speaker encoder of base models.

    >>> model = izwi.load("Qwen3-TTS-12Hz-0.6B-CustomVoice")                     # doctest: +SKIP
    >>> session = model.session(seed=0)                                          # doctest: +SKIP
    >>> step = model.prefill(session, model.tokenize("Hello.", voice="Vivian"))  # doctest: +SKIP
    >>> while not session.done:                                                  # doctest: +SKIP
    ...     step = model.decode(session, model.sample(session, step))
    >>> model.audio(session).save("hello.wav")                                   # doctest: +SKIP
    """

    def __init__(
        self,
        variant: ModelVariant,
        plan: BackendPlan,
        backend: Backend,
        net: Any,
        config: TTSConfig,
        codec: Codec12Hz,
        *,
        processor: Processor | None = None,
        speaker: Any = None,
        generation: Generation | None = None,
    ) -> None:
        self.variant, self.plan, self.backend, self.net = variant, plan, backend, net
        self.config, self.codec, self.processor, self.speaker = config, codec, processor, speaker
        self.generation = generation or Generation()
        shapes = {} if speaker is None else backend.parameters(speaker)
        self._speaker_bytes = sum(4 * math.prod(shape) for shape in shapes.values())
        self._early, self._later = allowed(config.talker.vocab_size, config.ids.codec_eos)

    __repr__ = describe

    @property
    def voices(self) -> tuple[str, ...]:
        """Preset voices, in the order of the checkpoint; none where a voice is cloned or described."""
        return asking.voices(self.config)

    @property
    def default_voice(self) -> str | None:
        """The preset voice used when none is named; None where there are no presets."""
        return next(iter(self.voices), None)

    @property
    def languages(self) -> tuple[str, ...]:
        """Languages that can be named; without one the model tells from the text."""
        return asking.languages(self.config)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held in memory, those of the codec included."""
        if isinstance(self.net, ClosedNet):
            return 0
        return int(self.net.weight_bytes()) + self.codec.nbytes + self._speaker_bytes

    def close(self) -> None:
        """Drop the weights; the model cannot be used afterwards."""
        self.net = self.speaker = self.codec = ClosedNet(self.variant.id)  # type: ignore[assignment]

    def tap(self, patterns: str | Sequence[str], *, replace: Replace | None = None) -> AbstractContextManager[Taps]:
        """Read or replace intermediates by name: "talker.layers.*.attn", "predictor.*", the codec's "decoder.*".

        Under a tap the plain path runs, not the compiled or captured one: in bfloat16 it rounds elsewhere, so that a
        seed may say something else.
        """

        def array(values: np.ndarray, like: Native) -> Native:
            return self.backend.array(values, dtype=str(like.dtype).rpartition(".")[2])

        return tapping(patterns, numpy=self.backend.numpy, array=array, replace=replace)

    def tokenize(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        instruct: str | None = None,
        text_mode: str | None = None,
    ) -> SpeechPrompt:
        """The whole text as one Prompt, whose spans name its parts and whose layout says what is summed where.

        Args:
            text: of any language the model speaks.
            voice: a preset voice, or a Voice that `voice` made (base models); None is `default_voice`.
            language: its name or code; None leaves it to the model.
            instruct: how to speak, or in voice_design models what the voice is like.
            text_mode: "whole" reads all text before the first frame, "streaming" a piece with each frame; None takes
                what the reference does for this kind of model.

        Raises:
            InvalidInputError: nothing to speak, or an option that cannot be honoured.
        """
        return self._processor().prompt(text, voice=voice, language=language, instruct=instruct, text_mode=text_mode)

    def prompts(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        instruct: str | None = None,
        text_mode: str | None = None,
    ) -> Iterator[SpeechPrompt]:
        """Text of any length as Prompts of whole sentences; options as `tokenize`.

        A described voice is another one each time it is made up: its text stays one prompt, however long.
        """
        return self._processor().prompts(text, voice=voice, language=language, instruct=instruct, text_mode=text_mode)

    def voice(
        self,
        audio: AudioSource,
        transcript: str | None = None,
        *,
        name: str = "reference",
        language: str = "",
        cancel: CancelToken | None = None,
    ) -> Voice:
        """A voice from a reference clip, for this size of base model; it can be saved, and used again and again.

        Args:
            audio: an Audio, a path, bytes or an open file: 0.5 to 30 s of one person speaking (without a transcript,
                of a longer clip the first 30 s are heard).
            transcript: what is said in it, word for word: the voice then goes on from the clip, manner included.
                Without it only the speaker vector is taken.
            name: what the voice is called in lists.
            language: what the clip is spoken in, for lists.
            cancel: stops it within two seconds of the clip.

        Raises:
            AudioError: silence, NaN, too short, or too long for its transcript.
            InvalidInputError: this kind of model clones no voices.
        """
        return cloned(self, audio, transcript, name=name, language=language, cancel=cancel)

    def session(
        self, *, seed: int | None = None, max_frames: int | None = None, kv_dtype: str | None = None
    ) -> Session:
        """A new session, done at the end code, after max_frames (None: the checkpoint's), or when the context is full.

        kv_dtype: None keeps keys and values in the compute dtype, "int8" in half the memory of bfloat16.
        """
        return frames.new_session(self, seed=seed, max_frames=max_frames, kv_dtype=kv_dtype)

    def prefill(self, session: Session, prompt: Prompt, *, cancel: CancelToken | None = None) -> FrameStep:
        """Read the prompt; logits are those of the first frame's code. Stopped, it leaves the session as it was.

        Raises:
            InvalidInputError: a prompt of another family or model, a used session, or more positions than the context
                has.
            Cancelled: stopped by `cancel`.
        """
        return alone.prefill(self, session, prompt, cancel)

    def sample(self, session: Session, step: FrameStep, sampling: Sampling | None = None) -> int:
        """Draw the next code of codebook 0, or the end; None takes the checkpoint's sampling (`generation.talker`).

        As in the reference: only sounds and the end may come, the end not among the first two, and the repetition
        penalty looks at the codes drawn so far.
        """
        frames.check_session(self, session)
        allowed = self._early if len(session.tokens) < MIN_FRAMES else self._later
        return alone.sample(self, session, step, sampling, allowed)

    def decode(self, session: Session, token: int, *, sampling: Sampling | None = None) -> FrameStep:
        """One frame: the code predictor adds 15 codes to `token`, then the talker reads them. 80 ms of speech.

        It is `say`, then `advance`. sampling: of the predictor; None takes the checkpoint's (`generation.predictor`).
        When the session ends (end code, max_frames or context reached) the talker computes nothing more: its step
        before is given back. A frame that fails or is interrupted leaves the session where it was, but for its random
        numbers.

        Raises:
            InvalidInputError: neither a sound nor the end, a session without prompt or one that is done.
        """
        return alone.decode(self, session, token, sampling)

    def say(self, session: Session, token: int) -> None:
        """Take a code as said without computing its frame; `advance` does. The end code ends the session."""
        alone.say(self, session, token)

    def advance(self, session: Session, *, sampling: Sampling | None = None) -> FrameStep:
        """Compute the frame of the code said last, and the step after it; see `decode`."""
        return alone.advance(self, session, sampling)

    def last(self, session: Session) -> FrameStep:
        """The step that the session stands at, such as after `session.load`."""
        frames.check_session(self, session)
        return frames.last(self, session)

    def audio(self, session: Session) -> Audio:
        """What the session has said so far, [1920 F] at 24 kHz; in a cloned voice as it follows the reference clip.

        Raises:
            InvalidInputError: it has said nothing.
        """
        frames.check_session(self, session)
        if not session.codes.shape[1]:
            raise InvalidInputError("This session has said nothing yet.", hint="Take it on with sample and decode.")
        stream = self.codec.stream()
        stream.skip(session.state["reference"])
        return Audio(stream.push(session.codes), self.codec.rate_hz)

    def decoder(self, layout: Layout, *, cancel: CancelToken | None = None) -> CodecStream:
        """A codec stream for the codes that follow a layout: one that has heard the reference clip, if there is one."""
        stream = self.codec.stream()
        if layout.reference is not None:
            stream.skip(layout.reference, cancel=cancel)
        return stream

    def generate(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        speed: float = 1.0,
        instruct: str | None = None,
        text_mode: str | None = None,
        sampling: Sampling | None = None,
        predictor: Sampling | None = None,
        max_frames: int | None = None,
        reference: AudioSource | None = None,
        transcript: str | None = None,
        seed: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Speech:
        """Speak text of any length. The samples are those of `stream`, joined; `timing.tokens` counts frames.

        Options as `tokenize`; sampling: of codebook 0, predictor: of the other codebooks; max_frames: of each piece of
        the text (12.5 are a second), and `notes` say where it was reached; reference, transcript: instead of a voice,
        what `voice` makes one from; seed fixes all draws; `cancel` stops it within a frame (raises Cancelled).
        """
        options = talk.SpeechOptions(
            voice=voice,
            language=language,
            speed=speed,
            instruct=instruct,
            text_mode=text_mode,
            sampling=sampling,
            predictor=predictor,
            max_frames=max_frames,
            reference=reference,
            transcript=transcript,
            seed=seed,
        )
        return talk.speech(self, text, options, cancel)

    def stream(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        speed: float = 1.0,
        instruct: str | None = None,
        text_mode: str | None = None,
        sampling: Sampling | None = None,
        predictor: Sampling | None = None,
        max_frames: int | None = None,
        reference: AudioSource | None = None,
        transcript: str | None = None,
        seed: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[AudioChunk]:
        """Speak while frames arrive: a first chunk of 4 frames (0.32 s), then longer ones; options as `generate`."""
        options = talk.SpeechOptions(
            voice=voice,
            language=language,
            speed=speed,
            instruct=instruct,
            text_mode=text_mode,
            sampling=sampling,
            predictor=predictor,
            max_frames=max_frames,
            reference=reference,
            transcript=transcript,
            seed=seed,
        )
        return talk.stream(self, text, options, cancel)

    def course(
        self,
        text: str,
        options: talk.SpeechOptions,
        *,
        cancel: CancelToken | None = None,
        telling: talk.Telling | None = None,
    ) -> Course:
        """What `stream` follows, for the engine. What cannot be honoured raises at this call, which makes the voice."""
        return talk.course(self, text, options, cancel=cancel, telling=telling)

    # steps of many sessions, for the engine; see batch.py

    @property
    def pageable(self) -> bool:
        """Whether sessions may share their caches' memory."""
        return batch.pageable(self)

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in the talker's caches."""
        return batch.position_bytes(self)

    @property
    def max_positions(self) -> int:
        """The longest that a session can be."""
        return self.config.talker.max_positions

    def pool(self, blocks: int, block: int) -> dict[str, list[Any]]:
        """Caches for many sessions: `blocks` of `block` positions."""
        return batch.pool(self, blocks, block)

    def enter(self, session: Session, prompt: Prompt) -> None:
        """Note in a fresh session what it is to read. Raises as `prefill` does."""
        batch.enter(self, session, prompt)

    def caches(self, session: Session) -> dict[str, Any]:
        """The state in which a session's positions are counted."""
        return batch.caches(session)

    def stand(self, session: Session, position: int) -> None:
        """A session has read `position` of what it knows: less than before where it must read again."""
        batch.stand(session, position)

    def step_many(self, readings: Sequence[Reading]) -> list[Step | Exception | None]:
        """What all of these read, in one pass: a Step for each that wants one, the error of one that cannot go on.

        If it fails, nobody has moved.
        """
        return batch.step_many(self, readings)

    def _processor(self) -> Processor:
        if self.processor is None:
            raise InvalidInputError(
                f"{self.variant.id} was loaded with random weights and has no tokenizer.",
                hint="Load a checkpoint, or make a Prompt from a Layout.",
            )
        return self.processor
