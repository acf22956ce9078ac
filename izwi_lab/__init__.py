"""izwi_lab: a research workbench for local speech and chat models, on torch and MLX.

>>> import izwi_lab as izwi
>>> model = izwi.load("SmolLM2-135M-Instruct")    # doctest: +SKIP

Importing this package imports nothing outside the standard library; names load what they need when first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "load": "izwi_lab.runtime.api",
    "speak": "izwi_lab.runtime.api",
    "transcribe": "izwi_lab.runtime.api",
    "chat": "izwi_lab.runtime.api",
    "default_engine": "izwi_lab.runtime.api",
    "devices": "izwi_lab.backends.detect",
    "InferenceEngine": "izwi_lab.runtime.service",
    "LaneOptions": "izwi_lab.engine.lane",
    "QueueLimits": "izwi_lab.engine.admission",
    "SpeechRequest": "izwi_lab.runtime.types",
    "TranscriptionRequest": "izwi_lab.runtime.types",
    "ChatRequest": "izwi_lab.runtime.types",
    "quantize": "izwi_lab.families.shared.quantise",
    "Audio": "izwi_lab.audio",
    "Voice": "izwi_lab.families.qwen3_tts.voice",
    "Prompt": "izwi_lab.families.shared.steps",
    "Sampling": "izwi_lab.families.shared.sampling",
    "CancelToken": "izwi_lab.cancel",
    "Transcript": "izwi_lab.results",
    "Segment": "izwi_lab.results",
    "Word": "izwi_lab.results",
    "Speech": "izwi_lab.results",
    "AudioChunk": "izwi_lab.results",
    "TextDelta": "izwi_lab.results",
    "ChatReply": "izwi_lab.results",
    "TokenLogprob": "izwi_lab.results",
    "ToolCall": "izwi_lab.results",
    "Usage": "izwi_lab.results",
    "PromptLookup": "izwi_lab.families.shared.speculative",
    "DraftModel": "izwi_lab.families.shared.speculative",
    "Timing": "izwi_lab.results",
    "IzwiError": "izwi_lab.errors",
}
_MODULES = ("catalog", "errors", "bench", "lab")

__all__ = ["__version__", *_HOME, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"izwi_lab.{name}")
    else:
        raise AttributeError(f"module 'izwi_lab' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
