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
    from izwi_lab.families.shared.steps import Prompt, Reading, Session, Step
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


@runtime_checkable
class BatchModel(Protocol):
    """A model that takes the steps of many sessions in one pass over its weights. What the engine asks of a family."""

    backend: Backend

    @property
    def pageable(self) -> bool:
        """Whether sessions may share their caches' memory, and what they read: a state is only keys and values."""

    @property
    def position_bytes(self) -> int:
        """Bytes of one position in the caches."""

    @property
    def max_positions(self) -> int:
        """The longest that a session can be."""

    def pool(self, blocks: int, block: int) -> dict[str, list[Any]]:
        """Caches for many sessions, by name and layer: `blocks` of `block` positions."""

    def caches(self, session: Session) -> dict[str, Any]:
        """The decoder state of a session, where positions are counted; see nets/decoder/cache.py."""

    def enter(self, session: Session, prompt: Prompt) -> None:
        """Note in a session what it is to read; computes nothing. Raises as `prefill` does."""

    def stand(self, session: Session, position: int) -> None:
        """A session has read `position` of what it knows: less than before where it must read again."""

    def step_many(self, readings: Sequence[Reading]) -> Sequence[Step | Exception | None]:
        """What all of these read, in one pass: a Step for each that wants one, or what is wrong with it alone.

        If it raises, the sessions stand where they stood.
        """


@runtime_checkable
class SharingModel(Protocol):
    """A model that does some kinds of work for many requests at once; see `course.Shared`."""

    def share(self, kind: str, items: Sequence[Any]) -> Sequence[Any]:
        """What is asked for, of each item: its value, or the Exception that is its alone.

        If it raises, it has changed nothing: each item is then tried alone.
        """

    def share_limit(self, kind: str) -> int:
        """The most weight that is worth doing at once."""


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
