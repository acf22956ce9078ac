"""InferenceEngine: speech, recognition and chat for many requests and many models, from any thread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from izwi_lab.cancel import CancelToken
from izwi_lab.results import AudioChunk, ChatReply, Segment, Speech, TextDelta, Transcript
from izwi_lab.runtime import voices
from izwi_lab.runtime.core import EngineCore, Progress
from izwi_lab.runtime.stream import Stream
from izwi_lab.runtime.tasks import CheckingModule
from izwi_lab.runtime.types import (
    AudioSource,
    ChatRequest,
    Message,
    ModelName,
    SpeechRequest,
    TranscriptionRequest,
    VoiceRequest,
)

if TYPE_CHECKING:
    from izwi_lab.families.qwen3_tts.voice import Voice
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.families.shared.speculative import Drafts


class InferenceEngine(EngineCore):
    """Runs requests on models that it loads when first asked for and drops when idle or in the way.

    Args:
        models_dir: where weights are kept; None takes the settings' or the platform's data folder.
        backend: "auto", "torch" or "mlx", for requests that name none.
        device: such as "cpu" or "cuda:0", for requests that name none.
        dtype: such as "bfloat16", for requests that name none.
        memory_budget_bytes: for the weights of all models together; None takes the settings', else no limit.
        idle_ttl_s: seconds an unused model stays in memory; 0 drops it at once, None keeps it, "auto" takes the
            settings', else 600.
        prompt_cache_bytes: what each chat model keeps of its conversations, so that their next turn reads only what
            is new; 0 keeps nothing, None takes the settings', else 1 GB.
        config: settings to use instead of the environment and the configuration file (`izwi_lab.settings`).
        limits: what is refused at the door.
        load_format: "auto", or "dummy" for random weights at full size, which need no files.
        batching: how the requests of a model share a device: sequences in a step, how long it should take, memory.
        queue: how many requests may wait; None: 256, of 262,144 tokens.

    Requests run together: their steps are taken in one pass over a model's weights, and each says what it would say
    alone. What the verbs do not name, `priority` and `tenant`, is said with `run(ChatRequest(...))`.

    Every verb raises InvalidInputError before a model is loaded, UnknownModelError or WrongTaskError for a model that
    cannot do it, NotDownloadedError, BackendUnavailableError, MemoryBudgetError, QueueFullError (with `retry_after_s`),
    and Cancelled when it was stopped. A chat that is stopped while it answers returns what it has said, with
    finish_reason "cancelled".

    >>> with InferenceEngine() as engine:                      # doctest: +SKIP
    ...     speech = engine.speak("Hello there.")
    ...     print(engine.transcribe(speech.audio))
    Hello there.
    """

    def speak(
        self,
        text: str,
        *,
        model: ModelName | None = None,
        voice: str | Voice | None = None,
        language: str | None = None,
        speed: float = 1.0,
        instruct: str | None = None,
        reference: AudioSource | None = None,
        transcript: str | None = None,
        text_mode: str | None = None,
        sampling: Sampling | None = None,
        predictor: Sampling | None = None,
        max_frames: int | None = None,
        seed: int | None = None,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> Speech:
        """Say `text` and return all of it. Options as in SpeechRequest."""
        request = SpeechRequest(
            text=text,
            model=model,
            voice=voice,
            language=language,
            speed=speed,
            instruct=instruct,
            reference=reference,
            transcript=transcript,
            text_mode=text_mode,
            sampling=sampling,
            predictor=predictor,
            max_frames=max_frames,
            seed=seed,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        return cast(Speech, self.run(request))

    def stream_speak(
        self,
        text: str,
        *,
        model: ModelName | None = None,
        voice: str | Voice | None = None,
        language: str | None = None,
        speed: float = 1.0,
        instruct: str | None = None,
        reference: AudioSource | None = None,
        transcript: str | None = None,
        text_mode: str | None = None,
        sampling: Sampling | None = None,
        predictor: Sampling | None = None,
        max_frames: int | None = None,
        seed: int | None = None,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> Stream[AudioChunk]:
        """Say `text` piece by piece; the pieces joined are what `speak` gives. Close it to stop."""
        request = SpeechRequest(
            text=text,
            model=model,
            voice=voice,
            language=language,
            speed=speed,
            instruct=instruct,
            reference=reference,
            transcript=transcript,
            text_mode=text_mode,
            sampling=sampling,
            predictor=predictor,
            max_frames=max_frames,
            seed=seed,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        return self.stream(request)

    def voice(
        self,
        audio: AudioSource,
        transcript: str | None = None,
        *,
        model: ModelName,
        name: str = "reference",
        language: str = "",
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> Voice:
        """A voice of a recording: to speak in with `voice=`, to be saved and loaded. model: one that clones voices.

        audio: an Audio, a path, bytes or a file, 0.5 to 30 s of one person speaking; transcript: what is said in it,
        word for word; name, language: for lists. `notes` of the Voice say what of the recording was not heard.
        """
        request = VoiceRequest(
            audio=audio,
            transcript=transcript,
            name=name,
            language=language,
            model=model,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        with self._begin(request, cast(CheckingModule, voices)) as bound:
            checked, lease = cast(VoiceRequest, bound.request), bound.lease
            return self._batching.call(
                lease.model.backend, lambda: voices.run(lease, checked, bound.token), bound.token
            )

    def transcribe(
        self,
        audio: AudioSource,
        *,
        model: ModelName | None = None,
        language: str | None = None,
        task: str = "transcribe",
        prompt: str | None = None,
        word_times: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> Transcript:
        """Write down what is said in `audio`: an Audio, a path, bytes or a file. Options as in TranscriptionRequest."""
        request = TranscriptionRequest(
            audio=audio,
            model=model,
            language=language,
            task=task,
            prompt=prompt,
            word_times=word_times,
            temperature=temperature,
            seed=seed,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        return cast(Transcript, self.run(request))

    def stream_transcribe(
        self,
        audio: AudioSource,
        *,
        model: ModelName | None = None,
        language: str | None = None,
        task: str = "transcribe",
        prompt: str | None = None,
        word_times: bool = False,
        temperature: float = 0.0,
        seed: int | None = None,
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> Stream[Segment]:
        """Write down `audio` segment by segment, as they are heard. Close it to stop."""
        request = TranscriptionRequest(
            audio=audio,
            model=model,
            language=language,
            task=task,
            prompt=prompt,
            word_times=word_times,
            temperature=temperature,
            seed=seed,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        return self.stream(request)

    def chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: ModelName | None = None,
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
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> ChatReply:
        """Answer `messages`: a string, or a list of role and content. Options as in ChatRequest."""
        request = ChatRequest(
            messages=messages,
            model=model,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            thinking=thinking,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            logprobs=logprobs,
            truncation=truncation,
            speculative=speculative,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        return cast(ChatReply, self.run(request))

    def stream_chat(
        self,
        messages: str | Sequence[Message],
        *,
        model: ModelName | None = None,
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
        backend: str | None = None,
        device: str | None = None,
        dtype: str | None = None,
        cancel: CancelToken | None = None,
        timeout_s: float | None = None,
        download: bool = True,
        progress: Progress | None = None,
    ) -> Stream[TextDelta]:
        """Answer as text arrives; the texts joined are what `chat` gives. Close it to stop."""
        request = ChatRequest(
            messages=messages,
            model=model,
            sampling=sampling,
            max_tokens=max_tokens,
            stop=stop,
            seed=seed,
            thinking=thinking,
            tools=tools,
            tool_choice=tool_choice,
            response_format=response_format,
            logprobs=logprobs,
            truncation=truncation,
            speculative=speculative,
            backend=backend,
            device=device,
            dtype=dtype,
            cancel=cancel,
            timeout_s=timeout_s,
            download=download,
            progress=progress,
        )
        return self.stream(request)
