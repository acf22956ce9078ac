"""Whisper: speech to text in 99 languages, translation to English, language detection, word times.

| verb | in | out |
|---|---|---|
| features(audio) | Audio up to 30 s | log-mel float32 [M, 3000] |
| encode(features) | [M, 3000] | states, native [F, D], one per 20 ms |
| tokenize(text=None, ...) | options, words to condition on | Prompt |
| session(states) | states of one window | Session holding cross-attention keys and values |
| prefill(session, prompt) | Prompt | Step: logits [V], hidden [D] |
| sample(session, step) | Step | token id, chosen under the decoding rules |
| decode(session, token) | token id | Step |
| detokenize(tokens) | ids | text without control tokens |
| detect_language(states) | states | {code: probability}, likeliest first |
| word_times(session, tokens, ...) | a finished session | [Word] |
| generate(audio), stream(audio) | Audio of any length | Transcript, Segments as found |

`encode_many`, `prefill_many` and `decode_many` take several windows at once, and read the weights once for all.
`course` is what generate and stream follow: a request that asks for these, met with those of others by `share`.
Shapes: M mel bins, F encoder states, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from izwi_lab.artifacts.checkpoint import open_checkpoint
from izwi_lab.audio import Audio
from izwi_lab.backends.base import Backend, BackendPlan, Native
from izwi_lab.cancel import CancelToken
from izwi_lab.catalog.variant import ModelVariant
from izwi_lab.errors import AudioError, CheckpointError, InvalidInputError
from izwi_lab.families.shared.closed import ClosedNet
from izwi_lab.families.shared.course import followed
from izwi_lab.families.shared.describe import describe
from izwi_lab.families.shared.mel import whisper_log_mel
from izwi_lab.families.shared.sampling import Sampling, sample_token
from izwi_lab.families.shared.steps import Prompt, Session, Step
from izwi_lab.families.shared.taps import Replace, Taps, tapping
from izwi_lab.families.whisper import longform, sharing, together, weights, words
from izwi_lab.families.whisper.config import (
    FRAMES_PER_WINDOW,
    SAMPLE_RATE_HZ,
    WINDOW_S,
    GenerationConfig,
    WhisperConfig,
)
from izwi_lab.families.whisper.languages import LANGUAGES
from izwi_lab.families.whisper.longform import checked_samples
from izwi_lab.families.whisper.processor import WhisperProcessor
from izwi_lab.families.whisper.rules import Guards, Rules
from izwi_lab.results import Segment, Transcript, Word

_PACKAGE = "izwi_lab.families.whisper"
_FLOAT32 = ("*layer_norm.*", "*.embed_positions.*")
_STORED = ("model.decoder.*",)


class WhisperModel:
    """A loaded Whisper. Immutable; sessions hold all state. `vad` is the speech gate for long audio (see longform)."""

    def __init__(
        self,
        variant: ModelVariant,
        plan: BackendPlan,
        backend: Backend,
        net: Any,
        config: WhisperConfig,
        settings: GenerationConfig,
        processor: WhisperProcessor,
    ) -> None:
        self.variant, self.plan, self.backend, self.net = variant, plan, backend, net
        self.config, self.settings, self.processor = config, settings, processor
        self.heads = settings.heads(config)
        self._rules = {t: Rules.of(processor.tokens, settings, timestamps=t) for t in (False, True)}
        self.gate = longform.SpeechGate(plan)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held: those mapped from the checkpoint count at their stored size."""
        return int(self.net.nbytes())

    @property
    def languages(self) -> tuple[str, ...]:
        """The language codes this model knows."""
        return tuple(LANGUAGES)[: len(self.processor.tokens.languages)] if self.config.multilingual else ("en",)

    __repr__ = describe

    def close(self) -> None:
        """Drop the weights; the model cannot be used afterwards."""
        self.net = ClosedNet(self.variant.id)

    def tap(self, patterns: str | Sequence[str], *, replace: Replace | None = None) -> AbstractContextManager[Taps]:
        """Read or replace intermediates by name, for example "decoder.layers.*.cross"."""

        def array(values: np.ndarray, like: Native) -> Native:
            return self.backend.array(values, dtype=str(like.dtype).rpartition(".")[2])

        return tapping(patterns, numpy=self.backend.numpy, array=array, replace=replace)

    # --- steps --------------------------------------------------------------------------------------------------------

    def features(self, audio: Audio) -> np.ndarray:
        """Log-mel features float32 [M, 3000] of up to 30 s, padded with silence. Raises AudioError for NaN or more."""
        samples = checked_samples(audio)
        if len(samples) > WINDOW_S * SAMPLE_RATE_HZ:
            raise AudioError(
                f"features() takes one window of {WINDOW_S:.0f} s, got {len(samples) / SAMPLE_RATE_HZ:.1f} s.",
                hint="Use generate() or stream() for longer audio, or cut it with Audio.between().",
            )
        frames = min(FRAMES_PER_WINDOW, 2 * self.config.max_source_positions)
        return whisper_log_mel(samples, self.config.num_mel_bins, frames=frames)

    def encode(self, features: np.ndarray) -> Native:
        """Features [M, frames] -> encoder states [F, D]."""
        return self.encode_many([features])[0]

    def encode_many(self, features: Sequence[np.ndarray]) -> list[Native]:
        """`encode` for several windows, whose features have one shape, in one pass."""
        with self.backend.inference():
            mel = self.backend.array(np.stack([window.T for window in features]), dtype="float32")
            return list(self.net.encode(mel))

    def tokenize(
        self,
        text: str | None = None,
        *,
        language: str | None = None,
        task: str = "transcribe",
        timestamps: bool = True,
        previous: Sequence[int] = (),
    ) -> Prompt:
        """The decoder's prompt. text: words to condition on (names, spelling); previous: earlier ids, instead of text.

        Raises InvalidInputError for a language or task this model does not have.
        """
        code = self.processor.language(language, task)
        return self.processor.prompt(language=code, task=task, timestamps=timestamps, text=text, previous=previous)

    def session(self, states: Native, *, seed: int | None = None, max_tokens: int | None = None) -> Session:
        """A session over one window's states. max_tokens: the limit; default half the context, as the reference."""
        room = self.config.max_target_positions
        if max_tokens is not None and max_tokens < 1:
            raise InvalidInputError(f"max_tokens must be at least 1, got {max_tokens}.")
        limit = room // 2 if max_tokens is None else min(max_tokens, room)
        with self.backend.inference():
            net = self.net.state(states, room)
        state = {"net": net, "timestamps": True, "limit": limit, "logprob": 0.0, "no_speech_prob": 0.0, "last": None}
        return Session(self.backend, state, seed=seed, trim=_rewind)

    def prefill(self, session: Session, prompt: Prompt) -> Step:
        """Read the prompt. Also measures the probability that the window holds no speech."""
        return self.prefill_many([session], [prompt])[0]

    def prefill_many(self, sessions: Sequence[Session], prompts: Sequence[Prompt]) -> list[Step]:
        """`prefill` for several sessions; prompts of one length are read together."""
        return together.prefill(self, sessions, prompts)

    def sample(self, session: Session, step: Step, sampling: Sampling | None = None) -> int:
        """The next id under the reference's rules, then as sampling says; greedy by default."""
        logits, total = self._rules[session.state["timestamps"]].apply(step.numpy(), session.tokens)
        if sampling is None or (sampling.greedy and sampling.plain):
            token = int(logits.argmax())
        else:
            native = self.backend.array(logits, dtype="float32")
            token = sample_token(native, sampling, session.rng, session.tokens, self.backend)
        session.state["logprob"] += float(logits[token]) - total
        return token

    def decode(self, session: Session, token: int) -> Step:
        """Take a token and step on. The end token or the limit sets session.done; the last step is then returned."""
        return self.decode_many([session], [token])[0]

    def decode_many(self, sessions: Sequence[Session], tokens: Sequence[int]) -> list[Step]:
        """`decode` for several sessions in one pass over the weights. If it fails, no session has changed."""
        return together.decode(self, sessions, tokens)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """Ids to text, without control and time tokens."""
        return self.processor.decode(tokens)

    def detect_language(self, states: Native) -> dict[str, float]:
        """Probability of each language for a window's states, likeliest first; English only for `.en` models."""
        if not self.config.multilingual:
            return {"en": 1.0}
        tokens = self.processor.tokens
        session = self.session(states)
        (step,) = together.step(self, [session], np.array([[tokens.start]], np.int32), [0])[0]
        shares = together.softmax(step.numpy()[list(tokens.languages)])
        order = np.argsort(-shares)
        codes = tuple(LANGUAGES)
        return {codes[n]: float(shares[n]) for n in order}

    def word_times(
        self, session: Session, tokens: Sequence[int], *, language: str, heard_s: float, offset_s: float = 0.0
    ) -> list[tuple[Word, int]]:
        """Words of `tokens` (text ids of the session's window) with times, and how many ids each took.

        The window is read once more with its own text. heard_s: seconds of the window that hold sound.
        """
        return words.timed_words(self, session, tokens, language=language, heard_s=heard_s, offset_s=offset_s)

    # --- whole and streaming ------------------------------------------------------------------------------------------

    def generate(
        self,
        audio: Audio,
        *,
        language: str | None = None,
        task: str = "transcribe",
        prompt: str | None = None,
        word_times: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
        without_timestamps: bool = False,
        condition_on_previous: bool = False,
        vad: bool | str = "auto",
        guards: Guards | None = None,
    ) -> Transcript:
        """Transcribe audio of any length.

        Args:
            audio: any rate; resampled to 16 kHz.
            language: ISO code or English name; None detects it in the first stretch of speech.
            task: "transcribe", or "translate" to English.
            prompt: words to condition every window on: names, spelling, style.
            word_times: also give each word its times and probability.
            temperature: where decoding starts; distrusted windows are tried again warmer, up to 1.0.
            seed: fixes the draws at temperatures above 0.
            cancel: checked before every step.
            without_timestamps: one segment per window, as the reference's option of that name.
            condition_on_previous: give each window the text before it; slower, as windows then wait for each other.
            vad: find speech with Silero VAD first. True demands it, False hears everything, "auto" uses it where its
                weights are or can be fetched; the transcript's notes say which it was.
            guards: thresholds for silence and for trying again; see rules.Guards.

        Raises:
            AudioError: empty or not finite. InvalidInputError: an option this model cannot honour.
            Cancelled: stopped by `cancel`.
        """
        run = self.course(
            audio,
            language=language,
            task=task,
            prompt=prompt,
            word_times=word_times,
            temperature=temperature,
            seed=seed,
            without_timestamps=without_timestamps,
            condition_on_previous=condition_on_previous,
            vad=vad,
            guards=guards,
            streaming=False,
            cancel=cancel,
        )
        return run.transcript(tuple(followed(self, run.segments(), cancel)))

    def stream(
        self,
        audio: Audio,
        *,
        language: str | None = None,
        task: str = "transcribe",
        prompt: str | None = None,
        word_times: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
        without_timestamps: bool = False,
        condition_on_previous: bool = False,
        vad: bool | str = "auto",
        guards: Guards | None = None,
    ) -> Iterator[Segment]:
        """The segments of `generate`, each as soon as its window is done. Options are checked before the first."""
        run = self.course(
            audio,
            language=language,
            task=task,
            prompt=prompt,
            word_times=word_times,
            temperature=temperature,
            seed=seed,
            without_timestamps=without_timestamps,
            condition_on_previous=condition_on_previous,
            vad=vad,
            guards=guards,
            streaming=True,
            cancel=cancel,
        )
        return followed(self, run.segments(), cancel)

    def course(
        self,
        audio: Audio,
        *,
        streaming: bool,
        language: str | None = None,
        task: str = "transcribe",
        prompt: str | None = None,
        word_times: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
        without_timestamps: bool = False,
        condition_on_previous: bool = False,
        vad: bool | str = "auto",
        guards: Guards | None = None,
    ) -> longform.Listening:
        """One request, not begun: `segments()` is its course. streaming: the first window is heard by itself."""
        if not 0 <= temperature <= 2:
            raise InvalidInputError(f"temperature must be 0 to 2, got {temperature!r}.")
        if seed is not None and seed < 0:
            raise InvalidInputError(f"seed must be a whole number from 0, got {seed!r}.")
        options = longform.Options(
            language=self.processor.language(language, task),
            task=task,
            prompt=prompt,
            word_times=word_times,
            temperature=temperature,
            seed=seed,
            timestamps=not without_timestamps,
            condition_on_previous=condition_on_previous,
            vad=vad,
            guards=guards or Guards(),
            streaming=streaming,
        )
        return longform.Listening(self, audio, options, cancel or CancelToken())

    def share(self, kind: str, items: Sequence[Any]) -> list[Any]:
        """Work of many requests in one pass; see `sharing`."""
        return sharing.share(self, kind, items)

    def share_limit(self, kind: str) -> int:
        """Windows that are worth one pass."""
        return sharing.limit(self.backend.device, kind)


def load(
    variant: ModelVariant,
    folder: Path | None,
    plan: BackendPlan,
    backend: Backend,
    *,
    layout: str,
    load_format: str = "auto",
) -> WhisperModel:
    """Load from a transformers folder ("hf"), a CTranslate2 folder, or with random weights; see FamilyLoader."""
    if load_format == "dummy":
        from izwi_lab import catalog

        config = WhisperConfig.from_hf(catalog.config(variant))
        net = backend.net(_PACKAGE, "WhisperNet", config, None, keep_float32=_FLOAT32)
        return WhisperModel(variant, plan, backend, net, config, GenerationConfig(), WhisperProcessor(config, None))
    if folder is None:
        raise CheckpointError("Whisper needs a checkpoint folder.", hint="Or load_format='dummy' for random weights.")
    checkpoint = open_checkpoint(folder, layout)
    config, settings, state = weights.read(checkpoint, folder, layout)
    processor = WhisperProcessor.from_folder(config, folder)
    net = backend.net(_PACKAGE, "WhisperNet", config, state, keep_float32=_FLOAT32, keep_stored=_STORED)
    if hasattr(checkpoint, "release"):
        checkpoint.release()  # pages that were read only to be converted
    return WhisperModel(variant, plan, backend, net, config, settings, processor)


def _rewind(session: Session, position: int) -> None:
    """Forget ids after `position`; keys beyond it are overwritten by what comes next."""
    kept = max(0, position - len(session.prompt_ids))
    session.state["net"]["length"] = session.position = position
    session.tokens = session.tokens[:kept]
    session.prompt_ids = session.prompt_ids[:position]
    session.state["logprob"] = 0.0
    session.done, session.finish_reason = False, None
