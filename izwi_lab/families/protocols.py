"""The roles a family model can play. The runtime and the engine know these and nothing more of a family."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from izwi_lab.audio import Audio
    from izwi_lab.backends.base import Backend, BackendPlan
    from izwi_lab.cancel import CancelToken
    from izwi_lab.catalog.variant import ModelVariant
    from izwi_lab.families.qwen3_tts.cloning import AudioSource
    from izwi_lab.families.qwen3_tts.voice import Voice
    from izwi_lab.families.shared.prompt_cache import PromptCache
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.families.shared.speculative import Drafts
    from izwi_lab.families.shared.steps import Prompt, Session, Step
    from izwi_lab.families.shared.taps import Taps
    from izwi_lab.results import AudioChunk, ChatReply, Segment, Speech, TextDelta, Transcript


class Model(Protocol):
    """What every family model has. Immutable after load; safe to share between threads that hold own sessions."""

    variant: ModelVariant
    plan: BackendPlan
    backend: Backend
    net: Any

    def tap(self, patterns: str | Sequence[str], *, replace: Any = None) -> AbstractContextManager[Taps]:
        """Read or replace intermediates by name."""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights as held in memory."""

    def close(self) -> None:
        """Drop the weights; the model cannot be used afterwards."""


@runtime_checkable
class ChatModel(Protocol):
    """Text in, text out. The options of an answer are those of ChatOptions; `cache` lends it a session."""

    def tokenize(
        self,
        messages: str | Sequence[Mapping[str, Any]],
        *,
        template: bool = True,
        tools: Sequence[Mapping[str, Any]] = (),
        thinking: bool | None = None,
    ) -> Prompt: ...
    def session(self, *, seed: int | None = None, max_tokens: int | None = None) -> Session: ...
    def prefill(self, session: Session, prompt: Prompt) -> Step: ...
    def sample(self, session: Session, step: Step, sampling: Sampling | None = None) -> int: ...
    def decode(self, session: Session, token: int) -> Step: ...
    def detokenize(self, tokens: Sequence[int]) -> str: ...
    def generate(
        self,
        prompt: str | Sequence[Mapping[str, Any]] | Prompt,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        response_format: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
        truncation: str = "error",
        speculative: Drafts | None = None,
        cache: PromptCache | None = None,
        cancel: CancelToken | None = None,
    ) -> ChatReply: ...
    def stream(
        self,
        prompt: str | Sequence[Mapping[str, Any]] | Prompt,
        *,
        sampling: Sampling | None = None,
        max_tokens: int = 512,
        stop: Sequence[str] = (),
        seed: int | None = None,
        thinking: bool | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        tool_choice: str | Mapping[str, Any] = "auto",
        response_format: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
        truncation: str = "error",
        speculative: Drafts | None = None,
        cache: PromptCache | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[TextDelta]: ...


@runtime_checkable
class SpeechModel(Protocol):
    """Text in, audio out."""

    @property
    def voices(self) -> tuple[str, ...]: ...
    def tokenize(
        self, text: str, *, voice: str | None = None, language: str | None = None, speed: float = 1.0
    ) -> Prompt: ...
    def generate(
        self,
        text: str,
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Speech: ...
    def stream(
        self,
        text: str,
        *,
        voice: str | None = None,
        language: str | None = None,
        speed: float = 1.0,
        seed: int | None = None,
        cancel: CancelToken | None = None,
    ) -> Iterator[AudioChunk]: ...


@runtime_checkable
class DirectedSpeechModel(Protocol):
    """A SpeechModel that can be told how to speak, and in whose voice. Known by its verb `voice`.

    instruct: in words; text_mode: "whole" or "streaming", None takes the model's own; reference: a clip of the voice,
    transcript: what it says. sampling: of the first code of a frame, predictor: of its others; max_frames: of a piece
    of the text. What a variant cannot honour raises.
    """

    @property
    def voices(self) -> tuple[str, ...]: ...
    def voice(
        self,
        audio: AudioSource,
        transcript: str | None = None,
        *,
        name: str = "reference",
        language: str = "",
        cancel: CancelToken | None = None,
    ) -> Voice: ...
    def tokenize(
        self,
        text: str,
        *,
        voice: str | Voice | None = None,
        language: str | None = None,
        instruct: str | None = None,
        text_mode: str | None = None,
    ) -> Prompt: ...
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
    ) -> Speech: ...
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
    ) -> Iterator[AudioChunk]: ...


@runtime_checkable
class RecognitionModel(Protocol):
    """Audio in, text out. language: ISO 639-1 code or English name, None detects; task: "transcribe" or "translate"."""

    def features(self, audio: Audio) -> Any: ...
    def encode(self, features: Any) -> Any: ...
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
    ) -> Transcript: ...
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
    ) -> Iterator[Segment]: ...


class FamilyLoader(Protocol):
    """`load` in each `families/<family>/model.py`.

    folder: the checkpoint, in `layout`; None with load_format="dummy", which builds the variant's full size from
    its config with seeded random weights.
    """

    def __call__(
        self,
        variant: ModelVariant,
        folder: Path | None,
        plan: BackendPlan,
        backend: Backend,
        *,
        layout: str,
        load_format: str = "auto",
    ) -> Model: ...
