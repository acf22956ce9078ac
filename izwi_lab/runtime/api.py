"""The package-level functions: `load` hands out a model, `speak`, `transcribe` and `chat` use one default engine."""

from __future__ import annotations

import atexit
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from izwi_lab import settings
from izwi_lab.runtime.core import Progress
from izwi_lab.runtime.load import build, check_load_format
from izwi_lab.runtime.model_router import ModelRouter
from izwi_lab.runtime.service import InferenceEngine
from izwi_lab.runtime.types import AudioSource, Message, ModelName

if TYPE_CHECKING:
    from izwi_lab.cancel import CancelToken
    from izwi_lab.families.protocols import Model
    from izwi_lab.families.qwen3_tts.voice import Voice
    from izwi_lab.families.shared.sampling import Sampling
    from izwi_lab.families.shared.speculative import Drafts
    from izwi_lab.results import ChatReply, Speech, Transcript

_lock = threading.Lock()
_engine: InferenceEngine | None = None


def default_engine() -> InferenceEngine:
    """The engine that `speak`, `transcribe` and `chat` use. Made at first use, closed when Python ends.

    >>> izwi.default_engine().loaded()                 # doctest: +SKIP
    """
    global _engine
    with _lock:
        if _engine is None or _engine.closed:
            _engine = InferenceEngine()
            atexit.register(_engine.close)
        return _engine


def load(
    model: ModelName,
    *,
    backend: str = "auto",
    device: str | None = None,
    dtype: str | None = None,
    load_format: str = "auto",
    download: bool = True,
    progress: Progress | None = None,
) -> Model:
    """Load a model and hand it over, to take its steps one at a time. It stays until you drop it.

    Args:
        model: a catalog id ("Kokoro-82M"), a hub repo ("owner/name"), a folder in the model's official layout,
            or a .gguf file.
        backend: "auto", "torch" or "mlx"; `model.plan` says what was chosen and why.
        device: such as "cpu" or "cuda:0"; None lets the plan choose.
        dtype: such as "bfloat16"; None lets the plan choose.
        load_format: "auto", or "dummy" for random weights at full size, which need no files.
        download: fetch missing weights; with False they raise NotDownloadedError.
        progress: called with an `artifacts.progress.Progress` while weights are fetched.

    Raises:
        UnknownModelError, NotDownloadedError, BackendUnavailableError, CheckpointError.

    >>> model = izwi.load("SmolLM2-135M-Instruct")                  # doctest: +SKIP
    >>> session = model.session(seed=0)                             # doctest: +SKIP
    >>> step = model.prefill(session, model.tokenize("Hello."))     # doctest: +SKIP
    >>> step.top(3)                                                 # doctest: +SKIP
    """
    check_load_format(load_format)
    router = ModelRouter(models_dir=settings.load().models_dir)
    route = router.route(
        model, backend=None if backend == "auto" else backend, device=device, dtype=dtype, load_format=load_format
    )
    files = router.obtain(route, download=download, progress=progress)
    return build(route.variant, files, route.plan, load_format=load_format)


def speak(
    text: str,
    *,
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
    model: ModelName | None = None,
    seed: int | None = None,
    cancel: CancelToken | None = None,
    timeout_s: float | None = None,
) -> Speech:
    """Say `text`. The result holds `audio`, which a notebook plays; voices can be blended ("af_heart+am_michael").

    Models that take them: instruct says in words how to speak; reference is audio of a voice to speak in, transcript
    what it says; text_mode "whole" reads all text before the first sound, "streaming" while speaking; sampling and
    predictor say how codes are drawn, the first of a frame and its others; max_frames bounds each piece of the text.
    A voice that is used often: `default_engine().voice(...)`, a Voice.

    For audio while it is being made: `default_engine().stream_speak`.

    >>> izwi.speak("Hello there.").audio.save("hello.wav")          # doctest: +SKIP
    """
    return default_engine().speak(
        text,
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
        model=model,
        seed=seed,
        cancel=cancel,
        timeout_s=timeout_s,
    )


def transcribe(
    audio: AudioSource,
    *,
    language: str | None = None,
    task: str = "transcribe",
    prompt: str | None = None,
    word_times: bool = False,
    temperature: float = 0.0,
    model: ModelName | None = None,
    seed: int | None = None,
    cancel: CancelToken | None = None,
    timeout_s: float | None = None,
) -> Transcript:
    """Write down what is said in `audio`: an Audio, a path, bytes or an open file, of any length.

    task="translate" writes English whatever is spoken; word_times=True times every word.
    For segments as they are heard: `default_engine().stream_transcribe`.

    >>> print(izwi.transcribe("meeting.m4a").to_srt())              # doctest: +SKIP
    """
    return default_engine().transcribe(
        audio,
        language=language,
        task=task,
        prompt=prompt,
        word_times=word_times,
        temperature=temperature,
        model=model,
        seed=seed,
        cancel=cancel,
        timeout_s=timeout_s,
    )


def chat(
    messages: str | Sequence[Message],
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 512,
    stop: Sequence[str] = (),
    thinking: bool | None = None,
    tools: Sequence[Mapping[str, Any]] = (),
    tool_choice: str | Mapping[str, Any] = "auto",
    response_format: Mapping[str, Any] | None = None,
    logprobs: int | None = None,
    truncation: str = "error",
    speculative: Drafts | None = None,
    model: ModelName | None = None,
    seed: int | None = None,
    cancel: CancelToken | None = None,
    timeout_s: float | None = None,
) -> ChatReply:
    """Answer `messages`: a string, or a list of {"role": ..., "content": ...}. Greedy unless `sampling` is given.

    Args:
        messages: with the answers so far; the next turn of a conversation reads only what is new.
        sampling: temperature and the like.
        max_tokens: of the answer, thoughts included.
        stop: texts that end it.
        thinking: True or False where the model can be asked; None leaves its default. See `reply.reasoning`.
        tools: functions the model may ask for, as OpenAI describes them. See `reply.tool_calls`.
        tool_choice: "auto", "none", "required", or {"type": "function", "function": {"name": ...}}.
        response_format: {"type": "json_object"}, {"type": "json_schema", "json_schema": {"schema": ...}} or
            {"type": "regex", "regex": ...}: an answer that finished with "stop" satisfies it.
        logprobs: how many of the likeliest tokens to show beside each token, 0 to 20. See `reply.logprobs`.
        truncation: for a prompt longer than the context: "error", or "oldest" leaves out the oldest turns.
        speculative: a PromptLookup or DraftModel, for speed; the answer's distribution is the same.
        model: a catalog id, hub repo or folder; None takes the default.
        seed: fixes the random numbers; such a sampled answer reads all turns anew, to be the same each time.
        cancel: stops the answer, from any thread.
        timeout_s: seconds until it is stopped the same way.

    For text as it is written: `default_engine().stream_chat`.

    >>> print(izwi.chat("Name a primary colour.", max_tokens=16))   # doctest: +SKIP
    """
    return default_engine().chat(
        messages,
        sampling=sampling,
        max_tokens=max_tokens,
        stop=stop,
        thinking=thinking,
        tools=tools,
        tool_choice=tool_choice,
        response_format=response_format,
        logprobs=logprobs,
        truncation=truncation,
        speculative=speculative,
        model=model,
        seed=seed,
        cancel=cancel,
        timeout_s=timeout_s,
    )
