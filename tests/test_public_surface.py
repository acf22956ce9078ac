"""The public surface, pinned: a change of a name or a signature is made here too, on purpose."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest

import izwi_lab

NAMES = [
    *("__version__", "load", "speak", "transcribe", "chat", "default_engine", "devices", "InferenceEngine"),
    *("LaneOptions", "QueueLimits", "SpeechRequest", "TranscriptionRequest", "ChatRequest", "quantize"),
    *("Audio", "Voice"),
    *(
        "Prompt",
        "Sampling",
        "CancelToken",
        "Transcript",
        "Segment",
        "Word",
        "Speech",
        "AudioChunk",
        "TextDelta",
        "ChatReply",
    ),
    *("TokenLogprob", "ToolCall", "Usage", "PromptLookup", "DraftModel", "Timing", "IzwiError"),
    *("catalog", "errors", "bench", "lab"),
]

CATALOG_NAMES = [
    *("Capabilities", "Family", "FileSpec", "Fit", "Layout", "ModelVariant", "Package", "Row", "StarterFile"),
    *("StarterPack", "Task", "capabilities", "config", "config_source", "default", "family_backends", "fit", "get"),
    *("has_config", "parse_chat_model_variant", "parse_model_variant", "parse_tts_model_variant"),
    *("resolve_asr_model_variant", "table", "variants"),
]

LAB_NAMES = [
    *("AttentionPatterns", "LensToken", "LogitLens", "attention", "block_map", "cache_table", "logit_lens"),
    *("metrics_table", "prefix_tree", "timeline", "tiny_tts"),
]

# "module:name" -> parameters with their defaults; "*" starts the keyword-only ones
SIGNATURES = {
    "izwi_lab.runtime.api:load": (
        "model, *, backend='auto', device=None, dtype=None, load_format='auto', download=True, progress=None"
    ),
    "izwi_lab.runtime.api:speak": (
        "text, *, voice=None, language=None, speed=1.0, instruct=None, reference=None, transcript=None, "
        "text_mode=None, sampling=None, predictor=None, max_frames=None, model=None, seed=None, cancel=None, "
        "timeout_s=None"
    ),
    "izwi_lab.runtime.api:transcribe": (
        "audio, *, language=None, task='transcribe', prompt=None, word_times=False, temperature=0.0, model=None, "
        "seed=None, cancel=None, timeout_s=None"
    ),
    "izwi_lab.runtime.api:chat": (
        "messages, *, sampling=None, max_tokens=512, stop=(), thinking=None, tools=(), tool_choice='auto', "
        "response_format=None, logprobs=None, truncation='error', speculative=None, model=None, seed=None, "
        "cancel=None, timeout_s=None"
    ),
    "izwi_lab.runtime.api:default_engine": "",
    **{
        f"izwi_lab.runtime.service:InferenceEngine.{verb}": (
            "self, messages, *, model=None, sampling=None, max_tokens=512, stop=(), seed=None, thinking=None, "
            "tools=(), tool_choice='auto', response_format=None, logprobs=None, truncation='error', speculative=None, "
            "backend=None, device=None, dtype=None, cancel=None, timeout_s=None, download=True, progress=None"
        )
        for verb in ("chat", "stream_chat")
    },
    **{
        f"izwi_lab.runtime.service:InferenceEngine.{verb}": (
            "self, text, *, model=None, voice=None, language=None, speed=1.0, instruct=None, reference=None, "
            "transcript=None, text_mode=None, sampling=None, predictor=None, max_frames=None, seed=None, "
            "backend=None, device=None, dtype=None, cancel=None, timeout_s=None, download=True, progress=None"
        )
        for verb in ("speak", "stream_speak")
    },
    "izwi_lab.runtime.service:InferenceEngine.voice": (
        "self, audio, transcript=None, *, model, name='reference', language='', backend=None, device=None, "
        "dtype=None, cancel=None, timeout_s=None, download=True, progress=None"
    ),
    **{
        f"izwi_lab.families.shared.text_model:TextModel.{verb}": (
            "self, prompt, *, sampling=None, max_tokens=512, stop=(), seed=None, thinking=None, tools=(), "
            "tool_choice='auto', response_format=None, logprobs=None, truncation='error', speculative=None, "
            "session=None, cache=None, cancel=None"
        )
        for verb in ("generate", "stream")
    },
    "izwi_lab.families.shared.text_model:TextModel.tokenize": (
        "self, messages, *, template=True, tools=(), thinking=None"
    ),
    "izwi_lab.families.qwen3_tts.voice:Voice": (
        "name, embedding, codes=None, transcript='', language='', source='', notes=()"
    ),
    "izwi_lab.families.qwen3_tts.voice:Voice.save": "self, path",
    "izwi_lab.families.qwen3_tts.voice:Voice.load": "path",
    "izwi_lab.families.qwen3_tts.voice:Voice.saved": "folder",
    "izwi_lab.families.qwen3_tts.voice:Voice.vector_only": "self",
    "izwi_lab.families.shared.quantise:quantize": "model, *, bits=4, group_size=64",
    "izwi_lab.lab:timeline": "*explanations, requests=None",
    "izwi_lab.lab:block_map": "explanation",
    "izwi_lab.lab:prefix_tree": "explanation, model=None",
    "izwi_lab.lab:metrics_table": "metrics, *, model=None",
    "izwi_lab.backends.detect:devices": "",
    "izwi_lab.backends.detect:survey": "",
    "izwi_lab.backends:open_backend": "plan",
    "izwi_lab.backends.router:BackendRouter.select": (
        "self, variant, *, backend=None, device=None, dtype=None, context=None"
    ),
    "izwi_lab.settings:load": "environment=None",
    "izwi_lab.catalog:get": "name",
    "izwi_lab.catalog:parse_model_variant": "name",
    "izwi_lab.catalog:parse_tts_model_variant": "name=None",
    "izwi_lab.catalog:parse_chat_model_variant": "name=None",
    "izwi_lab.catalog:resolve_asr_model_variant": "name=None",
    "izwi_lab.catalog:variants": "task=None, family=None, include_disabled=False",
    "izwi_lab.catalog:default": "task",
    "izwi_lab.catalog:config": "variant",
    "izwi_lab.catalog:capabilities": "variant",
    "izwi_lab.catalog:table": "task=None, *, include_disabled=True",
    "izwi_lab.catalog:fit": "device, variant, *, context=None, dtype='bfloat16', layout=None, sequences=1",
}


def test_the_names_of_the_package():
    assert izwi_lab.__all__ == NAMES
    assert dir(izwi_lab) == sorted(NAMES)


def test_the_names_of_the_catalog():
    assert izwi_lab.catalog.__all__ == CATALOG_NAMES


def test_the_names_of_the_lab():
    assert izwi_lab.lab.__all__ == LAB_NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_loads_and_is_the_one_of_its_home(name):
    value = getattr(izwi_lab, name)
    if home := izwi_lab._HOME.get(name):
        assert value is getattr(importlib.import_module(home), name)
        assert inspect.getdoc(value), "everything a user calls has a docstring"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sing'"):
        izwi_lab.sing  # noqa: B018


def test_the_stub_has_the_lazy_names_from_their_homes():
    stub = ast.parse(Path(izwi_lab.__file__).with_suffix(".pyi").read_text("utf-8"))
    homes, others = {}, set()
    for node in stub.body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                assert alias.asname == alias.name, "a stub re-exports with `as`"
                homes[alias.name] = node.module
        elif isinstance(node, ast.AnnAssign):
            others.add(node.target.id)
    modules = {name: "izwi_lab" for name in izwi_lab._MODULES}
    assert homes == izwi_lab._HOME | modules
    assert others == {"__version__", "__all__"}


@pytest.mark.parametrize("where", SIGNATURES)
def test_a_signature_is_the_pinned_one(where):
    module, _, path = where.partition(":")
    found = importlib.import_module(module)
    for step in path.split("."):
        found = getattr(found, step)
    bare = inspect.signature(found)
    bare = bare.replace(
        parameters=[p.replace(annotation=inspect.Parameter.empty) for p in bare.parameters.values()],
        return_annotation=inspect.Signature.empty,
    )
    assert str(bare) == f"({SIGNATURES[where]})"
    assert not any(p.kind is p.VAR_KEYWORD for p in bare.parameters.values())
    annotated = inspect.signature(found).parameters.values()
    assert all(p.annotation is not p.empty for p in annotated if p.name != "self")
