"""Kokoro-82M: text to speech in English, one sentence at a time. Needs no autoregression: each verb runs once a piece.

| verb                       | takes                                | gives                                            |
|----------------------------|--------------------------------------|--------------------------------------------------|
| `tokenize(text, voice=)`   | text of up to 510 phonemes           | `Prompt`: ids [T] with a boundary 0 at both ends |
| `prompts(text, voice=)`    | text of any length                   | an iterator of Prompts, one per sentence         |
| `session(seed=)`           |                                      | `Session`: the random numbers, then the codes    |
| `prefill(session, prompt)` | ids [T], style [1, 256]              | `ProsodyStep`: durations [T], f0 and energy [2F] |
| `decode(session, step)`    | a `ProsodyStep`                      | `AcousticStep`; codes: features [2F, 512]        |
| `codec.decode(codes)`      | `session.codes`                      | `Audio` [600 F] at 24 kHz                        |

F frames of 25 ms. `speak` takes a prompt through exactly these verbs, `speak_many` several in one padded pass; `course`
is what generate and stream follow, a sentence after the other. After Li et al. 2023 (StyleTTS 2) and
Kaneko et al. 2022 (iSTFTNet); checked against kokoro 0.9.4.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab import catalog
from izwi_lab.backends.base import Backend, BackendPlan
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import InvalidInputError
from izwi_lab.families.kokoro import weights
from izwi_lab.families.kokoro.config import KokoroConfig
from izwi_lab.families.kokoro.processor import Processor, check_text
from izwi_lab.families.kokoro.saying import Saying, Sound
from izwi_lab.families.kokoro.steps import AcousticFeatures, AcousticStep, ProsodyStep
from izwi_lab.families.kokoro.together import spoken
from izwi_lab.families.kokoro.vocoder import IstftVocoder
from izwi_lab.families.kokoro.voices import DEFAULT, Voices
from izwi_lab.families.shared.blame import tried
from izwi_lab.families.shared.closed import ClosedNet
from izwi_lab.families.shared.course import followed
from izwi_lab.families.shared.describe import describe
from izwi_lab.families.shared.piecewise import base_seed
from izwi_lab.families.shared.steps import Prompt, Session
from izwi_lab.families.shared.taps import Replace, Taps, tapping
from izwi_lab.results import AudioChunk, Speech

_PACKAGE = "izwi_lab.families.kokoro"
# Of a padded pass away from the CPU: some 80 s of speech, and memory for as much. On a CPU the compiled kernels take
# one piece at a time; without them a padded batch of four sentences was made 1.3 times as fast as one after the other,
# for which all of them, and whoever comes meanwhile, wait for the last.
_MOST_IDS = 1024


def load(
    variant: ModelVariant,
    folder: Path | None,
    plan: BackendPlan,
    backend: Backend,
    *,
    layout: str,
    load_format: str = "auto",
) -> Kokoro:
    """Load Kokoro from `folder` in `layout` ("kokoro_onnx" or "kokoro_torch"); `load_format="dummy"` needs no folder.

    Raises:
        CheckpointError: files are missing, damaged, or do not match the net.
        InvalidInputError: no folder was given for real weights.
    """
    if load_format == "dummy":
        config = KokoroConfig.of(catalog.config(variant))
        voices = Voices({}, dummy=variant.voices or (DEFAULT,))
        net = backend.net(_PACKAGE, "KokoroNet", config, None, keep_float32=weights.KEEP_FLOAT32)
        return Kokoro(variant, plan, backend, net, config, voices)
    if folder is None:
        raise InvalidInputError("Kokoro's weights need a folder.", hint='Fetch the model, or load_format="dummy".')
    config = KokoroConfig.of(weights.config_values(folder, variant))
    checkpoint = weights.load(folder, layout, plan.dtype)
    try:
        tensors = {name: checkpoint.read(name) for name in checkpoint.names}
        net = backend.net(_PACKAGE, "KokoroNet", config, tensors, keep_float32=weights.KEEP_FLOAT32)
    finally:
        checkpoint.close()
    return Kokoro(variant, plan, backend, net, config, Voices.of(folder))


class Kokoro:
    """A loaded Kokoro. Immutable; threads may share it, each with sessions of its own.

    >>> model = izwi.load("Kokoro-82M")                                   # doctest: +SKIP
    >>> prompt = model.tokenize("Hello.", voice="af_heart")               # doctest: +SKIP
    >>> session = model.session(seed=0)                                   # doctest: +SKIP
    >>> model.decode(session, model.prefill(session, prompt))             # doctest: +SKIP
    >>> model.codec.decode(session.codes).save("hello.wav")               # doctest: +SKIP
    """

    def __init__(
        self,
        variant: ModelVariant,
        plan: BackendPlan,
        backend: Backend,
        net: Any,
        config: KokoroConfig,
        voices: Voices,
    ) -> None:
        self.variant, self.plan, self.backend, self.net, self.config = variant, plan, backend, net, config
        self.codec = IstftVocoder(net, backend, config)
        self._processor = Processor(config, voices)
        self._nbytes: int = net.held_bytes()
        self._pads = backend.device != "cpu"

    @property
    def voices(self) -> tuple[str, ...]:
        """Installed voices; any of them can be blended ("af_heart:0.7+am_michael:0.3")."""
        return self._processor.voices.names

    @property
    def default_voice(self) -> str:
        """The voice used when none is named."""
        return self._processor.voices.default

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held in memory."""
        return 0 if isinstance(self.net, ClosedNet) else self._nbytes

    __repr__ = describe

    def close(self) -> None:
        """Drop the weights; the model cannot be used afterwards."""
        self.net = self.codec.net = ClosedNet(self.variant.id)

    def tap(self, patterns: str | Sequence[str], *, replace: Replace | None = None) -> AbstractContextManager[Taps]:
        """Read or replace intermediates by name: "bert*", "predictor.*", "F0", "decoder.*", "generator.*", "audio"."""
        return tapping(
            patterns,
            numpy=self.backend.numpy,
            array=lambda host, like: self.backend.array(host, dtype="float32"),
            replace=replace,
        )

    def tokenize(
        self,
        text: str = "",
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        phonemes: str | None = None,
    ) -> Prompt:
        """The whole text as one Prompt: ids [T], a span per word; `extras["dropped"]` lists what cannot be spoken.

        Args:
            text: English text of up to 510 phonemes.
            voice: a voice or blend; None is `default_voice`.
            language: "English" or "British English"; None reads English in the accent of the voice.
            speed: 0.5 (slow) to 2.0.
            phonemes: instead of text, phonemes of Kokoro's vocabulary, in any of its languages.

        Raises:
            InvalidInputError: nothing to speak, too long for one prompt, or an option that cannot be honoured.
        """
        request = self._processor.request(voice, language, speed)
        return self._processor.prompt(text, request, phonemes=phonemes)

    def prompts(
        self,
        text: str = "",
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        phonemes: str | None = None,
    ) -> Iterator[Prompt]:
        """Text of any length as one Prompt per sentence, made as they are asked for; options as `tokenize`."""
        request = self._processor.request(voice, language, speed)
        check_text(text, phonemes)
        return self._processor.prompts(text, request, phonemes=phonemes)

    def session(self, *, seed: int | None = None) -> Session:
        """A fresh session for one Prompt. Equal seeds give equal noise on every backend."""
        return Session(self.backend, {}, seed=seed)

    def prefill(self, session: Session, prompt: Prompt, *, durations: np.ndarray | None = None) -> ProsodyStep:
        """How long each phoneme lasts, and the pitch and energy over time.

        Args:
            session: a fresh session.
            prompt: from `tokenize` or `prompts`.
            durations: frames per id, int [T], to be used instead of the predicted ones.

        Raises:
            InvalidInputError: the session was used, or durations do not fit the prompt.
        """
        if session.position:
            raise InvalidInputError("This session has read its prompt already.", hint="Start one with session().")
        started = time.perf_counter()
        backend, extras = self.backend, prompt.extras
        ids = backend.array(prompt.ids[None])
        with backend.inference():
            style = backend.array(extras["style"][:, self.config.style :], dtype="float32")
            encoded, logits = self.net.durations(ids, style)
            if durations is None:
                each = _frames(backend.numpy(logits)[0], extras["speed"])
            else:
                each = _checked(durations, len(prompt))
            order = backend.array(np.repeat(np.arange(len(prompt), dtype=np.int32), each))
            f0, energy = self.net.curves(encoded, order, style)
            backend.evaluate(f0, energy)
        session.prompt_ids = [int(i) for i in prompt.ids]
        session.position = len(prompt)
        session.state = {"ids": ids, "style": np.asarray(extras["style"])}
        return ProsodyStep(
            logits[0],
            encoded,
            0,
            time.perf_counter() - started,
            backend,
            durations=each,
            f0=backend.numpy(f0)[0],
            energy=backend.numpy(energy)[0],
            spans=prompt.spans,
            frame_s=self.config.samples_per_frame / self.config.rate_hz,
        )

    def decode(self, session: Session, step: ProsodyStep, *, noise: bool = True) -> AcousticStep:
        """Acoustic features from the prosody; left in `session.codes`, and the session is done.

        noise=False leaves the source's noise out, which is how parity is tested; speech sounds buzzier without it.

        Raises:
            InvalidInputError: the session has not read a prompt, or the step's curves do not fit its durations.
        """
        if not session.position or session.done:
            raise InvalidInputError("decode needs a session fresh from prefill.", hint="Call prefill first.")
        if step.f0.shape != (2 * step.frames,) or step.energy.shape != step.f0.shape:
            raise InvalidInputError(
                f"f0 has shape {list(step.f0.shape)}, energy {list(step.energy.shape)}; expected [{2 * step.frames}].",
                hint="Two values per frame of the durations.",
            )
        started = time.perf_counter()
        backend, style = self.backend, session.state["style"]
        with backend.inference():
            features = self.net.features(
                session.state["ids"],
                backend.array(np.repeat(np.arange(step.durations.shape[0], dtype=np.int32), step.durations)),
                backend.array(step.f0[None], dtype="float32"),
                backend.array(step.energy[None], dtype="float32"),
                backend.array(style[:, : self.config.style], dtype="float32"),
            )
            backend.evaluate(features)
        source = self.codec.source(step.f0, session.rng if noise else None)
        session.codes = AcousticFeatures(features, source, style)
        session.done, session.finish_reason = True, "stop"
        return AcousticStep(features, features, 1, time.perf_counter() - started, backend, codes=session.codes)

    def generate(
        self,
        text: str = "",
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
        phonemes: str | None = None,
    ) -> Speech:
        """Speak text of any length. The samples are those of `stream`, joined.

        Options as `tokenize`; seed fixes the noise; `cancel` stops it between two sentences (raises Cancelled).
        """
        asked = self.course(
            text, voice=voice, language=language, speed=speed, seed=seed, cancel=cancel, phonemes=phonemes
        )
        return asked.speech(followed(self, asked.chunks(), cancel))

    def stream(
        self,
        text: str = "",
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
        phonemes: str | None = None,
    ) -> Iterator[AudioChunk]:
        """Speak text of any length, a chunk per sentence as soon as it is made; options as `generate`.

        Options and empty text are checked at the call, text that cannot be spoken at the first chunk.
        """
        asked = self.course(
            text, voice=voice, language=language, speed=speed, seed=seed, cancel=cancel, phonemes=phonemes
        )
        return followed(self, asked.chunks(), cancel)

    def course(
        self,
        text: str = "",
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
        phonemes: str | None = None,
    ) -> Saying:
        """One request, checked and not begun: `chunks()` is its course, `speech()` what came of it."""
        request = self._processor.request(voice, language, speed)
        check_text(text, phonemes)
        prompts = self._processor.prompts(text, request, phonemes=phonemes)
        return Saying(self, text or phonemes or "", request, prompts, base_seed(seed), cancel or CancelToken())

    def speak(self, prompt: Prompt, *, seed: int | None = None) -> Sound:
        """One piece: exactly the verbs that a caller would use."""
        session = self.session(seed=seed)
        prosody = self.prefill(session, prompt)
        started = time.perf_counter()
        self.decode(session, prosody)
        return Sound(self.codec.decode(session.codes), prosody.seconds, time.perf_counter() - started)

    def speak_many(self, prompts: Sequence[Prompt], seeds: Sequence[int | None]) -> list[Sound]:
        """Several pieces in one pass, padded to the longest; each as `speak` makes it, but for rounding.

        Raises:
            InvalidInputError: the net's weights are held by kernels that take one piece at a time (`net.packed`).
        """
        if self.net.packed:
            raise InvalidInputError(
                "This Kokoro computes on kernels that take one piece at a time.", hint="Call speak for each."
            )
        return spoken(self, prompts, seeds)

    def share(self, kind: str, items: Sequence[Any]) -> list[Any]:
        """Items ("speak"): (prompt, seed) -> the Sound of each, or the Exception that it met."""
        self.share_limit(kind)
        one = len(items) == 1 or not self._pads
        if one:
            return [met for item in items for met in tried([item], lambda own: [self.speak(own[0][0], seed=own[0][1])])]
        return tried(items, lambda some: self.speak_many([p for p, _ in some], [seed for _, seed in some]))

    def share_limit(self, kind: str) -> int:
        """Ids that are worth one pass. Raises InvalidInputError for a kind that is not shared."""
        if kind != "speak":
            raise InvalidInputError(f"Kokoro does not share {kind!r}.", hint="It shares 'speak'.")
        return _MOST_IDS if self._pads else 1


def _frames(logits: np.ndarray, speed: float) -> np.ndarray:
    """Frames per id from duration logits [T, max_duration]: the sum of sigmoids over speed, rounded, at least 1."""
    expected = np.sum(1.0 / (1.0 + np.exp(-logits.astype(np.float32))), axis=-1, dtype=np.float32) / np.float32(speed)
    return np.maximum(np.rint(expected), 1).astype(np.int64)


def _checked(durations: np.ndarray, ids: int) -> np.ndarray:
    frames = np.asarray(durations)
    if frames.shape != (ids,) or not np.issubdtype(frames.dtype, np.integer) or frames.min() < 1:
        raise InvalidInputError(
            f"durations has shape {list(frames.shape)} and type {frames.dtype}; expected {ids} whole numbers from 1.",
            hint="Start from the durations of an earlier prefill.",
        )
    return frames.astype(np.int64)
